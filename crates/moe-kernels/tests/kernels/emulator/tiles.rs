//! A thread's tiles, and what instructions do to them.

/// Bytes of a row, rows, and tiles of palette 1.
const ROW: usize = 64;
const ROWS: usize = 16;
const TILES: usize = 8;

type Row = [u8; ROW];

#[derive(Debug, Clone, Copy)]
struct Tile {
    rows: usize,
    row_bytes: usize,
    values: [Row; ROWS],
}

/// The state `TILECFG` and `TILEDATA`. Every method returns false where the processor would refuse.
#[derive(Debug)]
pub(super) struct Tiles {
    palette: u8,
    tiles: [Tile; TILES],
}

impl Tiles {
    /// As a thread starts, and as `TILERELEASE` leaves it.
    pub(super) const RELEASED: Self = {
        let tile = Tile { rows: 0, row_bytes: 0, values: [[0; ROW]; ROWS] };
        Self { palette: 0, tiles: [tile; TILES] }
    };

    pub(super) fn configured(&self) -> bool {
        self.palette == 1
    }

    /// `LDTILECFG`: byte 0 the palette, byte 1 the row to start at, from 16 on bytes of a row, from 48
    /// on rows. Everything else must be zero; tiles become zero.
    pub(super) fn configure(&mut self, config: &[u8; 64]) -> bool {
        let mut new = Self::RELEASED;
        let (reserved, unused) = (&config[1..16], (&config[32..48], &config[56..]));
        let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        if config[0] != 1 || !zero(reserved) || !zero(unused.0) || !zero(unused.1) {
            return false;
        }
        for (number, tile) in new.tiles.iter_mut().enumerate() {
            tile.row_bytes =
                usize::from(u16::from_le_bytes([config[16 + 2 * number], config[17 + 2 * number]]));
            tile.rows = usize::from(config[48 + number]);
            if tile.row_bytes > ROW || tile.rows > ROWS || (tile.row_bytes == 0) != (tile.rows == 0)
            {
                return false;
            }
        }
        new.palette = 1;
        *self = new;
        true
    }

    /// A tile that is configured.
    fn tile(&mut self, number: usize) -> Option<&mut Tile> {
        self.tiles.get_mut(number).filter(|tile| tile.rows > 0)
    }

    /// `TILEZERO`
    pub(super) fn zero(&mut self, number: usize) -> bool {
        self.load(number, |_, row| row.fill(0))
    }

    /// `TILELOADD`: what lies beyond rows and bytes of the configuration becomes zero.
    pub(super) fn load(&mut self, number: usize, mut read: impl FnMut(usize, &mut [u8])) -> bool {
        let Some(tile) = self.tile(number) else { return false };
        tile.values = [[0; ROW]; ROWS];
        for (number, row) in tile.values[..tile.rows].iter_mut().enumerate() {
            read(number, &mut row[..tile.row_bytes]);
        }
        true
    }

    /// `TILESTORED`
    pub(super) fn store(&mut self, number: usize, mut write: impl FnMut(usize, &[u8])) -> bool {
        let Some(tile) = self.tile(number) else { return false };
        for (number, row) in tile.values[..tile.rows].iter().enumerate() {
            write(number, &row[..tile.row_bytes]);
        }
        true
    }

    /// `TDPBF16PS`: `sum[m, n] += sum_k a[m, k] . b[k, n]` over pairs. The first and the second products
    /// of pairs are summed apart, in order of `k`, from zero; then both sums are added, and the result
    /// to what is there.
    pub(super) fn multiply(&mut self, sum: usize, a: usize, b: usize) -> bool {
        let left = self.tile(a).copied();
        let Some((left, right)) = left.zip(self.tile(b).copied()) else { return false };
        let Some(sums) = self.tile(sum).filter(|_| sum != a && sum != b && a != b) else {
            return false;
        };
        let fits = left.rows == sums.rows && right.row_bytes == sums.row_bytes;
        if !fits || left.row_bytes != 4 * right.rows || sums.row_bytes % 4 != 0 {
            return false;
        }
        for (to, left) in sums.values[..sums.rows].iter_mut().zip(&left.values) {
            let mut parts = [[0.0_f32; 2]; ROW / 4];
            for (k, row) in right.values[..right.rows].iter().enumerate() {
                add_products(&mut parts, pair(left, k), row);
            }
            for (n, [first, second]) in parts.into_iter().enumerate().take(sums.row_bytes / 4) {
                let total = flushed(first + second);
                set(to, n, flushed(daz(get(to, n)) + total));
            }
        }
        true
    }

    /// What a broken processor might do.
    pub(super) fn add_one(&mut self, number: usize) -> bool {
        self.tile(number).is_some_and(|tile| {
            let wrong = get(&tile.values[0], 0) + 1.0;
            set(&mut tile.values[0], 0, wrong);
            true
        })
    }
}

/// One step of `k` for all columns.
fn add_products(parts: &mut [[f32; 2]; ROW / 4], a: [f32; 2], row: &Row) {
    for (n, part) in parts.iter_mut().enumerate() {
        let b = pair(row, n);
        for (part, (a, b)) in part.iter_mut().zip(a.into_iter().zip(b)) {
            // One rounding, as of a fused multiply-add: the product of two bf16 is exact in f64. If
            // the sum is not, one term is below 2^-29 of the other, which is an f32 itself and the
            // result either way.
            *part = flushed((f64::from(a) * f64::from(b) + f64::from(*part)) as f32);
        }
    }
}

/// The two `bf16` of a lane, numbers without leading one taken as zero.
fn pair(row: &Row, lane: usize) -> [f32; 2] {
    let value = |at: usize| daz(f32::from_bits(u32::from_le_bytes([0, 0, row[at], row[at + 1]])));
    [value(4 * lane), value(4 * lane + 2)]
}

fn get(row: &Row, lane: usize) -> f32 {
    f32::from_le_bytes([row[4 * lane], row[4 * lane + 1], row[4 * lane + 2], row[4 * lane + 3]])
}

fn set(row: &mut Row, lane: usize, value: f32) {
    row[4 * lane..][..4].copy_from_slice(&value.to_le_bytes());
}

/// A zero of its sign for a number without leading one, as operands are taken.
fn daz(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

/// The same of results.
fn flushed(x: f32) -> f32 {
    daz(x)
}
