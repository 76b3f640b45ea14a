//! Rows of blocks of a K type.

use std::hint::black_box;
use std::marker::PhantomData;

use pulp::x86::V3;
use pulp::{cast, f32x8, i16x16};

use super::k_types::{Block, KType, PARTS, Unpacked};
use super::rounded::Rounded256;
use super::{WeightRow, totals};

/// A row of blocks, unpacked.
pub(super) struct KWeights<K> {
    blocks: Vec<Unpacked>,
    of: PhantomData<K>,
}

impl<K> Default for KWeights<K> {
    fn default() -> Self {
        Self { blocks: Vec::new(), of: PhantomData }
    }
}

impl<'a, K: KType> WeightRow<'a> for KWeights<K> {
    type X = Rounded256;

    #[inline(always)]
    fn set(&mut self, simd: V3, blocks: &'a [u8]) {
        self.blocks.resize(blocks.len() / K::BYTES, Unpacked::default());
        for (block, bytes) in self.blocks.iter_mut().zip(blocks.chunks_exact(K::BYTES)) {
            block.set(simd, &K::read(bytes));
        }
    }

    #[inline(always)]
    fn dot<const R: usize>(&self, simd: V3, x: [&[Rounded256]; R]) -> [f32; R] {
        let x = x.map(
            #[inline(always)]
            |x| &x[..self.blocks.len()],
        );
        let mut sums = [simd.splat_f32x8(0.0); R];
        for (at, block) in self.blocks.iter().enumerate() {
            let x = x.map(
                #[inline(always)]
                |x| &x[at],
            );
            // Unrolled, the loop over parts would hold all of them in registers, and then on the stack.
            add(simd, block, x, black_box(PARTS), &mut sums);
        }
        totals(simd, sums)
    }

    #[inline(always)]
    fn dot_once(simd: V3, blocks: &'a [u8], x: &[Rounded256]) -> f32 {
        let mut sums = [simd.splat_f32x8(0.0)];
        for (bytes, x) in blocks.chunks_exact(K::BYTES).zip(x) {
            add(simd, &K::read(bytes), [x], PARTS, &mut sums);
        }
        let [total] = totals(simd, sums);
        total
    }
}

/// Adds products with a block of so many parts.
#[inline(always)]
fn add<const R: usize>(simd: V3, block: &impl Block, x: [&Rounded256; R], parts: usize, sums: &mut [f32x8; R]) {
    let mut products = [simd.splat_i32x8(0); R];
    for part in 0..parts {
        let (weights, scales) = (block.weights(simd, part), block.scales(simd, part));
        for (product, x) in products.iter_mut().zip(x) {
            let pairs = simd.avx2._mm256_maddubs_epi16(weights, cast(x.bytes[part]));
            let scaled = simd.multiply_wrapping_add_adjacent_i16x16(cast(pairs), cast(scales));
            *product = simd.wrapping_add_i32x8(*product, scaled);
        }
    }
    let (mins, [scale, min]) = (cast::<_, i16x16>(block.mins(simd)), block.factors());
    for ((sum, product), x) in sums.iter_mut().zip(products).zip(x) {
        let offset = simd.multiply_wrapping_add_adjacent_i16x16(mins, cast(x.sums));
        let [product, offset] = [simd.convert_i32x8_to_f32x8(product), simd.convert_i32x8_to_f32x8(offset)];
        *sum = simd.mul_add_f32x8(product, simd.splat_f32x8(scale * x.scale), *sum);
        *sum = simd.mul_add_f32x8(offset, simd.splat_f32x8(-min * x.scale), *sum);
    }
}
