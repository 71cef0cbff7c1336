//! The readers of images, one target a format: the hostile file takes the place of one file of a set that
//! is fine otherwise.

use crate::{Target, attack};
use image::{ImageFormat, Rgb, RgbImage};
use moe_data::{Images, Split};
use std::fs;
use std::io::Cursor;
use std::path::Path;

/// Sides of the images of these sets, at most; what is read may not be larger than its file allows.
const SIDE: u32 = 4;

/// A set's other files.
type Files = Vec<(&'static str, Vec<u8>)>;

/// Reads the set of `files` with `bytes` under each of `names`, and looks at every pixel of what is taken;
/// returns whether any was.
fn read_set(files: &Files, names: &[&str], bytes: &[u8]) -> bool {
    let mut taken = false;
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        for (other, fine) in files {
            write(&dir.path().join(other), fine);
        }
        write(&dir.path().join(name), bytes);
        for side in [None, Some(SIDE)] {
            let Ok(images) = Images::open(dir.path().to_str().unwrap(), side) else { continue };
            taken = true;
            for set in Split::ALL.map(|split| images.split(split)) {
                let values = set.size().values();
                assert!((0..set.len()).all(|index| set.pixels(index).len() == values));
                assert!(
                    set.labels().iter().all(|label| (*label as usize) < images.classes().len())
                );
            }
        }
    }
    taken
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn idx(axes: &[u32], values: usize) -> Vec<u8> {
    let lengths = axes.iter().flat_map(|length| length.to_be_bytes());
    let values = (0..values).map(|value| (value % 2) as u8);
    [0, 0, 8, axes.len() as u8].into_iter().chain(lengths).chain(values).collect()
}

fn idx_set() -> Files {
    vec![
        ("train-images-idx3-ubyte", idx(&[20, 2, 3], 120)),
        ("train-labels-idx1-ubyte", idx(&[20], 20)),
        ("t10k-images-idx3-ubyte", idx(&[2, 2, 3], 12)),
        ("t10k-labels-idx1-ubyte", idx(&[2], 2)),
    ]
}

#[test]
fn idx_files() {
    let read = |bytes: &[u8]| {
        let names =
            ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte"];
        read_set(&idx_set(), &names, bytes)
    };
    attack(&Target { name: "idx", valid: idx(&[20, 2, 3], 120), read }, bolero::check!());
}

/// A class of QuickDraw bitmaps, with the header of numpy's own files.
fn npy(count: usize) -> Vec<u8> {
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 784), }}");
    let padded = format!("{header:<117}\n");
    let length = (padded.len() as u16).to_le_bytes();
    let values = (0..count * 784).map(|value| (value % 251) as u8);
    let head = b"\x93NUMPY\x01\x00".iter().copied().chain(length);
    head.chain(padded.into_bytes()).chain(values).collect()
}

#[test]
fn npy_files() {
    let read = |bytes: &[u8]| read_set(&vec![("cat.npy", npy(12))], &["eye.npy"], bytes);
    attack(&Target { name: "npy", valid: npy(12), read }, bolero::check!());
}

fn encoded(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 7]));
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// CIFAR-10 as sheets with an image a row, with the names of the published package.
fn sheets() -> Files {
    let sheet = |rows| encoded(1024, rows, ImageFormat::Png);
    let labels = |rows: usize| {
        let labels: Vec<_> = (0..rows).map(|row| (row % 2).to_string()).collect();
        format!("[{}]", labels.join(",")).into_bytes()
    };
    vec![
        ("data_batch_1.png", sheet(4)),
        ("data_batch_2.png", sheet(4)),
        ("data_batch_3.png", sheet(4)),
        ("data_batch_4.png", sheet(4)),
        ("data_batch_5.png", sheet(4)),
        ("test_batch.png", sheet(2)),
        ("train_lables.json", labels(20)),
        ("test_lables.json", labels(2)),
    ]
}

#[test]
fn png_sheets() {
    let read = |bytes: &[u8]| read_set(&sheets(), &["test_batch.png", "test_lables.json"], bytes);
    let valid = encoded(1024, 2, ImageFormat::Png);
    attack(&Target { name: "png", valid, read }, bolero::check!());
}

/// CIFAR's own files: a label and 3,072 values a record.
fn records(count: usize) -> Vec<u8> {
    (0..count * 3073).map(|at| (at % 10) as u8).collect()
}

#[test]
fn cifar_files() {
    let read = |bytes: &[u8]| {
        let batches = [
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ];
        let mut files: Files = batches.map(|name| (name, records(4))).to_vec();
        files.push(("test_batch.bin", records(1)));
        read_set(&files, &["test_batch.bin", "data_batch_3.bin"], bytes)
    };
    attack(&Target { name: "cifar", valid: records(1), read }, bolero::check!());
}

/// Pictures in folders of their classes.
#[test]
fn picture_files() {
    let read = |bytes: &[u8]| {
        let fine = || encoded(SIDE, SIDE, ImageFormat::Png);
        let mut files: Files = vec![("test/a/0.png", fine()), ("test/b/0.png", fine())];
        files.extend([("val/a/0.png", fine()), ("val/b/0.png", fine())]);
        files.extend([("train/a/0.png", fine()), ("train/b/0.png", fine())]);
        read_set(&files, &["train/b/2.png", "train/b/2.jpeg"], bytes)
    };
    let valid = encoded(SIDE, SIDE, ImageFormat::Jpeg);
    attack(&Target { name: "picture", valid, read }, bolero::check!());
}
