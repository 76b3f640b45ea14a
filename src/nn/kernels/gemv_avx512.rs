//! GEMV for AVX-512: tiles of four outputs and four rows of `x`, one register of sums each.

use std::arch::x86_64::*;

use super::avx512::{is_supported, lane_mask};
use super::mat::MatMut;
use super::parallel::OUTPUTS;
use super::prefetch::prefetch_address;
use super::simd_math::AVX512_F32_LANES as LANES;

/// Rows of `x` of a tile.
const ROWS: usize = 4;

/// Fills `out` (rows, outputs) with `x` (rows, width) times the transpose of `w` (outputs, width).
///
/// A sum is one register, to which the products are added in order, so a row's result depends neither on the other rows
/// nor on their number.
pub fn fill(x: &[f32], w: &[f32], width: usize, mut out: MatMut) {
    let (rows, outputs) = (out.rows(), out.columns());
    assert!(is_supported() && x.len() == rows * width && w.len() == outputs * width);
    // SAFETY: the CPU has AVX-512, and the operands have the sizes that tiles rely on.
    unsafe { tiles(x, w, width, &mut out) };
}

/// # Safety
/// The CPU must have AVX-512, and `x` and `w` the rows and columns of `out` in rows of `width`.
#[target_feature(enable = "avx512f")]
unsafe fn tiles(x: &[f32], w: &[f32], width: usize, out: &mut MatMut) {
    let (rows, outputs) = (out.rows(), out.columns());
    // One stream of weights is read faster from memory than several rows side by side.
    let group = if rows == 1 { 1 } else { OUTPUTS };
    for output in (0..outputs).step_by(group) {
        for row in (0..rows).step_by(ROWS) {
            // Only the first tile waits for memory; all prefetch their share of the next weights.
            let ahead = if rows == 1 { 0 } else { (OUTPUTS * width).div_ceil(rows.div_ceil(ROWS)) };
            let tile = Tile {
                x: &x[row * width..],
                w: &w[output * width..],
                width,
                next: w.as_ptr().wrapping_add((output + OUTPUTS) * width + row / ROWS * ahead),
                ahead,
            };
            // SAFETY: `x` and `w` hold at least one row; missing rows are the last one again.
            unsafe {
                match (outputs - output).min(group) {
                    1 if rows == 1 => tile.sums::<1, 1>().store(out, row, output),
                    _ => match rows - row {
                        1 => tile.sums::<OUTPUTS, 1>().store(out, row, output),
                        2 => tile.sums::<OUTPUTS, 2>().store(out, row, output),
                        _ => tile.sums::<OUTPUTS, ROWS>().store(out, row, output),
                    },
                }
            }
        }
    }
}

/// Operands of a tile: rows from the tile's first to the last of all.
struct Tile<'a> {
    x: &'a [f32],
    w: &'a [f32],
    width: usize,
    /// Address of weights to prefetch, and their number.
    next: *const f32,
    ahead: usize,
}

/// The address of a row, or of the last one.
#[inline(always)]
fn row_or_last(rows: &[f32], width: usize, row: usize) -> *const f32 {
    rows[row.min(rows.len() / width - 1) * width..].as_ptr()
}

impl Tile<'_> {
    /// # Safety
    /// The CPU must have AVX-512, and both operands at least one row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sums<const O: usize, const R: usize>(&self) -> Sums<O, R> {
        let (mut w, mut x) = ([self.w.as_ptr(); O], [self.x.as_ptr(); R]);
        for (output, w) in w.iter_mut().enumerate() {
            *w = row_or_last(self.w, self.width, output);
        }
        for (row, x) in x.iter_mut().enumerate() {
            *x = row_or_last(self.x, self.width, row);
        }
        let mut sums = [[_mm512_setzero_ps(); R]; O];
        let stride = self.ahead / (self.width / LANES).max(1);
        for step in 0..self.width / LANES {
            for line in (0..stride).step_by(LANES) {
                prefetch_address(self.next.wrapping_add(step * stride + line));
            }
            // SAFETY: a register of each row.
            unsafe { multiply(&mut sums, &w, &x, step * LANES, !0) };
        }
        let rest = self.width % LANES;
        if rest > 0 {
            // SAFETY: the mask leaves out what is not of the rows.
            unsafe { multiply(&mut sums, &w, &x, self.width - rest, lane_mask(rest)) };
        }
        Sums(sums)
    }
}

/// Adds the products of the lanes of a mask, from element `at` of each row on.
///
/// # Safety
/// The CPU must have AVX-512, and the rows the elements of the mask.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn multiply<const O: usize, const R: usize>(
    sums: &mut [[__m512; R]; O],
    w: &[*const f32; O],
    x: &[*const f32; R],
    at: usize,
    mask: __mmask16,
) {
    let mut rows = [_mm512_setzero_ps(); R];
    for (row, x) in rows.iter_mut().zip(x) {
        // SAFETY: the caller vouches for the elements.
        *row = unsafe { _mm512_maskz_loadu_ps(mask, x.add(at)) };
    }
    for (sums, w) in sums.iter_mut().zip(w) {
        // SAFETY: as above.
        let w = unsafe { _mm512_maskz_loadu_ps(mask, w.add(at)) };
        for (sum, row) in sums.iter_mut().zip(&rows) {
            *sum = _mm512_fmadd_ps(w, *row, *sum);
        }
    }
}

/// Sums of a tile, (outputs, rows), each over sixteen lanes.
struct Sums<const O: usize, const R: usize>([[__m512; R]; O]);

impl<const O: usize, const R: usize> Sums<O, R> {
    /// Stores the sums that have a place in `out`.
    ///
    /// # Safety
    /// The CPU must have AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(&self, out: &mut MatMut, first_row: usize, first_output: usize) {
        for row in 0..R.min(out.rows() - first_row) {
            let places = out.row_part(first_row + row, first_output, O);
            for (place, sums) in places.iter_mut().zip(&self.0) {
                *place = _mm512_reduce_add_ps(sums[row]);
            }
        }
    }
}
