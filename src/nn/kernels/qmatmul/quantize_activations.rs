//! Quantisation of activations to 8 or 16 bits in blocks with a scale each: `x` is about `integers * scale`.

use std::arch::x86_64::__m256i;

use pulp::x86::V3;
use pulp::{NullaryFnOnce, Simd, cast};
use rayon::prelude::*;

/// Number of elements of one task: enough to hide the cost of a task.
const TASK_ELEMENTS: usize = 1 << 14;

/// Maximum magnitude of 8-bit quantised elements.
const I8_MAX: i16 = 127;

/// A block of quantised elements with a common scale, which is NaN if an element is NaN or infinite.
pub trait QuantizedBlock: Clone + Default + Send + Sync {
    /// Number of elements in a block.
    const WIDTH: usize;

    /// Quantises a block of elements.
    fn quantize(&mut self, simd: V3, x: &[f32]);
}

/// 32 elements of 8 bits and their sums, by which the zero points of weights are multiplied.
#[derive(Clone, Default)]
pub struct BlockI8x32WithSums {
    /// Four neighbouring elements in each integer.
    pub fours: [i32; 8],
    pub scale: f32,
    /// Negated sum of each half of the block.
    pub minus_half_sums: [i32; 2],
    /// Negated sum of all elements.
    pub minus_sum: i32,
    /// Sum of all elements, times the scale.
    pub sum: f32,
}

impl QuantizedBlock for BlockI8x32WithSums {
    const WIDTH: usize = 32;

    #[inline(always)]
    fn quantize(&mut self, simd: V3, x: &[f32]) {
        self.scale = scale(simd, x, I8_MAX);
        let bytes = cast(round_i8(simd, x, inverse(self.scale)));
        self.fours = cast(bytes);
        let twos = simd.avx2._mm256_maddubs_epi16(simd.avx._mm256_set1_epi8(1), bytes);
        let fours: [i32; 8] = cast(simd.avx2._mm256_madd_epi16(twos, simd.avx._mm256_set1_epi16(1)));
        let [a, b, c, d, e, f, g, h] = fours;
        let (low, high) = (a + b + c + d, e + f + g + h);
        self.minus_half_sums = [-low, -high];
        self.minus_sum = -low - high;
        self.sum = (low + high) as f32 * self.scale;
    }
}

/// 32 elements of 16 bits.
#[repr(align(32))]
#[derive(Clone, Default)]
pub struct BlockI16x32 {
    /// Elements 0 and 2, then 1 and 3 of each four.
    pub twos: [i32; 16],
    pub scale: f32,
}

impl QuantizedBlock for BlockI16x32 {
    const WIDTH: usize = 32;

    #[inline(always)]
    fn quantize(&mut self, simd: V3, x: &[f32]) {
        self.scale = scale(simd, x, i16::MAX);
        let [a, b, c, d] = round_i32(simd, x, inverse(self.scale));
        let halves = [simd.avx2._mm256_packs_epi32(a, b), simd.avx2._mm256_packs_epi32(c, d)];
        let order = cast([[0u8, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]; 2]);
        // Packing works on each half of a register: four elements of `a`, of `b`, then the other four of each.
        self.twos = cast(halves.map(
            #[inline(always)]
            |fours| simd.avx2._mm256_shuffle_epi8(simd.avx2._mm256_permute4x64_epi64::<0b11_01_10_00>(fours), order),
        ));
    }
}

/// 256 elements of 8 bits.
#[derive(Clone)]
pub struct BlockI8x256 {
    /// Four neighbouring elements in each integer.
    pub fours: [i32; 64],
    /// Sum of each group of 16 elements: groups of even index first.
    pub sums: [i16; 16],
    pub scale: f32,
}

impl Default for BlockI8x256 {
    fn default() -> Self {
        Self { fours: [0; 64], sums: [0; 16], scale: 0.0 }
    }
}

impl QuantizedBlock for BlockI8x256 {
    const WIDTH: usize = 256;

    #[inline(always)]
    fn quantize(&mut self, simd: V3, x: &[f32]) {
        self.scale = scale(simd, x, I8_MAX);
        let inverse = inverse(self.scale);
        let (ones, ones_of_16) = (simd.avx._mm256_set1_epi8(1), simd.avx._mm256_set1_epi16(1));
        let mut fours = [cast([0i32; 8]); 8];
        let to = self.fours.as_chunks_mut::<8>().0;
        for ((to, fours), x) in to.iter_mut().zip(&mut fours).zip(x.chunks_exact(32)) {
            let bytes = round_i8(simd, x, inverse);
            *to = cast(bytes);
            let twos = simd.avx2._mm256_maddubs_epi16(ones, cast(bytes));
            *fours = simd.avx2._mm256_madd_epi16(twos, ones_of_16);
        }
        let [a, b, c, d, e, f, g, h] = transpose_8x8(simd, fours);
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

/// Quantises whole blocks, on the threads of the pool.
pub fn quantize_rows<X: QuantizedBlock>(simd: V3, x: &[f32]) -> Vec<X> {
    let mut blocks = vec![X::default(); x.len() / X::WIDTH];
    if x.len() <= TASK_ELEMENTS {
        simd.vectorize(Task { simd, x, blocks: &mut blocks });
    } else {
        let parts = x.par_chunks(TASK_ELEMENTS).zip(blocks.par_chunks_mut(TASK_ELEMENTS / X::WIDTH));
        parts.for_each(|(x, blocks)| simd.vectorize(Task { simd, x, blocks }));
    }
    blocks
}

struct Task<'a, X> {
    simd: V3,
    x: &'a [f32],
    blocks: &'a mut [X],
}

impl<X: QuantizedBlock> NullaryFnOnce for Task<'_, X> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (block, x) in self.blocks.iter_mut().zip(self.x.chunks_exact(X::WIDTH)) {
            block.quantize(self.simd, x);
        }
    }
}

/// Scale at which the largest magnitude becomes `steps`.
#[inline(always)]
fn scale(simd: V3, x: &[f32], steps: i16) -> f32 {
    let (mut max, mut nan) = (simd.splat_f32x8(0.0), simd.splat_f32x8(0.0));
    for x in V3::as_simd_f32s(x).0 {
        max = simd.max_f32x8(max, simd.abs_f32x8(*x));
        // NaN if an element is NaN or infinite, which a maximum may lose.
        nan = simd.add_f32x8(nan, simd.mul_f32x8(*x, simd.splat_f32x8(0.0)));
    }
    simd.reduce_max_f32s(max) / f32::from(steps) + simd.reduce_sum_f32s(nan)
}

/// Inverse of a scale; zero for NaN and for scales too small for an inverse.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale > f32::MIN_POSITIVE { scale.recip() } else { 0.0 }
}

/// Multiplies 32 elements by `factor` and rounds them to 8 bits.
#[inline(always)]
fn round_i8(simd: V3, x: &[f32], factor: f32) -> [i8; 32] {
    let [a, b, c, d] = round_i32(simd, x, factor);
    let packed = simd.avx2._mm256_packs_epi16(simd.avx2._mm256_packs_epi32(a, b), simd.avx2._mm256_packs_epi32(c, d));
    // Packing works on each half of a register: four elements of `a`, `b`, `c` and `d`, then the other four of each.
    let in_order = simd.avx2._mm256_permutevar8x32_epi32(packed, cast([0i32, 4, 1, 5, 2, 6, 3, 7]));
    cast(in_order)
}

/// Multiplies 32 elements by `factor` and rounds them to integers.
#[inline(always)]
fn round_i32(simd: V3, x: &[f32], factor: f32) -> [__m256i; 4] {
    let factor = simd.splat_f32x8(factor);
    let mut integers = [cast([0i32; 8]); 4];
    for (to, x) in integers.iter_mut().zip(V3::as_simd_f32s(x).0) {
        *to = simd.avx._mm256_cvtps_epi32(cast(simd.mul_f32x8(*x, factor)));
    }
    integers
}

/// Transposes an 8 x 8 matrix of 32-bit elements, one row per register.
#[inline(always)]
fn transpose_8x8(simd: V3, rows: [__m256i; 8]) -> [__m256i; 8] {
    let avx2 = simd.avx2;
    let [a, b, c, d, e, f, g, h] = rows;
    // Pairs of a column; each half of a register holds those of four rows.
    let (ab, ab_2) = (avx2._mm256_unpacklo_epi32(a, b), avx2._mm256_unpackhi_epi32(a, b));
    let (cd, cd_2) = (avx2._mm256_unpacklo_epi32(c, d), avx2._mm256_unpackhi_epi32(c, d));
    let (ef, ef_2) = (avx2._mm256_unpacklo_epi32(e, f), avx2._mm256_unpackhi_epi32(e, f));
    let (gh, gh_2) = (avx2._mm256_unpacklo_epi32(g, h), avx2._mm256_unpackhi_epi32(g, h));
    // Groups of four: columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
    let upper = [
        avx2._mm256_unpacklo_epi64(ab, cd),
        avx2._mm256_unpackhi_epi64(ab, cd),
        avx2._mm256_unpacklo_epi64(ab_2, cd_2),
        avx2._mm256_unpackhi_epi64(ab_2, cd_2),
    ];
    let lower = [
        avx2._mm256_unpacklo_epi64(ef, gh),
        avx2._mm256_unpackhi_epi64(ef, gh),
        avx2._mm256_unpacklo_epi64(ef_2, gh_2),
        avx2._mm256_unpackhi_epi64(ef_2, gh_2),
    ];
    let mut columns = rows;
    for i in 0..4 {
        columns[i] = avx2._mm256_permute2x128_si256::<0x20>(upper[i], lower[i]);
        columns[4 + i] = avx2._mm256_permute2x128_si256::<0x31>(upper[i], lower[i]);
    }
    columns
}
