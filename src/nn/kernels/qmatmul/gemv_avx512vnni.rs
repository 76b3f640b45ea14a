//! Matmul of a few rows with interleaved Q8_0 and Q4_K weights for AVX-512 VNNI: the weights of sixteen outputs are read in
//! the order of memory and multiplied as they are unpacked, without panels in between.
//!
//! Sums have the bits of [`gemm_avx512vnni`](super::gemm_avx512vnni): they add the same products, block after block.

use std::arch::x86_64::*;

use pulp::x86::V3;

use super::super::interleaved::InterleavedWeight;
use super::super::mat::MatMut;
use super::super::parallel::parallel_columns;
use super::block_format::Blocks;
use super::gemm_avx512vnni::{VnniWeights, add_scaled, store, zero_point};
use super::lanes::{Avx512Vnni, LANES};
use super::quantize_activations::{BlockI8x32WithSums, QuantizedBlock, quantize_rows};

/// Most rows for which this is faster than panels; in Q6_K, where unpacking costs more, it is not.
pub const ROWS: usize = 16;
/// Groups of sixteen outputs in a task.
const GROUPS: usize = 3;
/// How far ahead of the line that is read memory is prefetched, in bytes.
const AHEAD: usize = 4096;

/// `x` (rows, width) times the transpose of an interleaved matrix (outputs, width): (rows, outputs).
pub fn gemv<T: VnniWeights>(simd: V3, vnni: Avx512Vnni, x: &[f32], weight: &InterleavedWeight) -> Vec<f32> {
    let (weights, (outputs, width)) = (&**weight, weight.dims2());
    let (rows, per_row) = (x.len() / width, width / BlockI8x32WithSums::WIDTH);
    let x: Vec<BlockI8x32WithSums> = quantize_rows(simd, x);
    let of = |row: usize| &x[row * per_row..][..per_row];
    let group_bytes = width / T::WIDTH * T::GROUP_BYTES;
    parallel_columns(rows, outputs, GROUPS * LANES, |columns, mut out| {
        for first in (0..columns.len()).step_by(LANES) {
            let group = &weights[(columns.start + first) / LANES * group_bytes..][..group_bytes];
            // Eight rows are the most whose sums stay in registers.
            for row in (0..rows).step_by(8) {
                let (of, place) = (|i: usize| of((row + i).min(rows - 1)), (row, first));
                // SAFETY: the CPU has AVX-512 VNNI, as the value proves.
                unsafe {
                    match rows - row {
                        1 => multiply::<T, 1>(vnni, group, [of(0)], place, &mut out),
                        2 => multiply::<T, 2>(vnni, group, [0, 1].map(of), place, &mut out),
                        3..=4 => multiply::<T, 4>(vnni, group, [0, 1, 2, 3].map(of), place, &mut out),
                        _ => multiply::<T, 8>(vnni, group, [0, 1, 2, 3, 4, 5, 6, 7].map(of), place, &mut out),
                    }
                }
            }
        }
    })
}

/// Writes the dot products of `R` rows of `x` with sixteen outputs to their place, a row and a column of `out`. Rows after
/// the last one are the last one.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply<T: VnniWeights, const R: usize>(
    simd: Avx512Vnni,
    group: &[u8],
    x: [&[BlockI8x32WithSums]; R],
    (row, column): (usize, usize),
    out: &mut MatMut,
) {
    const { assert!(T::GROUP == 32) };
    let mut sums = [_mm512_setzero_ps(); R];
    let (group, per_block) = (Blocks { bytes: group, ahead: AHEAD }, T::WIDTH / 32);
    for i in 0..group.bytes.len() / T::GROUP_BYTES {
        let blocks = group.part(i * T::GROUP_BYTES, T::GROUP_BYTES);
        let scales = T::scales(simd, blocks);
        for eighth in 0..per_block {
            let (mut x_block, mut products) = ([&x[0][0]; R], [_mm512_setzero_si512(); R]);
            for r in 0..R {
                x_block[r] = &x[r][i * per_block + eighth];
                products[r] = zero_point::<T>(x_block[r], 0);
            }
            for at in 0..8 {
                let weights = T::four(simd, blocks, eighth, at);
                for r in 0..R {
                    products[r] = _mm512_dpbusd_epi32(products[r], weights, _mm512_set1_epi32(x_block[r].fours[at]));
                }
            }
            let (scale, offset) = (T::scale(simd, &scales, eighth), T::offset(simd, &scales, eighth));
            for r in 0..R {
                sums[r] = add_scaled::<T>(sums[r], products[r], scale, offset, x_block[r]);
            }
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        let row = (row + r).min(out.rows() - 1);
        store(*sum, out.row_part(row, column, LANES));
    }
}
