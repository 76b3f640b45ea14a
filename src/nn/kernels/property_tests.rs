//! Property tests: every kernel that the CPU has against naive or dequantised references, at random sizes and strides.

use proptest::prelude::*;

use super::gemv::gemv;
use super::mat::{MatMut, MatRef};
use super::matmul::{Gemm, GemmScratch, matmul};
use crate::options::Precision;

/// Pseudo-random elements in [-1, 1].
fn elements(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// `left right` by the definition, in f64.
fn naive(left: &[f32], right: &[f32], (rows, columns, depth): (usize, usize, usize)) -> Vec<f64> {
    let product =
        |row: usize, column: usize, i: usize| f64::from(left[row * depth + i]) * f64::from(right[i * columns + column]);
    let element = |row, column| (0..depth).map(|i| product(row, column, i)).sum();
    (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))).map(|(r, c)| element(r, c)).collect()
}

/// The rows of a contiguous matrix with gaps between them.
fn with_gaps(matrix: &[f32], columns: usize, gap: usize) -> Vec<f32> {
    matrix.chunks(columns.max(1)).flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(9.0, gap))).collect()
}

/// The elements of a contiguous (rows, columns) matrix in the order of columns.
fn turned(matrix: &[f32], (rows, columns): (usize, usize)) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| matrix[row * columns + column])).collect()
}

/// bf16 keeps 8 bits of each operand; f32 sums lose a few ulps a term.
fn tolerance(depth: usize, precision: Precision) -> f64 {
    match precision {
        Precision::Full => 1e-6 * depth as f64 + 1e-6,
        Precision::Bf16 => depth as f64 / 128.0,
    }
}

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() <= tolerance, "{found} is not {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn matmul_of_any_layout_equals_the_definition(
        (rows, columns, depth) in (0..40usize, 0..40usize, 0..70usize), seed: u64, transposed: [bool; 2], bf16: bool
    ) {
        let precision = if bf16 { Precision::Bf16 } else { Precision::Full };
        let (x, w) = (elements(rows * depth, seed), elements(depth * columns, !seed));
        let (x_turned, w_turned) = (turned(&x, (rows, depth)), turned(&w, (depth, columns)));
        let left = match transposed[0] {
            true => MatRef::contiguous(&x_turned, (depth, rows)).transposed(),
            false => MatRef::contiguous(&x, (rows, depth)),
        };
        let right = match transposed[1] {
            true => MatRef::contiguous(&w_turned, (columns, depth)).transposed(),
            false => MatRef::contiguous(&w, (depth, columns)),
        };
        let found = matmul(left, right, precision);
        assert_close(&found, &naive(&x, &w, (rows, columns, depth)), tolerance(depth, precision));
    }

    #[test]
    fn gemm_accumulates_into_its_tile_only(
        (rows, columns, depth) in (0..30usize, 0..30usize, 1..60usize), gap in 0..4usize, seed: u64, accumulate: bool, bf16: bool
    ) {
        let precision = if bf16 { Precision::Bf16 } else { Precision::Full };
        let (x, w) = (elements(rows * depth, seed), elements(depth * columns, !seed));
        let (x_gaps, w_gaps) = (with_gaps(&x, depth, gap), with_gaps(&w, columns, gap));
        let mut out = vec![2f32; (rows + 2) * (columns + 3)];
        let mut all = MatMut::contiguous(&mut out, (rows + 2, columns + 3));
        let left = MatRef::new(&x_gaps, (rows, depth), depth + gap);
        let right = MatRef::new(&w_gaps, (depth, columns), columns + gap);
        let gemm = Gemm { accumulate, scale: 0.5, precision };
        gemm.run(all.tile(1..rows + 1, 2..columns + 2), left, right, &mut GemmScratch::default());
        let product = naive(&x, &w, (rows, columns, depth));
        for (i, found) in out.iter().enumerate() {
            let (row, column) = (i / (columns + 3), i % (columns + 3));
            let inside = (1..=rows).contains(&row) && (2..columns + 2).contains(&column);
            let expected = match inside {
                true => 0.5 * product[(row - 1) * columns + column - 2] + if accumulate { 2.0 } else { 0.0 },
                false => 2.0,
            };
            assert!((f64::from(*found) - expected).abs() <= tolerance(depth, precision), "({row}, {column}): {found}");
        }
    }

    #[test]
    fn gemv_equals_the_definition_and_rows_are_independent(
        rows in 0..40usize, outputs in 0..70usize, width in 1..300usize, seed: u64
    ) {
        let (x, w) = (elements(rows * width, seed), elements(outputs * width, !seed));
        let expected = naive(&x, &turned(&w, (outputs, width)), (rows, outputs, width));
        let found = gemv(&x, &w, width);
        assert_close(&found, &expected, tolerance(width, Precision::Full));
        for (x, found) in x.chunks(width).zip(found.chunks(outputs.max(1))) {
            assert_eq!(gemv(x, &w, width), found);
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Quantising `x` to 8 bits in blocks loses at most half a step of 1 / 127 for each element.
    #[test]
    fn quantised_kernels_are_near_the_dequantised_reference(
        rows in 0..40usize, outputs in 0..60usize, blocks in 1..4usize, kind in 0..3usize, seed: u64
    ) {
        use candle_core::quantized::QTensor;
        use candle_core::{Device, Tensor};

        use super::dispatch::QuantKernel;
        use super::interleaved::InterleavedWeight;
        use super::qmatmul;
        use crate::options::Quantization;

        let kind = Quantization::ALL[kind];
        let width = blocks * kind.ggml_dtype().block_size();
        let (x, w) = (elements(rows * width, seed), elements(outputs.max(1) * width, !seed));
        let weight = Tensor::from_slice(&w, (outputs.max(1), width), &Device::Cpu).unwrap();
        let weight = QTensor::quantize(&weight, kind.ggml_dtype()).unwrap();
        let w = weight.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes = weight.data().unwrap();
        let bytes = if outputs == 0 { &[] } else { &bytes[..] };
        let expected = naive(&x, &turned(&w[..outputs * width], (outputs, width)), (rows, outputs, width));
        let weight = InterleavedWeight::new(kind, bytes, width);
        for kernel in pulp::x86::V3::try_new().map(QuantKernel::Avx2).into_iter().chain(QuantKernel::fastest()) {
            let found = qmatmul::matmul(kernel, &x, &weight);
            assert_close(&found, &expected, width as f64 * 1.1 * 0.5 / 127.0);
            for (x, found) in x.chunks(width).zip(found.chunks(outputs.max(1))) {
                assert_eq!(qmatmul::matmul(kernel, x, &weight), found);
            }
        }
    }
}
