//! Records of an event file: protocol buffer messages in frames with check sums.
//!
//! ```text
//! frame       u64 length | u32 crc of the length | message | u32 crc of the message   (little endian)
//! Event       1 wall_time: double   2 step: int64   3 file_version: string   5 summary: Summary   7 session_log: SessionLog
//! Summary     1 value: repeated Value          Value   1 tag: string   2 simple_value: float
//! SessionLog  1 status: enum (1 is START)
//! ```
//!
//! The crc is CRC-32C, turned and shifted as TFRecord does, so that a crc of data that hold a crc is none
//! of the likely values.

/// What one record says.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// The layout of the file; its first record.
    Version,
    /// A session begins: what earlier files say of this step and later is void.
    Start,
    /// Numbers of a step, by tag.
    Scalars(&'a [(String, f64)]),
}

/// The version from which readers take [`Event::Start`] at its word.
pub(super) const VERSION: &str = "brain.Event:2";

/// The two kinds of field that have a length of their own, and the fixed ones.
mod wire {
    pub(super) const VARINT: u64 = 0;
    pub(super) const FIXED64: u64 = 1;
    pub(super) const BYTES: u64 = 2;
    pub(super) const FIXED32: u64 = 5;
}

/// A whole frame about `step`, said at `wall_time` (seconds since 1970).
pub(super) fn frame(event: &Event<'_>, step: u64, wall_time: f64) -> Vec<u8> {
    let message = message(event, step, wall_time);
    let length = (message.len() as u64).to_le_bytes();
    let crcs = [&length[..], &message].map(|bytes| masked_crc(bytes).to_le_bytes());
    [&length[..], &crcs[0], &message, &crcs[1]].concat()
}

/// CRC-32C as TFRecord stores it.
pub(super) fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn message(event: &Event<'_>, step: u64, wall_time: f64) -> Vec<u8> {
    let mut out = Vec::new();
    key(&mut out, 1, wire::FIXED64);
    out.extend(wall_time.to_le_bytes());
    key(&mut out, 2, wire::VARINT);
    varint(&mut out, step);
    match event {
        Event::Version => bytes(&mut out, 3, VERSION.as_bytes()),
        Event::Start => bytes(&mut out, 7, &[1 << 3, 1]),
        Event::Scalars(scalars) => bytes(&mut out, 5, &summary(scalars)),
    }
    out
}

fn summary(scalars: &[(String, f64)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, value) in scalars {
        let mut entry = Vec::new();
        bytes(&mut entry, 1, tag.as_bytes());
        key(&mut entry, 2, wire::FIXED32);
        entry.extend((*value as f32).to_le_bytes());
        bytes(&mut out, 1, &entry);
    }
    out
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    key(out, field, wire::BYTES);
    varint(out, content.len() as u64);
    out.extend(content);
}

fn key(out: &mut Vec<u8>, field: u64, kind: u64) {
    varint(out, field << 3 | kind);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
