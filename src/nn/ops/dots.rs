//! `x W^T` for few rows of `x`, where reading `W` is all the work: one pass over it for all rows.

use rayon::prelude::*;

use super::vectorised;

/// Most rows that this beats a general matrix product on.
pub(super) const MAX_ROWS: usize = 8;
/// Sums that run side by side in one dot product.
const LANES: usize = 8;
/// Outputs of one task: enough work to be worth a thread, and a block of weights that stays in the first cache while
/// every row of `x` passes over it.
const TASK_WEIGHTS: usize = 1 << 16;

/// `x` (rows, width) times the transpose of `w` (outputs, width): (rows, outputs).
///
/// A row's result does not depend on the other rows, nor on how many there are, nor on threads.
pub(super) fn products(x: &[f32], w: &[f32], width: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / width, w.len() / width);
    let mut y = vec![0f32; rows * outputs];
    if w.len() <= TASK_WEIGHTS {
        vectorised(
            #[inline(always)]
            || fill(x, w, width, &mut y),
        );
        return y;
    }
    let per_task = (TASK_WEIGHTS / width).next_multiple_of(4).max(4);
    // Outputs of a task are apart in `y` when there are several rows, so each task fills a block of its own.
    let tasks: Vec<Vec<f32>> = w
        .par_chunks(per_task * width)
        .map(|w| {
            let mut block = vec![0f32; w.len() / width * rows];
            vectorised(
                #[inline(always)]
                || fill(x, w, width, &mut block),
            );
            block
        })
        .collect();
    for (task, block) in tasks.iter().enumerate() {
        let (first, count) = (task * per_task, block.len() / rows);
        for (row, values) in block.chunks(count).enumerate() {
            y[row * outputs + first..][..count].copy_from_slice(values);
        }
    }
    y
}

/// Every dot product of a row of `x` and a row of `w`, into `out` (rows, outputs).
#[inline(always)]
fn fill(x: &[f32], w: &[f32], width: usize, out: &mut [f32]) {
    let (rows, outputs) = (x.len() / width, w.len() / width);
    let at = |m: &[f32], row: usize| -> *const f32 { m[row * width..][..width].as_ptr() };
    let mut o = 0;
    while o < outputs {
        let mut r = 0;
        let step = if outputs - o >= 4 { 4 } else { 1 };
        while r < rows {
            // SAFETY: `at` checked that each pointer is followed by `width` elements.
            unsafe {
                match (step, rows - r) {
                    (4, 2..) => {
                        let sums =
                            dots([at(w, o), at(w, o + 1), at(w, o + 2), at(w, o + 3)], [at(x, r), at(x, r + 1)], width);
                        for (i, pair) in sums.iter().enumerate() {
                            out[r * outputs + o + i] = pair[0];
                            out[(r + 1) * outputs + o + i] = pair[1];
                        }
                        r += 2;
                    }
                    (4, _) => {
                        let sums = dots([at(w, o), at(w, o + 1), at(w, o + 2), at(w, o + 3)], [at(x, r)], width);
                        sums.iter().enumerate().for_each(|(i, [sum])| out[r * outputs + o + i] = *sum);
                        r += 1;
                    }
                    _ => {
                        out[r * outputs + o] = dots([at(w, o)], [at(x, r)], width)[0][0];
                        r += 1;
                    }
                }
            }
        }
        o += step;
    }
}

/// The dot products of `O` with `R` vectors, `O * R` independent chains of vector sums.
///
/// # Safety
/// `width` elements must follow each pointer.
#[inline(always)]
unsafe fn dots<const O: usize, const R: usize>(w: [*const f32; O], x: [*const f32; R], width: usize) -> [[f32; R]; O] {
    let mut lanes = [[[0f32; LANES]; R]; O];
    let whole = width / LANES * LANES;
    let mut i = 0;
    while i < whole {
        // SAFETY: `i + LANES <= width`, and `width` elements follow each pointer.
        let at = |pointer: *const f32| unsafe { pointer.add(i).cast::<[f32; LANES]>().read_unaligned() };
        let x = x.map(at);
        for (lanes, w) in lanes.iter_mut().zip(w.map(at)) {
            for (lanes, x) in lanes.iter_mut().zip(&x) {
                for l in 0..LANES {
                    lanes[l] += w[l] * x[l];
                }
            }
        }
        i += LANES;
    }
    let mut sums = [[0f32; R]; O];
    for (o, sums) in sums.iter_mut().enumerate() {
        for (r, sum) in sums.iter_mut().enumerate() {
            *sum = lanes[o][r].iter().sum();
            for i in whole..width {
                // SAFETY: as above.
                *sum += unsafe { *w[o].add(i) * *x[r].add(i) };
            }
        }
    }
    sums
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
            let y = products(&x_values, &w_values, width);
            let expected = x.matmul(&w.t()?)?;
            let tensor = Tensor::from_slice(&y, (rows, outputs), &Device::Cpu)?;
            assert!(max_diff(&tensor, &expected) < 1e-4 * width as f32 / 64.0 + 1e-5);
            for (row, x) in x_values.chunks(width).enumerate() {
                assert_eq!(products(x, &w_values, width), y[row * outputs..][..outputs]);
            }
        }
        Ok(())
    }
}
