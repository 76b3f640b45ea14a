//! Layout of GGUF's K-quant blocks: 256 weights, each group of 16 with a scale and an offset.

use std::arch::x86_64::__m256i;

use pulp::cast;
use pulp::x86::V3;

use super::f16_to_f32;

/// Number of AVX2 registers of a block's weights.
pub const PARTS: usize = 8;

/// The fields of a block, unpacked: a weight is `scale * scales[group] * weight - min * mins[group]`.
pub trait KQuantBlock {
    /// The `part`-th 32 weights, as unsigned bytes.
    fn weights(&self, simd: V3, part: usize) -> __m256i;

    /// Scales of the 16 groups, 16 bits each: groups of even index first.
    fn scales(&self, simd: V3) -> __m256i;

    /// Offsets of the groups, in the same order.
    fn mins(&self, simd: V3) -> __m256i;

    /// Block-wide `scale` and `min`.
    fn factors(&self) -> [f32; 2];
}

/// K-quant type.
pub trait KQuant: Clone + Default {
    /// Bytes of a block.
    const BYTES: usize;
    /// Number of pair sums that are added in 16 bits before they are scaled: a pair sum is at most `2 * 127` times the
    /// largest weight.
    const I16_SUMS: usize;
    /// Whether two neighbouring groups share offset and scale.
    const OFFSET_FOR_32: bool;
    type KQuantBlock<'a>: KQuantBlock;

    /// Reads the block in these bytes; all zeros if there are too few.
    fn read(bytes: &[u8]) -> Self::KQuantBlock<'_>;
}

/// 4 bits a weight, 6-bit scale and offset for each 32, f16 scale and min for all.
///
/// In order: the two f16, 12 bytes of scales and offsets, and 32 bytes for each 64 weights (lower nibbles, then upper).
#[derive(Clone, Default)]
pub struct Q4K;

pub struct Q4Block<'a>(&'a [u8; Q4K::BYTES]);

impl KQuant for Q4K {
    const BYTES: usize = 144;
    // 8 * 2 * 127 * 15 = 30,480
    const I16_SUMS: usize = 8;
    const OFFSET_FOR_32: bool = true;
    type KQuantBlock<'a> = Q4Block<'a>;

    #[inline(always)]
    fn read(bytes: &[u8]) -> Q4Block<'_> {
        Q4Block(bytes.first_chunk().unwrap_or(&[0; Self::BYTES]))
    }
}

impl Q4Block<'_> {
    /// 32 bits of scales and offsets.
    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        let at = 4 + 4 * at;
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

impl KQuantBlock for Q4Block<'_> {
    #[inline(always)]
    fn weights(&self, simd: V3, part: usize) -> __m256i {
        let both = load(self.0, 16 + 32 * (part / 2));
        let half = if part.is_multiple_of(2) { both } else { simd.avx2._mm256_srli_epi16::<4>(both) };
        simd.avx2._mm256_and_si256(half, simd.avx._mm256_set1_epi8(0x0f))
    }

    #[inline(always)]
    fn scales(&self, simd: V3) -> __m256i {
        let (low, high) = (self.word(0), self.word(2));
        widen_twice(simd, [low & SIX_BITS, last_four(high, low)])
    }

    #[inline(always)]
    fn mins(&self, simd: V3) -> __m256i {
        let (middle, high) = (self.word(1), self.word(2));
        widen_twice(simd, [middle & SIX_BITS, last_four(high >> 4, middle)])
    }

    #[inline(always)]
    fn factors(&self) -> [f32; 2] {
        [f16_to_f32([self.0[0], self.0[1]]), f16_to_f32([self.0[2], self.0[3]])]
    }
}

/// The first four scales are the low six bits of a byte each.
const SIX_BITS: u32 = 0x3f3f_3f3f;

/// The last four scales: four bits of a byte each, and above them the two high bits next to the first four scales.
#[inline(always)]
fn last_four(low: u32, first_four: u32) -> u32 {
    (low & 0x0f0f_0f0f) | (first_four >> 2 & 0x3030_3030)
}

/// Eight bytes widened to 16 bits, in both halves of the register.
#[inline(always)]
fn widen_twice(simd: V3, eight: [u32; 2]) -> __m256i {
    simd.avx2._mm256_cvtepi8_epi16(cast([eight, eight]))
}

/// The scales of the weight pairs of a part, from the scales of a block.
#[inline(always)]
pub fn pair_scales(simd: V3, scales: __m256i, part: usize) -> __m256i {
    simd.avx2._mm256_shuffle_epi8(scales, simd.avx._mm256_set1_epi16(0x0100 + 0x0202 * part as i16))
}

/// 6 bits a weight with a zero point of 32, an 8-bit scale for each 16, an f16 scale for all.
///
/// In order: 64 bytes of lower nibbles for each 128 weights, 32 bytes of upper two bits for each 128, the scales, the
/// f16.
#[derive(Clone, Default)]
pub struct Q6K;

pub struct Q6Block<'a>(&'a [u8; Q6K::BYTES]);

impl KQuant for Q6K {
    const BYTES: usize = 210;
    // 2 * 2 * 127 * 63 = 32,004; with scales and all of a block, 64 * 32,004 * 128 = 262 million of 2,147
    const I16_SUMS: usize = 2;
    const OFFSET_FOR_32: bool = false;
    type KQuantBlock<'a> = Q6Block<'a>;

    #[inline(always)]
    fn read(bytes: &[u8]) -> Q6Block<'_> {
        Q6Block(bytes.first_chunk().unwrap_or(&[0; Self::BYTES]))
    }
}

impl KQuantBlock for Q6Block<'_> {
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
    fn scales(&self, simd: V3) -> __m256i {
        let scales = *self.0[192..].first_chunk::<16>().unwrap_or(&[0; 16]);
        let even_first = cast([0u8, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]);
        simd.avx2._mm256_cvtepi8_epi16(simd.ssse3._mm_shuffle_epi8(cast(scales), even_first))
    }

    #[inline(always)]
    fn mins(&self, simd: V3) -> __m256i {
        simd.avx2._mm256_slli_epi16::<5>(self.scales(simd))
    }

    #[inline(always)]
    fn factors(&self) -> [f32; 2] {
        [f16_to_f32([self.0[208], self.0[209]]); 2]
    }
}

/// 32 bytes of a block.
#[inline(always)]
fn load<const N: usize>(bytes: &[u8; N], at: usize) -> __m256i {
    cast(*bytes[at..].first_chunk::<32>().unwrap_or(&[0; 32]))
}
