//! How a directory or a single file on disk becomes three splits.

use std::path::{Path, PathBuf};

use crate::corpus::Text;
use crate::error::DataError;
use crate::read::read_file;
use crate::split::{BySplit, Split};

/// Prefix and suffix around the split's name; the first layout that has any file is taken whole, so
/// that splits of two data sets in one directory are never mixed.
const LAYOUTS: [(&str, &str); 2] = [("wiki.", ".tokens"), ("", ".txt")];

/// Files that are published as one stream of bytes and cut at exact positions in all literature.
const CUT_AT_EXACT_BYTES: [&str; 2] = ["enwik8", "text8"];

/// The smallest file that is cut: each 5 % share then has at least 5 bytes, so that a cut that
/// moves by 3 bytes (the most a UTF-8 character asks for) leaves no split empty.
const MIN_CUT_BYTES: usize = 100;

/// The three splits of a directory in WikiText layout.
pub(crate) fn read_directory(directory: &Path) -> Result<BySplit<Text>, DataError> {
    let layout = LAYOUTS
        .into_iter()
        .find(|&layout| Split::ALL.iter().any(|&split| find(directory, layout, split).is_some()))
        .ok_or_else(|| DataError::UnknownLayout { path: directory.to_owned() })?;
    BySplit::try_from_fn(|split| {
        let path = find(directory, layout, split).ok_or_else(|| DataError::MissingSplit {
            path: directory.to_owned(),
            split,
            file: file_name(layout, split),
        })?;
        read_text(&path)
    })
}

fn file_name((prefix, suffix): (&str, &str), split: Split) -> String {
    format!("{prefix}{split}{suffix}")
}

/// The plain file of a split, or else the compressed one.
fn find(directory: &Path, layout: (&str, &str), split: Split) -> Option<PathBuf> {
    let plain = file_name(layout, split);
    let compressed = format!("{plain}.gz");
    [plain, compressed].iter().map(|name| directory.join(name)).find(|path| path.exists())
}

fn read_text(path: &Path) -> Result<Text, DataError> {
    Text::new(format!("`{}`", path.display()), read_file(path)?)
}

/// The three splits of one file, cut by position.
pub(crate) fn read_and_cut(path: &Path) -> Result<BySplit<Text>, DataError> {
    let Text { place, bytes, .. } = read_text(path)?;
    if bytes.len() < MIN_CUT_BYTES {
        return Err(DataError::TooSmall {
            path: path.to_owned(),
            found: bytes.len(),
            needed: MIN_CUT_BYTES,
        });
    }
    let cuts =
        if is_cut_at_exact_bytes(path) { exact_cuts(bytes.len()) } else { line_cuts(&bytes) };
    let mut train = bytes;
    let test = train.split_off(cuts[1]);
    let valid = train.split_off(cuts[0]);
    let text = |start, bytes| Text { place: place.clone(), start, bytes };
    Ok(BySplit { train: text(0, train), valid: text(cuts[0], valid), test: text(cuts[1], test) })
}

fn is_cut_at_exact_bytes(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    CUT_AT_EXACT_BYTES.contains(&name.strip_suffix(".gz").unwrap_or(&name))
}

/// Where the valid and the test split start: 5 % of the bytes, rounded down, for each of them.
fn exact_cuts(len: usize) -> [usize; 2] {
    let share = len / 20;
    [len - 2 * share, len - share]
}

/// The exact cuts, each moved back to the last end of a line within half a share before it, so that
/// each held-out split keeps at least half of its 5 %.
fn line_cuts(text: &[u8]) -> [usize; 2] {
    let reach = text.len() / 40;
    exact_cuts(text.len()).map(|cut| {
        let nearby = &text[cut - reach..cut];
        match nearby.iter().rposition(|&byte| byte == b'\n') {
            Some(newline) => cut - reach + newline + 1,
            None => character_start(text, cut),
        }
    })
}

/// The first byte of the UTF-8 character that `at` lies in; `at` itself where there is no UTF-8.
fn character_start(text: &[u8], at: usize) -> usize {
    let is_continuation = |&position: &usize| text[position] & 0xC0 == 0x80;
    (at - 3..=at).rev().find(|position| !is_continuation(position)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_size_gives_the_published_split() {
        assert_eq!(exact_cuts(100_000_000), [90_000_000, 95_000_000]);
    }

    #[test]
    fn cuts_move_back_to_a_line_end_in_reach() {
        let mut text = vec![b'x'; 400];
        text[352] = b'\n';
        text[379] = b'\n';
        assert_eq!(exact_cuts(text.len()), [360, 380]);
        assert_eq!(line_cuts(&text), [353, 380]);
    }

    #[test]
    fn cuts_ignore_a_line_end_out_of_reach() {
        let mut text = vec![b'x'; 400];
        text[349] = b'\n';
        text[380] = b'\n';
        assert_eq!(line_cuts(&text), exact_cuts(text.len()));
    }

    #[test]
    fn cuts_do_not_divide_a_character() {
        for before in 0..4 {
            let text = "a".repeat(before) + &"\u{1F600}".repeat(99) + &"a".repeat(4 - before);
            assert_eq!(exact_cuts(text.len()), [360, 380]);
            let moved = if before == 0 { 0 } else { 4 - before };
            assert_eq!(line_cuts(text.as_bytes()), [360 - moved, 380 - moved]);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_cut_at_the_exact_position() {
        let text = vec![0x80; 200];
        assert_eq!(line_cuts(&text), exact_cuts(text.len()));
    }

    #[test]
    fn the_smallest_file_leaves_no_split_empty() {
        let ends_early = "\u{1F600}".repeat(25);
        let [valid, test] = line_cuts(ends_early.as_bytes());
        assert_eq!(ends_early.len(), MIN_CUT_BYTES);
        assert!(0 < valid && valid < test && test < MIN_CUT_BYTES, "{valid} {test}");
    }
}
