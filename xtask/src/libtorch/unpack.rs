//! Takes out of a wheel what belongs to libtorch.

use std::fs::{self, File, Permissions};
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use zip::ZipArchive;
use zip::read::ZipFile;

use super::manifest::Manifest;
use super::wheels::Wheel;
use crate::hash;
use crate::progress::Watched;

/// Unpacks what is taken of a wheel into `tree` and notes each file in the manifest.
pub(crate) fn unpack(
    wheel: &Wheel,
    archive: &Path,
    tree: &Path,
    manifest: &mut Manifest,
    bar: &ProgressBar,
) -> Result<()> {
    let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    let mut zip = ZipArchive::new(BufReader::new(file)).context(wheel.file)?;
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).context(wheel.file)?;
        let destination = wheel.destination(&entry.name()?);
        if let Some(path) = destination {
            extract(&mut entry, &path, tree, manifest, bar)
                .with_context(|| format!("unpacking {path} of {}", wheel.file))?;
        }
    }
    Ok(())
}

fn extract<R: Read + Seek>(
    entry: &mut ZipFile<'_, R>,
    path: &str,
    tree: &Path,
    manifest: &mut Manifest,
    bar: &ProgressBar,
) -> Result<()> {
    ensure!(entry.enclosed_name().is_some(), "the path leads out of the wheel");
    let place = tree.join(path);
    fs::create_dir_all(place.parent().unwrap_or(tree))?;
    let mut file = BufWriter::new(File::create(&place)?);
    let (size, hash) = hash::copy(Watched::new(&mut *entry, bar), &mut file)?;
    file.flush()?;
    if let Some(mode) = entry.unix_mode() {
        // The type of the file and setuid bits stay behind.
        fs::set_permissions(&place, Permissions::from_mode(mode & 0o777 | 0o600))?;
    }
    manifest.push(path, size, hash);
    Ok(())
}

#[cfg(test)]
pub(crate) mod fake {
    //! Archives that look like wheels.

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// Writes a wheel with these files.
    pub(crate) fn wheel(path: &Path, files: &[(&str, &str)]) {
        let mut zip = ZipWriter::new(File::create(path).unwrap());
        for (name, text) in files {
            zip.start_file(*name, SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHEEL: Wheel = Wheel {
        requirement: "abc===1",
        file: "abc-1-py3-none-any.whl",
        sha256: "",
        size: 0,
        takes: &[("abc/include/", "include/"), ("abc/lib/liba.so", "lib/liba.so")],
    };

    fn unpacked(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<Manifest>) {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join(WHEEL.file);
        fake::wheel(&archive, files);
        let mut manifest = Manifest::default();
        let done = unpack(
            &WHEEL,
            &archive,
            &dir.path().join("tree"),
            &mut manifest,
            &ProgressBar::hidden(),
        );
        (dir, done.map(|()| manifest))
    }

    #[test]
    fn only_what_is_taken_is_unpacked() {
        let files =
            [("abc/include/sub/a.h", "int a;"), ("abc/lib/liba.so", "code"), ("abc/x.py", "")];
        let (dir, manifest) = unpacked(&files);
        assert_eq!(manifest.unwrap().files(), 2);
        let tree = dir.path().join("tree");
        assert_eq!(fs::read_to_string(tree.join("include/sub/a.h")).unwrap(), "int a;");
        let mode = fs::metadata(tree.join("lib/liba.so")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(!tree.join("x.py").exists());
    }

    #[test]
    fn a_path_out_of_the_wheel_is_refused() {
        let (_dir, manifest) = unpacked(&[("abc/include/../../../../evil", "x")]);
        assert!(format!("{:#}", manifest.unwrap_err()).contains("leads out of the wheel"));
    }
}
