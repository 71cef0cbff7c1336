//! From arbitrary bytes to damaged files.

/// Numbers that sizes go wrong at.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// Most edits of a file.
const MOST: usize = 24;

/// `valid` with the edits that `bytes` spell, four bytes each: what, where (two bytes), with what.
pub(crate) fn edited(valid: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut file = valid.to_vec();
    for edit in bytes.chunks_exact(4).take(MOST) {
        let (what, with) = (edit[0] % 8, edit[3]);
        let place = usize::from(u16::from_be_bytes([edit[1], edit[2]]));
        let at = place * file.len() / (1 << 16);
        apply(&mut file, what, at, with);
    }
    file
}

fn apply(file: &mut Vec<u8>, what: u8, at: usize, with: u8) {
    let run = at..(at + 1 + usize::from(with) / 4).min(file.len());
    match what {
        0 if !file.is_empty() => file[at] ^= 1 << (with % 8),
        1 if !file.is_empty() => file[at] = with,
        2 => file.truncate(at),
        3 => file.insert(at, with),
        4 if !file.is_empty() => drop(file.drain(run)),
        5 if !file.is_empty() => {
            let copy = file[run].to_vec();
            file.splice(at..at, copy);
        }
        6 => {
            let number = EDGES[usize::from(with % 8)];
            let bytes = if with < 128 { number.to_le_bytes() } else { number.to_be_bytes() };
            file.iter_mut().skip(at).zip(bytes).for_each(|(old, new)| *old = new);
        }
        7 => {
            let digits = EDGES[usize::from(with % 8)].to_string();
            file.splice(at..at, digits.into_bytes());
        }
        _ => {}
    }
}

#[test]
fn edits_reach_the_whole_file_and_are_repeatable() {
    let valid = b"0123456789";
    assert_eq!(edited(valid, b""), valid);
    assert_eq!(edited(valid, &[1, 0, 0, b'x']), b"x123456789");
    assert_eq!(edited(valid, &[1, 255, 255, b'x']), b"012345678x");
    assert_eq!(edited(valid, &[2, 128, 0, 0]), b"01234");
    assert_eq!(edited(valid, &[7, 0, 0, 1]), b"10123456789");
    assert_eq!(edited(b"", &[0, 9, 9, 9, 4, 9, 9, 9]), b"");
}
