//! The few operations that unpack weights, on sixteen lanes: two AVX2 registers or one of AVX-512.

use std::arch::x86_64::*;

use pulp::x86::V3;
use pulp::{cast, f32x8};

pub use super::super::interleaved::LANES;

/// A word of each of sixteen outputs, in memory.
pub type Line = [u32; LANES];

/// Instructions on sixteen lanes; the value is the proof that the CPU has them.
pub trait Lanes: Copy {
    /// A word in each lane.
    type Words: Copy;
    /// A float in each lane.
    type Floats: Copy;

    /// A line in registers.
    fn words(self, line: Line) -> Self::Words;

    /// Words in memory.
    fn line(self, words: Self::Words) -> Line;

    /// Floats in memory.
    fn floats(self, floats: Self::Floats) -> [f32; LANES];

    /// Flips the bits of the mask.
    fn xor(self, words: Self::Words, mask: u32) -> Self::Words;

    /// Shifts to the right and masks.
    fn bits(self, words: Self::Words, shift: u32, mask: u32) -> Self::Words;

    /// `low` or `high` shifted by four bits to the left.
    fn with_high(self, low: Self::Words, high: Self::Words) -> Self::Words;

    /// The `at`-th byte of each word, with its sign.
    fn signed_byte(self, words: Self::Words, at: usize) -> Self::Words;

    /// Subtracts `by` from each integer.
    fn less(self, integers: Self::Words, by: i32) -> Self::Words;

    /// `a - b`.
    fn minus(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// Each integer times a float.
    fn scale(self, integers: Self::Words, by: Self::Floats) -> Self::Floats;

    /// Widens the f16 in the lower half of each word; infinities and NaNs, which no valid scale is, become large values.
    fn halves(self, words: Self::Words) -> Self::Floats;
}

/// The bits of an f16, shifted to the fields of an f32 and masked by [`HALF_BITS`], are its value divided by this.
const TWO_TO_112: f32 = f32::from_bits((112 + 127) << 23);
/// Where the bits of an f16 are after the shift; its sign extension fills the bits in between.
const HALF_BITS: i32 = 0x8fff_e000u32 as i32;

impl Lanes for V3 {
    type Words = [__m256i; 2];
    type Floats = [f32x8; 2];

    #[inline(always)]
    fn words(self, line: Line) -> Self::Words {
        cast(line)
    }

    #[inline(always)]
    fn line(self, words: Self::Words) -> Line {
        cast(words)
    }

    #[inline(always)]
    fn floats(self, floats: Self::Floats) -> [f32; LANES] {
        cast(floats)
    }

    #[inline(always)]
    fn xor(self, [a, b]: Self::Words, mask: u32) -> Self::Words {
        let mask = self.avx._mm256_set1_epi32(mask as i32);
        [self.avx2._mm256_xor_si256(a, mask), self.avx2._mm256_xor_si256(b, mask)]
    }

    #[inline(always)]
    fn bits(self, [a, b]: Self::Words, shift: u32, mask: u32) -> Self::Words {
        let (shift, mask) = (self.avx._mm256_set1_epi32(shift as i32), self.avx._mm256_set1_epi32(mask as i32));
        [
            self.avx2._mm256_and_si256(self.avx2._mm256_srlv_epi32(a, shift), mask),
            self.avx2._mm256_and_si256(self.avx2._mm256_srlv_epi32(b, shift), mask),
        ]
    }

    #[inline(always)]
    fn with_high(self, low: Self::Words, high: Self::Words) -> Self::Words {
        [
            self.avx2._mm256_or_si256(low[0], self.avx2._mm256_slli_epi32::<4>(high[0])),
            self.avx2._mm256_or_si256(low[1], self.avx2._mm256_slli_epi32::<4>(high[1])),
        ]
    }

    #[inline(always)]
    fn signed_byte(self, [a, b]: Self::Words, at: usize) -> Self::Words {
        let left = self.avx._mm256_set1_epi32(24 - 8 * at as i32);
        [
            self.avx2._mm256_srai_epi32::<24>(self.avx2._mm256_sllv_epi32(a, left)),
            self.avx2._mm256_srai_epi32::<24>(self.avx2._mm256_sllv_epi32(b, left)),
        ]
    }

    #[inline(always)]
    fn less(self, [a, b]: Self::Words, by: i32) -> Self::Words {
        let by = self.avx._mm256_set1_epi32(by);
        [self.avx2._mm256_sub_epi32(a, by), self.avx2._mm256_sub_epi32(b, by)]
    }

    #[inline(always)]
    fn minus(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        [self.sub_f32x8(a[0], b[0]), self.sub_f32x8(a[1], b[1])]
    }

    #[inline(always)]
    fn scale(self, [a, b]: Self::Words, by: Self::Floats) -> Self::Floats {
        let (a, b) = (self.convert_i32x8_to_f32x8(cast(a)), self.convert_i32x8_to_f32x8(cast(b)));
        [self.mul_f32x8(a, by[0]), self.mul_f32x8(b, by[1])]
    }

    #[inline(always)]
    fn halves(self, [a, b]: Self::Words) -> Self::Floats {
        let (mask, factor) = (self.avx._mm256_set1_epi32(HALF_BITS), self.splat_f32x8(TWO_TO_112));
        let a = self.avx2._mm256_srai_epi32::<3>(self.avx2._mm256_slli_epi32::<16>(a));
        let b = self.avx2._mm256_srai_epi32::<3>(self.avx2._mm256_slli_epi32::<16>(b));
        [
            self.mul_f32x8(cast(self.avx2._mm256_and_si256(a, mask)), factor),
            self.mul_f32x8(cast(self.avx2._mm256_and_si256(b, mask)), factor),
        ]
    }
}

/// Proof that the CPU has AVX-512 BW and VNNI.
#[derive(Debug, Clone, Copy)]
pub struct Avx512Vnni(());

impl Avx512Vnni {
    /// The proof, if the CPU has the instructions.
    pub fn try_new() -> Option<Self> {
        let found = std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512vnni");
        found.then_some(Self(()))
    }
}

// SAFETY, for each operation below: the CPU has AVX-512, as `self` proves.
#[allow(clippy::undocumented_unsafe_blocks, reason = "documented once, above")]
impl Lanes for Avx512Vnni {
    type Words = __m512i;
    type Floats = __m512;

    #[inline(always)]
    fn words(self, line: Line) -> __m512i {
        unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
    }

    #[inline(always)]
    fn line(self, words: __m512i) -> Line {
        unsafe { std::mem::transmute(words) }
    }

    #[inline(always)]
    fn floats(self, floats: __m512) -> [f32; LANES] {
        unsafe { std::mem::transmute(floats) }
    }

    #[inline(always)]
    fn xor(self, words: __m512i, mask: u32) -> __m512i {
        unsafe { _mm512_xor_si512(words, _mm512_set1_epi32(mask as i32)) }
    }

    #[inline(always)]
    fn bits(self, words: __m512i, shift: u32, mask: u32) -> __m512i {
        unsafe {
            let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32(shift as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi32(mask as i32))
        }
    }

    #[inline(always)]
    fn with_high(self, low: __m512i, high: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(low, _mm512_slli_epi32::<4>(high)) }
    }

    #[inline(always)]
    fn signed_byte(self, words: __m512i, at: usize) -> __m512i {
        unsafe { _mm512_srai_epi32::<24>(_mm512_sllv_epi32(words, _mm512_set1_epi32(24 - 8 * at as i32))) }
    }

    #[inline(always)]
    fn less(self, integers: __m512i, by: i32) -> __m512i {
        unsafe { _mm512_sub_epi32(integers, _mm512_set1_epi32(by)) }
    }

    #[inline(always)]
    fn minus(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn scale(self, integers: __m512i, by: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(_mm512_cvtepi32_ps(integers), by) }
    }

    #[inline(always)]
    fn halves(self, words: __m512i) -> __m512 {
        unsafe {
            let bits = _mm512_srai_epi32::<3>(_mm512_slli_epi32::<16>(words));
            let bits = _mm512_and_si512(bits, _mm512_set1_epi32(HALF_BITS));
            _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(TWO_TO_112))
        }
    }
}
