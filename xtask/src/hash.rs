//! SHA-256 of what flows by: the hash that the package index publishes and `sha256sum` prints.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

const BUFFER: usize = 1 << 18;

/// Copies to the end and returns the number of bytes and their hash.
pub(crate) fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<(u64, String)> {
    let (mut hasher, mut total, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER]);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok((total, hex(&hasher.finalize()))),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
        total += count as u64;
    }
}

/// The hash of what a reader holds.
pub(crate) fn of_reader(reader: impl Read) -> io::Result<String> {
    copy(reader, io::sink()).map(|(_, hash)| hash)
}

/// A short name for a path, the same on every run.
pub(crate) fn of_path(path: &Path) -> String {
    hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()))[..16].to_owned()
}

/// The hash of a file.
pub(crate) fn of_file(path: &Path) -> io::Result<String> {
    of_reader(File::open(path)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of "abc" in FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn copying_counts_and_hashes() {
        let mut copied = Vec::new();
        assert_eq!(copy(&b"abc"[..], &mut copied).unwrap(), (3, ABC.to_owned()));
        assert_eq!(copied, b"abc");
    }

    #[test]
    fn paths_have_short_names() {
        assert_eq!(of_path(Path::new("abc")), ABC[..16]);
    }
}
