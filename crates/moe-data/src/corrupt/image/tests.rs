//! Every corruption on small pictures: what it keeps, what it does, and what is refused.

use super::*;
use crate::image::ImageSize;

fn set(channels: usize, side: usize) -> ImageSet {
    let size = ImageSize { channels, height: side, width: side };
    let pixels =
        (0..2 * size.values()).map(|i| ((i * 37 + i / side * 11) % 200 + 20) as u8).collect();
    ImageSet::new("test".into(), pixels, vec![0, 1], size).unwrap()
}

/// The same, but of one value.
fn flat(value: u8, side: usize) -> ImageSet {
    let size = ImageSize { channels: 1, height: side, width: side };
    ImageSet::new("flat".into(), vec![value; 2 * size.values()], vec![0, 1], size).unwrap()
}

/// Pictures of frost of one value.
fn frost(value: u8) -> (tempfile::TempDir, FrostPictures) {
    let directory = tempfile::tempdir().unwrap();
    let photo = ::image::GrayImage::from_pixel(400, 400, ::image::Luma([value]));
    photo.save(directory.path().join("frost1.png")).unwrap();
    let pictures = FrostPictures::open(directory.path()).unwrap();
    (directory, pictures)
}

fn pixels(set: &ImageSet) -> Vec<u8> {
    (0..set.len()).flat_map(|i| set.pixels(i).to_vec()).collect()
}

fn distance(a: &ImageSet, b: &ImageSet) -> f64 {
    let (a, b) = (pixels(a), pixels(b));
    let sum: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / a.len() as f64
}

#[test]
fn damage_is_a_function_of_seed_index_corruption_and_severity() {
    let (_keep, photos) = frost(200);
    for channels in [1, 3] {
        let clean = set(channels, 28);
        for corruption in ImageCorruption::ALL {
            let of =
                |severity, seed| corruption.apply(&clean, severity, seed, Some(&photos)).unwrap();
            let done = of(3, 1);
            assert_eq!(pixels(&done), pixels(&of(3, 1)), "{corruption:?}");
            assert_ne!(pixels(&done), pixels(&clean), "{corruption:?}");
            assert_ne!(pixels(&done), pixels(&of(5, 1)), "{corruption:?}");
            assert_eq!((done.labels(), done.size()), (clean.labels(), clean.size()));
            // The second image alone is damaged as beside the first, but by what its index draws.
            let second = corruption.image(&clean, 1, (3, 1), Some(&photos)).unwrap();
            assert_eq!(second, done.pixels(1), "{corruption:?}");
        }
    }
}

/// The published constants are made to hurt more from severity to severity; frost lies on one photograph.
#[test]
fn severities_are_worse_and_worse() {
    let (_keep, photos) = frost(200);
    let clean = set(3, 32);
    for corruption in ImageCorruption::ALL {
        let far = |severity| {
            distance(&corruption.apply(&clean, severity, 0, Some(&photos)).unwrap(), &clean)
        };
        // The stretch of elastic shrinks from one severity to the next, while its bending grows.
        let first = if corruption == ImageCorruption::Elastic { 0.0 } else { far(1) };
        assert!(far(5) > first, "{corruption:?}: {} after {first}", far(5));
    }
}

/// 100 is 0.392: brighter by 0.05 is 112.75; half of no contrast is none; every blur, bending and box of one
/// value is that value.
#[test]
fn a_flat_picture_by_hand() {
    use ImageCorruption as C;
    let clean = flat(100, 28);
    let value = |corruption: C| {
        let done = pixels(&corruption.apply(&clean, 1, 0, None).unwrap());
        assert!(done.iter().all(|v| *v == done[0]), "{corruption:?}");
        done[0]
    };
    assert_eq!(value(C::Brightness), 113);
    for corruption in [
        C::Contrast,
        C::DefocusBlur,
        C::GlassBlur,
        C::MotionBlur,
        C::ZoomBlur,
        C::Elastic,
        C::Pixelate,
        C::Jpeg,
    ] {
        assert_eq!(value(corruption), 100, "{corruption:?}");
    }
}

/// Noise of deviation c on grey 128: over 2 * 28 * 28 pixels the deviation has the standard error
/// c / sqrt(2 * 1568); rounding to bytes adds 1 / 12.
#[test]
fn noise_has_the_published_deviation() {
    let done = pixels(&ImageCorruption::GaussianNoise.apply(&flat(128, 28), 5, 3, None).unwrap());
    let n = done.len() as f64;
    let mean = done.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let deviation = (done.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    let (want, error) = (0.1 * 255.0, 0.1 * 255.0 / (2.0 * n).sqrt());
    assert!((deviation - want).abs() < 5.0 * error, "{deviation}, expected {want}");
    assert!((mean - 128.0).abs() < 5.0 * want / n.sqrt(), "{mean}");
    // A share 0.07 of the values is lost, evenly to black and white.
    let lost = pixels(&ImageCorruption::ImpulseNoise.apply(&flat(128, 28), 5, 3, None).unwrap());
    let share = |of: u8| lost.iter().filter(|v| **v == of).count() as f64 / n;
    let error = (0.035 * 0.965 / n).sqrt();
    assert!((share(0) - 0.035).abs() < 5.0 * error && (share(255) - 0.035).abs() < 5.0 * error);
}

#[test]
fn frost_and_fog_by_hand() {
    let (_keep, photos) = frost(50);
    // 1.0 * 100 + 0.2 * 50.
    let done = ImageCorruption::Frost.apply(&flat(100, 28), 1, 0, Some(&photos)).unwrap();
    assert!(pixels(&done).iter().all(|v| *v == 110));
    // (x + 0.2 fog) m / (m + 0.2) with x = m = 100 / 255 lies between m^2 / (m + 0.2) and m.
    let done = pixels(&ImageCorruption::Fog.apply(&flat(100, 32), 1, 0, None).unwrap());
    let m = 100.0 / 255.0;
    let low = (m * m / (m + 0.2) * 255.0_f64).round() as u8;
    assert_eq!((*done.iter().min().unwrap(), *done.iter().max().unwrap()), (low, 100));
}

#[test]
fn what_cannot_be_done_is_refused() {
    let refused = |corruption: ImageCorruption, severity, frost| {
        corruption.apply(&set(1, 28), severity, 0, frost).unwrap_err().to_string()
    };
    assert_eq!(refused(ImageCorruption::Fog, 6, None), "test: fog: severity 6 is outside 1..=5");
    assert_eq!(refused(ImageCorruption::Frost, 1, None), "test: frost: expected pictures of frost");
    let (directory, _) = frost(9);
    std::fs::remove_file(directory.path().join("frost1.png")).unwrap();
    assert!(FrostPictures::open(directory.path()).is_err());
    let photo = ::image::GrayImage::from_pixel(100, 100, ::image::Luma([1]));
    photo.save(directory.path().join("small.png")).unwrap();
    let small = FrostPictures::open(directory.path()).unwrap();
    let message = refused(ImageCorruption::Frost, 1, Some(&small));
    assert!(message.contains("a picture of 3 x 20 x 20 after reduction"), "{message}");
}

#[test]
fn large_pictures_have_the_constants_of_imagenet() {
    let done = pixels(&ImageCorruption::Brightness.apply(&flat(100, 65), 1, 0, None).unwrap());
    assert_eq!(done[0], 126); // 100 + 25.5, rounded up
    let done = ImageCorruption::Pixelate.apply(&set(1, 65), 5, 0, None).unwrap();
    let first = &done.pixels(0)[..4];
    assert!(first.iter().all(|v| *v == first[0]), "{first:?}");
}
