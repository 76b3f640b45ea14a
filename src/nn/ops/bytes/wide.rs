//! Products of many rows in bytes, for AVX-512 with VNNI: every lane sums four byte products at a time for an output of
//! its own, sixteen outputs side by side.
//!
//! Whatever the type, a weight is `scale * byte - offset` here, with a scale and an offset for each 16 or 32 weights of an
//! output; `x` is rounded to 8 bits in blocks of 32.

use std::arch::x86_64::*;
use std::hint::black_box;

use pulp::cast;
use pulp::x86::V3;

use super::super::avx512::{Floats, Line, transposed, up_to};
use super::super::blocks::{Columns, in_columns};
use super::half;
use super::k_types::{Block, KType, PARTS, Q4K, Q6K};
use super::rounded::{RoundedBlock, Summed32, round_all};

/// Outputs of a panel.
const LANES: usize = 16;
/// Panels that a row of `x` meets at once.
const PANELS: usize = 3;
/// Rows of `x` that meet them at once: all their sums fit into the registers.
const ROWS: usize = 4;
/// Outputs of a task.
const COLUMNS: usize = PANELS * LANES;
/// Inputs of a panel: three panels and what passes them fit into the nearest cache.
const INPUTS: usize = 256;
/// Blocks of `x` in these.
const BLOCKS: usize = INPUTS / Summed32::WIDTH;
/// Most scales of an output in these.
const SCALES: usize = INPUTS / 16;

/// Whether this processor has the instructions.
pub(super) fn is_available() -> bool {
    std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512vnni")
}

/// 256 weights of sixteen outputs.
struct Panel {
    /// Four neighbouring weights of each output, bytes without a sign.
    fours: [Line; INPUTS / 4],
    scales: [Floats; SCALES],
    offsets: [Floats; SCALES],
}

impl Panel {
    const EMPTY: Self =
        Self { fours: [Line::ZERO; INPUTS / 4], scales: [Floats::ZERO; SCALES], offsets: [Floats::ZERO; SCALES] };
}

/// A type of blocks that panels are made of.
pub(super) trait Wide {
    /// Bytes of the blocks of 256 weights.
    const BYTES: usize;
    /// Whether each 16 weights have a scale of their own, and not each 32.
    const SCALE_FOR_16: bool;
    /// The power of two that is taken from each byte, if that is all that offsets are.
    const ZERO: Option<u32>;

    /// Of 256 weights those from `64 * part` on, without a sign; missing ones count as zeros.
    fn weights(simd: V3, blocks: &[u8], part: usize) -> [__m256i; 2];

    /// Their scales and offsets.
    fn factors(simd: V3, blocks: &[u8]) -> [[f32; SCALES]; 2];
}

/// As a file has them: 8 bits with a sign, 32 with a common scale.
pub(super) struct Q8_0;

/// The scale, then the weights.
const Q8_BYTES: usize = 2 + 32;

impl Wide for Q8_0 {
    const BYTES: usize = BLOCKS * Q8_BYTES;
    const SCALE_FOR_16: bool = false;
    const ZERO: Option<u32> = Some(7);

    #[inline(always)]
    fn weights(simd: V3, blocks: &[u8], part: usize) -> [__m256i; 2] {
        // Where the sign was, 128 is added.
        let sign = simd.avx._mm256_set1_epi8(-128);
        let mut weights = [sign; 2];
        for (i, weights) in weights.iter_mut().enumerate() {
            let at = (2 * part + i) * Q8_BYTES + 2;
            let bytes = blocks.get(at..).and_then(|bytes| bytes.first_chunk::<32>()).unwrap_or(&[0; 32]);
            *weights = simd.avx2._mm256_xor_si256(cast(*bytes), sign);
        }
        weights
    }

    #[inline(always)]
    fn factors(_: V3, blocks: &[u8]) -> [[f32; SCALES]; 2] {
        let mut factors = [[0.0; SCALES]; 2];
        for (i, block) in blocks.as_chunks::<Q8_BYTES>().0.iter().take(BLOCKS).enumerate() {
            factors[0][i] = half([block[0], block[1]]);
        }
        factors
    }
}

/// K types.
trait WideK: KType {
    const ZERO: Option<u32>;
}

impl WideK for Q4K {
    const ZERO: Option<u32> = None;
}

impl WideK for Q6K {
    const ZERO: Option<u32> = Some(5);
}

impl<K: WideK> Wide for K {
    const BYTES: usize = <K as KType>::BYTES;
    const SCALE_FOR_16: bool = !K::OFFSET_FOR_32;
    const ZERO: Option<u32> = <K as WideK>::ZERO;

    #[inline(always)]
    fn weights(simd: V3, blocks: &[u8], part: usize) -> [__m256i; 2] {
        let block = K::read(blocks);
        [block.weights(simd, 2 * part), block.weights(simd, 2 * part + 1)]
    }

    #[inline(always)]
    fn factors(simd: V3, blocks: &[u8]) -> [[f32; SCALES]; 2] {
        let block = K::read(blocks);
        // Those of even sixteens come first, then those of odd ones.
        let sixteens: [[[i16; PARTS]; 2]; 2] = [cast(block.sixteens(simd)), cast(block.mins(simd))];
        let mut factors = [[0.0; SCALES]; 2];
        for ((to, from), by) in factors.iter_mut().zip(sixteens).zip(block.factors()) {
            for i in 0..PARTS {
                if Self::SCALE_FOR_16 {
                    to[2 * i] = by * f32::from(from[0][i]);
                    to[2 * i + 1] = by * f32::from(from[1][i]);
                } else {
                    to[i] = by * f32::from(from[0][i]);
                }
            }
        }
        factors
    }
}

/// `x` (rows, width) times the transpose of a matrix of whole blocks: (rows, outputs).
///
/// A row's result depends neither on the other rows nor on threads.
pub(super) fn products<T: Wide>(simd: V3, x: &[f32], blocks: &[u8], width: usize) -> Vec<f32> {
    assert!(is_available(), "kernels are chosen by what the processor has");
    let per_row = width / Summed32::WIDTH;
    let row_bytes = T::BYTES * per_row / BLOCKS;
    let (rows, outputs) = (x.len() / width, blocks.len() / row_bytes);
    let x: Vec<Summed32> = round_all(simd, x);
    in_columns(rows, outputs, COLUMNS, |columns, out| {
        let weights = &blocks[columns.start * row_bytes..columns.end * row_bytes];
        // SAFETY: the processor has the instructions.
        unsafe { fill::<T>(simd, &x, per_row, weights, out) }
    })
}

/// Fills `out` with the products of all rows of `x` with these rows of weights, at most [`COLUMNS`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn fill<T: Wide>(simd: V3, x: &[Summed32], per_row: usize, weights: &[u8], out: &mut Columns) {
    let row_bytes = T::BYTES * per_row / BLOCKS;
    let mut panels = Box::new([const { Panel::EMPTY }; PANELS]);
    for first in (0..per_row).step_by(BLOCKS) {
        let found = first..per_row.min(first + BLOCKS);
        for (panel, weights) in panels.iter_mut().zip(weights.chunks(LANES * row_bytes)) {
            set::<T>(simd, panel, weights, row_bytes, first / BLOCKS * T::BYTES);
        }
        let rows = x.len() / per_row;
        for row in (0..rows).step_by(ROWS) {
            // Missing rows repeat the last one, and put the same sums twice.
            let mut at = [0; ROWS];
            let mut x_of = [&x[..0]; ROWS];
            for i in 0..ROWS {
                at[i] = (row + i).min(rows - 1);
                x_of[i] = &x[at[i] * per_row..][found.clone()];
            }
            let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
            if first > 0 {
                for i in 0..ROWS {
                    for (p, sum) in sums[i].iter_mut().enumerate() {
                        *sum = load(out.of_row(at[i], p * LANES, LANES));
                    }
                }
            }
            if T::SCALE_FOR_16 {
                add::<T, 16>(&panels, x_of, &mut sums);
            } else {
                add::<T, 32>(&panels, x_of, &mut sums);
            }
            for i in 0..ROWS {
                for (p, sum) in sums[i].iter().enumerate() {
                    store(*sum, out.of_row(at[i], p * LANES, LANES));
                }
            }
        }
    }
}

/// At most sixteen floats, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[f32]) -> __m512 {
    // SAFETY: no more is read than there is.
    unsafe { _mm512_maskz_loadu_ps(up_to(from.len()), from.as_ptr()) }
}

/// Puts as many as there is room for.
#[inline]
#[target_feature(enable = "avx512f")]
fn store(floats: __m512, to: &mut [f32]) {
    // SAFETY: no more is written than there is.
    unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), up_to(to.len()), floats) }
}

/// Sixteen rows of weights become a panel, as far as they are there: those of 256 inputs from byte `at` of each on.
#[target_feature(enable = "avx512f,avx512bw")]
fn set<T: Wide>(simd: V3, panel: &mut Panel, weights: &[u8], row_bytes: usize, at: usize) {
    let row = |lane: usize| {
        let row = weights.get(lane * row_bytes..(lane + 1) * row_bytes).unwrap_or(&[]);
        row.get(at..row_bytes.min(at + T::BYTES)).unwrap_or(&[])
    };
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (part, fours) in panel.fours.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        for (lane, to) in rows.iter_mut().enumerate() {
            let [low, high] = T::weights(simd, row(lane), part);
            *to = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
        }
        for (line, column) in fours.iter_mut().zip(transposed(&rows)) {
            line.store(column);
        }
    }
    for lane in 0..LANES {
        let [scales, offsets] = T::factors(simd, row(lane));
        for i in 0..SCALES {
            panel.scales[i].0[lane] = scales[i];
            panel.offsets[i].0[lane] = offsets[i];
        }
    }
}

/// Adds the products of some rows of `x` with three panels to `sums`; `SUB` weights have one scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add<T: Wide, const SUB: usize>(
    panels: &[Panel; PANELS],
    x: [&[Summed32]; ROWS],
    sums: &mut [[__m512; PANELS]; ROWS],
) {
    // Unrolled, these loops would want more registers than there are.
    let (subs, fours) = black_box((32 / SUB, SUB / 4));
    for block in 0..x[0].len() {
        for sub in 0..subs {
            let mut products = [[_mm512_setzero_si512(); PANELS]; ROWS];
            if let Some(zero) = T::ZERO {
                for (products, x) in products.iter_mut().zip(x) {
                    let less = if SUB == 16 { &x[block].less[sub] } else { &x[block].less_all };
                    *products = [_mm512_sllv_epi32(_mm512_set1_epi32(*less), _mm512_set1_epi32(zero as i32)); PANELS];
                }
            }
            for four in sub * fours..(sub + 1) * fours {
                let mut weights = [_mm512_setzero_si512(); PANELS];
                for (weights, panel) in weights.iter_mut().zip(panels) {
                    *weights = panel.fours[block * 8 + four].load();
                }
                for r in 0..ROWS {
                    let x = _mm512_set1_epi32(x[r][block].fours[four]);
                    for p in 0..PANELS {
                        products[r][p] = _mm512_dpbusd_epi32(products[r][p], weights[p], x);
                    }
                }
            }
            let scale = block * subs + sub;
            for p in 0..PANELS {
                let (scales, offsets) = (panels[p].scales[scale].load(), panels[p].offsets[scale].load());
                for r in 0..ROWS {
                    let x = &x[r][block];
                    let product = _mm512_cvtepi32_ps(products[r][p]);
                    sums[r][p] = _mm512_fmadd_ps(product, _mm512_mul_ps(scales, _mm512_set1_ps(x.scale)), sums[r][p]);
                    if T::ZERO.is_none() {
                        let x_sum = _mm512_set1_ps(x.sum);
                        sums[r][p] = _mm512_fnmadd_ps(offsets, x_sum, sums[r][p]);
                    }
                }
            }
        }
    }
}
