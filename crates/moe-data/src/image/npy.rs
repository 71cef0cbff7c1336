//! NumPy files of bytes: bitmaps, as QuickDraw is published (`(n, 784)`, one class a file), and others.

use super::cursor::Cursor;
use crate::error::DataError;

/// Side of a QuickDraw bitmap.
const SIDE: usize = 28;

/// The bitmaps of one file, `[n, 28, 28]`: axes of length 1 do not count, and `(n, 28, 28)` will do.
pub(crate) fn read<'a>(place: &'a str, bytes: &'a [u8]) -> Result<&'a [u8], DataError> {
    shaped(place, bytes, &[&[SIDE * SIDE], &[SIDE, SIDE]])
}

/// The bytes of an array whose axes after the first, those of length 1 left out, are one of `shapes`.
pub(crate) fn shaped<'a>(
    place: &'a str,
    bytes: &'a [u8],
    shapes: &[&[usize]],
) -> Result<&'a [u8], DataError> {
    let mut cursor = Cursor::new(place, bytes);
    let magic: [u8; 6] = cursor.array("NPY header")?;
    if magic != *b"\x93NUMPY" {
        return Err(cursor.error_at(0, "expected the first bytes of a NumPy file".to_owned()));
    }
    let [major, _minor] = cursor.array("NPY version")?;
    let length = match major {
        1 => usize::from(u16::from_le_bytes(cursor.array("header length")?)),
        2 | 3 => u32::from_le_bytes(cursor.array("header length")?) as usize,
        _ => return Err(cursor.error_at(6, format!("NPY version {major}; expected 1, 2 or 3"))),
    };
    let header = cursor.take(length, "NPY header")?;
    let count = values_of(&String::from_utf8_lossy(header), shapes).map_err(|problem| {
        cursor.error_at(
            8,
            format!(
                "{problem}, found {header:?}",
                header = String::from_utf8_lossy(header).trim_end()
            ),
        )
    })?;
    let values = cursor.take(count, "values")?;
    cursor.end("values")?;
    Ok(values)
}

/// Number of values that the header announces.
fn values_of(header: &str, shapes: &[&[usize]]) -> Result<usize, String> {
    let value =
        |key: &str| header.split_once(key).map(|(_, rest)| rest.trim_start_matches([':', ' ']));
    let bytes = value("'descr'")
        .is_some_and(|v| ["'|u1'", "'<u1'", "'u1'"].iter().any(|k| v.starts_with(k)));
    let rows_first = value("'fortran_order'").is_some_and(|v| v.starts_with("False"));
    if !(bytes && rows_first) {
        return Err("expected unsigned bytes in C order".to_owned());
    }
    let shape = value("'shape'").and_then(|v| v.strip_prefix('(')?.split_once(')'));
    let lengths =
        shape.map(|(inside, _)| inside.split(',').map(str::trim).filter(|v| !v.is_empty()));
    let lengths: Option<Vec<usize>> = lengths.and_then(|l| l.map(|v| v.parse().ok()).collect());
    match lengths.as_deref().and_then(|l| l.split_first()) {
        Some((&n, row)) if fits(row, shapes) => {
            Ok(row.iter().fold(n, |values, &length| values.saturating_mul(length)))
        }
        _ => {
            let shape = |shape: &&[usize]| {
                let axes = shape.iter().map(|length| format!(", {length}"));
                format!("(n{})", axes.collect::<String>())
            };
            Err(format!(
                "expected the shape {}",
                shapes.iter().map(shape).collect::<Vec<_>>().join(" or ")
            ))
        }
    }
}

fn fits(row: &[usize], shapes: &[&[usize]]) -> bool {
    let long: Vec<usize> = row.iter().copied().filter(|&length| length != 1).collect();
    shapes.contains(&long.as_slice())
}
