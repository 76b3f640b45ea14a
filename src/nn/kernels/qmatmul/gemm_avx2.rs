//! GEMM over quantised weights for AVX2: weights are packed for eight outputs side by side. Each lane of a register
//! accumulates one output, in integers within a block, and no sum crosses lanes.

use std::arch::x86_64::__m256i;
use std::marker::PhantomData;

use pulp::f32x8;
use pulp::x86::V3;

use super::super::simd_math::AVX2_F32_LANES as LANES;
use super::quantize_activations::QuantizedBlock;
use super::{Tile, TileKernel};

/// Number of panels in the micro-kernel.
pub const PANELS: usize = 2;
/// Rows of `x` in the micro-kernel.
pub const ROWS: usize = 2;

/// Accumulators of the micro-kernel; they and the operands fit into the registers.
pub type Sums = [[f32x8; PANELS]; ROWS];

/// One block of each of eight rows of weights, packed.
pub trait PackedBlock: Clone + Default {
    /// Quantised form of `x`.
    type X: QuantizedBlock;
    /// Number of bytes of a block.
    const BYTES: usize;

    /// Packs these blocks; a truncated one counts as zeros.
    fn pack(&mut self, simd: V3, blocks: [&[u8]; LANES]);

    /// Micro-kernel: accumulates the dot products with a block of each row of `x`.
    fn accumulate(simd: V3, panels: [&Self; PANELS], x: [&Self::X; ROWS], sums: &mut Sums);
}

/// GEMM: two panels are packed, then multiplied with all rows of `x`.
pub struct GemmAvx2<P>(PhantomData<P>);

impl<P: PackedBlock> TileKernel for GemmAvx2<P> {
    type X = P::X;
    const BYTES: usize = P::BYTES;

    #[inline(always)]
    fn fill(Tile { simd, x, per_row, weights, out }: Tile<'_, Self>) {
        let row_bytes = per_row * P::BYTES;
        let (rows, outputs) = (x.len() / per_row, weights.len() / row_bytes);
        let row = |row: usize| &x[row * per_row..][..per_row];
        let mut panels = [vec![P::default(); per_row], vec![P::default(); per_row]];
        for (at, weights) in weights.chunks(PANELS * LANES * row_bytes).enumerate() {
            let found = weights.len() / row_bytes;
            for (panel, weights) in panels.iter_mut().zip(weights.chunks(LANES * row_bytes)) {
                pack(simd, panel, weights);
            }
            for first in (0..rows).step_by(ROWS) {
                // An odd last row is computed twice.
                let second = (first + 1).min(rows - 1);
                let sums = multiply(simd, [&panels[0], &panels[1]], [row(first), row(second)]);
                for (row, sums) in [first, second].into_iter().zip(sums) {
                    let sums: [f32; PANELS * LANES] = pulp::cast(sums);
                    out[row * outputs + at * PANELS * LANES..][..found].copy_from_slice(&sums[..found]);
                }
            }
        }
    }
}

/// Packs the blocks of at most eight rows.
#[inline(always)]
fn pack<P: PackedBlock>(simd: V3, panels: &mut [P], rows: &[u8]) {
    let row_bytes = panels.len() * P::BYTES;
    for (at, panel) in panels.iter_mut().enumerate() {
        let blocks = std::array::from_fn(
            #[inline(always)]
            |lane| rows.get(lane * row_bytes + at * P::BYTES..).unwrap_or(&[]),
        );
        panel.pack(simd, blocks);
    }
}

/// Dot products of two rows of `x` with two panels.
#[inline(always)]
fn multiply<P: PackedBlock>(simd: V3, panels: [&[P]; PANELS], x: [&[P::X]; ROWS]) -> Sums {
    let mut sums = [[simd.splat_f32x8(0.0); PANELS]; ROWS];
    for ((left, right), (x, below)) in panels[0].iter().zip(panels[1]).zip(x[0].iter().zip(x[1])) {
        P::accumulate(simd, [left, right], [x, below], &mut sums);
    }
    sums
}

/// Broadcasts 32 bits to all lanes.
#[inline(always)]
pub fn broadcast(simd: V3, bits: i32) -> __m256i {
    simd.avx._mm256_set1_epi32(bits)
}

/// Transposes an 8 x 8 matrix of 32-bit elements, one row per register.
#[inline(always)]
pub fn transpose_8x8(simd: V3, rows: [__m256i; LANES]) -> [__m256i; LANES] {
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
    for i in 0..LANES / 2 {
        columns[i] = avx2._mm256_permute2x128_si256::<0x20>(upper[i], lower[i]);
        columns[LANES / 2 + i] = avx2._mm256_permute2x128_si256::<0x31>(upper[i], lower[i]);
    }
    columns
}
