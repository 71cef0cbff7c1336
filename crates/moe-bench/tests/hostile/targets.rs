//! The readers.

use crate::{Target, attack};
use flate2::Compression;
use flate2::write::GzEncoder;
use moe_bench::data::{Set, Source, Takes, unpack};
use moe_bench::estimate::{Ends, estimate};
use moe_bench::inspect;
use moe_bench::recipe::Recipe;
use moe_conform::Case;
use moe_core::routing_log::LogOptions;
use moe_data::{Corpus, LabelledTexts, TableSpec, TokenStream, Tokenizer, TokenizerSpec};
use std::fs;
use std::io::Write;
use std::path::PathBuf;

#[test]
fn recipe() {
    let valid = include_bytes!("../../../../recipes/quick.toml").to_vec();
    attack(&Target { name: "recipe", valid, read: read_recipe }, bolero::check!());
}

/// Everything short of building the model.
fn read_recipe(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Ok(recipe) = Recipe::parse(&text, &[]).and_then(|recipe| recipe.resolved()) else {
        return false;
    };
    let taken = estimate(&recipe, Ends::Text(256), 0).is_ok();
    // What was resolved is read back as the same recipe.
    let again = Recipe::parse(&recipe.to_toml(), &[]).and_then(|recipe| recipe.resolved());
    assert_eq!(again.map_err(|e| e.to_string()), Ok(recipe));
    taken
}

#[test]
fn conformance() {
    let valid =
        br#"{"id": "a", "op": "top_k", "config": {"k": 1}, "tensors": {"x": [[1, 2.5], [3, -4e2]]},
        "expect": {"mask": [[1, 0], [0, 1]], "objective": "nan"}, "rtol": 1e-9}"#;
    attack(
        &Target { name: "conformance", valid: valid.to_vec(), read: read_case },
        bolero::check!(),
    );
}

fn read_case(bytes: &[u8]) -> bool {
    Case::parse(&String::from_utf8_lossy(bytes)).is_ok()
}

#[test]
fn table() {
    let valid = b"text,category\n\"a,\nb \"\"c\"\"\",card\nd,age\n".to_vec();
    attack(&Target { name: "table", valid, read: read_table }, bolero::check!());
}

fn read_table(bytes: &[u8]) -> bool {
    let mut taken = false;
    for (header, separator) in [(true, b','), (false, b','), (true, b'\t')] {
        let names = if header { ["text", "category"] } else { ["1", "2"] };
        let [text, label] = names.map(str::to_owned);
        let spec = TableSpec { text, label, header, separator };
        if let Ok(read) = LabelledTexts::parse_table(bytes, &spec, "t") {
            assert_eq!(read.texts.len(), read.class.len());
            assert!(read.class.iter().all(|class| (*class as usize) < read.classes.len()));
            taken = true;
        }
    }
    taken
}

#[test]
fn lines() {
    let valid = b"0 one long string of cliches .\n4 cr\xe8me br\xfbl\xe9e\n".to_vec();
    attack(&Target { name: "lines", valid, read: read_lines }, bolero::check!());
}

fn read_lines(bytes: &[u8]) -> bool {
    LabelledTexts::parse_lines(bytes, "l").is_ok()
}

/// A file for a reader that wants a path, gone with the value.
fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn bpe() {
    // The 256 letters of GPT-2 stand in code points of their own; `h` and `e` are merged.
    let letters = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff).map(char::from);
    let rest = (0x100u32..).filter_map(char::from_u32);
    let letters: Vec<String> = letters.chain(rest).take(256).map(String::from).collect();
    let tokens = letters.into_iter().chain(["he".to_owned()]).zip(0u32..);
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.map(|(token, id)| (token, id.into())).collect();
    let valid = serde_json::to_vec(&vocab).unwrap();
    let (dir, path) = file("vocab.json", &valid);
    let merges = dir.path().join("merges.txt");
    fs::write(&merges, "#version: 0.2\nh e\n").unwrap();
    let spec = TokenizerSpec::BpeFiles { vocab: path, merges };
    assert_eq!(Tokenizer::new(&spec, b"").unwrap().encode(b"hen").unwrap().len(), 2);
    attack(&Target { name: "bpe", valid, read: read_bpe }, bolero::check!());
}

/// As a vocabulary, and as merges of the built-in one's form.
fn read_bpe(bytes: &[u8]) -> bool {
    let mut taken = false;
    let (dir, vocab) = file("vocab.json", bytes);
    let merges = dir.path().join("merges.txt");
    for text in [&b"h e\n"[..], bytes] {
        fs::write(&merges, text).unwrap();
        let spec = TokenizerSpec::BpeFiles { vocab: vocab.clone(), merges: merges.clone() };
        if let Ok(tokenizer) = Tokenizer::new(&spec, b"") {
            let ids = tokenizer.encode("hé the hen\n".as_bytes()).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), "hé the hen\n".as_bytes());
            taken = true;
        }
    }
    taken
}

#[test]
fn text() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all("a line of text with words\n".repeat(20).as_bytes()).unwrap();
    attack(
        &Target { name: "text", valid: gzip.finish().unwrap(), read: read_text },
        bolero::check!(),
    );
}

/// As a gzip file and as a plain one, by bytes and by words.
fn read_text(bytes: &[u8]) -> bool {
    let mut taken = false;
    for name in ["text.gz", "text.txt", "enwik8"] {
        let (_dir, path) = file(name, bytes);
        let Ok(corpus) = Corpus::open(path.to_str().unwrap()) else { continue };
        for spec in [TokenizerSpec::Byte, TokenizerSpec::WORD] {
            if let Ok(stream) = TokenStream::new(&corpus, &spec) {
                taken |= stream.train_batch(0, 0, 2, 8).is_ok();
            }
        }
    }
    taken
}

const SET: Set = Set {
    name: "hostile",
    about: "",
    licence: "",
    source: Source::Npm { package: "hostile@1" },
    takes: Takes::Tree("package"),
    most_bytes: 1 << 20,
};

#[test]
fn tar() {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in [("package/a.txt", &b"abc"[..]), ("package/b/c.txt", &[7; 600])] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        archive.append_data(&mut header, path, bytes).unwrap();
    }
    let valid = archive.into_inner().unwrap();
    attack(&Target { name: "tar", valid, read: read_tar }, bolero::check!());
}

/// Whatever the archive says, nothing appears beside the directory, and no more than the set may have.
fn read_tar(bytes: &[u8]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("a/b");
    fs::create_dir_all(&into).unwrap();
    let taken = unpack(bytes, &SET, &into).is_ok();
    let names = |dir: PathBuf| fs::read_dir(dir).unwrap().count();
    assert_eq!((names(dir.path().to_owned()), names(dir.path().join("a"))), (1, 1));
    taken
}

#[test]
fn routing_log() {
    let valid = b"{\"format\": \"moe.routing-log/1\", \"num_experts\": 4}\n{\"step\": 0, \"layer\": 1, \"token\": 3, \"experts\": [0, 2], \"weights\": [0.5, 0.25]}\n";
    let target = Target { name: "routing-log", valid: valid.to_vec(), read: read_routing_log };
    attack(&target, bolero::check!());
}

fn read_routing_log(bytes: &[u8]) -> bool {
    let mut taken = false;
    for label_input in [false, true] {
        if let Ok(report) = inspect::read(bytes, "log", LogOptions::default(), label_input) {
            let _ = (inspect::table(&report), inspect::html("log", &report));
            taken = true;
        }
    }
    taken
}
