//! GEMV for few rows: `x W^T` in one pass over `W` for all rows, since reading `W` dominates.

use pulp::{Arch, Simd, WithSimd};

use super::parallel::{OUTPUTS, parallel_tiles};
use super::prefetch::prefetch;

/// Multiplies `x` (rows, width) by the transpose of `w` (outputs, width): (rows, outputs).
///
/// A row's result depends neither on the other rows nor on the number of threads; a single row is summed in another
/// order than several, which may change its last bits.
pub fn gemv(x: &[f32], w: &[f32], width: usize) -> Vec<f32> {
    parallel_tiles(x.len() / width, w.len() / width, width, |rows, outputs, out| {
        let x = &x[rows.start * width..rows.end * width];
        let w = &w[outputs.start * width..outputs.end * width];
        Arch::new().dispatch(Task { x, w, width, out });
    })
}

/// Matmul of one task: all rows of `x` with all rows of `w`, into `out` (rows, outputs).
struct Task<'a> {
    x: &'a [f32],
    w: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, width, out } = self;
        if x.len() == width {
            // One stream of weights is read faster from memory than several rows side by side.
            out.iter_mut().zip(w.chunks_exact(width)).for_each(|(out, w)| *out = dot(simd, w, x));
            return;
        }
        let count = w.len() / width;
        // Only the first pair of rows waits for memory; each pair prefetches its share of the next weights.
        let pairs = x.len().div_ceil(2 * width);
        let share = if pairs > 1 { OUTPUTS * width / pairs } else { 0 };
        for first in (0..count).step_by(OUTPUTS) {
            let found = OUTPUTS.min(count - first);
            let next = w.get((first + OUTPUTS) * width..(first + 2 * OUTPUTS) * width).unwrap_or_default();
            // The last group may have fewer outputs; it then repeats the last one.
            let w = std::array::from_fn(|i| &w[(first + i.min(found - 1)) * width..][..width]);
            let ahead = |pair: usize| next.get(pair * share..(pair + 1) * share).unwrap_or_default();
            let mut rows = x.chunks_exact(2 * width);
            let mut store = |row: usize, o: usize, sum: f32| {
                if o < found {
                    out[row * count + first + o] = sum;
                }
            };
            for (pair, x) in rows.by_ref().enumerate() {
                let (upper, lower) = x.split_at(width);
                let sums = dot_products(simd, w, [upper, lower], ahead(pair));
                for (o, [upper, lower]) in sums.into_iter().enumerate() {
                    store(2 * pair, o, upper);
                    store(2 * pair + 1, o, lower);
                }
            }
            if !rows.remainder().is_empty() {
                let sums = dot_products(simd, w, [rows.remainder()], ahead(pairs - 1));
                sums.into_iter().enumerate().for_each(|(o, [sum])| store(x.len() / width - 1, o, sum));
            }
        }
    }
}

/// Dot product of two rows, in four independent sums, to hide the latency of an FMA.
#[inline(always)]
fn dot<S: Simd>(simd: S, w: &[f32], x: &[f32]) -> f32 {
    let ((w, w_tail), (x, x_tail)) = (S::as_simd_f32s(w), S::as_simd_f32s(x));
    let mut sums = [simd.splat_f32s(0.0); 4];
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<4>(), x.as_chunks::<4>());
    for (w, x) in w.iter().zip(x) {
        for i in 0..4 {
            sums[i] = simd.mul_add_e_f32s(w[i], x[i], sums[i]);
        }
    }
    for ((sum, w), x) in sums.iter_mut().zip(w_rest).zip(x_rest) {
        *sum = simd.mul_add_e_f32s(*w, *x, *sum);
    }
    let [a, b, c, d] = sums;
    let sum = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
    let tail: f32 = w_tail.iter().zip(x_tail).map(|(w, x)| w * x).sum();
    simd.reduce_sum_f32s(sum) + tail
}

/// Micro-kernel: dot products of [`OUTPUTS`] rows of weights with `R` rows of `x`, all of one length. Prefetches
/// `ahead` during the computation.
#[inline(always)]
pub fn dot_products<S: Simd, const R: usize>(
    simd: S,
    w: [&[f32]; OUTPUTS],
    x: [&[f32]; R],
    ahead: &[f32],
) -> [[f32; R]; OUTPUTS] {
    let (w, x) = (w.map(S::as_simd_f32s), x.map(S::as_simd_f32s));
    let mut sums = [[simd.splat_f32s(0.0); R]; OUTPUTS];
    let stride = ahead.len() / w[0].0.len().max(1);
    for i in 0..w[0].0.len() {
        prefetch(ahead.get(i * stride..).unwrap_or_default());
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
    fn gemv_equals_matmul_and_rows_are_independent() -> Result<()> {
        for (rows, outputs, width) in [(1, 1, 1), (3, 7, 13), (2, 4, 8), (8, 131, 1053), (5, 66, 24)] {
            let (x, w) = (values(&[rows, width], 0.1), values(&[outputs, width], 0.2));
            let (x_values, w_values) = (x.flatten_all()?.to_vec1::<f32>()?, w.flatten_all()?.to_vec1::<f32>()?);
            let y = gemv(&x_values, &w_values, width);
            let expected = x.matmul(&w.t()?)?;
            let tensor = Tensor::from_slice(&y, (rows, outputs), &Device::Cpu)?;
            let tolerance = 1e-4 * width as f32 / 64.0 + 1e-5;
            assert!(max_diff(&tensor, &expected) < tolerance);
            for (row, x) in x_values.chunks(width).enumerate() {
                let alone = Tensor::from_vec(gemv(x, &w_values, width), outputs, &Device::Cpu)?;
                assert!(max_diff(&alone, &tensor.get(row)?) < tolerance);
                let twice = gemv(&[x, x].concat(), &w_values, width);
                assert!(rows == 1 || twice[..outputs] == y[row * outputs..][..outputs]);
            }
        }
        Ok(())
    }
}
