//! Floats rounded to 8 or 16 bits in blocks: `x` is about `bytes * scale`.

use std::arch::x86_64::__m256i;

use pulp::x86::V3;
use pulp::{NullaryFnOnce, Simd, cast};
use rayon::prelude::*;

use super::gemm_avx2::transposed;

/// Numbers of one task: enough work to be worth a thread.
const TASK_NUMBERS: usize = 1 << 14;

/// The largest number of 8 bits whose negative has 8 bits as well.
const BYTE: i16 = 127;

/// Numbers of a block with their common scale, which is NaN where one of them is none, or infinite.
pub trait RoundedBlock: Clone + Default + Send + Sync {
    /// How many numbers.
    const WIDTH: usize;

    /// Rounds a block of numbers.
    fn round(&mut self, simd: V3, x: &[f32]);
}

/// 32 numbers.
#[derive(Clone, Default)]
pub struct Rounded32 {
    pub bytes: [i8; 32],
    pub scale: f32,
}

impl RoundedBlock for Rounded32 {
    const WIDTH: usize = 32;

    #[inline(always)]
    fn round(&mut self, simd: V3, x: &[f32]) {
        self.scale = step(simd, x, BYTE);
        self.bytes = bytes(simd, x, inverse(self.scale));
    }
}

/// 32 numbers and their sums.
#[derive(Clone, Default)]
pub struct Summed32 {
    /// Each four neighbours.
    pub fours: [i32; 8],
    pub scale: f32,
    /// Of each half, negative.
    pub less: [i32; 2],
    /// Of all, negative.
    pub less_all: i32,
    /// Of all, with the scale.
    pub sum: f32,
}

impl RoundedBlock for Summed32 {
    const WIDTH: usize = 32;

    #[inline(always)]
    fn round(&mut self, simd: V3, x: &[f32]) {
        self.scale = step(simd, x, BYTE);
        let bytes = cast(bytes(simd, x, inverse(self.scale)));
        self.fours = cast(bytes);
        let twos = simd.avx2._mm256_maddubs_epi16(simd.avx._mm256_set1_epi8(1), bytes);
        let fours: [i32; 8] = cast(simd.avx2._mm256_madd_epi16(twos, simd.avx._mm256_set1_epi16(1)));
        let [a, b, c, d, e, f, g, h] = fours;
        let (low, high) = (a + b + c + d, e + f + g + h);
        self.less = [-low, -high];
        self.less_all = -low - high;
        self.sum = (low + high) as f32 * self.scale;
    }
}

/// 32 numbers of 16 bits.
#[repr(align(32))]
#[derive(Clone, Default)]
pub struct Rounded32Finely {
    /// Each two neighbours.
    pub twos: [i32; 16],
    pub scale: f32,
}

impl RoundedBlock for Rounded32Finely {
    const WIDTH: usize = 32;

    #[inline(always)]
    fn round(&mut self, simd: V3, x: &[f32]) {
        self.scale = step(simd, x, i16::MAX);
        let [a, b, c, d] = integers(simd, x, inverse(self.scale));
        let sixteens = [simd.avx2._mm256_packs_epi32(a, b), simd.avx2._mm256_packs_epi32(c, d)];
        // Packing works on each half of a register: four numbers of `a`, of `b`, then the other fours.
        self.twos = cast(sixteens.map(
            #[inline(always)]
            |fours| simd.avx2._mm256_permute4x64_epi64::<0b11_01_10_00>(fours),
        ));
    }
}

/// 256 numbers.
#[repr(align(32))]
#[derive(Clone, Default)]
pub struct Rounded256 {
    pub bytes: [[i8; 32]; 8],
    /// Of each 16 bytes, those of even sixteens first.
    pub sums: [i16; 16],
    pub scale: f32,
}

impl RoundedBlock for Rounded256 {
    const WIDTH: usize = 256;

    #[inline(always)]
    fn round(&mut self, simd: V3, x: &[f32]) {
        self.scale = step(simd, x, BYTE);
        let inverse = inverse(self.scale);
        let (ones, ones_of_16) = (simd.avx._mm256_set1_epi8(1), simd.avx._mm256_set1_epi16(1));
        let mut fours = [cast([0i32; 8]); 8];
        for ((to, fours), x) in self.bytes.iter_mut().zip(&mut fours).zip(x.chunks_exact(32)) {
            *to = bytes(simd, x, inverse);
            let twos = simd.avx2._mm256_maddubs_epi16(ones, cast(*to));
            *fours = simd.avx2._mm256_madd_epi16(twos, ones_of_16);
        }
        let [a, b, c, d, e, f, g, h] = transposed(simd, fours);
        // Packing works on each half of a register.
        let packed = simd.avx2._mm256_packs_epi32(sum(simd, [a, b, c, d]), sum(simd, [e, f, g, h]));
        self.sums = cast(simd.avx2._mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
    }
}

#[inline(always)]
fn sum(simd: V3, [a, b, c, d]: [__m256i; 4]) -> __m256i {
    let (ab, cd) = (simd.avx2._mm256_add_epi32(a, b), simd.avx2._mm256_add_epi32(c, d));
    simd.avx2._mm256_add_epi32(ab, cd)
}

/// Rounds whole blocks.
pub fn round_all<X: RoundedBlock>(simd: V3, x: &[f32]) -> Vec<X> {
    let mut blocks = vec![X::default(); x.len() / X::WIDTH];
    if x.len() <= TASK_NUMBERS {
        simd.vectorize(Round { simd, x, blocks: &mut blocks });
    } else {
        let parts = x.par_chunks(TASK_NUMBERS).zip(blocks.par_chunks_mut(TASK_NUMBERS / X::WIDTH));
        parts.for_each(|(x, blocks)| simd.vectorize(Round { simd, x, blocks }));
    }
    blocks
}

struct Round<'a, X> {
    simd: V3,
    x: &'a [f32],
    blocks: &'a mut [X],
}

impl<X: RoundedBlock> NullaryFnOnce for Round<'_, X> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (block, x) in self.blocks.iter_mut().zip(self.x.chunks_exact(X::WIDTH)) {
            block.round(self.simd, x);
        }
    }
}

/// What makes the largest magnitude so many steps.
#[inline(always)]
fn step(simd: V3, x: &[f32], steps: i16) -> f32 {
    let (mut most, mut nothing) = (simd.splat_f32x8(0.0), simd.splat_f32x8(0.0));
    for x in V3::as_simd_f32s(x).0 {
        most = simd.max_f32x8(most, simd.abs_f32x8(*x));
        // NaN if a number is none or infinite, which a maximum may forget.
        nothing = simd.add_f32x8(nothing, simd.mul_f32x8(*x, simd.splat_f32x8(0.0)));
    }
    simd.reduce_max_f32s(most) / f32::from(steps) + simd.reduce_sum_f32s(nothing)
}

/// One over a step; zero if all numbers are zeros, too small for an inverse, or none.
#[inline(always)]
fn inverse(step: f32) -> f32 {
    if step > f32::MIN_POSITIVE { step.recip() } else { 0.0 }
}

/// 32 numbers times `factor`, to the nearest byte.
#[inline(always)]
fn bytes(simd: V3, x: &[f32], factor: f32) -> [i8; 32] {
    let [a, b, c, d] = integers(simd, x, factor);
    let packed = simd.avx2._mm256_packs_epi16(simd.avx2._mm256_packs_epi32(a, b), simd.avx2._mm256_packs_epi32(c, d));
    // Packing works on each half of a register: four numbers of `a`, of `b`, of `c`, of `d`, then the other fours.
    let in_order = simd.avx2._mm256_permutevar8x32_epi32(packed, cast([0i32, 4, 1, 5, 2, 6, 3, 7]));
    cast(in_order)
}

/// 32 numbers times `factor`, to the nearest.
#[inline(always)]
fn integers(simd: V3, x: &[f32], factor: f32) -> [__m256i; 4] {
    let factor = simd.splat_f32x8(factor);
    let mut integers = [cast([0i32; 8]); 4];
    for (to, x) in integers.iter_mut().zip(V3::as_simd_f32s(x).0) {
        *to = simd.avx._mm256_cvtps_epi32(cast(simd.mul_f32x8(*x, factor)));
    }
    integers
}
