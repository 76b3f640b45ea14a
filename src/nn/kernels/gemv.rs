//! GEMV for few rows: `x W^T` in one pass over `W` for all rows, since reading `W` dominates.

use pulp::{Arch, Simd, WithSimd};

use super::mat::MatMut;
use super::parallel::{OUTPUTS, parallel_columns};
use super::prefetch::prefetch;

/// Number of weights of one task: enough to hide the cost of a task.
const TASK_WEIGHTS: usize = 1 << 16;
/// Number of sums of a dot product, to hide the latency of an FMA: the products of register `i` of a row are added to
/// sum `i % SUMS`. Sums of two outputs and two rows stay in registers.
const SUMS: usize = 2;

/// Multiplies `x` (rows, width) by the transpose of `w` (outputs, width): (rows, outputs).
///
/// A row's result depends neither on the other rows, nor on their number, nor on the number of threads.
pub fn gemv(x: &[f32], w: &[f32], width: usize) -> Vec<f32> {
    let per_task = (TASK_WEIGHTS / width).next_multiple_of(OUTPUTS).max(OUTPUTS);
    parallel_columns(x.len() / width, w.len() / width, per_task, |outputs, out| {
        let w = &w[outputs.start * width..outputs.end * width];
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        if super::avx512::is_supported() {
            return super::gemv_avx512::fill(x, w, width, out);
        }
        Arch::new().dispatch(Task { x, w, width, out });
    })
}

/// Matmul of one task: all rows of `x` with all rows of `w`, into `out` (rows, outputs).
struct Task<'a> {
    x: &'a [f32],
    w: &'a [f32],
    width: usize,
    out: MatMut<'a>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, width, mut out } = self;
        if x.len() == width {
            // One stream of weights is read faster from memory than several rows side by side.
            let out = out.into_slice();
            out.iter_mut().zip(w.chunks_exact(width)).for_each(|(out, w)| *out = dot(simd, w, x));
            return;
        }
        // Only the first pair of rows waits for memory; each pair prefetches its share of the next weights.
        let pairs = x.len().div_ceil(2 * width);
        let share = if pairs > 1 { OUTPUTS * width / pairs } else { 0 };
        for (group, weights) in w.chunks(OUTPUTS * width).enumerate() {
            let next = w.get((group + 1) * OUTPUTS * width..).unwrap_or_default();
            for (pair, x) in x.chunks(2 * width).enumerate() {
                for (half, w) in weights.chunks(2 * width).enumerate() {
                    let ahead = next.get(pair * share + half * share / 2..).unwrap_or_default();
                    let ahead = &ahead[..ahead.len().min(share / 2)];
                    // A missing last row is computed twice.
                    let (w, x) = (pair_of(w, width), pair_of(x, width));
                    let mut out = |row: usize, output: usize, sum: f32| {
                        let (row, output) = (2 * pair + row, OUTPUTS * group + 2 * half + output);
                        if row < out.rows() {
                            out.row_part(row, output, 1).iter_mut().for_each(|out| *out = sum);
                        }
                    };
                    for (output, [upper, lower]) in dots(simd, w, x, ahead).into_iter().enumerate() {
                        out(0, output, upper);
                        out(1, output, lower);
                    }
                }
            }
        }
    }
}

/// The rows of one or two rows; the first one twice if there is one.
#[inline(always)]
fn pair_of(rows: &[f32], width: usize) -> [&[f32]; 2] {
    [&rows[..width], &rows[rows.len() - width..]]
}

/// Dot product of two rows.
#[inline(always)]
fn dot<S: Simd>(simd: S, w: &[f32], x: &[f32]) -> f32 {
    let ((w, w_tail), (x, x_tail)) = (S::as_simd_f32s(w), S::as_simd_f32s(x));
    let mut sums = [simd.splat_f32s(0.0); SUMS];
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<SUMS>(), x.as_chunks::<SUMS>());
    for (w, x) in w.iter().zip(x) {
        for i in 0..SUMS {
            sums[i] = simd.mul_add_e_f32s(w[i], x[i], sums[i]);
        }
    }
    for ((sum, w), x) in sums.iter_mut().zip(w_rest).zip(x_rest) {
        *sum = simd.mul_add_e_f32s(*w, *x, *sum);
    }
    total(simd, sums, w_tail, x_tail)
}

/// The sum of all lanes, and the products of elements that fill no register.
#[inline(always)]
fn total<S: Simd>(simd: S, [even, odd]: [S::f32s; SUMS], w_tail: &[f32], x_tail: &[f32]) -> f32 {
    let tail: f32 = w_tail.iter().zip(x_tail).map(|(w, x)| w * x).sum();
    simd.reduce_sum_f32s(simd.add_f32s(even, odd)) + tail
}

/// Micro-kernel: dot products of two rows of weights with two rows of `x`, all of one length, with the sums of [`dot`].
/// Prefetches `ahead` meanwhile.
#[inline(always)]
fn dots<S: Simd>(simd: S, w: [&[f32]; 2], x: [&[f32]; 2], ahead: &[f32]) -> [[f32; 2]; 2] {
    let (w, x) = (w.map(S::as_simd_f32s), x.map(S::as_simd_f32s));
    let ([(wa, wa_rest), (wb, wb_rest)], [(xa, xa_rest), (xb, xb_rest)]) =
        (w.map(|w| w.0.as_chunks::<SUMS>()), x.map(|x| x.0.as_chunks::<SUMS>()));
    let mut sums = [[[simd.splat_f32s(0.0); SUMS]; 2]; 2];
    let stride = ahead.len() / wa.len().max(1);
    for (at, (((wa, wb), xa), xb)) in wa.iter().zip(wb).zip(xa).zip(xb).enumerate() {
        prefetch(ahead.get(at * stride..).unwrap_or_default());
        for i in 0..SUMS {
            sums[0][0][i] = simd.mul_add_e_f32s(wa[i], xa[i], sums[0][0][i]);
            sums[0][1][i] = simd.mul_add_e_f32s(wa[i], xb[i], sums[0][1][i]);
            sums[1][0][i] = simd.mul_add_e_f32s(wb[i], xa[i], sums[1][0][i]);
            sums[1][1][i] = simd.mul_add_e_f32s(wb[i], xb[i], sums[1][1][i]);
        }
    }
    for (((wa, wb), xa), xb) in wa_rest.iter().zip(wb_rest).zip(xa_rest).zip(xb_rest) {
        sums[0][0][0] = simd.mul_add_e_f32s(*wa, *xa, sums[0][0][0]);
        sums[0][1][0] = simd.mul_add_e_f32s(*wa, *xb, sums[0][1][0]);
        sums[1][0][0] = simd.mul_add_e_f32s(*wb, *xa, sums[1][0][0]);
        sums[1][1][0] = simd.mul_add_e_f32s(*wb, *xb, sums[1][1][0]);
    }
    let mut totals = [[0.0; 2]; 2];
    for (o, row) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        totals[o][row] = total(simd, sums[o][row], w[o].1, x[row].1);
    }
    totals
}

/// Dot products of [`OUTPUTS`] rows with `R` rows, all of one length, with one sum each.
#[inline(always)]
pub fn dot_products<S: Simd, const R: usize>(simd: S, w: [&[f32]; OUTPUTS], x: [&[f32]; R]) -> [[f32; R]; OUTPUTS] {
    let (w, x) = (w.map(S::as_simd_f32s), x.map(S::as_simd_f32s));
    let mut sums = [[simd.splat_f32s(0.0); R]; OUTPUTS];
    for i in 0..w[0].0.len() {
        for (sums, w) in sums.iter_mut().zip(&w) {
            for (sum, x) in sums.iter_mut().zip(&x) {
                *sum = simd.mul_add_e_f32s(w.0[i], x.0[i], *sum);
            }
        }
    }
    let mut totals = [[0f32; R]; OUTPUTS];
    for ((totals, sums), w) in totals.iter_mut().zip(sums).zip(&w) {
        for ((total, sum), x) in totals.iter_mut().zip(sums).zip(&x) {
            let tail: f32 = w.1.iter().zip(x.1).map(|(w, x)| w * x).sum();
            *total = simd.reduce_sum_f32s(sum) + tail;
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ops::testing::{max_diff, values};
    use candle_core::{Device, Result, Tensor};

    #[test]
    fn gemv_equals_matmul_and_rows_are_the_same_bits_in_any_number() -> Result<()> {
        for (rows, outputs, width) in [(1, 1, 1), (3, 7, 13), (2, 4, 8), (8, 131, 1053), (5, 66, 24), (33, 6, 100)] {
            let (x, w) = (values(&[rows, width], 0.1), values(&[outputs, width], 0.2));
            let (x_values, w_values) = (x.flatten_all()?.to_vec1::<f32>()?, w.flatten_all()?.to_vec1::<f32>()?);
            let y = gemv(&x_values, &w_values, width);
            let tensor = Tensor::from_slice(&y, (rows, outputs), &Device::Cpu)?;
            assert!(max_diff(&tensor, &x.matmul(&w.t()?)?) < 1e-4 * width as f32 / 64.0 + 1e-5);
            let alone: Vec<f32> = x_values.chunks(width).flat_map(|row| gemv(row, &w_values, width)).collect();
            for rows in 1..=rows {
                let together = gemv(&x_values[..rows * width], &w_values, width);
                assert!(
                    together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{rows} {outputs} {width}"
                );
            }
        }
        Ok(())
    }
}
