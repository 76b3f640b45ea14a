//! `Q8_0`: blocks of 32 weights of 8 bits, after their common scale, a half float.

use pulp::x86::V3;
use pulp::{NullaryFnOnce, cast};
use rayon::prelude::*;

use super::rounded::Rounded32;
use super::{WeightRow, half, totals};

/// The scale, then the weights.
const BYTES: usize = 2 + 32;

/// A row of blocks.
#[derive(Default)]
pub(super) struct Q8Weights<'a>(&'a [[u8; BYTES]]);

impl<'a> WeightRow<'a> for Q8Weights<'a> {
    type X = Rounded32;

    #[inline(always)]
    fn set(&mut self, _: V3, blocks: &'a [u8]) {
        self.0 = blocks.as_chunks().0;
    }

    #[inline(always)]
    fn dot<const R: usize>(&self, simd: V3, x: [&[Rounded32]; R]) -> [f32; R] {
        let ones = simd.splat_i16x16(1);
        let x = x.map(
            #[inline(always)]
            |x| &x[..self.0.len()],
        );
        let mut sums = [simd.splat_f32x8(0.0); R];
        for (at, [low, high, weights @ ..]) in self.0.iter().enumerate() {
            let w = cast(*weights);
            let (size, scale) = (simd.avx2._mm256_abs_epi8(w), half([*low, *high]));
            for r in 0..R {
                let x = &x[r][at];
                // One factor of a byte product has no sign; the other takes over both.
                let signed = simd.avx2._mm256_sign_epi8(cast(x.bytes), w);
                let pairs = cast(simd.avx2._mm256_maddubs_epi16(size, signed));
                let fours = simd.multiply_wrapping_add_adjacent_i16x16(pairs, ones);
                let scale = simd.splat_f32x8(scale * x.scale);
                sums[r] = simd.mul_add_f32x8(simd.convert_i32x8_to_f32x8(fours), scale, sums[r]);
            }
        }
        totals(simd, sums)
    }

    #[inline(always)]
    fn dot_once(simd: V3, blocks: &'a [u8], x: &[Rounded32]) -> f32 {
        let [product] = Q8Weights(blocks.as_chunks().0).dot(simd, [x]);
        product
    }
}

/// The first `in_size` weights of each row of `width` as floats, on all threads.
pub(in super::super) fn floats(simd: V3, blocks: &[u8], width: usize, in_size: usize) -> Vec<f32> {
    const TASK_WEIGHTS: usize = 1 << 16;
    let blocks = blocks.as_chunks().0;
    let (per_row, rows) = (width / 32, (TASK_WEIGHTS / width).max(1));
    let mut floats = vec![0f32; blocks.len() / per_row * in_size];
    let parts = floats.par_chunks_mut(rows * in_size).zip(blocks.par_chunks(rows * per_row));
    parts.for_each(|(floats, blocks)| simd.vectorize(ToFloats { blocks, per_row, floats, in_size }));
    floats
}

struct ToFloats<'a> {
    blocks: &'a [[u8; BYTES]],
    per_row: usize,
    floats: &'a mut [f32],
    in_size: usize,
}

impl NullaryFnOnce for ToFloats<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let rows = self.floats.chunks_exact_mut(self.in_size).zip(self.blocks.chunks_exact(self.per_row));
        for (floats, blocks) in rows {
            let (whole, rest) = floats.as_chunks_mut::<32>();
            for (floats, block) in whole.iter_mut().zip(blocks) {
                *floats = block_floats(block);
            }
            if let Some(block) = blocks.get(whole.len()) {
                rest.copy_from_slice(&block_floats(block)[..rest.len()]);
            }
        }
    }
}

#[inline(always)]
fn block_floats([low, high, weights @ ..]: &[u8; BYTES]) -> [f32; 32] {
    let scale = half([*low, *high]);
    let weights: [i8; 32] = cast(*weights);
    let mut floats = [0f32; 32];
    for (float, weight) in floats.iter_mut().zip(weights) {
        *float = f32::from(weight) * scale;
    }
    floats
}
