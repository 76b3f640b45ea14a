//! GEMV over K-quant (Q4_K and Q6_K) blocks in file order, for AVX2.

use std::marker::PhantomData;

use pulp::x86::V3;
use pulp::{cast, i16x16};

use super::kquant_format::{KQuant, KQuantBlock, PARTS, pair_scales};
use super::quantize_activations::BlockI8x256;
use super::{RowKernel, reduce_sum};

/// The dot product of a row of K-quant blocks.
pub struct KQuantRow<K>(PhantomData<K>);

impl<K: KQuant> RowKernel for KQuantRow<K> {
    type X = BlockI8x256;
    const BYTES: usize = K::BYTES;

    #[inline(always)]
    fn dot(simd: V3, blocks: &[u8], x: &[BlockI8x256]) -> f32 {
        let mut sum = simd.splat_f32x8(0.0);
        for (bytes, x) in blocks.chunks_exact(K::BYTES).zip(x) {
            let block = K::read(bytes);
            let scales = block.scales(simd);
            let mut product = simd.splat_i32x8(0);
            for part in 0..PARTS {
                let pairs = simd.avx2._mm256_maddubs_epi16(block.weights(simd, part), cast(x.bytes[part]));
                let scales = cast(pair_scales(simd, scales, part));
                let scaled = simd.multiply_wrapping_add_adjacent_i16x16(cast(pairs), scales);
                product = simd.wrapping_add_i32x8(product, scaled);
            }
            let (mins, [scale, min]) = (cast::<_, i16x16>(block.mins(simd)), block.factors());
            let offset = simd.multiply_wrapping_add_adjacent_i16x16(mins, cast(x.sums));
            let [product, offset] = [simd.convert_i32x8_to_f32x8(product), simd.convert_i32x8_to_f32x8(offset)];
            sum = simd.mul_add_f32x8(product, simd.splat_f32x8(scale * x.scale), sum);
            sum = simd.mul_add_f32x8(offset, simd.splat_f32x8(-min * x.scale), sum);
        }
        reduce_sum(simd, sum)
    }
}
