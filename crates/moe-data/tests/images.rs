//! Image sets: every layout, what each kind of broken file says, and batches.

mod common;

use std::fs;
use std::io::Cursor;

use common::gzip;
use image::{ImageError, ImageFormat, Rgb, RgbImage};
use moe_data::{Augment, DataError, ImageSize, Images, RandAugment, Split};
use proptest::prelude::*;
use tempfile::TempDir;

/// A directory with these files; folders in their names are made.
fn directory(files: &[(&str, Vec<u8>)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    directory
}

fn open(directory: &TempDir) -> Result<Images, DataError> {
    Images::open(directory.path().to_str().unwrap(), None)
}

/// The error's message with the directory written as `DIR`.
fn refusal(directory: &TempDir) -> String {
    let error = open(directory).unwrap_err();
    error.to_string().replace(directory.path().to_str().unwrap(), "DIR")
}

fn idx(axes: &[u32], values: &[u8]) -> Vec<u8> {
    let lengths = axes.iter().flat_map(|length| length.to_be_bytes());
    [0, 0, 8, axes.len() as u8].into_iter().chain(lengths).chain(values.iter().copied()).collect()
}

/// Twenty training and two test images of 2 x 3, labelled by turns 0 and 1.
fn mnist() -> Vec<(&'static str, Vec<u8>)> {
    let labels = |n: u8| (0..n).map(|i| i % 2).collect::<Vec<u8>>();
    let pixels = |n: u8| (0..n * 6).collect::<Vec<u8>>();
    vec![
        ("train-images-idx3-ubyte", idx(&[20, 2, 3], &pixels(20))),
        ("train-labels-idx1-ubyte", idx(&[20], &labels(20))),
        ("t10k-images-idx3-ubyte.gz", gzip(&idx(&[2, 2, 3], &pixels(2)))),
        ("t10k-labels-idx1-ubyte.gz", gzip(&idx(&[2], &labels(2)))),
    ]
}

/// The same with one file replaced.
fn mnist_but(name: &'static str, bytes: Vec<u8>) -> TempDir {
    let mut files = mnist();
    files.retain(|(other, _)| *other != name);
    files.push((name, bytes));
    directory(&files)
}

fn lengths(images: &Images) -> [usize; 3] {
    Split::ALL.map(|split| images.split(split).len())
}

#[test]
fn the_built_in_set_has_the_documented_size() {
    let images = Images::open("fashion-small", None).unwrap();
    assert_eq!(lengths(&images), [3600, 400, 1000]);
    assert_eq!(images.size(), ImageSize { channels: 1, height: 28, width: 28 });
    assert_eq!(images.classes().len(), 10);
    let test = images.split(Split::Test).labels();
    assert!((0..10).all(|class| test.iter().filter(|&&label| label == class).count() == 100));
    // Fashion-MNIST's known moments over all 60,000 images are 0.2860 and 0.3530.
    let (mean_c, std_c) = images.moments();
    assert!(
        (mean_c[0] - 0.286).abs() < 0.01 && (std_c[0] - 0.353).abs() < 0.01,
        "{mean_c:?} {std_c:?}"
    );
}

#[test]
fn idx_files_are_read_plain_and_compressed() {
    let images = open(&directory(&mnist())).unwrap();
    assert_eq!(lengths(&images), [18, 2, 2]);
    assert_eq!(images.size(), ImageSize { channels: 1, height: 2, width: 3 });
    // Images 18 and 19, the tenth of each class, are the validation split.
    assert_eq!(images.split(Split::Valid).pixels(0), [108, 109, 110, 111, 112, 113]);
    assert_eq!(images.split(Split::Train).pixels(9), [54, 55, 56, 57, 58, 59]);
    assert_eq!(images.split(Split::Test).labels(), [0, 1]);
}

#[test]
fn broken_idx_files_name_file_offset_and_expectation() {
    let name = "train-images-idx3-ubyte";
    let said = |bytes| refusal(&mnist_but(name, bytes));
    let file = format!("`DIR/{name}`, byte");
    assert_eq!(said(vec![0, 0]), format!("{file} 0: expected 4 bytes of IDX header, found 2"));
    assert_eq!(
        said(idx(&[20, 6], &[0; 120])),
        format!("{file} 0: expected [0, 0, 8, 3], an IDX file of images, found [0, 0, 8, 2]")
    );
    assert_eq!(
        said(idx(&[20, 2, 3], &[0; 119])),
        format!("{file} 16: expected 120 bytes of images, found 119")
    );
    assert_eq!(
        said(idx(&[20, 2, 3], &[0; 121])),
        format!("{file} 136: expected the end of the images, found 1 bytes")
    );
    // 2^96 values overflow nothing and fit no file.
    let huge = said(idx(&[u32::MAX, u32::MAX, u32::MAX], &[0; 5]));
    assert!(huge.starts_with(&format!("{file} 16: expected 18446744073709551615 bytes")), "{huge}");
    let none = said(idx(&[0, 2, 3], &[]));
    assert!(none.contains("20 labels; expected 0, as many as images in"), "{none}");
}

#[test]
fn splits_that_do_not_go_together_are_refused() {
    let other_size = mnist_but("t10k-images-idx3-ubyte.gz", gzip(&idx(&[2, 3, 2], &[0; 12])));
    let said = refusal(&other_size);
    assert!(
        said.contains("t10k-images") && said.contains("images of 1 x 3 x 2; expected 1 x 2 x 3"),
        "{said}"
    );
    let other_label = mnist_but("t10k-labels-idx1-ubyte.gz", gzip(&idx(&[2], &[0, 2])));
    let said = refusal(&other_label);
    assert!(said.ends_with("image 1 has label 2 of 2 classes"), "{said}");
    let mut files = mnist();
    files.remove(1);
    let said = refusal(&directory(&files));
    assert!(said.starts_with("DIR: expected `train-labels-idx1-ubyte` or"), "{said}");
}

#[test]
fn what_is_no_set_of_images_says_what_is() {
    let error = Images::open("fashion-smal", None).unwrap_err().to_string();
    assert!(error.contains("no built-in set has this name (built in: fashion-small)"), "{error}");
    let said = refusal(&directory(&[("readme.md", vec![1])]));
    assert!(said.starts_with("directory `DIR` holds no images in a known layout"), "{said}");
}

/// `count` CIFAR records with these labels before 3072 bytes of the record's number.
fn cifar(count: u8, labels: impl Fn(u8) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|i| labels(i).into_iter().chain(vec![i; 3072])).collect()
}

#[test]
fn cifar_files_are_read_with_one_and_two_labels() {
    let ten = |start: u8| cifar(4, move |i| vec![(start + i) % 10]);
    let names: Vec<String> = (1..=5).map(|n| format!("data_batch_{n}.bin")).collect();
    let mut files: Vec<(&str, Vec<u8>)> =
        names.iter().zip(0..).map(|(name, n)| (name.as_str(), ten(4 * n))).collect();
    files.push(("test_batch.bin", ten(0)));
    let images = open(&directory(&files)).unwrap();
    assert_eq!(lengths(&images), [18, 2, 4]);
    assert_eq!(images.split(Split::Train).labels()[..5], [0, 1, 2, 3, 4]);
    assert_eq!(images.split(Split::Train).pixels(5), [1; 3072]);

    let hundred = cifar(10, |i| vec![19, 90 + i]);
    let images =
        open(&directory(&[("train.bin", hundred.clone()), ("test.bin.gz", gzip(&hundred))]))
            .unwrap();
    assert_eq!(images.classes().len(), 100);
    assert_eq!(images.split(Split::Test).labels()[..2], [90, 91]);

    files[1].1[2 * 3073] = 10;
    let said = refusal(&directory(&files));
    assert_eq!(said, "`DIR/data_batch_2.bin`, byte 6146: label 10 is outside 0..10");
    files[1].1.truncate(3073 + 100);
    let said = refusal(&directory(&files));
    assert_eq!(
        said,
        "`DIR/data_batch_2.bin`, byte 3074: expected 3072 bytes of pixels of an image, found 99"
    );
}

/// A NumPy file with this shape.
fn npy(shape: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &length, header.as_bytes(), values].concat()
}

#[test]
fn bitmaps_are_read_a_class_a_file() {
    let bitmaps = |n: u8| (0..n).flat_map(|i| [i; 784]).collect::<Vec<u8>>();
    let files = [
        ("cat.npy.gz", gzip(&npy("(12, 1, 784)", &bitmaps(12)))),
        ("full_numpy_bitmap_apple.npy", npy("(12, 784)", &bitmaps(12))),
        ("eye.npy", npy("(12, 28, 28)", &bitmaps(12))),
    ];
    let images = open(&directory(&files)).unwrap();
    assert_eq!(images.classes(), ["apple", "cat", "eye"]);
    // Two of twelve are the test; of the thirty others, three are held out.
    assert_eq!(lengths(&images), [27, 3, 6]);
    assert_eq!(images.split(Split::Test).labels(), [0, 0, 1, 1, 2, 2]);
    assert_eq!(images.split(Split::Test).pixels(3), [11; 784]);

    for (shape, values, said) in [
        ("(12, 783)", 12 * 783, "expected the shape (n, 784)"),
        ("(99999999999999999999, 784)", 0, "expected the shape (n, 784)"),
        ("(12, 784)", 5, "expected 9408 bytes of values, found 5"),
    ] {
        let found = refusal(&directory(&[("a.npy", npy(shape, &vec![0; values]))]));
        assert!(found.starts_with("`DIR/a.npy`, byte") && found.contains(said), "{found}");
    }
    let twice = [("a.npy", vec![]), ("a.npy.gz", vec![])];
    assert_eq!(refusal(&directory(&twice)), "DIR: two files of class `a`; expected one");
    let floats = npy("(1, 784)", &[0; 784]);
    let floats = String::from_utf8_lossy(&floats).replace("|u1", "<f4").into_bytes();
    assert!(open(&directory(&[("a.npy", floats)])).is_err());
}

/// Two classes of the same twelve bitmaps: 784 times 0, 20, 40, and so on.
fn drawings() -> Images {
    let bitmaps: Vec<u8> = (0..12_u8).flat_map(|i| [20 * i; 784]).collect();
    let file = || npy("(12, 784)", &bitmaps);
    open(&directory(&[("a.npy", file()), ("b.npy", file())])).unwrap()
}

#[test]
fn a_share_of_the_training_images_is_the_first_of_every_class() {
    let all = drawings();
    // Ten of twelve a class are not the test; the tenth of each class is held out.
    assert_eq!(lengths(&all), [18, 2, 4]);
    let some = all.clone().with_train_share(0.5).unwrap();
    assert_eq!(lengths(&some), [8, 2, 4]);
    let train = some.split(Split::Train);
    assert_eq!(train.labels(), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!((train.pixels(3)[0], train.pixels(4)[0]), (60, 0));
    assert_ne!(some.moments(), all.moments());
    assert_eq!(lengths(&all.clone().with_train_share(0.01).unwrap()), [2, 2, 4]);
    for share in [0.0, -1.0, 1.1, f64::NAN] {
        let error = all.clone().with_train_share(share).unwrap_err().to_string();
        assert!(error.ends_with("of the training images; expected 0..=1"), "{error}");
    }
}

/// Training bitmaps are 0, 20, .., 160 of 255, their mean 80; the held-out one is 180, so that every one of
/// 784 values is off by 100/255. The test has 200 and 220: (120/255)^2 and (140/255)^2.
#[test]
fn the_error_of_the_mean_image_by_hand() {
    let images = drawings();
    let want = |off: f64| 784.0 * (off / 255.0).powi(2);
    let valid = images.mean_image_error(Split::Valid);
    assert!((valid - want(100.0)).abs() < 1e-9, "{valid}");
    let test = images.mean_image_error(Split::Test);
    assert!((test - (want(120.0) + want(140.0)) / 2.0).abs() < 1e-9, "{test}");
}

#[test]
fn batches_on_the_unit_interval_are_bytes_over_255() {
    let images = drawings().on_unit_interval();
    let batch = images.eval_batches(Split::Valid, 2).unwrap().next().unwrap();
    assert_eq!(batch.x_bchw.as_slice().unwrap(), [180.0 / 255.0; 2 * 784]);
}

fn picture(width: u32, height: u32, color: [u8; 3], format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(width, height, Rgb(color)).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Two training folders with ten pictures each.
fn training_folders() -> Vec<(String, Vec<u8>)> {
    let one = |class: &str, n: usize, color| {
        (format!("train/{class}/{n}.png"), picture(4, 4, color, ImageFormat::Png))
    };
    (0..10).flat_map(|n| [one("a", n, [10, 20, 30]), one("b", n, [200, 100, 0])]).collect()
}

fn folders(more: Vec<(&str, Vec<u8>)>) -> TempDir {
    let train = training_folders();
    let train = train.iter().map(|(name, bytes)| (name.as_str(), bytes.clone()));
    directory(&train.chain(more).collect::<Vec<_>>())
}

#[test]
fn folders_by_class_and_annotated_ones_are_read() {
    let jpeg = || picture(4, 4, [200, 100, 0], ImageFormat::Jpeg);
    let images = open(&folders(vec![("val/b/x.JPEG", jpeg())])).unwrap();
    assert_eq!(images.classes(), ["a", "b"]);
    assert_eq!(lengths(&images), [18, 2, 1]);
    assert_eq!(images.split(Split::Train).pixels(0)[14..18], [10, 10, 20, 20]);
    let near = |(got, want): (&u8, u8)| got.abs_diff(want) <= 3;
    let wanted = [[200; 16], [100; 16], [0; 16]].concat();
    assert!(images.split(Split::Test).pixels(0).iter().zip(wanted).all(near));

    let list = b"x.JPEG\tb\t0\t0\t4\t4\n".to_vec();
    let tiny = folders(vec![
        ("val/val_annotations.txt", list),
        ("val/images/x.JPEG", jpeg()),
        ("test/images/unlabelled.JPEG", jpeg()),
    ]);
    assert_eq!(open(&tiny).unwrap().split(Split::Test).labels(), [1]);

    let all = folders(vec![("val/a/x.png", jpeg()), ("test/b/x.png", jpeg())]);
    assert_eq!(lengths(&open(&all).unwrap()), [20, 1, 1]);
}

#[test]
fn folders_that_do_not_fit_say_what_was_expected() {
    let wide = picture(9, 4, [1, 2, 3], ImageFormat::Png);
    let odd = folders(vec![("val/a/x.png", wide)]);
    let said = refusal(&odd);
    assert!(said.contains("images of 3 x 4 x 9; expected 3 x 4 x 4"), "{said}");
    let images = Images::open(odd.path().to_str().unwrap(), Some(2)).unwrap();
    assert_eq!(images.size(), ImageSize { channels: 3, height: 2, width: 2 });
    assert_eq!(images.split(Split::Test).pixels(0), [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);

    let said = refusal(&folders(vec![]));
    assert!(said.starts_with("DIR: expected labelled pictures"), "{said}");
    let said = refusal(&folders(vec![("val/a/x.png", b"no picture".to_vec())]));
    assert_eq!(said, "cannot decode `DIR/val/a/x.png`: expected a whole PNG or JPEG picture");
    let said = refusal(&folders(vec![("val/val_annotations.txt", b"x.png\tc\n".to_vec())]));
    assert!(said.contains("line 1: expected a picture, a tab and a class of train"), "{said}");
}

/// A picture of which every row is an image of 2 x 2 whose red, green and blue are 1, 2 and 3.
fn rows(count: u32) -> Vec<u8> {
    picture(4, count, [1, 2, 3], ImageFormat::Png)
}

#[test]
fn pictures_of_rows_are_read_with_their_labels() {
    let names: Vec<String> = (1..=5).map(|n| format!("data_batch_{n}.png")).collect();
    let mut files: Vec<(&str, Vec<u8>)> = names.iter().map(|n| (n.as_str(), rows(4))).collect();
    files.push(("test_batch.png", rows(3)));
    files.push(("train_lables.json", b"[0,1,2,0,1,2,0,1,2,0,1,2,0,1,2,0,1,2,0,1]".to_vec()));
    files.push(("test_lables.json", b"[2,1,0]".to_vec()));
    let images = open(&directory(&files)).unwrap();
    assert_eq!(lengths(&images), [18, 2, 3]);
    assert_eq!(images.split(Split::Test).pixels(0), [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
    assert_eq!(images.split(Split::Test).labels(), [2, 1, 0]);

    files[7].1 = b"[2,1]".to_vec();
    let said = refusal(&directory(&files));
    assert!(said.starts_with("DIR/test_lables.json: 36 values and 2 labels"), "{said}");
    files[5].1 = picture(5, 3, [0; 3], ImageFormat::Png);
    let said = refusal(&directory(&files));
    assert!(said.contains("5 columns; expected a square number"), "{said}");
}

/// A PNG of a few bytes that announces 60,000 x 60,000 pixels.
#[test]
fn a_small_picture_that_swells_is_refused() {
    let mut bomb = picture(4, 4, [0; 3], ImageFormat::Png);
    bomb[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    // The checksum of the header chunk follows it.
    let sum = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&sum.to_be_bytes());
    let error = open(&folders(vec![("val/a/x.png", bomb)])).unwrap_err();
    // Refused for its size, before anything is allocated for it.
    let by_limit = |source: &ImageError| matches!(source, ImageError::Limits(_));
    assert!(matches!(&error, DataError::Picture { source, .. } if by_limit(source)), "{error:?}");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn batches_cover_a_split_and_standardise() {
    let images = open(&directory(&mnist())).unwrap();
    let batches: Vec<_> = images.eval_batches(Split::Train, 5).unwrap().collect();
    assert_eq!(batches.iter().map(|b| b.label_b.len()).collect::<Vec<_>>(), [5, 5, 5, 3]);
    let values: Vec<f32> = batches.iter().flat_map(|b| b.x_bchw.iter().copied()).collect();
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
    assert!(mean.abs() < 1e-4 && (square - 1.0).abs() < 1e-4, "{mean} {square}");
    assert_eq!(batches[0].target_bv.row(1).to_vec(), [0.0, 1.0]);
    // Nine images of each class, and one more of each for smoothing: a share of a half.
    assert!((images.label_nll(Split::Test) - 2f64.ln()).abs() < 1e-12);
    let error = images.train_batch((0, 0), usize::MAX, &Augment::default()).unwrap_err();
    assert!(error.to_string().contains("a batch of 18446744073709551615 images of 1 x 2 x 3"));
}

#[test]
fn training_batches_are_functions_of_seed_and_step() {
    let images = Images::open("fashion-small", None).unwrap();
    let augment = Augment {
        crop: 2,
        flip: true,
        randaugment: Some(RandAugment::default()),
        mixup: 0.5,
        label_smoothing: 0.1,
    };
    let batch = |seed, step| images.train_batch((seed, step), 16, &augment).unwrap();
    assert_eq!(batch(1, 500), batch(1, 500));
    assert_ne!(batch(1, 500).x_bchw, batch(1, 501).x_bchw);
    assert_ne!(batch(1, 500).x_bchw, batch(2, 500).x_bchw);
    let target_bv = batch(1, 500).target_bv;
    for row in target_bv.rows() {
        assert!(
            (row.sum() - 1.0).abs() < 1e-5 && row.iter().all(|&share| share >= 0.0099),
            "{row}"
        );
    }
    assert!(target_bv.rows().into_iter().any(|row| row.iter().filter(|&&s| s > 0.02).count() == 2));
}

/// An image is mixed with the one after it in the row of the epoch, in the shares of its target.
#[test]
fn mixtures_are_of_neighbours_in_the_row() {
    let images = Images::open("fashion-small", None).unwrap();
    let mixup = Augment { mixup: 1.0, ..Augment::default() };
    let (mixed, plain) = (
        images.train_batch((3, 9), 8, &mixup).unwrap(),
        images.train_batch((3, 9), 8, &Augment::default()).unwrap(),
    );
    let (one, next) = (
        plain.x_bchw.index_axis(ndarray::Axis(0), 2),
        plain.x_bchw.index_axis(ndarray::Axis(0), 3),
    );
    let share = mixed.target_bv[[2, plain.label_b[2] as usize]];
    assert_ne!(plain.label_b[2], plain.label_b[3]);
    let wanted = &one * share + &next * (1.0 - share);
    let off = (&wanted - &mixed.x_bchw.index_axis(ndarray::Axis(0), 2)).mapv(f32::abs);
    assert!(off.iter().all(|&off| off < 1e-5));
}

/// Opens a directory of which one file has some bytes changed or is cut; it may only refuse.
fn survives(files: &[(&str, Vec<u8>)], which: usize, changes: &[(usize, u8)], cut: Option<usize>) {
    let mut files = files.to_vec();
    let bytes = &mut files[which].1;
    for &(at, value) in changes {
        let at = at % bytes.len();
        bytes[at] = value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut % (bytes.len() + 1));
    }
    if let Ok(images) = open(&directory(&files)) {
        assert!(images.train_batch((0, 0), 2, &Augment::default()).is_ok());
    }
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((prop_oneof![0..40_usize, any::<usize>()], any::<u8>()), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_idx_files_never_panic(which in 0..4_usize, changes in changes(), cut: Option<usize>) {
        survives(&mnist(), which, &changes, cut);
    }

    #[test]
    fn damaged_bitmaps_never_panic(changes in changes(), cut: Option<usize>) {
        survives(&[("a.npy", npy("(12, 784)", &[7; 12 * 784]))], 0, &changes, cut);
    }

    #[test]
    fn damaged_cifar_files_never_panic(changes in changes(), cut: Option<usize>) {
        let file = cifar(12, |i| vec![0, i]);
        survives(&[("train.bin", file.clone()), ("test.bin", file)], 0, &changes, cut);
    }

    #[test]
    fn damaged_pictures_never_panic(jpeg: bool, changes in changes(), cut: Option<usize>) {
        let format = if jpeg { ImageFormat::Jpeg } else { ImageFormat::Png };
        let train = training_folders();
        let mut files: Vec<_> = train.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        files.push(("val/a/x.png", picture(4, 4, [9, 8, 7], format)));
        survives(&files, files.len() - 1, &changes, cut);
    }
}
