//! What the bits of GGUF's K blocks mean: 256 weights, each 16 with a scale and an offset.

use std::arch::x86_64::__m256i;

use pulp::cast;
use pulp::x86::V3;

use super::half;

/// Registers of a block's weights.
pub const PARTS: usize = 8;

/// 256 weights: `scale * scales * weights - min * mins`.
pub trait Block {
    /// The `part`-th 32 weights, bytes without a sign.
    fn weights(&self, simd: V3, part: usize) -> __m256i;

    /// 16 of 16 bits, for 16 weights each, those of even sixteens first.
    fn sixteens(&self, simd: V3) -> __m256i;

    /// The same of offsets.
    fn mins(&self, simd: V3) -> __m256i;

    /// `scale` and `min`.
    fn factors(&self) -> [f32; 2];
}

/// A type of blocks, as they lie in a file.
pub trait KType: Clone + Default {
    /// Bytes of a block.
    const BYTES: usize;
    /// How many times four neighbouring weights, of one scale, are summed in 16 bits: four of them make
    /// pairs of at most `2 * 127` times the largest weight.
    const FOURS: usize;
    /// Whether two neighbouring sixteens have the same offset, and so the same scale.
    const OFFSET_FOR_32: bool;
    type Block<'a>: Block;

    /// A block of so many bytes.
    fn read(bytes: &[u8]) -> Self::Block<'_>;
}

/// 4 bits a weight; scale and offset of 6 bits for each 32; half floats for both of all.
///
/// The half floats, 12 bytes of scales and offsets, and 32 bytes for each 64 weights: lower half bytes, then upper.
#[derive(Clone, Default)]
pub struct Q4K;

pub struct Q4Block<'a>(&'a [u8; Q4K::BYTES]);

impl KType for Q4K {
    const BYTES: usize = 144;
    // 8 * 2 * 127 * 15 = 30,480
    const FOURS: usize = 8;
    const OFFSET_FOR_32: bool = true;
    type Block<'a> = Q4Block<'a>;

    #[inline(always)]
    fn read(bytes: &[u8]) -> Q4Block<'_> {
        Q4Block(bytes.first_chunk().unwrap_or(&[0; Self::BYTES]))
    }
}

impl Q4Block<'_> {
    /// A word of scales and offsets.
    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        let at = 4 + 4 * at;
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

impl Block for Q4Block<'_> {
    #[inline(always)]
    fn weights(&self, simd: V3, part: usize) -> __m256i {
        let both = load(self.0, 16 + 32 * (part / 2));
        let half = if part.is_multiple_of(2) { both } else { simd.avx2._mm256_srli_epi16::<4>(both) };
        simd.avx2._mm256_and_si256(half, simd.avx._mm256_set1_epi8(0x0f))
    }

    #[inline(always)]
    fn sixteens(&self, simd: V3) -> __m256i {
        let (low, high) = (self.word(0), self.word(2));
        twice(simd, [low & SIX_BITS, last_four(high, low)])
    }

    #[inline(always)]
    fn mins(&self, simd: V3) -> __m256i {
        let (middle, high) = (self.word(1), self.word(2));
        twice(simd, [middle & SIX_BITS, last_four(high >> 4, middle)])
    }

    #[inline(always)]
    fn factors(&self) -> [f32; 2] {
        [half([self.0[0], self.0[1]]), half([self.0[2], self.0[3]])]
    }
}

/// The first four scales are six bits of a byte each.
const SIX_BITS: u32 = 0x3f3f_3f3f;

/// The last four: four bits of a byte each, and above them the two that the first four have left.
#[inline(always)]
fn last_four(low: u32, first_four: u32) -> u32 {
    (low & 0x0f0f_0f0f) | (first_four >> 2 & 0x3030_3030)
}

/// Eight bytes as 16-bit integers, in both halves.
#[inline(always)]
fn twice(simd: V3, eight: [u32; 2]) -> __m256i {
    simd.avx2._mm256_cvtepi8_epi16(cast([eight, eight]))
}

/// Of scales of even sixteens and of odd ones, those of each pair of weights in a part.
#[inline(always)]
pub fn pair_scales(simd: V3, scales: __m256i, part: usize) -> __m256i {
    simd.avx2._mm256_shuffle_epi8(scales, simd.avx._mm256_set1_epi16(0x0100 + 0x0202 * part as i16))
}

/// 6 bits a weight, less 32; a scale of 8 bits for each 16; a half float for all.
///
/// For each 128 weights 64 bytes of lower half bytes; for each 128, 32 bytes of upper two bits; scales; the half float.
#[derive(Clone, Default)]
pub struct Q6K;

pub struct Q6Block<'a>(&'a [u8; Q6K::BYTES]);

impl KType for Q6K {
    const BYTES: usize = 210;
    // 2 * 2 * 127 * 63 = 32,004; with scales and all of a block, 64 * 32,004 * 128 = 262 million of 2,147
    const FOURS: usize = 2;
    const OFFSET_FOR_32: bool = false;
    type Block<'a> = Q6Block<'a>;

    #[inline(always)]
    fn read(bytes: &[u8]) -> Q6Block<'_> {
        Q6Block(bytes.first_chunk().unwrap_or(&[0; Self::BYTES]))
    }
}

impl Block for Q6Block<'_> {
    #[inline(always)]
    fn weights(&self, simd: V3, part: usize) -> __m256i {
        let (half, quarter) = (part / 4, part % 4);
        let lower = load(self.0, 64 * half + 32 * (quarter % 2));
        let lower = if quarter < 2 { lower } else { simd.avx2._mm256_srli_epi16::<4>(lower) };
        let upper = load(self.0, 128 + 32 * half);
        let upper = match quarter {
            0 => simd.avx2._mm256_slli_epi16::<4>(upper),
            1 => simd.avx2._mm256_slli_epi16::<2>(upper),
            2 => upper,
            _ => simd.avx2._mm256_srli_epi16::<2>(upper),
        };
        let lower = simd.avx2._mm256_and_si256(lower, simd.avx._mm256_set1_epi8(0x0f));
        simd.avx2._mm256_or_si256(lower, simd.avx2._mm256_and_si256(upper, simd.avx._mm256_set1_epi8(0x30)))
    }

    #[inline(always)]
    fn sixteens(&self, simd: V3) -> __m256i {
        let scales = *self.0[192..].first_chunk::<16>().unwrap_or(&[0; 16]);
        let even_first = cast([0u8, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]);
        simd.avx2._mm256_cvtepi8_epi16(simd.ssse3._mm_shuffle_epi8(cast(scales), even_first))
    }

    #[inline(always)]
    fn mins(&self, simd: V3) -> __m256i {
        simd.avx2._mm256_slli_epi16::<5>(self.sixteens(simd))
    }

    #[inline(always)]
    fn factors(&self) -> [f32; 2] {
        [half([self.0[208], self.0[209]]); 2]
    }
}

/// 32 bytes of a block.
#[inline(always)]
fn load<const N: usize>(bytes: &[u8; N], at: usize) -> __m256i {
    cast(*bytes[at..].first_chunk::<32>().unwrap_or(&[0; 32]))
}
