//! Products of few rows with a narrow matrix, as the two of a LoRA adapter: its elements are stored in the order in which
//! decoding reads them, sixteen outputs side by side.

#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
use half::f16;
use rayon::prelude::*;

use super::mat::MatMut;
use super::simd_math::vectorised;

/// Outputs of a panel.
pub const LANES: usize = 16;
/// Sums of each output, to hide the latency of an addition: the product of input `i` is added to sum `i % SUMS`.
pub const SUMS: usize = 4;
/// Number of elements of one task: enough to hide the cost of a task.
const TASK_ELEMENTS: usize = 1 << 14;

/// A matrix (outputs, inputs) in panels of sixteen outputs, the last of which is filled with zeros.
pub struct NarrowMatrix {
    outputs: usize,
    inputs: usize,
    /// For each panel and input, the elements of its outputs.
    lines: Lines,
}

enum Lines {
    F32(Vec<[f32; LANES]>),
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    F16(Vec<[f16; LANES]>),
}

impl NarrowMatrix {
    /// A matrix from its rows of `inputs` elements. With `half`, elements are held in f16 if all of them fit and the CPU
    /// has AVX-512, which widens them in registers.
    pub fn new(matrix: &[f32], inputs: usize, half: bool) -> Self {
        let outputs = matrix.len().checked_div(inputs).unwrap_or_default();
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        if half && super::avx512::is_supported() && matrix.iter().all(|value| f16::from_f32(*value).is_finite()) {
            let lines = Lines::F16(lines(matrix, (outputs, inputs), f16::from_f32));
            return Self { outputs, inputs, lines };
        }
        let _ = half;
        Self { outputs, inputs, lines: Lines::F32(lines(matrix, (outputs, inputs), |value| value)) }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Adds `scale * x M^T` to `out` (rows, outputs), for `x` (rows, inputs).
    ///
    /// A row's result depends neither on the other rows, nor on their number, nor on the number of threads.
    pub fn add_product(&self, x: &[f32], scale: f32, out: MatMut) {
        assert!(x.len() == out.rows() * self.inputs && out.columns() == self.outputs);
        let panels = (TASK_ELEMENTS / LANES).checked_div(self.inputs).unwrap_or_default().max(1);
        if self.outputs <= panels * LANES {
            return self.fill(0, x, scale, out);
        }
        let tasks: Vec<MatMut> = out.column_blocks(panels * LANES).collect();
        tasks.into_par_iter().enumerate().for_each(|(task, out)| self.fill(task * panels, x, scale, out));
    }

    /// [`Self::add_product`] for the outputs of `out`, the first of which is that of a panel.
    fn fill(&self, first_panel: usize, x: &[f32], scale: f32, out: MatMut) {
        let first = first_panel * self.inputs;
        match &self.lines {
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            Lines::F16(lines) => super::narrow_avx512::fill(&lines[first..], x, scale, out),
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            Lines::F32(lines) if super::avx512::is_supported() => {
                super::narrow_avx512::fill(&lines[first..], x, scale, out);
            }
            Lines::F32(lines) => vectorised(
                #[inline(always)]
                || fill(&lines[first..], x, scale, out),
            ),
        }
    }
}

fn lines<T: Default + Copy>(
    matrix: &[f32],
    (outputs, inputs): (usize, usize),
    convert: impl Fn(f32) -> T,
) -> Vec<[T; LANES]> {
    let mut lines = vec![[T::default(); LANES]; outputs.div_ceil(LANES) * inputs];
    for (output, row) in matrix.chunks_exact(inputs.max(1)).enumerate() {
        let panel = &mut lines[output / LANES * inputs..][..inputs];
        panel.iter_mut().zip(row).for_each(|(line, value)| line[output % LANES] = convert(*value));
    }
    lines
}

/// The kernel for CPUs without one of their own, which the compiler vectorises.
#[inline(always)]
fn fill(lines: &[[f32; LANES]], x: &[f32], scale: f32, mut out: MatMut) {
    let inputs = x.len().checked_div(out.rows()).unwrap_or_default();
    for (panel, lines) in lines.chunks_exact(inputs.max(1)).enumerate().take(out.columns().div_ceil(LANES)) {
        for (row, x) in x.chunks_exact(inputs.max(1)).enumerate() {
            let mut sums = [[0f32; LANES]; SUMS];
            for (lines, x) in lines.chunks(SUMS).zip(x.chunks(SUMS)) {
                for ((sums, line), x) in sums.iter_mut().zip(lines).zip(x) {
                    sums.iter_mut().zip(line).for_each(|(sum, value)| *sum += value * x);
                }
            }
            let [a, b, c, d] = sums;
            let places = out.row_part(row, panel * LANES, LANES);
            for (lane, place) in places.iter_mut().enumerate() {
                *place += scale * ((a[lane] + b[lane]) + (c[lane] + d[lane]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(count: usize, at: f32) -> Vec<f32> {
        // Exact in f16.
        (0..count).map(|i| ((i as f32 * 0.7311 + at).sin() * 64.0).round() / 64.0).collect()
    }

    #[test]
    fn products_equal_the_definition_and_rows_are_the_same_bits_in_any_number() {
        for (outputs, inputs) in [(1, 1), (16, 64), (3, 70), (40, 16), (37, 5), (70_000, 3), (19, 2100)] {
            let matrix = elements(outputs * inputs, 0.3);
            for rows in [0, 1, 2, 3, 4, 7] {
                let (x, before) = (elements(rows * inputs, 0.1), elements(rows * outputs, 0.2));
                let run = |half, x: &[f32], before: &[f32]| {
                    let mut out = before.to_vec();
                    let shape = (before.len() / outputs, outputs);
                    NarrowMatrix::new(&matrix, inputs, half).add_product(x, 0.5, MatMut::contiguous(&mut out, shape));
                    out
                };
                let found = run(false, &x, &before);
                for (place, found) in found.iter().enumerate() {
                    let (x, row) = (&x[place / outputs * inputs..], &matrix[place % outputs * inputs..][..inputs]);
                    let expected = before[place] + 0.5 * row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
                    assert!((found - expected).abs() < 1e-5, "{outputs} x {inputs}, {rows} rows");
                }
                assert_eq!(run(true, &x, &before), found, "f16, {outputs} x {inputs}");
                for row in 0..rows {
                    let alone = run(false, &x[row * inputs..][..inputs], &before[row * outputs..][..outputs]);
                    assert_eq!(alone, found[row * outputs..][..outputs]);
                }
                let mut portable = before.clone();
                let lines = lines(&matrix, (outputs, inputs), |value| value);
                fill(&lines, &x, 0.5, MatMut::contiguous(&mut portable, (rows, outputs)));
                assert!(portable.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-5));
            }
        }
    }

    #[test]
    fn elements_that_f16_cannot_hold_stay_f32() {
        let mut out = [0.0];
        NarrowMatrix::new(&[1e6], 1, true).add_product(&[2.0], 1.0, MatMut::contiguous(&mut out, (1, 1)));
        assert_eq!(out, [2e6]);
    }
}
