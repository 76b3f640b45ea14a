//! `x W^T` for few rows of `x`, where reading `W` is all the work: one pass over it for all rows.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows up to which reading the weights is most of the work.
pub(super) const MAX_ROWS: usize = 8;
/// Outputs that are computed side by side, so that sums need not wait for each other.
pub(super) const OUTPUTS: usize = 4;
/// Weights of one task: enough work to be worth a thread.
const TASK_WEIGHTS: usize = 1 << 16;

/// Rows of weights that become floats where they are used.
pub(super) trait WeightRows: Copy + Send + Sync {
    /// Number of rows, each of `width` weights.
    fn rows(self, width: usize) -> usize;

    /// Some consecutive rows as floats; `buffer` is for those that are not floats already.
    fn floats<'b>(self, first: usize, rows: usize, width: usize, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        Self: 'b;
}

impl WeightRows for &[f32] {
    fn rows(self, width: usize) -> usize {
        self.len() / width
    }

    #[inline(always)]
    fn floats<'b>(self, first: usize, rows: usize, width: usize, _: &'b mut Vec<f32>) -> &'b [f32]
    where
        Self: 'b,
    {
        &self[first * width..(first + rows) * width]
    }
}

/// `x` (rows, width) times the transpose of `w` (outputs, width): (rows, outputs).
///
/// A row's result does not depend on the other rows, nor on how many there are, nor on threads.
pub(super) fn products<W: WeightRows>(x: &[f32], w: W, width: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / width, w.rows(width));
    let per_task = (TASK_WEIGHTS / width).next_multiple_of(OUTPUTS).max(OUTPUTS);
    // Outputs of a task are apart in the result when there are several rows, so each task fills a block of its own.
    let task = |first: usize| {
        let count = per_task.min(outputs - first);
        let mut out = vec![0f32; rows * count];
        Arch::new().dispatch(Block { x, w, first, count, width, out: &mut out });
        out
    };
    if outputs <= per_task {
        return task(0);
    }
    let starts: Vec<usize> = (0..outputs).step_by(per_task).collect();
    let blocks: Vec<Vec<f32>> = starts.par_iter().map(|first| task(*first)).collect();
    if rows == 1 {
        return blocks.concat();
    }
    let mut y = vec![0f32; rows * outputs];
    for (first, block) in starts.iter().zip(&blocks) {
        let count = block.len() / rows;
        for (row, values) in block.chunks(count).enumerate() {
            y[row * outputs + first..][..count].copy_from_slice(values);
        }
    }
    y
}

/// Products of all rows of `x` with `count` rows of `w`, into `out` (rows, count).
struct Block<'a, W> {
    x: &'a [f32],
    w: W,
    first: usize,
    count: usize,
    width: usize,
    out: &'a mut [f32],
}

impl<W: WeightRows> WithSimd for Block<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, first, count, width, out } = self;
        let mut buffer = Vec::new();
        for at in (0..count).step_by(OUTPUTS) {
            let outputs = OUTPUTS.min(count - at);
            let w = w.floats(first + at, outputs, width, &mut buffer);
            // The last outputs of all may be fewer: the others of their group repeat one of them.
            let w = std::array::from_fn(|i| &w[i.min(outputs - 1) * width..][..width]);
            let mut rows = x.chunks_exact(2 * width);
            let mut put = |row: usize, o: usize, sum: f32| {
                if o < outputs {
                    out[row * count + at + o] = sum;
                }
            };
            for (pair, x) in rows.by_ref().enumerate() {
                let (upper, lower) = x.split_at(width);
                let sums = dots(simd, w, [upper, lower]);
                for (o, [upper, lower]) in sums.into_iter().enumerate() {
                    put(2 * pair, o, upper);
                    put(2 * pair + 1, o, lower);
                }
            }
            if !rows.remainder().is_empty() {
                let sums = dots(simd, w, [rows.remainder()]);
                sums.into_iter().enumerate().for_each(|(o, [sum])| put(x.len() / width - 1, o, sum));
            }
        }
    }
}

/// The dot products of some rows of weights with some rows of `x`, all of one length.
#[inline(always)]
pub(super) fn dots<S: Simd, const R: usize>(simd: S, w: [&[f32]; OUTPUTS], x: [&[f32]; R]) -> [[f32; R]; OUTPUTS] {
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
    use super::super::testing::{max_diff, values};
    use super::*;
    use candle_core::{Device, Result, Tensor};

    #[test]
    fn products_equal_a_matrix_product_and_rows_do_not_see_each_other() -> Result<()> {
        for (rows, outputs, width) in [(1, 1, 1), (3, 7, 13), (2, 4, 8), (8, 131, 1029), (5, 66, 24)] {
            let (x, w) = (values(&[rows, width], 0.1), values(&[outputs, width], 0.2));
            let (x_values, w_values) = (x.flatten_all()?.to_vec1::<f32>()?, w.flatten_all()?.to_vec1::<f32>()?);
            let y = products(&x_values, w_values.as_slice(), width);
            let expected = x.matmul(&w.t()?)?;
            let tensor = Tensor::from_slice(&y, (rows, outputs), &Device::Cpu)?;
            assert!(max_diff(&tensor, &expected) < 1e-4 * width as f32 / 64.0 + 1e-5);
            for (row, x) in x_values.chunks(width).enumerate() {
                assert_eq!(products(x, w_values.as_slice(), width), y[row * outputs..][..outputs]);
            }
        }
        Ok(())
    }
}
