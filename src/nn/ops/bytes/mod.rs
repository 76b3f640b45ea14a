//! `x W^T` over GGUF's blocks with `x` rounded to 8 bits: sums of byte products, for x86-64 with AVX2.
//!
//! As in ggml, `x` is rounded in blocks with a scale each, of 32 numbers for `Q8_0` and 256 for the K types. A sum of
//! byte products is exact; scales enter once a block.
//!
//! All of it is inlined into closures that pulp compiles with these instructions.

mod k_types;
mod k_weights;
mod q8_0;
mod rounded;

use std::ops::Range;

use candle_core::quantized::GgmlDType;
use pulp::NullaryFnOnce;
use pulp::x86::V3;

use super::blocks::{OUTPUTS, in_blocks};
use k_types::{Q4K, Q6K};
use k_weights::KWeights;
use q8_0::Q8Weights;
pub(super) use q8_0::floats as q8_0_floats;
use rounded::{RoundedBlock, round_all};

/// Rows of `x` that a weight is multiplied with once it is in a register.
const ROWS: usize = 4;

/// The proof that this processor has the instructions, if there is a kernel for this type.
pub(super) fn instructions(dtype: GgmlDType) -> Option<V3> {
    matches!(dtype, GgmlDType::Q8_0 | GgmlDType::Q6K | GgmlDType::Q4K).then(V3::try_new).flatten()
}

/// `x` (rows, width) times the transpose of a matrix of whole blocks (outputs, width): (rows, outputs).
///
/// A row's result does not depend on the other rows, nor on how many there are, nor on threads.
pub(super) fn products(simd: V3, x: &[f32], blocks: &[u8], dtype: GgmlDType, width: usize) -> Vec<f32> {
    let row_bytes = width / dtype.block_size() * dtype.type_size();
    match dtype {
        GgmlDType::Q8_0 => products_of::<Q8Weights>(simd, x, blocks, row_bytes, width),
        GgmlDType::Q6K => products_of::<KWeights<Q6K>>(simd, x, blocks, row_bytes, width),
        _ => products_of::<KWeights<Q4K>>(simd, x, blocks, row_bytes, width),
    }
}

fn products_of<'a, W: WeightRow<'a>>(
    simd: V3,
    x: &[f32],
    blocks: &'a [u8],
    row_bytes: usize,
    width: usize,
) -> Vec<f32> {
    let (rows, outputs) = (x.len() / width, blocks.len() / row_bytes);
    let x: Vec<W::X> = round_all(simd, x);
    let per_row = width / W::X::WIDTH;
    in_blocks(rows, outputs, width, |rows: Range<usize>, outputs, out| {
        let x = &x[rows.start * per_row..rows.end * per_row];
        let weights = &blocks[outputs.start * row_bytes..outputs.end * row_bytes];
        simd.vectorize(Fill::<W> { simd, x, per_row, weights, row_bytes, out });
    })
}

/// A row of weights, ready to be multiplied.
trait WeightRow<'a>: Default {
    /// How it wants `x`.
    type X: RoundedBlock;

    /// Becomes the row of these blocks.
    fn set(&mut self, simd: V3, blocks: &'a [u8]);

    /// Its products with some rows of `x`, each of as many blocks.
    fn dot<const R: usize>(&self, simd: V3, x: [&[Self::X]; R]) -> [f32; R];

    /// The product of a row of blocks with a single row of `x`.
    fn dot_once(simd: V3, blocks: &'a [u8], x: &[Self::X]) -> f32;
}

/// Products of rows of `x` with rows of weights, into `out` (rows, outputs).
struct Fill<'a, 'b, W: WeightRow<'a>> {
    simd: V3,
    x: &'b [W::X],
    /// Blocks of a row of `x`.
    per_row: usize,
    weights: &'a [u8],
    row_bytes: usize,
    out: &'b mut [f32],
}

impl<'a, W: WeightRow<'a>> NullaryFnOnce for Fill<'a, '_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, x, per_row, weights, row_bytes, out } = self;
        let (rows, outputs) = (x.len() / per_row, weights.len() / row_bytes);
        let row = |row: usize| &x[row * per_row..][..per_row];
        if rows < ROWS {
            for (r, out) in out.chunks_exact_mut(outputs).enumerate() {
                for (out, weights) in out.iter_mut().zip(weights.chunks_exact(row_bytes)) {
                    *out = W::dot_once(simd, weights, row(r));
                }
            }
            return;
        }
        // Rows of `x` stay in the first-level cache while a group of weights passes over them.
        let mut group: [W; OUTPUTS] = Default::default();
        for (at, weights) in weights.chunks(OUTPUTS * row_bytes).enumerate() {
            let found = weights.len() / row_bytes;
            for (weight, blocks) in group.iter_mut().zip(weights.chunks_exact(row_bytes)) {
                weight.set(simd, blocks);
            }
            for first in (0..rows).step_by(ROWS) {
                // The last rows may be some of those before them as well: they get the same result again.
                let first = first.min(rows - ROWS);
                let members = [row(first), row(first + 1), row(first + 2), row(first + 3)];
                for (i, weight) in group[..found].iter().enumerate() {
                    let products: [f32; ROWS] = weight.dot(simd, members);
                    for (r, product) in products.into_iter().enumerate() {
                        out[(first + r) * outputs + at * OUTPUTS + i] = product;
                    }
                }
            }
        }
    }
}

/// The sums of each eight floats.
#[inline(always)]
fn totals<const R: usize>(simd: V3, sums: [pulp::f32x8; R]) -> [f32; R] {
    sums.map(
        #[inline(always)]
        |sum| pulp::Simd::reduce_sum_f32s(simd, sum),
    )
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

    use super::super::testing::{max_diff, values};
    use super::*;

    /// Those that this processor has kernels for.
    fn types() -> impl Iterator<Item = (GgmlDType, V3)> {
        let types = [GgmlDType::Q8_0, GgmlDType::Q6K, GgmlDType::Q4K];
        types.into_iter().filter_map(|dtype| Some((dtype, instructions(dtype)?)))
    }

    /// `x` as its rounded form has it.
    fn as_rounded(x: &[f32], dtype: GgmlDType) -> Vec<f32> {
        let round = |x: &[f32]| {
            let step = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
            x.iter().map(|x| if step > 0.0 { (x / step).round_ties_even() * step } else { 0.0 }).collect::<Vec<_>>()
        };
        x.chunks(dtype.block_size()).flat_map(round).collect()
    }

    #[test]
    fn products_are_those_of_the_floats_with_the_rounded_input() -> Result<()> {
        for (dtype, simd) in types() {
            for (rows, outputs, width) in [(1, 1, 256), (3, 7, 512), (2, 4, 768), (8, 70, 1280), (131, 9, 256)] {
                let (x, w) = (values(&[rows, width], 0.1), values(&[outputs, width], 0.2));
                let w = QTensor::quantize(&w, dtype)?;
                let x = x.flatten_all()?.to_vec1::<f32>()?;
                let y = products(simd, &x, &w.data()?, dtype, width);
                let rounded = Tensor::from_vec(as_rounded(&x, dtype), (rows, width), &Device::Cpu)?;
                let expected = rounded.matmul(&w.dequantize(&Device::Cpu)?.t()?)?;
                let error = max_diff(&Tensor::from_slice(&y, (rows, outputs), &Device::Cpu)?, &expected);
                assert!(error < 1e-4 * (width as f32).sqrt(), "{dtype:?} {rows} {outputs} {width}: {error}");
                for (row, x) in x.chunks(width).enumerate() {
                    let alone = products(simd, x, &w.data()?, dtype, width);
                    assert_eq!(alone, y[row * outputs..][..outputs], "{dtype:?}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn whatever_bytes_a_file_holds_mean_what_candle_reads() -> Result<()> {
        let mut random = 1u64;
        let mut byte = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        };
        for (dtype, simd) in types() {
            let (size, width, outputs) = (dtype.type_size(), 512, 5);
            // The upper bytes of a block's half floats. 0x2c.. is about 0.06.
            let uppers: &[usize] = match dtype {
                GgmlDType::Q8_0 => &[1],
                GgmlDType::Q4K => &[1, 3],
                _ => &[size - 1],
            };
            let bytes: Vec<u8> = (0..outputs * width / dtype.block_size() * size)
                .map(|i| if uppers.contains(&(i % size)) { 0x2c | byte() & 0x80 } else { byte() })
                .collect();
            let weight = QStorage::from_data((&bytes).into(), &Device::Cpu, dtype)?;
            let weight = QTensor::new(weight, (outputs, width))?.dequantize(&Device::Cpu)?;
            let x = values(&[4, width], 0.3).flatten_all()?.to_vec1::<f32>()?;
            let expected = Tensor::from_vec(as_rounded(&x, dtype), (4, width), &Device::Cpu)?.matmul(&weight.t()?)?;
            let found = products(simd, &x, &bytes, dtype, width);
            let found = Tensor::from_vec(found, (4, outputs), &Device::Cpu)?;
            let size = expected.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(max_diff(&found, &expected) < 1e-4 * size, "{dtype:?}: {found} {expected}");
        }
        Ok(())
    }

    #[test]
    fn floats_are_those_of_candle() -> Result<()> {
        if let Some(simd) = instructions(GgmlDType::Q8_0) {
            let w = QTensor::quantize(&values(&[70, 1024], 0.2), GgmlDType::Q8_0)?;
            for in_size in [1024, 1000, 992, 3] {
                let expected = w.dequantize(&Device::Cpu)?.narrow(1, 0, in_size)?.flatten_all()?.to_vec1::<f32>()?;
                assert_eq!(q8_0_floats(simd, &w.data()?, 1024, in_size), expected);
            }
        }
        Ok(())
    }

    #[test]
    fn numbers_that_are_none_stay_so() -> Result<()> {
        for (dtype, simd) in types() {
            let w = QTensor::quantize(&values(&[4, 256], 0.2), dtype)?;
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = vec![0.5; 512];
                x[70] = bad;
                let y = products(simd, &x, &w.data()?, dtype, 256);
                assert!(y[..4].iter().all(|y| !y.is_finite()), "{dtype:?}");
                assert!(y[4..].iter().all(|y| y.is_finite()), "{dtype:?}");
            }
            assert_eq!(products(simd, &[0.0; 256], &w.data()?, dtype, 256), [0.0; 4]);
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
