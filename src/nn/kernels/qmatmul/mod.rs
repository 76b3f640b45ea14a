//! Integer matmul `x W^T` over GGUF blocks, for x86-64 with AVX2: `x` is quantised too, and scales are applied once per
//! block.
//!
//! [`QuantKernel`] lists the blocks in which each kernel quantises `x`. All code but the AVX-512 kernels is inlined
//! into closures that pulp compiles for AVX2.

mod gemm_avx2;
mod gemm_avx512vnni;
mod gemm_kquant_avx2;
mod gemv_kquant_avx2;
mod gemv_kquant_avx512vnni;
mod gemv_q8_0_avx2;
mod kquant_format;
mod quantize_activations;

use std::marker::PhantomData;

use pulp::NullaryFnOnce;
use pulp::x86::V3;

use super::dispatch::QuantKernel;
use super::parallel::{TASK_OUTPUTS, parallel_tiles};
use crate::options::Quantization;
use gemm_avx2::GemmAvx2;
use gemm_kquant_avx2::PackedKQuant;
use gemv_kquant_avx2::KQuantRow;
use gemv_kquant_avx512vnni::GemvAvx512Vnni;
use gemv_q8_0_avx2::{PackedQ8_0, Q8_0Row};
use kquant_format::{Q4K, Q6K};
use quantize_activations::{QuantizedBlock, quantize_rows};

// A task of fewer outputs would multiply zeros.
const _: () = assert!(TASK_OUTPUTS.is_multiple_of(gemm_avx2::PANELS * super::simd_math::AVX2_F32_LANES));

/// Bytes of a `Q8_0` block: the f16 scale, then 32 weights.
const Q8_0_BYTES: usize = 2 + 32;

/// Multiplies `x` (rows, width) by the transpose of a matrix (outputs, width) of whole `blocks`: (rows, outputs).
///
/// A row's result depends neither on the other rows nor on the number of threads, but on `kernel`, which is chosen by
/// the number of rows: each kernel rounds and sums in another way.
pub fn matmul(kernel: QuantKernel, simd: V3, x: &[f32], blocks: &[u8], kind: Quantization, width: usize) -> Vec<f32> {
    use QuantKernel::{GemmAvx2 as Gemm, GemmAvx512Vnni as GemmVnni, GemvAvx2 as Gemv, GemvAvx512Vnni as GemvVnni};
    match (kernel, kind) {
        (Gemv | GemvVnni, Quantization::Q8_0) => by_tiles::<GemvAvx2<Q8_0Row>>(simd, x, blocks, width),
        (Gemv, Quantization::Q6K) => by_tiles::<GemvAvx2<KQuantRow<Q6K>>>(simd, x, blocks, width),
        (Gemv, Quantization::Q4K) => by_tiles::<GemvAvx2<KQuantRow<Q4K>>>(simd, x, blocks, width),
        (GemvVnni, Quantization::Q6K) => by_tiles::<GemvAvx512Vnni<Q6K>>(simd, x, blocks, width),
        (GemvVnni, Quantization::Q4K) => by_tiles::<GemvAvx512Vnni<Q4K>>(simd, x, blocks, width),
        (Gemm, Quantization::Q8_0) => by_tiles::<GemmAvx2<PackedQ8_0>>(simd, x, blocks, width),
        (Gemm, Quantization::Q6K) => by_tiles::<GemmAvx2<PackedKQuant<Q6K>>>(simd, x, blocks, width),
        (Gemm, Quantization::Q4K) => by_tiles::<GemmAvx2<PackedKQuant<Q4K>>>(simd, x, blocks, width),
        (GemmVnni, Quantization::Q8_0) => gemm_avx512vnni::gemm::<gemm_avx512vnni::Q8_0>(simd, x, blocks, width),
        (GemmVnni, Quantization::Q6K) => gemm_avx512vnni::gemm::<Q6K>(simd, x, blocks, width),
        (GemmVnni, Quantization::Q4K) => gemm_avx512vnni::gemm::<Q4K>(simd, x, blocks, width),
    }
}

fn by_tiles<K: TileKernel>(simd: V3, x: &[f32], blocks: &[u8], width: usize) -> Vec<f32> {
    let per_row = width / K::X::WIDTH;
    let row_bytes = per_row * K::BYTES;
    let (rows, outputs) = (x.len() / width, blocks.len() / row_bytes);
    let x: Vec<K::X> = quantize_rows(simd, x);
    parallel_tiles(rows, outputs, width, |rows, outputs, out| {
        let x = &x[rows.start * per_row..rows.end * per_row];
        let weights = &blocks[outputs.start * row_bytes..outputs.end * row_bytes];
        simd.vectorize(Tile::<K> { simd, x, per_row, weights, out });
    })
}

/// Kernel that fills one tile of the result.
trait TileKernel {
    /// Quantised form of `x`.
    type X: QuantizedBlock;
    /// Number of bytes of a block of weights.
    const BYTES: usize;

    /// Fills `task.out`.
    fn fill(task: Tile<'_, Self>);
}

/// Matmul of some rows of `x` with some rows of weights, into `out` (rows, outputs).
struct Tile<'a, K: TileKernel + ?Sized> {
    simd: V3,
    x: &'a [K::X],
    /// Number of blocks in a row of `x`.
    per_row: usize,
    weights: &'a [u8],
    out: &'a mut [f32],
}

impl<K: TileKernel> NullaryFnOnce for Tile<'_, K> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        K::fill(self);
    }
}

/// Dot product with a row of blocks, in file order.
trait RowKernel {
    /// Quantised form of `x`.
    type X: QuantizedBlock;
    /// Number of bytes of a block.
    const BYTES: usize;

    /// Computes the dot product with a row of `x`.
    fn dot(simd: V3, blocks: &[u8], x: &[Self::X]) -> f32;
}

/// GEMV: one row of weights after the other, for each row of `x`.
struct GemvAvx2<W>(PhantomData<W>);

impl<W: RowKernel> TileKernel for GemvAvx2<W> {
    type X = W::X;
    const BYTES: usize = W::BYTES;

    #[inline(always)]
    fn fill(Tile { simd, x, per_row, weights, out }: Tile<'_, Self>) {
        let row_bytes = per_row * W::BYTES;
        let outputs = weights.len() / row_bytes;
        for (out, x) in out.chunks_exact_mut(outputs).zip(x.chunks_exact(per_row)) {
            for (out, weights) in out.iter_mut().zip(weights.chunks_exact(row_bytes)) {
                *out = W::dot(simd, weights, x);
            }
        }
    }
}

/// Sums eight floats.
#[inline(always)]
fn reduce_sum(simd: V3, sum: pulp::f32x8) -> f32 {
    pulp::Simd::reduce_sum_f32s(simd, sum)
}

/// Converts a finite f16 to f32; infinities and NaNs, which no valid scale is, become large values.
///
/// The bits of an f16, shifted to the fields of an f32, are its value divided by 2^112.
#[inline(always)]
fn f16_to_f32(half: [u8; 2]) -> f32 {
    const TWO_TO_112: f32 = f32::from_bits((112 + 127) << 23);
    // Sign extension fills the bits between sign and exponent, which are masked out.
    let bits = i32::from(i16::from_le_bytes(half)) << 13;
    f32::from_bits(bits as u32 & 0x8fff_e000) * TWO_TO_112
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{QStorage, QTensor};
    use candle_core::{Device, Result, Tensor};
    use half::f16;

    use super::super::dispatch::has_avx512_vnni;
    use super::*;
    use crate::nn::ops::testing::{max_diff, values};

    /// The types that this CPU has kernels for.
    fn types() -> impl Iterator<Item = (Quantization, V3)> {
        Quantization::ALL.into_iter().filter_map(|kind| Some((kind, V3::try_new()?)))
    }

    /// The kernels that this CPU can run.
    fn kernels() -> impl Iterator<Item = QuantKernel> {
        use QuantKernel::{GemmAvx2, GemmAvx512Vnni, GemvAvx2, GemvAvx512Vnni};
        let kernels = [GemvAvx2, GemmAvx2, GemvAvx512Vnni, GemmAvx512Vnni];
        kernels.into_iter().take(if has_avx512_vnni() { 4 } else { 2 })
    }

    /// `x` quantised as the kernel does it, and dequantised.
    fn quantized(x: &[f32], kind: Quantization, kernel: QuantKernel) -> Vec<f32> {
        let steps = if kind == Quantization::Q8_0 && kernel == QuantKernel::GemmAvx2 { 32767.0 } else { 127.0 };
        let block = if kernel == QuantKernel::GemmAvx512Vnni { 32 } else { kind.ggml_dtype().block_size() };
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
        for ((kind, simd), kernel) in types().flat_map(|kind| kernels().map(move |kernel| (kind, kernel))) {
            for (rows, outputs, width) in
                [(1, 1, 256), (3, 7, 512), (2, 4, 768), (4, 8, 256), (8, 70, 1280), (65, 17, 512), (131, 9, 256)]
            {
                let (x, w) = (values(&[rows, width], 0.1), values(&[outputs, width], 0.2));
                let w = QTensor::quantize(&w, kind.ggml_dtype())?;
                let x = x.flatten_all()?.to_vec1::<f32>()?;
                let y = matmul(kernel, simd, &x, &w.data()?, kind, width);
                let found = Tensor::from_slice(&y, (rows, outputs), &Device::Cpu)?;
                let error = max_diff(&found, &expected(&x, &w, kind, kernel)?);
                assert!(error < 1e-4 * (width as f32).sqrt(), "{kind} {kernel:?} {rows} {outputs} {width}: {error}");
                // A row alone gives the same result.
                let last = matmul(kernel, simd, &x[(rows - 1) * width..], &w.data()?, kind, width);
                assert_eq!(last, y[(rows - 1) * outputs..], "{kind} {kernel:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn q8_0_takes_any_multiple_of_32_inputs() -> Result<()> {
        let Some(simd) = V3::try_new() else { return Ok(()) };
        for (kernel, width) in kernels().flat_map(|kernel| [32, 96, 320].map(move |width| (kernel, width))) {
            let w = QTensor::quantize(&values(&[20, width], 0.2), Quantization::Q8_0.ggml_dtype())?;
            let x = values(&[5, width], 0.1).flatten_all()?.to_vec1::<f32>()?;
            let y = matmul(kernel, simd, &x, &w.data()?, Quantization::Q8_0, width);
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
        for (kind, simd) in types() {
            let (weight, bytes) = matrix(kind, 5, 512, &mut byte)?;
            for kernel in kernels() {
                let x = values(&[4, 512], 0.3).flatten_all()?.to_vec1::<f32>()?;
                let expected = expected(&x, &weight, kind, kernel)?;
                let found = Tensor::from_vec(matmul(kernel, simd, &x, &bytes, kind, 512), (4, 5), &Device::Cpu)?;
                let size = expected.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(max_diff(&found, &expected) < 1e-4 * size, "{kind}: {found} {expected}");
            }
        }
        Ok(())
    }

    #[test]
    fn largest_sums_do_not_overflow() -> Result<()> {
        for (kind, simd) in types() {
            // The last one has the largest weights of Q6_K with its most negative scales.
            let mixed = (0..210).map(|i| if (192..208).contains(&i) { 0x80 } else { 0xff });
            for bytes in [vec![0xff], vec![0x7f], vec![0x80], vec![0x00], mixed.collect()] {
                let mut bytes = bytes.iter().cycle();
                let (weight, bytes) = matrix(kind, 3, 256, || bytes.next().copied().unwrap_or_default())?;
                for (kernel, x) in kernels().flat_map(|kernel| [(kernel, 1.0), (kernel, -1.0)]) {
                    let x = vec![x; 4 * 256];
                    let expected = expected(&x, &weight, kind, kernel)?;
                    let found = Tensor::from_vec(matmul(kernel, simd, &x, &bytes, kind, 256), (4, 3), &Device::Cpu)?;
                    let size = expected.abs()?.max_all()?.to_scalar::<f32>()?.max(1.0);
                    assert!(max_diff(&found, &expected) < 1e-5 * size, "{kind} {x:?}: {found} {expected}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn nan_and_inf_propagate() -> Result<()> {
        for (kind, simd) in types() {
            let w = QTensor::quantize(&values(&[4, 256], 0.2), kind.ggml_dtype())?;
            for bad in [f32::NAN, f32::INFINITY] {
                for kernel in kernels() {
                    let mut x = vec![0.5; 5 * 256];
                    x[70] = bad;
                    let y = matmul(kernel, simd, &x, &w.data()?, kind, 256);
                    assert!(y[..4].iter().all(|y| !y.is_finite()), "{kind}");
                    assert!(y[4..].iter().all(|y| y.is_finite()), "{kind}");
                }
            }
            for kernel in kernels() {
                assert_eq!(matmul(kernel, simd, &[0.0; 1024], &w.data()?, kind, 256), [0.0; 16]);
            }
        }
        Ok(())
    }

    #[test]
    fn every_finite_f16_widens_exactly() {
        for bits in (0..=u16::MAX).filter(|bits| f16::from_bits(*bits).is_finite()) {
            let (found, expected) = (f16_to_f32(bits.to_le_bytes()), f16::from_bits(bits).to_f32());
            assert_eq!(found.to_bits(), expected.to_bits(), "{bits:#x}");
        }
    }
}
