//! GGUF's `Q8_0` blocks: 32 weights of 8 bits and their common scale, a half float.

use rayon::prelude::*;

use super::dots::WeightRows;

/// Weights of a block.
const BLOCK: usize = 32;
/// Bytes of a block: the scale, then the weights.
const BYTES: usize = 2 + BLOCK;

/// Rows of whole blocks.
#[derive(Clone, Copy)]
pub(super) struct Q8_0<'a>(pub &'a [u8]);

impl WeightRows for Q8_0<'_> {
    fn rows(self, width: usize) -> usize {
        self.0.len() / (width / BLOCK * BYTES)
    }

    #[inline(always)]
    fn floats<'b>(self, first: usize, rows: usize, width: usize, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        Self: 'b,
    {
        let row = width / BLOCK * BYTES;
        buffer.resize(rows * width, 0.0);
        convert(&self.0[first * row..(first + rows) * row], buffer);
        buffer
    }
}

/// All weights as floats, on all threads.
pub(super) fn dequantize(blocks: &[u8]) -> Vec<f32> {
    const BLOCKS: usize = 1 << 11;
    let mut floats = vec![0f32; blocks.len() / BYTES * BLOCK];
    let parts = floats.par_chunks_mut(BLOCKS * BLOCK).zip(blocks.par_chunks(BLOCKS * BYTES));
    parts.for_each(|(floats, blocks)| convert(blocks, floats));
    floats
}

/// Blocks to floats, as many as there are of both.
fn convert(blocks: &[u8], floats: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: this processor has what the function is compiled for.
        return unsafe { convert_avx2(blocks, floats) };
    }
    convert_portably(blocks, floats);
}

fn convert_portably(blocks: &[u8], floats: &mut [f32]) {
    for (floats, block) in floats.chunks_exact_mut(BLOCK).zip(blocks.chunks_exact(BYTES)) {
        let scale = to_f32([block[0], block[1]]);
        floats.iter_mut().zip(&block[2..]).for_each(|(float, q)| *float = f32::from(*q as i8) * scale);
    }
}

/// The compiler makes several times slower code of the loop above.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn convert_avx2(blocks: &[u8], floats: &mut [f32]) {
    use std::arch::x86_64::{
        _mm_loadl_epi64, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps,
    };
    for (floats, block) in floats.chunks_exact_mut(BLOCK).zip(blocks.chunks_exact(BYTES)) {
        let scale = _mm256_set1_ps(to_f32([block[0], block[1]]));
        for (floats, weights) in floats.chunks_exact_mut(8).zip(block[2..].chunks_exact(8)) {
            // SAFETY: reads these 8 bytes.
            let weights = _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(weights.as_ptr().cast()) });
            // SAFETY: writes these 8 floats.
            unsafe { _mm256_storeu_ps(floats.as_mut_ptr(), _mm256_mul_ps(_mm256_cvtepi32_ps(weights), scale)) };
        }
    }
}

/// A finite half float; infinities and NaNs become large numbers, which no honest scale is.
///
/// Its bits, moved to an f32's places, are the number divided by 2^112.
#[inline(always)]
fn to_f32(half: [u8; 2]) -> f32 {
    const TWO_TO_112: f32 = f32::from_bits((112 + 127) << 23);
    let bits = u32::from(u16::from_le_bytes(half));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * TWO_TO_112;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn every_finite_half_float_is_exact() {
        for bits in (0..=u16::MAX).filter(|bits| f16::from_bits(*bits).is_finite()) {
            let (found, expected) = (to_f32(bits.to_le_bytes()), f16::from_bits(bits).to_f32());
            assert_eq!(found.to_bits(), expected.to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn the_fast_conversion_is_the_plain_one() {
        // Every byte occurs as a weight, with scales of all sizes.
        let blocks = (0..300 * BYTES).map(|i| (i * 37 % 256) as u8 & if i % BYTES == 1 { 0x7b } else { 0xff });
        let blocks = blocks.collect::<Vec<u8>>();
        let (mut fast, mut plain) = (vec![0f32; 300 * BLOCK], vec![0f32; 300 * BLOCK]);
        convert(&blocks, &mut fast);
        convert_portably(&blocks, &mut plain);
        assert_eq!(fast, plain);
        assert_eq!(dequantize(&blocks), plain);
    }
}
