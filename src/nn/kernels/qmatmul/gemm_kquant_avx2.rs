//! Packed blocks of K-quants for [`super::gemm_avx2`].

use std::arch::x86_64::__m256i;
use std::hint::black_box;
use std::marker::PhantomData;

use pulp::cast;
use pulp::x86::V3;

use super::super::simd_math::AVX2_F32_LANES as LANES;
use super::gemm_avx2::{PANELS, PackedBlock, ROWS, Sums, broadcast, transpose_8x8};
use super::kquant_format::{KQuant, KQuantBlock, PARTS};
use super::quantize_activations::BlockI8x256;

/// One integer per output: four neighbouring weights, a scale twice, or two neighbouring offsets.
type Column = [i32; LANES];

/// A K-quant block (256 weights) of each of eight outputs.
#[repr(align(32))]
#[derive(Clone, Default)]
pub struct PackedKQuant<K> {
    weights: [[Column; 8]; PARTS],
    /// Scales of the even groups of 16 weights of each part, then of the odd ones.
    scales: [[Column; PARTS]; 2],
    /// Four times the offsets of two even groups, then of two odd groups; the odd ones are used only if neighbours may
    /// differ.
    mins: [Column; 8],
    scale: [f32; LANES],
    min: [f32; LANES],
    of: PhantomData<K>,
}

impl<K: KQuant> PackedKQuant<K> {
    /// Dot products of offsets and sums of `x`, to be subtracted from the accumulators.
    #[inline(always)]
    fn offset_products(&self, simd: V3, x: &BlockI8x256) -> __m256i {
        let avx2 = simd.avx2;
        let sums = cast(x.sums);
        let even = avx2._mm256_permute2x128_si256::<0x00>(sums, sums);
        let odd = avx2._mm256_permute2x128_si256::<0x11>(sums, sums);
        let [a, b, c, d, e, f, g, h] = self.mins;
        if K::OFFSET_FOR_32 {
            multiply_pairs(simd, [a, b, c, d], avx2._mm256_add_epi16(even, odd))
        } else {
            avx2._mm256_add_epi32(multiply_pairs(simd, [a, b, c, d], even), multiply_pairs(simd, [e, f, g, h], odd))
        }
    }
}

/// Multiplies four pairs of offsets by four pairs of sums, which both halves of the register hold.
#[inline(always)]
fn multiply_pairs(simd: V3, mins: [Column; 4], sums: __m256i) -> __m256i {
    let avx2 = simd.avx2;
    let [a, b, c, d] = mins;
    let ab = avx2._mm256_add_epi32(
        avx2._mm256_madd_epi16(cast(a), avx2._mm256_shuffle_epi32::<0x00>(sums)),
        avx2._mm256_madd_epi16(cast(b), avx2._mm256_shuffle_epi32::<0x55>(sums)),
    );
    let cd = avx2._mm256_add_epi32(
        avx2._mm256_madd_epi16(cast(c), avx2._mm256_shuffle_epi32::<0xaa>(sums)),
        avx2._mm256_madd_epi16(cast(d), avx2._mm256_shuffle_epi32::<0xff>(sums)),
    );
    avx2._mm256_add_epi32(ab, cd)
}

/// Repeats each 16-bit element in the upper half of its 32-bit lane.
#[inline(always)]
fn duplicate_i16(simd: V3, eight: [i16; 8]) -> __m256i {
    let once = simd.avx2._mm256_cvtepu16_epi32(cast(eight));
    simd.avx2._mm256_or_si256(once, simd.avx2._mm256_slli_epi32::<16>(once))
}

impl<K: KQuant> PackedBlock for PackedKQuant<K> {
    type X = BlockI8x256;
    const BYTES: usize = K::BYTES;

    #[inline(always)]
    fn pack(&mut self, simd: V3, blocks: [&[u8]; LANES]) {
        // Loops, not `map`: closures are not always inlined, and outside of this function intrinsics become calls.
        let mut rows = [broadcast(simd, 0); LANES];
        for part in 0..PARTS {
            for (row, bytes) in rows.iter_mut().zip(blocks) {
                *row = K::read(bytes).weights(simd, part);
            }
            self.weights[part] = cast(transpose_8x8(simd, rows));
        }
        let mut odd = rows;
        for ((even, odd), bytes) in rows.iter_mut().zip(&mut odd).zip(blocks) {
            let scales: [[i16; 8]; 2] = cast(K::read(bytes).scales(simd));
            [*even, *odd] = [duplicate_i16(simd, scales[0]), duplicate_i16(simd, scales[1])];
        }
        self.scales = [cast(transpose_8x8(simd, rows)), cast(transpose_8x8(simd, odd))];
        for (lane, bytes) in blocks.into_iter().enumerate() {
            let block = K::read(bytes);
            rows[lane] = block.mins(simd);
            [self.scale[lane], self.min[lane]] = block.factors();
        }
        self.mins = cast(transpose_8x8(simd, rows));
    }

    #[inline(always)]
    fn accumulate(simd: V3, panels: [&Self; PANELS], x: [&BlockI8x256; ROWS], sums: &mut Sums) {
        let mut products = [[broadcast(simd, 0); PANELS]; ROWS];
        // `black_box` prevents unrolling, which would spill registers.
        for part in 0..black_box(PARTS) {
            for first in (0..8).step_by(K::I16_SUMS) {
                let mut short = [[broadcast(simd, 0); PANELS]; ROWS];
                for four in first..first + K::I16_SUMS {
                    for r in 0..ROWS {
                        let bytes = &x[r].bytes[part][4 * four..][..4];
                        let bytes = [bytes[0] as u8, bytes[1] as u8, bytes[2] as u8, bytes[3] as u8];
                        let x = broadcast(simd, i32::from_le_bytes(bytes));
                        for p in 0..PANELS {
                            let pairs = simd.avx2._mm256_maddubs_epi16(cast(panels[p].weights[part][four]), x);
                            short[r][p] = simd.avx2._mm256_add_epi16(short[r][p], pairs);
                        }
                    }
                }
                for p in 0..PANELS {
                    let scales = cast(panels[p].scales[first / 4][part]);
                    for r in 0..ROWS {
                        let scaled = simd.avx2._mm256_madd_epi16(short[r][p], scales);
                        products[r][p] = simd.avx2._mm256_add_epi32(products[r][p], scaled);
                    }
                }
            }
        }
        for r in 0..ROWS {
            let step = simd.splat_f32x8(x[r].scale);
            for p in 0..PANELS {
                let product = simd.convert_i32x8_to_f32x8(cast(products[r][p]));
                let offset = simd.convert_i32x8_to_f32x8(cast(panels[p].offset_products(simd, x[r])));
                let offset = simd.mul_f32x8(offset, cast(panels[p].min));
                let both = simd.mul_sub_f32x8(product, cast(panels[p].scale), offset);
                sums[r][p] = simd.mul_add_f32x8(both, step, sums[r][p]);
            }
        }
    }
}
