//! What the micro-kernels for AVX2 share: each lane of a register accumulates one output, in integers within a block.

use std::arch::x86_64::__m256i;

use pulp::x86::V3;
use pulp::{cast, f32x8};

use super::super::simd_math::AVX2_F32_LANES;
use super::gemm::Sums;
use super::lanes::LANES;

/// Registers of sixteen outputs.
pub const HALVES: usize = LANES / AVX2_F32_LANES;

/// Sums of `R` rows and sixteen outputs.
pub type Registers<const R: usize> = [[f32x8; HALVES]; R];

/// Broadcasts 32 bits to all lanes.
#[inline(always)]
pub fn broadcast(simd: V3, bits: i32) -> __m256i {
    simd.avx._mm256_set1_epi32(bits)
}

/// The sums so far.
#[inline(always)]
pub fn load<const R: usize>(simd: V3, from: &mut Sums) -> Registers<R> {
    let mut sums = [[simd.splat_f32x8(0.0); HALVES]; R];
    if from.accumulate {
        for (row, sums) in sums.iter_mut().enumerate() {
            let part = from.part(row, 0);
            *sums = match part.first_chunk::<LANES>() {
                Some(part) => cast(*part),
                None => {
                    let mut all = [0.0; LANES];
                    all[..part.len()].copy_from_slice(part);
                    cast(all)
                }
            };
        }
    }
    sums
}

/// Stores the sums of outputs that exist.
#[inline(always)]
pub fn store<const R: usize>(sums: Registers<R>, to: &mut Sums) {
    for (row, sums) in sums.into_iter().enumerate() {
        let (part, sums): (_, [f32; LANES]) = (to.part(row, 0), cast(sums));
        match part.first_chunk_mut::<LANES>() {
            Some(part) => *part = sums,
            None => part.copy_from_slice(&sums[..part.len()]),
        }
    }
}
