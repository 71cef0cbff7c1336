//! Reading files, gzip or plain, with a bound on what is held in memory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::error::DataError;

/// The most bytes that one file may hold after decompression (2 GiB, about four times
/// WikiText-103): a gzip file of a few megabytes can otherwise ask for all memory there is.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 31;

/// The bytes of a regular file; a name that ends in `.gz` is decompressed.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, DataError> {
    read_file_at_most(path, MAX_FILE_BYTES)
}

fn read_file_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let unreadable = |source| DataError::Read { path: path.to_owned(), source };
    // Asked before opening: opening a named pipe waits for its writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(DataError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let place = path.display().to_string();
    if path.extension().is_some_and(|extension| extension == "gz") {
        gunzip_at_most(file, &place, limit)
    } else {
        read_at_most(file, limit).map_err(unreadable)?.ok_or(DataError::TooLarge { place, limit })
    }
}

/// The decompressed bytes of gzip data, one member or more; `place` names it in errors.
pub(crate) fn gunzip(compressed: impl Read, place: &str) -> Result<Vec<u8>, DataError> {
    gunzip_at_most(compressed, place, MAX_FILE_BYTES)
}

fn gunzip_at_most(compressed: impl Read, place: &str, limit: u64) -> Result<Vec<u8>, DataError> {
    read_at_most(MultiGzDecoder::new(compressed), limit)
        .map_err(|source| DataError::Gzip { place: place.to_owned(), source })?
        .ok_or_else(|| DataError::TooLarge { place: place.to_owned(), limit })
}

/// Everything the reader has, or `None` if that is more than `limit` bytes.
fn read_at_most(reader: impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn reading_stops_at_the_limit() {
        assert_eq!(read_at_most(&b"abc"[..], 3).unwrap().unwrap(), b"abc");
        assert!(read_at_most(&b"abcd"[..], 3).unwrap().is_none());
    }

    #[test]
    fn a_small_gzip_that_swells_is_refused() {
        let bomb = gzip(&vec![0; 1 << 20]);
        assert!(bomb.len() < 2000);
        let error = gunzip_at_most(&bomb[..], "bomb.gz", 4096).unwrap_err();
        let expected = "`bomb.gz` holds more than 4096 bytes of text, the most that is read";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_large_plain_file_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"12345").unwrap();
        assert_eq!(read_file_at_most(file.path(), 5).unwrap(), b"12345");
        let error = read_file_at_most(file.path(), 4).unwrap_err();
        assert!(matches!(error, DataError::TooLarge { limit: 4, .. }), "{error}");
    }

    #[test]
    fn gzip_members_in_a_row_are_one_text() {
        let both = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(gunzip(&both[..], "two.gz").unwrap(), b"one two");
    }

    #[test]
    fn gzip_cut_short_anywhere_is_an_error() {
        let whole = gzip(b"a text that is long enough to be compressed, compressed, compressed");
        for length in 1..whole.len() {
            let error = gunzip(&whole[..length], "cut.gz").unwrap_err();
            let expected = "cannot decompress `cut.gz`: expected one whole gzip file";
            assert_eq!(error.to_string(), expected, "{length} of {} bytes", whole.len());
        }
    }
}
