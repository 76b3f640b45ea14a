//! `x W^T` over GGUF's blocks with `x` rounded to integers: exact sums of integer products, for x86-64 with AVX2.
//!
//! `x` is rounded in blocks with a scale each: as in ggml of 32 numbers for `Q8_0` and 256 for the K types, or always of 32 (see
//! [`Way`]). Scales enter once a block.
//!
//! Everything but [`wide`] and [`wide_row`], which want AVX-512, is inlined into closures that pulp compiles with these instructions.

mod gemm_avx2;
mod gemm_avx512vnni;
mod gemm_kquant_avx2;
mod gemv_kquant_avx2;
mod gemv_kquant_avx512vnni;
mod gemv_q8_0_avx2;
mod kquant_format;
mod quantize_activations;

use std::marker::PhantomData;

use candle_core::quantized::GgmlDType;
use pulp::NullaryFnOnce;
use pulp::x86::V3;

use super::parallel::{TASK_OUTPUTS, in_blocks};
use gemm_avx2::ByPanels;
use gemm_kquant_avx2::KPanel;
use gemv_kquant_avx2::KRow;
use gemv_kquant_avx512vnni::ByWideRows;
use gemv_q8_0_avx2::{Q8Panel, Q8Row};
use kquant_format::{Q4K, Q6K};
use quantize_activations::{RoundedBlock, round_all};

/// From this many rows of `x` on, it pays to sort weights into panels first.
const PANELS_FROM: usize = 4;
// A task of fewer outputs would multiply zeros.
const _: () = assert!(TASK_OUTPUTS.is_multiple_of(gemm_avx2::PANELS * gemm_avx2::LANES));

/// The proof that this processor has the instructions, if there is a kernel for this type.
pub fn instructions(dtype: GgmlDType) -> Option<V3> {
    matches!(dtype, GgmlDType::Q8_0 | GgmlDType::Q6K | GgmlDType::Q4K).then(V3::try_new).flatten()
}

/// How weights lie while they are multiplied, and how exact `x` is then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As in a file. `x` has 8 bits, in blocks of 32 for `Q8_0` and 256 for the K types.
    Rows,
    /// The same; of K types 64 weights at a time (AVX-512 with VNNI).
    WideRows,
    /// Eight outputs side by side. As above, but 16 bits for `Q8_0`.
    Panels,
    /// Sixteen outputs side by side, where the processor can. 8 bits in blocks of 32.
    Wide,
}

impl Way {
    /// The fastest for so many rows of `x`.
    fn of(rows: usize) -> Self {
        match (rows < PANELS_FROM, gemm_avx512vnni::is_available()) {
            (true, true) => Self::WideRows,
            (true, false) => Self::Rows,
            (false, true) => Self::Wide,
            (false, false) => Self::Panels,
        }
    }
}

/// `x` (rows, width) times the transpose of a matrix of whole blocks (outputs, width): (rows, outputs).
///
/// A row's result does not depend on the other rows, nor on threads, but on how many there are: each [`Way`] rounds and sums
/// as it likes.
pub fn products(simd: V3, x: &[f32], blocks: &[u8], dtype: GgmlDType, width: usize) -> Vec<f32> {
    products_by(Way::of(x.len() / width), simd, x, blocks, dtype, width)
}

fn products_by(way: Way, simd: V3, x: &[f32], blocks: &[u8], dtype: GgmlDType, width: usize) -> Vec<f32> {
    match (way, dtype) {
        (Way::Rows | Way::WideRows, GgmlDType::Q8_0) => products_of::<ByRows<Q8Row>>(simd, x, blocks, width),
        (Way::Rows, GgmlDType::Q6K) => products_of::<ByRows<KRow<Q6K>>>(simd, x, blocks, width),
        (Way::Rows, _) => products_of::<ByRows<KRow<Q4K>>>(simd, x, blocks, width),
        (Way::WideRows, GgmlDType::Q6K) => products_of::<ByWideRows<Q6K>>(simd, x, blocks, width),
        (Way::WideRows, _) => products_of::<ByWideRows<Q4K>>(simd, x, blocks, width),
        (Way::Panels, GgmlDType::Q8_0) => products_of::<ByPanels<Q8Panel>>(simd, x, blocks, width),
        (Way::Panels, GgmlDType::Q6K) => products_of::<ByPanels<KPanel<Q6K>>>(simd, x, blocks, width),
        (Way::Panels, _) => products_of::<ByPanels<KPanel<Q4K>>>(simd, x, blocks, width),
        (Way::Wide, GgmlDType::Q8_0) => gemm_avx512vnni::products::<gemm_avx512vnni::Q8_0>(simd, x, blocks, width),
        (Way::Wide, GgmlDType::Q6K) => gemm_avx512vnni::products::<Q6K>(simd, x, blocks, width),
        (Way::Wide, _) => gemm_avx512vnni::products::<Q4K>(simd, x, blocks, width),
    }
}

fn products_of<K: Kernel>(simd: V3, x: &[f32], blocks: &[u8], width: usize) -> Vec<f32> {
    let per_row = width / K::X::WIDTH;
    let row_bytes = per_row * K::BYTES;
    let (rows, outputs) = (x.len() / width, blocks.len() / row_bytes);
    let x: Vec<K::X> = round_all(simd, x);
    in_blocks(rows, outputs, width, |rows, outputs, out| {
        let x = &x[rows.start * per_row..rows.end * per_row];
        let weights = &blocks[outputs.start * row_bytes..outputs.end * row_bytes];
        simd.vectorize(Fill::<K> { simd, x, per_row, weights, out });
    })
}

/// A way to multiply.
trait Kernel {
    /// How it wants `x`.
    type X: RoundedBlock;
    /// Bytes of a block of weights.
    const BYTES: usize;

    /// Fills `out`.
    fn fill(task: Fill<'_, Self>);
}

/// Products of rows of `x` with rows of weights, into `out` (rows, outputs).
struct Fill<'a, K: Kernel + ?Sized> {
    simd: V3,
    x: &'a [K::X],
    /// Blocks of a row.
    per_row: usize,
    weights: &'a [u8],
    out: &'a mut [f32],
}

impl<K: Kernel> NullaryFnOnce for Fill<'_, K> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        K::fill(self);
    }
}

/// A row of blocks, as they lie in a file.
trait Row {
    /// How it wants `x`.
    type X: RoundedBlock;
    /// Bytes of a block.
    const BYTES: usize;

    /// Its product with a row of `x`.
    fn dot(simd: V3, blocks: &[u8], x: &[Self::X]) -> f32;
}

/// One row of weights after the other, for a few rows of `x`.
struct ByRows<W>(PhantomData<W>);

impl<W: Row> Kernel for ByRows<W> {
    type X = W::X;
    const BYTES: usize = W::BYTES;

    #[inline(always)]
    fn fill(Fill { simd, x, per_row, weights, out }: Fill<'_, Self>) {
        let row_bytes = per_row * W::BYTES;
        let outputs = weights.len() / row_bytes;
        for (out, x) in out.chunks_exact_mut(outputs).zip(x.chunks_exact(per_row)) {
            for (out, weights) in out.iter_mut().zip(weights.chunks_exact(row_bytes)) {
                *out = W::dot(simd, weights, x);
            }
        }
    }
}

/// The sum of eight floats.
#[inline(always)]
fn total(simd: V3, sum: pulp::f32x8) -> f32 {
    pulp::Simd::reduce_sum_f32s(simd, sum)
}

/// A finite half float; infinities and NaNs become large numbers, which no honest scale is.
///
/// Its bits, moved to an f32's places, are the number divided by 2^112.
#[inline(always)]
fn half(half: [u8; 2]) -> f32 {
    const TWO_TO_112: f32 = f32::from_bits((112 + 127) << 23);
    // Copies of the sign fill the places between it and the exponent: they are masked out.
    let bits = i32::from(i16::from_le_bytes(half)) << 13;
    f32::from_bits(bits as u32 & 0x8fff_e000) * TWO_TO_112
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{QStorage, QTensor};
    use candle_core::{Device, Result, Tensor};
    use half::f16;

    use super::*;
    use crate::nn::ops::testing::{max_diff, values};

    /// Those that this processor has kernels for.
    fn types() -> impl Iterator<Item = (GgmlDType, V3)> {
        let types = [GgmlDType::Q8_0, GgmlDType::Q6K, GgmlDType::Q4K];
        types.into_iter().filter_map(|dtype| Some((dtype, instructions(dtype)?)))
    }

    /// The ways that this processor knows.
    fn ways() -> impl Iterator<Item = Way> {
        let ways = [Way::Rows, Way::Panels, Way::WideRows, Way::Wide];
        ways.into_iter().take(if gemm_avx512vnni::is_available() { 4 } else { 2 })
    }

    /// `x` as its rounded form has it.
    fn as_rounded(x: &[f32], dtype: GgmlDType, way: Way) -> Vec<f32> {
        let steps = if dtype == GgmlDType::Q8_0 && way == Way::Panels { 32767.0 } else { 127.0 };
        let block = if way == Way::Wide { 32 } else { dtype.block_size() };
        let round = |x: &[f32]| {
            let step = x.iter().fold(0f32, |most, x| most.max(x.abs())) / steps;
            x.iter().map(|x| if step > 0.0 { (x / step).round_ties_even() * step } else { 0.0 }).collect::<Vec<_>>()
        };
        x.chunks(block).flat_map(round).collect()
    }

    /// The product of the rounded `x` with the floats of the blocks.
    fn expected(x: &[f32], weight: &QTensor, way: Way) -> Result<Tensor> {
        let width = weight.shape().dims2()?.1;
        let rows = x.len() / width;
        let x = Tensor::from_vec(as_rounded(x, weight.dtype(), way), (rows, width), &Device::Cpu)?;
        x.matmul(&weight.dequantize(&Device::Cpu)?.t()?)
    }

    #[test]
    fn products_are_those_of_the_floats_with_the_rounded_input() -> Result<()> {
        for ((dtype, simd), way) in types().flat_map(|kind| ways().map(move |way| (kind, way))) {
            for (rows, outputs, width) in
                [(1, 1, 256), (3, 7, 512), (2, 4, 768), (4, 8, 256), (8, 70, 1280), (65, 17, 512), (131, 9, 256)]
            {
                let (x, w) = (values(&[rows, width], 0.1), values(&[outputs, width], 0.2));
                let w = QTensor::quantize(&w, dtype)?;
                let x = x.flatten_all()?.to_vec1::<f32>()?;
                let y = products_by(way, simd, &x, &w.data()?, dtype, width);
                let found = Tensor::from_slice(&y, (rows, outputs), &Device::Cpu)?;
                let error = max_diff(&found, &expected(&x, &w, way)?);
                assert!(error < 1e-4 * (width as f32).sqrt(), "{dtype:?} {way:?} {rows} {outputs} {width}: {error}");
                // The same as alone.
                let last = products_by(way, simd, &x[(rows - 1) * width..], &w.data()?, dtype, width);
                assert_eq!(last, y[(rows - 1) * outputs..], "{dtype:?} {way:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn q8_0_need_not_be_of_256_inputs() -> Result<()> {
        let Some(simd) = instructions(GgmlDType::Q8_0) else { return Ok(()) };
        for (way, width) in ways().flat_map(|way| [32, 96, 320].map(move |width| (way, width))) {
            let w = QTensor::quantize(&values(&[20, width], 0.2), GgmlDType::Q8_0)?;
            let x = values(&[5, width], 0.1).flatten_all()?.to_vec1::<f32>()?;
            let y = products_by(way, simd, &x, &w.data()?, GgmlDType::Q8_0, width);
            let found = Tensor::from_vec(y, (5, 20), &Device::Cpu)?;
            assert!(max_diff(&found, &expected(&x, &w, way)?) < 1e-3, "{way:?} {width}");
        }
        Ok(())
    }

    /// A matrix of these bytes but for the upper ones of half floats, which make them 0.06 or so, and its blocks.
    fn matrix(
        dtype: GgmlDType,
        outputs: usize,
        width: usize,
        mut byte: impl FnMut() -> u8,
    ) -> Result<(QTensor, Vec<u8>)> {
        let size = dtype.type_size();
        let uppers: &[usize] = match dtype {
            GgmlDType::Q8_0 => &[1],
            GgmlDType::Q4K => &[1, 3],
            _ => &[size - 1],
        };
        let bytes: Vec<u8> = (0..outputs * width / dtype.block_size() * size)
            .map(|i| if uppers.contains(&(i % size)) { 0x2c | byte() & 0x80 } else { byte() })
            .collect();
        let storage = QStorage::from_data((&bytes).into(), &Device::Cpu, dtype)?;
        Ok((QTensor::new(storage, (outputs, width))?, bytes))
    }

    #[test]
    fn whatever_bytes_a_file_holds_mean_what_candle_reads() -> Result<()> {
        let mut random = 1u64;
        let mut byte = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        };
        for (dtype, simd) in types() {
            let (weight, bytes) = matrix(dtype, 5, 512, &mut byte)?;
            for way in ways() {
                let x = values(&[4, 512], 0.3).flatten_all()?.to_vec1::<f32>()?;
                let expected = expected(&x, &weight, way)?;
                let found = Tensor::from_vec(products_by(way, simd, &x, &bytes, dtype, 512), (4, 5), &Device::Cpu)?;
                let size = expected.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(max_diff(&found, &expected) < 1e-4 * size, "{dtype:?}: {found} {expected}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_largest_sums_fit() -> Result<()> {
        for (dtype, simd) in types() {
            // The last has Q6_K's largest weights with its most negative scales.
            let mixed = (0..210).map(|i| if (192..208).contains(&i) { 0x80 } else { 0xff });
            for bytes in [vec![0xff], vec![0x7f], vec![0x80], vec![0x00], mixed.collect()] {
                let mut bytes = bytes.iter().cycle();
                let (weight, bytes) = matrix(dtype, 3, 256, || bytes.next().copied().unwrap_or_default())?;
                for (way, x) in ways().flat_map(|way| [(way, 1.0), (way, -1.0)]) {
                    let x = vec![x; 4 * 256];
                    let expected = expected(&x, &weight, way)?;
                    let found = Tensor::from_vec(products_by(way, simd, &x, &bytes, dtype, 256), (4, 3), &Device::Cpu)?;
                    let size = expected.abs()?.max_all()?.to_scalar::<f32>()?.max(1.0);
                    assert!(max_diff(&found, &expected) < 1e-5 * size, "{dtype:?} {x:?}: {found} {expected}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn numbers_that_are_none_stay_so() -> Result<()> {
        for (dtype, simd) in types() {
            let w = QTensor::quantize(&values(&[4, 256], 0.2), dtype)?;
            for bad in [f32::NAN, f32::INFINITY] {
                for way in ways() {
                    let mut x = vec![0.5; 5 * 256];
                    x[70] = bad;
                    let y = products_by(way, simd, &x, &w.data()?, dtype, 256);
                    assert!(y[..4].iter().all(|y| !y.is_finite()), "{dtype:?}");
                    assert!(y[4..].iter().all(|y| y.is_finite()), "{dtype:?}");
                }
            }
            for way in ways() {
                assert_eq!(products_by(way, simd, &[0.0; 1024], &w.data()?, dtype, 256), [0.0; 16]);
            }
        }
        Ok(())
    }

    #[test]
    fn every_finite_half_float_is_exact() {
        for bits in (0..=u16::MAX).filter(|bits| f16::from_bits(*bits).is_finite()) {
            let (found, expected) = (half(bits.to_le_bytes()), f16::from_bits(bits).to_f32());
            assert_eq!(found.to_bits(), expected.to_bits(), "{bits:#x}");
        }
    }
}
