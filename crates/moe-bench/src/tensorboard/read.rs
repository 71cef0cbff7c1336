//! Reads event files back as TensorBoard does, for tests: every check sum is held to its bytes, and a
//! session's start voids what was said of its step and later.

use super::record::{VERSION, masked_crc};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Values by tag and step.
pub(crate) type Scalars = BTreeMap<(String, u64), f32>;

/// One field: its number, and its content as a number or as bytes.
struct Field<'a> {
    number: u64,
    value: u64,
    bytes: &'a [u8],
}

/// The event files of `dir`, in the order in which readers take them.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_events = |path: &PathBuf| path.to_string_lossy().contains("tfevents");
    let mut files: Vec<PathBuf> = entries.filter(is_events).collect();
    files.sort();
    files
}

/// What a reader of `dir` ends up with; a value that is said twice is refused.
pub(crate) fn scalars(dir: &Path) -> Scalars {
    let mut found = Scalars::new();
    for file in files(dir) {
        for (index, message) in frames(&fs::read(file).unwrap()).iter().enumerate() {
            take(&mut found, &fields(message), index);
        }
    }
    found
}

fn take(found: &mut Scalars, event: &[Field<'_>], index: usize) {
    let field = |number: u64| event.iter().find(|field| field.number == number);
    let step = field(2).unwrap().value;
    assert!(f64::from_bits(field(1).unwrap().value) > 1.7e9, "a time of this century");
    assert_eq!(field(3).map(|field| field.bytes), (index == 0).then_some(VERSION.as_bytes()));
    if let Some(log) = field(7) {
        assert_eq!(fields(log.bytes)[0].value, 1, "START");
        found.retain(|(_, at), _| *at < step);
    }
    for entry in field(5).map(|summary| fields(summary.bytes)).unwrap_or_default() {
        let entry = fields(entry.bytes);
        let tag = String::from_utf8(entry[0].bytes.to_vec()).unwrap();
        let value = f32::from_bits(entry[1].value as u32);
        assert!(found.insert((tag.clone(), step), value).is_none(), "{tag} at {step} twice");
    }
}

/// The messages of a file that is whole.
fn frames(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (length, tail) = rest.split_at(8);
        let size = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let message = checked(&tail[4..], size);
        assert_eq!(crc(tail), masked_crc(length), "crc of the length");
        messages.push(message);
        rest = &tail[4 + size + 4..];
    }
    messages
}

fn checked(bytes: &[u8], size: usize) -> &[u8] {
    let (message, tail) = bytes.split_at(size);
    assert_eq!(crc(tail), masked_crc(message), "crc of the message");
    message
}

fn crc(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().unwrap())
}

fn fields(mut rest: &[u8]) -> Vec<Field<'_>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest);
        let fixed = |size: usize| {
            let mut word = [0; 8];
            word[..size].copy_from_slice(&rest[..size]);
            (u64::from_le_bytes(word), size)
        };
        let (value, size) = match key & 7 {
            0 => (varint(&mut rest), 0),
            1 => fixed(8),
            5 => fixed(4),
            2 => (0, varint(&mut rest) as usize),
            kind => panic!("wire type {kind}"),
        };
        let (bytes, tail) = rest.split_at(size);
        found.push(Field { number: key >> 3, value, bytes });
        rest = tail;
    }
    found
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for place in 0.. {
        let byte = rest[0];
        *rest = &rest[1..];
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            break;
        }
    }
    value
}
