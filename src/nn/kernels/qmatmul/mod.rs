//! Integer matmul `x W^T` over GGUF blocks, for x86-64 with AVX2: `x` is quantised too, and scales are applied once per
//! block.
//!
//! Weights are [interleaved](super::interleaved) once, when they are quantised or loaded, so that lanes of registers are
//! outputs. `gemm` drives any number of rows with both instruction sets, and `gemv_avx512vnni` takes few rows;
//! [`QuantKernel`] lists the blocks in which each quantises `x`.

mod block_format;
mod gemm;
mod gemm_avx2;
mod gemm_avx512vnni;
mod gemm_kquant_avx2;
mod gemm_q8_0_avx2;
mod gemv_avx512vnni;
mod lanes;
mod quantize_activations;
mod widen;

use pulp::x86::V3;

use super::dispatch::QuantKernel;
use super::interleaved::InterleavedWeight;
use crate::options::Quantization;
use block_format::{Q4K, Q6K, Q8_0};
use gemm::gemm;
use gemm_avx512vnni::{Vnni, VnniWeights};
use gemm_kquant_avx2::KQuantAvx2;
use gemm_q8_0_avx2::Q8_0Avx2;
use gemv_avx512vnni::gemv;
pub use lanes::Avx512Vnni;
pub use widen::widen;

/// Multiplies `x` (rows, width) by the transpose of a weight (outputs, width): (rows, outputs).
///
/// A row's result depends neither on the other rows, nor on their number, nor on the number of threads, but on `kernel`:
/// the instruction sets round and sum in different ways.
pub fn matmul(kernel: QuantKernel, x: &[f32], weight: &InterleavedWeight) -> Vec<f32> {
    match (kernel, weight.kind()) {
        (QuantKernel::Avx2(simd), Quantization::Q8_0) => gemm(Q8_0Avx2(simd), simd, x, weight),
        (QuantKernel::Avx2(simd), Quantization::Q6K) => gemm(KQuantAvx2::<Q6K>::new(simd), simd, x, weight),
        (QuantKernel::Avx2(simd), Quantization::Q4K) => gemm(KQuantAvx2::<Q4K>::new(simd), simd, x, weight),
        (QuantKernel::Avx512Vnni(simd, vnni), Quantization::Q8_0) => by_rows::<Q8_0>(simd, vnni, x, weight),
        (QuantKernel::Avx512Vnni(simd, vnni), Quantization::Q6K) => gemm(Vnni::<Q6K>::new(vnni), simd, x, weight),
        (QuantKernel::Avx512Vnni(simd, vnni), Quantization::Q4K) => by_rows::<Q4K>(simd, vnni, x, weight),
    }
}

/// [`matmul`] with AVX-512 VNNI, by the kernel that is faster for so many rows; both give the same bits.
fn by_rows<T: VnniWeights>(simd: V3, vnni: Avx512Vnni, x: &[f32], weight: &InterleavedWeight) -> Vec<f32> {
    match x.len() / weight.dims2().1 {
        0..=gemv_avx512vnni::ROWS => gemv::<T>(simd, vnni, x, weight),
        _ => gemm(Vnni::<T>::new(vnni), simd, x, weight),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{QStorage, QTensor};
    use candle_core::{Device, Result, Tensor};
    use half::f16;
    use pulp::x86::V3;

    use super::lanes::Lanes;
    use super::*;
    use crate::nn::ops::testing::{max_diff, values};

    /// The kernels that this CPU can run.
    fn kernels() -> Vec<QuantKernel> {
        let avx2 = V3::try_new().map(QuantKernel::Avx2);
        avx2.into_iter().chain(QuantKernel::fastest()).collect()
    }

    /// Each type with each kernel.
    fn cases() -> impl Iterator<Item = (Quantization, QuantKernel)> {
        Quantization::ALL.into_iter().flat_map(|kind| kernels().into_iter().map(move |kernel| (kind, kernel)))
    }

    /// The weight as the kernels take it.
    fn interleaved(weight: &QTensor, kind: Quantization) -> Result<InterleavedWeight> {
        Ok(InterleavedWeight::new(kind, &weight.data()?, weight.shape().dims2()?.1))
    }

    /// `x` quantised as the kernel does it, and dequantised.
    fn quantized(x: &[f32], kind: Quantization, kernel: QuantKernel) -> Vec<f32> {
        let (block, steps) = match (kernel, kind) {
            (QuantKernel::Avx2(_), Quantization::Q8_0) => (32, 32767.0),
            (QuantKernel::Avx2(_), _) => (256, 127.0),
            (QuantKernel::Avx512Vnni(..), _) => (32, 127.0),
        };
        let round = |x: &[f32]| {
            let step = x.iter().fold(0f32, |most, x| most.max(x.abs())) / steps;
            x.iter().map(|x| if step > 0.0 { (x / step).round_ties_even() * step } else { 0.0 }).collect::<Vec<_>>()
        };
        x.chunks(block).flat_map(round).collect()
    }

    /// The matmul of the quantised `x` with the dequantised weight.
    fn expected(x: &[f32], weight: &QTensor, kind: Quantization, kernel: QuantKernel) -> Result<Tensor> {
        let width = weight.shape().dims2()?.1;
        let rows = x.len() / width;
        let x = Tensor::from_vec(quantized(x, kind, kernel), (rows, width), &Device::Cpu)?;
        x.matmul(&weight.dequantize(&Device::Cpu)?.t()?)
    }

    #[test]
    fn kernels_equal_the_matmul_of_dequantised_operands() -> Result<()> {
        for (kind, kernel) in cases() {
            for (rows, outputs, width) in
                [(1, 1, 256), (3, 7, 512), (2, 4, 768), (4, 8, 256), (8, 70, 1280), (65, 17, 512), (131, 9, 256)]
            {
                let (x, w) = (values(&[rows, width], 0.1), values(&[outputs, width], 0.2));
                let w = QTensor::quantize(&w, kind.ggml_dtype())?;
                let x = x.flatten_all()?.to_vec1::<f32>()?;
                let y = matmul(kernel, &x, &interleaved(&w, kind)?);
                let found = Tensor::from_slice(&y, (rows, outputs), &Device::Cpu)?;
                let error = max_diff(&found, &expected(&x, &w, kind, kernel)?);
                assert!(error < 1e-4 * (width as f32).sqrt(), "{kind} {kernel:?} {rows} {outputs} {width}: {error}");
            }
        }
        Ok(())
    }

    #[test]
    fn rows_are_the_same_bits_in_any_number() -> Result<()> {
        // Blocks of Q8_0 also end within 256 inputs.
        let widths = |kind| if kind == Quantization::Q8_0 { &[256, 768, 32, 320][..] } else { &[256, 768] };
        let sizes =
            |kind| [1, 16, 53].into_iter().flat_map(move |outputs| widths(kind).iter().map(move |w| (outputs, *w)));
        for ((kind, kernel), (outputs, width)) in cases().flat_map(|case| sizes(case.0).map(move |size| (case, size))) {
            let w = QTensor::quantize(&values(&[outputs, width], 0.2), kind.ggml_dtype())?;
            let (w, x) = (interleaved(&w, kind)?, values(&[34, width], 0.1).flatten_all()?.to_vec1::<f32>()?);
            let alone: Vec<f32> = x.chunks(width).flat_map(|row| matmul(kernel, row, &w)).collect();
            for rows in 1..=34 {
                let together = matmul(kernel, &x[..rows * width], &w);
                assert!(
                    together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{kind} {kernel:?} {rows}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn the_order_of_a_file_comes_back() -> Result<()> {
        for (kind, outputs) in Quantization::ALL.into_iter().flat_map(|kind| [1, 16, 37].map(|outputs| (kind, outputs)))
        {
            let w = QTensor::quantize(&values(&[outputs, 768], 0.2), kind.ggml_dtype())?;
            let weight = interleaved(&w, kind)?;
            assert_eq!(weight.dims2(), (outputs, 768));
            assert!(weight.in_file_order() == w.data()?[..], "{kind} {outputs}");
        }
        Ok(())
    }

    #[test]
    fn widened_tiles_have_the_bits_of_dequantised_weights() -> Result<()> {
        let mut buffer = Vec::new();
        for ((kind, kernel), (first, outputs)) in
            cases().flat_map(|case| [(0, 1), (0, 37), (32, 90)].map(|o| (case, o)))
        {
            let w = QTensor::quantize(&values(&[outputs, 768], 0.2), kind.ggml_dtype())?;
            let expected = w.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
            let weight = interleaved(&w, kind)?;
            for inputs in [0..768, 256..512, 512..700] {
                let tile = widen(kernel, &weight, first..outputs, inputs.clone(), &mut buffer).transposed();
                assert_eq!((tile.rows(), tile.columns()), (inputs.len(), outputs - first));
                for (row, input) in inputs.enumerate() {
                    let expected = expected[first..].iter().map(|weights| weights[input].to_bits());
                    assert!(
                        tile.row(row).iter().map(|weight| weight.to_bits()).eq(expected),
                        "{kind} {kernel:?} {outputs}, input {input}"
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn q8_0_takes_any_multiple_of_32_inputs() -> Result<()> {
        for (kernel, width) in kernels().into_iter().flat_map(|kernel| [32, 96, 320].map(|width| (kernel, width))) {
            let w = QTensor::quantize(&values(&[20, width], 0.2), Quantization::Q8_0.ggml_dtype())?;
            let x = values(&[5, width], 0.1).flatten_all()?.to_vec1::<f32>()?;
            let y = matmul(kernel, &x, &interleaved(&w, Quantization::Q8_0)?);
            let found = Tensor::from_vec(y, (5, 20), &Device::Cpu)?;
            assert!(max_diff(&found, &expected(&x, &w, Quantization::Q8_0, kernel)?) < 1e-3, "{kernel:?} {width}");
        }
        Ok(())
    }

    /// A matrix of these bytes, except for the upper bytes of f16 scales, which make scales about 0.06; and its blocks.
    fn matrix(
        kind: Quantization,
        outputs: usize,
        width: usize,
        mut byte: impl FnMut() -> u8,
    ) -> Result<(QTensor, Vec<u8>)> {
        let dtype = kind.ggml_dtype();
        let size = dtype.type_size();
        let uppers: &[usize] = match kind {
            Quantization::Q8_0 => &[1],
            Quantization::Q4K => &[1, 3],
            Quantization::Q6K => &[size - 1],
        };
        let bytes: Vec<u8> = (0..outputs * width / dtype.block_size() * size)
            .map(|i| if uppers.contains(&(i % size)) { 0x2c | byte() & 0x80 } else { byte() })
            .collect();
        let storage = QStorage::from_data((&bytes).into(), &Device::Cpu, dtype)?;
        Ok((QTensor::new(storage, (outputs, width))?, bytes))
    }

    #[test]
    fn random_blocks_dequantise_as_in_candle() -> Result<()> {
        let mut random = 1u64;
        let mut byte = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        };
        for kind in Quantization::ALL {
            let (weight, bytes) = matrix(kind, 5, 512, &mut byte)?;
            for kernel in kernels() {
                let x = values(&[4, 512], 0.3).flatten_all()?.to_vec1::<f32>()?;
                let expected = expected(&x, &weight, kind, kernel)?;
                let found = Tensor::from_vec(
                    matmul(kernel, &x, &InterleavedWeight::new(kind, &bytes, 512)),
                    (4, 5),
                    &Device::Cpu,
                )?;
                let size = expected.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(max_diff(&found, &expected) < 1e-4 * size, "{kind}: {found} {expected}");
            }
        }
        Ok(())
    }

    #[test]
    fn largest_sums_do_not_overflow() -> Result<()> {
        for kind in Quantization::ALL {
            // The last one has the largest weights of Q6_K with its most negative scales.
            let mixed = (0..210).map(|i| if (192..208).contains(&i) { 0x80 } else { 0xff });
            for bytes in [vec![0xff], vec![0x7f], vec![0x80], vec![0x00], mixed.collect()] {
                let mut bytes = bytes.iter().cycle();
                let (weight, bytes) = matrix(kind, 3, 256, || bytes.next().copied().unwrap_or_default())?;
                for (kernel, x) in kernels().into_iter().flat_map(|kernel| [(kernel, 1.0), (kernel, -1.0)]) {
                    let x = vec![x; 4 * 256];
                    let expected = expected(&x, &weight, kind, kernel)?;
                    let y = matmul(kernel, &x, &InterleavedWeight::new(kind, &bytes, 256));
                    let found = Tensor::from_vec(y, (4, 3), &Device::Cpu)?;
                    let size = expected.abs()?.max_all()?.to_scalar::<f32>()?.max(1.0);
                    assert!(max_diff(&found, &expected) < 1e-5 * size, "{kind} {x:?}: {found} {expected}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn nan_and_inf_propagate() -> Result<()> {
        for (kind, kernel) in cases() {
            let w = interleaved(&QTensor::quantize(&values(&[4, 256], 0.2), kind.ggml_dtype())?, kind)?;
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = vec![0.5; 5 * 256];
                x[70] = bad;
                let y = matmul(kernel, &x, &w);
                assert!(y[..4].iter().all(|y| !y.is_finite()), "{kind}");
                assert!(y[4..].iter().all(|y| y.is_finite()), "{kind}");
            }
            assert_eq!(matmul(kernel, &[0.0; 1024], &w), [0.0; 16]);
        }
        Ok(())
    }

    #[test]
    fn every_finite_f16_widens_exactly() {
        let Some(simd) = V3::try_new() else { return };
        let finite: Vec<u16> = (0..=u16::MAX).filter(|bits| f16::from_bits(*bits).is_finite()).collect();
        for bits in finite.chunks_exact(16) {
            // The upper half of a word must not matter.
            let words: [u32; 16] = std::array::from_fn(|i| u32::from(bits[i]) | 0xabcd_0000);
            let expected: [u32; 16] = std::array::from_fn(|i| f16::from_bits(bits[i]).to_f32().to_bits());
            assert_eq!(simd.floats(simd.halves(simd.words(words))).map(f32::to_bits), expected);
            if let Some(vnni) = Avx512Vnni::try_new() {
                assert_eq!(vnni.floats(vnni.halves(vnni.words(words))).map(f32::to_bits), expected);
            }
        }
    }
}
