//! `Q8_0`: blocks of 32 weights of 8 bits, after their common scale, a half float.

use pulp::cast;
use pulp::x86::V3;

use super::gemm_avx2::{LANES, PANELS, Panel, ROWS, Sums, everywhere, transposed};
use super::quantize_activations::{Rounded32, Rounded32Finely};
use super::{Row, half, total};

/// The scale, then the weights.
const BYTES: usize = 2 + 32;

/// A row of blocks, as they lie in a file.
pub struct Q8Row;

impl Row for Q8Row {
    type X = Rounded32;
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn dot(simd: V3, blocks: &[u8], x: &[Rounded32]) -> f32 {
        let ones = simd.splat_i16x16(1);
        let mut sum = simd.splat_f32x8(0.0);
        for ([low, high, weights @ ..], x) in blocks.as_chunks::<BYTES>().0.iter().zip(x) {
            let w = cast(*weights);
            // One factor of a byte product has no sign; the other takes over both.
            let signed = simd.avx2._mm256_sign_epi8(cast(x.bytes), w);
            let pairs = cast(simd.avx2._mm256_maddubs_epi16(simd.avx2._mm256_abs_epi8(w), signed));
            let fours = simd.multiply_wrapping_add_adjacent_i16x16(pairs, ones);
            let scale = simd.splat_f32x8(half([*low, *high]) * x.scale);
            sum = simd.mul_add_f32x8(simd.convert_i32x8_to_f32x8(fours), scale, sum);
        }
        total(simd, sum)
    }
}

/// 32 weights of eight outputs, in 16 bits: bytes with a sign have no products of their own, and what stands for them
/// takes as many instructions. Sums of a block stay below `32 * 128 * 32,767`, 134 of 2,147 million.
#[repr(align(32))]
#[derive(Clone, Default)]
pub struct Q8Panel {
    /// Two neighbouring weights of each output.
    weights: [[i32; LANES]; 16],
    scales: [f32; LANES],
}

impl Panel for Q8Panel {
    type X = Rounded32Finely;
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn set(&mut self, simd: V3, blocks: [&[u8]; LANES]) {
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
            *weights = cast(transposed(simd, rows));
        }
        for (scale, [low, high, ..]) in self.scales.iter_mut().zip(blocks) {
            *scale = half([low, high]);
        }
    }

    #[inline(always)]
    fn add(simd: V3, panels: [&Self; PANELS], x: [&Rounded32Finely; ROWS], sums: &mut Sums) {
        let mut products = [[everywhere(simd, 0); PANELS]; ROWS];
        for two in 0..16 {
            let weights = [cast(panels[0].weights[two]), cast(panels[1].weights[two])];
            for r in 0..ROWS {
                let x = everywhere(simd, x[r].twos[two]);
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
