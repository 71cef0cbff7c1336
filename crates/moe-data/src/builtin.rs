//! The data compiled into the crate. `assets/README.md` states sources, versions and licences.

use crate::corpus::Text;
use crate::error::DataError;
use crate::image::{Parts, numbered, read_idx_pair};
use crate::read::gunzip;
use crate::split::{BySplit, Split};

/// The names that [`Corpus::open`](crate::Corpus::open) knows without a file.
///
/// `sotu`: the US State of the Union addresses 1790-2021, split by address (195 train, 19 valid,
/// 19 test; 8.9, 0.86 and 0.98 MB; 1,489,436, 145,338 and 161,604 words).
pub const BUILTIN_CORPORA: &[&str] = &["sotu"];

/// The names that [`Images::open`](crate::Images::open) knows without a directory.
///
/// `fashion-small`: of Fashion-MNIST, the first 400 training and 100 test images of each of its 10
/// classes, 28 x 28; a tenth of the training images is the validation split.
pub const BUILTIN_IMAGES: &[&str] = &["fashion-small"];

/// The names that [`Languages::open`](crate::Languages::open) knows without a file.
///
/// `help8`: 3,000 paragraphs of LibreOffice's help, each in English, German, French, Spanish, Russian, Chinese,
/// Turkish and Greek; `udhr16`: the 60 of the Universal Declaration of Human Rights in 16 languages.
pub const BUILTIN_LANGUAGES: &[&str] = &["help8", "udhr16"];

/// GPT-2's token-to-id table, JSON in gzip.
pub(crate) const GPT2_VOCAB_GZ: &[u8] = include_bytes!("../assets/gpt2-encoder.json.gz");
/// GPT-2's merges, one a line in order of rank, in gzip.
pub(crate) const GPT2_MERGES_GZ: &[u8] = include_bytes!("../assets/gpt2-vocab.bpe.gz");

/// The texts of a built-in corpus; `None` if the name is not in [`BUILTIN_CORPORA`].
pub(crate) fn read(name: &str) -> Option<Result<BySplit<Text>, DataError>> {
    (name == "sotu").then(|| BySplit::try_from_fn(read_sotu))
}

fn read_sotu(split: Split) -> Result<Text, DataError> {
    let compressed: &[u8] = match split {
        Split::Train => include_bytes!("../assets/sotu.train.txt.gz"),
        Split::Valid => include_bytes!("../assets/sotu.valid.txt.gz"),
        Split::Test => include_bytes!("../assets/sotu.test.txt.gz"),
    };
    let place = format!("the built-in sotu.{split}.txt.gz");
    let bytes = gunzip(compressed, &place)?;
    Text::new(place, bytes)
}

/// The table of a built-in set of languages; `None` if the name is not in [`BUILTIN_LANGUAGES`].
pub(crate) fn read_languages(name: &str) -> Option<Result<Vec<u8>, DataError>> {
    let compressed: &[u8] = match name {
        "help8" => include_bytes!("../assets/help8.tsv.gz"),
        "udhr16" => include_bytes!("../assets/udhr16.tsv.gz"),
        _ => return None,
    };
    Some(gunzip(compressed, name))
}

/// The images of a built-in set; `None` if the name is not in [`BUILTIN_IMAGES`].
pub(crate) fn read_images(name: &str) -> Option<Result<Parts, DataError>> {
    (name == "fashion-small").then(read_fashion)
}

fn read_fashion() -> Result<Parts, DataError> {
    let train = read_idx_pair(
        (
            "the built-in train images",
            include_bytes!("../assets/fashion-train-images-idx3-ubyte.gz"),
        ),
        (
            "the built-in train labels",
            include_bytes!("../assets/fashion-train-labels-idx1-ubyte.gz"),
        ),
    )?;
    let test = read_idx_pair(
        ("the built-in test images", include_bytes!("../assets/fashion-t10k-images-idx3-ubyte.gz")),
        ("the built-in test labels", include_bytes!("../assets/fashion-t10k-labels-idx1-ubyte.gz")),
    )?;
    Ok(Parts { train, valid: None, test, classes: numbered(10) })
}
