//! Published sets of damaged images: CIFAR-10-C's arrays, ImageNet-C's folders.

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use moe_data::corrupt::ImageCorruption;
use moe_data::corrupt::published::{read, read_folder, read_unknown};
use moe_data::{ImageSize, Images, Split};

fn npy(shape: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), values].concat()
}

fn picture(path: &Path, value: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(4, 4, Rgb([value, 0, 0])).save(path).unwrap();
}

/// Training images of two classes in folders.
fn folders(directory: &Path) -> Images {
    for split in ["train", "val"] {
        for (class, value) in [("n01", 10), ("n02", 20)] {
            for copy in 0..10 {
                picture(&directory.join(split).join(class).join(format!("{copy}.png")), value);
            }
        }
    }
    Images::open(directory.to_str().unwrap(), None).unwrap()
}

/// Five severities of two images; image i of severity s is `10 s + i` everywhere in red.
#[test]
fn severities_follow_each_other_in_an_array() {
    let directory = tempfile::tempdir().unwrap();
    let like = folders(&directory.path().join("set"));
    let at = directory.path().join("c");
    fs::create_dir_all(&at).unwrap();
    let image = |value: u8| (0..1024).flat_map(move |_| [value, 1, 2]);
    let values: Vec<u8> = (0..10).flat_map(|n: u8| image(10 * (n / 2 + 1) + n % 2)).collect();
    fs::write(at.join("fog.npy"), npy("(10, 32, 32, 3)", &values)).unwrap();
    fs::write(at.join("labels.npy"), npy("(10,)", &[0, 1].repeat(5))).unwrap();
    let fog = |severity| read(&at, &like, (ImageCorruption::Fog, severity));
    let third = fog(3).unwrap().unwrap();
    assert_eq!((third.len(), third.labels()), (2, &[0, 1][..]));
    assert_eq!(third.size(), ImageSize { channels: 3, height: 32, width: 32 });
    let (first, second) = (third.pixels(0), third.pixels(1));
    assert!(first[..1024].iter().all(|v| *v == 30) && second[..1024].iter().all(|v| *v == 31));
    assert!(first[1024..2048].iter().all(|v| *v == 1) && first[2048..].iter().all(|v| *v == 2));
    assert!(read(&at, &like, (ImageCorruption::Snow, 3)).unwrap().is_none());
    assert!(fog(6).unwrap_err().to_string().contains("severity 6 is outside 1..=5"));
    fs::write(at.join("labels.npy"), npy("(9,)", &[0; 9])).unwrap();
    assert!(fog(3).unwrap_err().to_string().contains("10 images and 9 labels"));
    fs::write(at.join("fog.npy"), npy("(10, 28, 28, 3)", &values)).unwrap();
    assert!(fog(3).unwrap_err().to_string().contains("expected the shape (n, 32, 32, 3)"));
}

#[test]
fn folders_are_labelled_by_the_classes_of_the_training_set() {
    let directory = tempfile::tempdir().unwrap();
    let like = folders(&directory.path().join("set"));
    let severe = directory.path().join("c/weather/fog/5");
    picture(&severe.join("n02/a.png"), 99);
    let fog = read(&directory.path().join("c"), &like, (ImageCorruption::Fog, 5)).unwrap().unwrap();
    // The second class alone is there, and it keeps its number.
    assert_eq!((fog.labels(), fog.pixels(0)[0]), (&[1][..], 99));
    let damaged = like.with_split(Split::Test, fog).unwrap();
    assert_eq!(
        (damaged.split(Split::Test).len(), damaged.split(Split::Valid).len()),
        (1, like.split(Split::Valid).len())
    );
    assert_eq!(damaged.moments(), like.moments());
    assert!(read(&directory.path().join("c"), &like, (ImageCorruption::Fog, 4)).unwrap().is_none());
    picture(&severe.join("n99/a.png"), 1);
    let error = read_folder(&severe, &like).unwrap_err().to_string();
    assert!(error.contains("folder `n99` is no class of the training images"), "{error}");
}

#[test]
fn pictures_of_no_class_lie_in_folders_of_any_name_or_in_none() {
    let directory = tempfile::tempdir().unwrap();
    let like = folders(&directory.path().join("set"));
    let at = directory.path().join("o");
    fs::create_dir_all(&at).unwrap();
    let error = read_unknown(&at, &like).unwrap_err().to_string();
    assert!(error.contains("expected PNG or JPEG pictures, or folders of them"), "{error}");
    for (name, value) in [("a.png", 5), ("n02/b.png", 6), ("other/c.png", 7)] {
        picture(&at.join(name), value);
    }
    let set = read_unknown(&at, &like).unwrap();
    let first = (0..3).map(|n| set.pixels(n)[0]).collect::<Vec<_>>();
    assert_eq!((set.labels(), first), (&[0, 0, 0][..], vec![5, 6, 7]));
    assert!(read_unknown(&directory.path().join("none"), &like).is_err());
}

/// Grey pictures as they are, colours by their brightness; both at the side of the training images.
#[test]
fn pictures_for_grey_training_images_become_grey() {
    let directory = tempfile::tempdir().unwrap();
    let like = Images::open("fashion-small", None).unwrap();
    let at = directory.path().join(&like.classes()[3]);
    fs::create_dir_all(&at).unwrap();
    image::GrayImage::from_pixel(28, 28, image::Luma([77])).save(at.join("a.png")).unwrap();
    image::RgbImage::from_pixel(40, 56, image::Rgb([9, 9, 9])).save(at.join("b.png")).unwrap();
    let set = read_folder(directory.path(), &like).unwrap();
    assert_eq!((set.size(), set.labels()), (like.size(), &[3, 3][..]));
    assert!(set.pixels(0).iter().all(|v| *v == 77) && set.pixels(1).iter().all(|v| *v == 9));
}

#[test]
fn images_of_another_size_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let like = folders(&directory.path().join("set"));
    let other = Images::open("fashion-small", None).unwrap();
    let error =
        like.with_split(Split::Test, other.split(Split::Test).clone()).unwrap_err().to_string();
    assert!(error.contains("1 x 28 x 28; expected 3 x 4 x 4"), "{error}");
}
