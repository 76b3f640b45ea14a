//! Weights of several outputs side by side, for several rows of `x`: every lane of a register sums for an output of
//! its own, so that a sum needs no float before a whole block is done, and none is ever taken across a register.

use std::arch::x86_64::__m256i;
use std::marker::PhantomData;

use pulp::f32x8;
use pulp::x86::V3;

use super::quantize_activations::RoundedBlock;
use super::{Fill, Kernel};

/// Outputs of a panel.
pub const LANES: usize = 8;
/// Panels that a row of `x` meets at once.
pub const PANELS: usize = 2;
/// Rows of `x` that meet a panel at once.
pub const ROWS: usize = 2;

/// Sums for each of these rows and panels. All of them and what they are summed from fit into the registers.
pub type Sums = [[f32x8; PANELS]; ROWS];

/// One block of each of eight rows of weights.
pub trait Panel: Clone + Default {
    /// How it wants `x`.
    type X: RoundedBlock;
    /// Bytes of a block.
    const BYTES: usize;

    /// Becomes these blocks; one that is too short counts as zeros.
    fn set(&mut self, simd: V3, blocks: [&[u8]; LANES]);

    /// Adds the products with a block of each row of `x`.
    fn add(simd: V3, panels: [&Self; PANELS], x: [&Self::X; ROWS], sums: &mut Sums);
}

/// Two panels after the other, for many rows of `x`.
pub struct ByPanels<P>(PhantomData<P>);

impl<P: Panel> Kernel for ByPanels<P> {
    type X = P::X;
    const BYTES: usize = P::BYTES;

    #[inline(always)]
    fn fill(Fill { simd, x, per_row, weights, out }: Fill<'_, Self>) {
        let row_bytes = per_row * P::BYTES;
        let (rows, outputs) = (x.len() / per_row, weights.len() / row_bytes);
        let row = |row: usize| &x[row * per_row..][..per_row];
        let mut panels = [vec![P::default(); per_row], vec![P::default(); per_row]];
        for (at, weights) in weights.chunks(PANELS * LANES * row_bytes).enumerate() {
            let found = weights.len() / row_bytes;
            for (panel, weights) in panels.iter_mut().zip(weights.chunks(LANES * row_bytes)) {
                set(simd, panel, weights);
            }
            for first in (0..rows).step_by(ROWS) {
                // The last row may be alone: it is taken twice.
                let second = (first + 1).min(rows - 1);
                let sums = products(simd, [&panels[0], &panels[1]], [row(first), row(second)]);
                for (row, sums) in [first, second].into_iter().zip(sums) {
                    let sums: [f32; PANELS * LANES] = pulp::cast(sums);
                    out[row * outputs + at * PANELS * LANES..][..found].copy_from_slice(&sums[..found]);
                }
            }
        }
    }
}

/// Turns at most eight rows of blocks into a row of panels.
#[inline(always)]
fn set<P: Panel>(simd: V3, panels: &mut [P], rows: &[u8]) {
    let row_bytes = panels.len() * P::BYTES;
    for (at, panel) in panels.iter_mut().enumerate() {
        let blocks = std::array::from_fn(
            #[inline(always)]
            |lane| rows.get(lane * row_bytes + at * P::BYTES..).unwrap_or(&[]),
        );
        panel.set(simd, blocks);
    }
}

#[inline(always)]
fn products<P: Panel>(simd: V3, panels: [&[P]; PANELS], x: [&[P::X]; ROWS]) -> Sums {
    let mut sums = [[simd.splat_f32x8(0.0); PANELS]; ROWS];
    for ((left, right), (x, below)) in panels[0].iter().zip(panels[1]).zip(x[0].iter().zip(x[1])) {
        P::add(simd, [left, right], [x, below], &mut sums);
    }
    sums
}

/// Eight times the same 32 bits.
#[inline(always)]
pub fn everywhere(simd: V3, bits: i32) -> __m256i {
    simd.avx._mm256_set1_epi32(bits)
}

/// Of eight rows of eight 32-bit numbers, the eight columns.
#[inline(always)]
pub fn transposed(simd: V3, rows: [__m256i; LANES]) -> [__m256i; LANES] {
    let avx2 = simd.avx2;
    let [a, b, c, d, e, f, g, h] = rows;
    // Twos of a column, in each half of a register those of four rows.
    let (ab, ab_2) = (avx2._mm256_unpacklo_epi32(a, b), avx2._mm256_unpackhi_epi32(a, b));
    let (cd, cd_2) = (avx2._mm256_unpacklo_epi32(c, d), avx2._mm256_unpackhi_epi32(c, d));
    let (ef, ef_2) = (avx2._mm256_unpacklo_epi32(e, f), avx2._mm256_unpackhi_epi32(e, f));
    let (gh, gh_2) = (avx2._mm256_unpacklo_epi32(g, h), avx2._mm256_unpackhi_epi32(g, h));
    // Fours: columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
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
