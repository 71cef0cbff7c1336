//! A matrix cut into bands of columns, which threads write side by side.

#![expect(unsafe_code, reason = "bands of one matrix lie between each other in memory")]

use std::marker::PhantomData;

/// Some columns of all rows of a matrix.
#[derive(Debug)]
pub(crate) struct Band<'a, T> {
    start: *mut T,
    rows: usize,
    stride: usize,
    width: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a band is the only way to its values, as a mutable slice is.
unsafe impl<T: Send> Send for Band<'_, T> {}

/// All bands of `width` columns of a matrix with rows of `stride` values, from left to right.
///
/// # Panics
///
/// Unless `width` divides `stride`, and `stride` the number of values.
pub(crate) fn bands<T>(
    matrix: &mut [T],
    stride: usize,
    width: usize,
) -> impl Iterator<Item = Band<'_, T>> {
    assert!(width > 0 && stride.is_multiple_of(width), "{width} columns of {stride}");
    assert!(stride > 0 && matrix.len().is_multiple_of(stride), "rows of {stride} values");
    let (start, rows) = (matrix.as_mut_ptr(), matrix.len() / stride);
    let bands = if rows == 0 { 0 } else { stride / width };
    (0..bands).map(move |band| {
        // SAFETY: the first row has `stride` values, and `band * width` is less.
        let start = unsafe { start.add(band * width) };
        Band { start, rows, stride, width, matrix: PhantomData }
    })
}

impl<T> Band<'_, T> {
    /// The band's values of a row.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: `row * stride + width` values from the band's start on lie in the matrix, which is
        // borrowed for as long as the band; no other band holds these columns, and `self` is lent
        // for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_one_band() {
        let mut matrix = vec![0; 3 * 6];
        for (number, mut band) in bands(&mut matrix, 6, 2).enumerate() {
            (0..3).for_each(|row| band.row(row).iter_mut().for_each(|x| *x += 10 * row + number));
        }
        assert_eq!(matrix[..6], [0, 0, 1, 1, 2, 2]);
        assert_eq!(matrix[12..], [20, 20, 21, 21, 22, 22]);
        assert_eq!(bands(&mut [0; 0], 6, 2).count(), 0);
    }

    #[test]
    #[should_panic(expected = "row 3 of 3")]
    fn a_row_that_is_not_there() {
        bands(&mut [0; 18], 6, 2).next().unwrap().row(3);
    }
}
