//! Products of few rows with a narrow matrix, for AVX-512: one stream of elements, f16 or f32, meets up to four rows.

use std::arch::x86_64::*;

use super::avx512::{Element, is_supported, lane_mask};
use super::mat::MatMut;
use super::narrow::{LANES, SUMS};
use super::prefetch::prefetch_address;

/// Rows of `x` that meet the elements together.
const ROWS: usize = 4;
/// Prefetch distance in bytes.
const AHEAD: usize = 4096;

/// Adds `scale * x M^T` to `out`, for the panels of a matrix that begin with `lines`; see [`super::narrow`].
pub fn fill<T: Element>(lines: &[[T; LANES]], x: &[f32], scale: f32, mut out: MatMut) {
    let (rows, outputs) = (out.rows(), out.columns());
    let inputs = x.len().checked_div(rows).unwrap_or_default();
    assert!(is_supported() && x.len() == rows * inputs && lines.len() >= outputs.div_ceil(LANES) * inputs);
    for panel in 0..outputs.div_ceil(LANES) {
        let tile = Tile { lines: &lines[panel * inputs..][..inputs], x, scale, first_output: panel * LANES };
        for row in (0..rows).step_by(ROWS) {
            // SAFETY: the CPU has AVX-512, and each row of `x` has as many elements as there are lines.
            unsafe {
                match rows - row {
                    1 => tile.add::<1>(row, &mut out),
                    2 => tile.add::<2>(row, &mut out),
                    _ => tile.add::<ROWS>(row, &mut out),
                }
            }
        }
    }
}

/// A panel, and what it is multiplied with.
struct Tile<'a, T> {
    lines: &'a [[T; LANES]],
    /// All rows of `x`.
    x: &'a [f32],
    scale: f32,
    first_output: usize,
}

impl<T: Element> Tile<'_, T> {
    /// Adds the products of `R` rows from `first_row` on; rows after the last one are the last one, and not added.
    ///
    /// # Safety
    /// The CPU must have AVX-512, and `x` must have at least one row of as many elements as there are lines.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add<const R: usize>(&self, first_row: usize, out: &mut MatMut) {
        let inputs = self.lines.len();
        let mut x = [self.x; R];
        for (row, x) in x.iter_mut().enumerate() {
            *x = &self.x[(first_row + row).min(out.rows() - 1) * inputs..][..inputs];
        }
        let mut sums = [[_mm512_setzero_ps(); SUMS]; R];
        for first in (0..inputs).step_by(SUMS) {
            for i in 0..SUMS.min(inputs - first) {
                let line = self.lines[first + i].as_ptr();
                prefetch_address(line.wrapping_byte_add(AHEAD));
                // SAFETY: a line is a register of elements.
                let line = unsafe { T::load(line) };
                for (sums, x) in sums.iter_mut().zip(&x) {
                    sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(x[first + i]), line, sums[i]);
                }
            }
        }
        for (row, [a, b, c, d]) in sums.into_iter().enumerate().take(out.rows() - first_row) {
            let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            let places = out.row_part(first_row + row, self.first_output, LANES);
            let mask = lane_mask(places.len());
            // SAFETY: masked to the slice.
            unsafe {
                let before = _mm512_maskz_loadu_ps(mask, places.as_ptr());
                let after = _mm512_fmadd_ps(_mm512_set1_ps(self.scale), sum, before);
                _mm512_mask_storeu_ps(places.as_mut_ptr(), mask, after);
            }
        }
    }
}
