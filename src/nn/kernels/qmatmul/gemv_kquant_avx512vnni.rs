//! GEMV over K-quant (Q4_K and Q6_K) blocks in file order, for AVX-512 VNNI: 64 weights at a time.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::dispatch::has_avx512_vnni;
use super::kquant_format::{KQuant, KQuantBlock};
use super::quantize_activations::BlockI8x256;
use super::{Tile, TileKernel};

/// Registers of a block's weights.
const QUARTERS: usize = 4;

/// The GEMV: one row of weights after the other, for each row of `x`.
pub struct GemvAvx512Vnni<K>(PhantomData<K>);

impl<K: KQuant> TileKernel for GemvAvx512Vnni<K> {
    type X = BlockI8x256;
    const BYTES: usize = K::BYTES;

    #[inline(always)]
    fn fill(task: Tile<'_, Self>) {
        assert!(has_avx512_vnni(), "the dispatch checks for AVX-512 VNNI");
        // SAFETY: the CPU has AVX-512 VNNI, as asserted.
        unsafe { fill(task) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn fill<K: KQuant>(Tile { simd, x, per_row, weights, out }: Tile<'_, GemvAvx512Vnni<K>>) {
    let row_bytes = per_row * K::BYTES;
    let outputs = weights.len() / row_bytes;
    let scale_of = scale_of_pairs();
    for (out, x) in out.chunks_exact_mut(outputs).zip(x.chunks_exact(per_row)) {
        for (out, blocks) in out.iter_mut().zip(weights.chunks_exact(row_bytes)) {
            let mut sum = _mm512_setzero_ps();
            for (bytes, x) in blocks.chunks_exact(K::BYTES).zip(x) {
                let block = K::read(bytes);
                let scales = _mm512_castsi256_si512(block.scales(simd));
                let mut product = _mm512_setzero_si512();
                for (quarter, scale_of) in scale_of.iter().enumerate() {
                    let halves = [block.weights(simd, 2 * quarter), block.weights(simd, 2 * quarter + 1)];
                    let weights = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves[0]), halves[1]);
                    let x: &[[i8; 32]; 2] = &x.bytes.as_chunks().0[quarter];
                    // SAFETY: as long as a register.
                    let x = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
                    let pairs = _mm512_maddubs_epi16(weights, x);
                    product = _mm512_dpwssd_epi32(product, pairs, _mm512_permutexvar_epi16(*scale_of, scales));
                }
                let [scale, min] = block.factors();
                let offset = _mm256_madd_epi16(block.mins(simd), pulp::cast(x.sums));
                let (scale, min) = (_mm512_set1_ps(scale * x.scale), _mm512_set1_ps(min * x.scale));
                sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, sum);
                sum = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(_mm512_zextsi256_si512(offset)), min, sum);
            }
            *out = _mm512_reduce_add_ps(sum);
        }
    }
}

/// The index of each weight pair's scale, by quarters of a block; scales of even groups come first.
#[target_feature(enable = "avx512f")]
fn scale_of_pairs() -> [__m512i; QUARTERS] {
    const PLACES: [[i16; 32]; QUARTERS] = {
        let mut places = [[0; 32]; QUARTERS];
        let mut i = 0;
        while i < 32 * QUARTERS {
            // Eight pairs are a group of 16 weights.
            let group = i / 8;
            places[i / 32][i % 32] = (group / 2 + 8 * (group % 2)) as i16;
            i += 1;
        }
        places
    };
    // SAFETY: each is as long as a register.
    PLACES.map(|places| unsafe { _mm512_loadu_si512(places.as_ptr().cast()) })
}
