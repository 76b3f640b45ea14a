//! GEMV and packed blocks of `Q8_0` for AVX2: blocks of 32 weights of 8 bits after their common f16 scale.

use pulp::cast;
use pulp::x86::V3;

use super::super::simd_math::AVX2_F32_LANES as LANES;
use super::gemm_avx2::{PANELS, PackedBlock, ROWS, Sums, broadcast, transpose_8x8};
use super::quantize_activations::{BlockI8x32, BlockI16x32};
use super::{Q8_0_BYTES as BYTES, RowKernel, f16_to_f32, reduce_sum};

/// Dot product with a row of blocks.
pub struct Q8_0Row;

impl RowKernel for Q8_0Row {
    type X = BlockI8x32;
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn dot(simd: V3, blocks: &[u8], x: &[BlockI8x32]) -> f32 {
        let ones = simd.splat_i16x16(1);
        let mut sum = simd.splat_f32x8(0.0);
        for ([low, high, weights @ ..], x) in blocks.as_chunks::<BYTES>().0.iter().zip(x) {
            let w = cast(*weights);
            // `maddubs` takes an unsigned factor, so the other factor gets both signs.
            let signed = simd.avx2._mm256_sign_epi8(cast(x.bytes), w);
            let pairs = cast(simd.avx2._mm256_maddubs_epi16(simd.avx2._mm256_abs_epi8(w), signed));
            let fours = simd.multiply_wrapping_add_adjacent_i16x16(pairs, ones);
            let scale = simd.splat_f32x8(f16_to_f32([*low, *high]) * x.scale);
            sum = simd.mul_add_f32x8(simd.convert_i32x8_to_f32x8(fours), scale, sum);
        }
        reduce_sum(simd, sum)
    }
}

/// 32 weights of each of eight outputs, widened to 16 bits: AVX2 cannot multiply signed bytes, and an emulation takes
/// as many instructions. Sums of a block stay below `32 * 128 * 32,767`, 134 of 2,147 million.
#[repr(align(32))]
#[derive(Clone, Default)]
pub struct PackedQ8_0 {
    /// Two neighbouring weights of each output in each integer.
    weights: [[i32; LANES]; 16],
    scales: [f32; LANES],
}

impl PackedBlock for PackedQ8_0 {
    type X = BlockI16x32;
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn pack(&mut self, simd: V3, blocks: [&[u8]; LANES]) {
        let blocks = blocks.map(
            #[inline(always)]
            |bytes| *bytes.first_chunk().unwrap_or(&[0; BYTES]),
        );
        for (half, weights) in self.weights.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let rows = blocks.map(
                #[inline(always)]
                |block| {
                    let bytes: [u8; 16] = *block[2 + 16 * half..].first_chunk().unwrap_or(&[0; 16]);
                    simd.avx2._mm256_cvtepi8_epi16(cast(bytes))
                },
            );
            *weights = cast(transpose_8x8(simd, rows));
        }
        for (scale, [low, high, ..]) in self.scales.iter_mut().zip(blocks) {
            *scale = f16_to_f32([low, high]);
        }
    }

    #[inline(always)]
    fn accumulate(simd: V3, panels: [&Self; PANELS], x: [&BlockI16x32; ROWS], sums: &mut Sums) {
        let mut products = [[broadcast(simd, 0); PANELS]; ROWS];
        for two in 0..16 {
            let weights = [cast(panels[0].weights[two]), cast(panels[1].weights[two])];
            for r in 0..ROWS {
                let x = broadcast(simd, x[r].twos[two]);
                for p in 0..PANELS {
                    let pairs = simd.avx2._mm256_madd_epi16(weights[p], x);
                    products[r][p] = simd.avx2._mm256_add_epi32(products[r][p], pairs);
                }
            }
        }
        for r in 0..ROWS {
            for p in 0..PANELS {
                let scale = simd.mul_f32x8(cast(panels[p].scales), simd.splat_f32x8(x[r].scale));
                sums[r][p] = simd.mul_add_f32x8(simd.convert_i32x8_to_f32x8(cast(products[r][p])), scale, sums[r][p]);
            }
        }
    }
}
