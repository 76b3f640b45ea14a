//! Products of many rows in bytes, for AVX-512 with VNNI: every lane sums four byte products at a time for an output of
//! its own, sixteen outputs side by side.
//!
//! Whatever the type, a weight is `scale * byte - offset` here, with a scale and an offset for each 16 or 32 weights of an
//! output; `x` is rounded to 8 bits in blocks of 32.

use std::arch::x86_64::*;
use std::hint::black_box;
use std::slice::Chunks;

use pulp::cast;
use pulp::x86::V3;

use super::super::avx512::{Floats, Line, transposed, up_to};
use super::super::parallel::{Columns, in_columns};
use super::super::prefetch::prefetch;
use super::kquant_format::{Block, KType, PARTS, Q4K, Q6K};
use super::quantize_activations::{RoundedBlock, Summed32, round_all};

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

/// Bytes that come from memory together.
const CACHE_LINE: usize = 64;

/// Whether this processor has the instructions.
pub fn is_available() -> bool {
    std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512vnni")
}

/// 256 weights of sixteen outputs.
pub struct Panel {
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
pub trait Wide {
    /// Bytes of the blocks of 256 weights.
    const BYTES: usize;
    /// Whether each 16 weights have a scale of their own, and not each 32.
    const SCALE_FOR_16: bool;
    /// The power of two that is taken from each byte, if that is all that offsets are.
    const ZERO: Option<u32>;

    /// Of 256 weights those from `64 * part` on, without a sign; missing ones count as zeros.
    fn weights(simd: V3, blocks: &[u8], part: usize) -> [__m256i; 2];

    /// Sets the scales of these 256 weights of sixteen outputs, and the offsets if there are any; missing ones become zeros.
    ///
    /// # Safety
    /// The processor must have AVX-512.
    unsafe fn set_factors(simd: V3, panel: &mut Panel, rows: &[&[u8]; LANES]);
}

/// As a file has them: 8 bits with a sign, 32 with a common scale.
pub struct Q8_0;

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

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn set_factors(_: V3, panel: &mut Panel, rows: &[&[u8]; LANES]) {
        for (block, scales) in panel.scales.iter_mut().take(BLOCKS).enumerate() {
            let mut halves = [0u16; LANES];
            for (half, row) in halves.iter_mut().zip(rows) {
                let bytes = row.get(block * Q8_BYTES..).and_then(|bytes| bytes.first_chunk()).unwrap_or(&[0; 2]);
                *half = u16::from_le_bytes(*bytes);
            }
            // Infinite ones stay so, which `half` makes large numbers: no honest file has any.
            scales.store(_mm512_cvtph_ps(cast(halves)));
        }
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

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn set_factors(simd: V3, panel: &mut Panel, rows: &[&[u8]; LANES]) {
        let (mut scales, mut offsets) = ([_mm512_setzero_si512(); LANES], [_mm512_setzero_si512(); LANES]);
        for ((scales, offsets), row) in scales.iter_mut().zip(&mut offsets).zip(rows) {
            let block = K::read(row);
            let [scale, min] = block.factors();
            *scales = scaled(block.sixteens(simd), scale);
            *offsets = scaled(block.mins(simd), min);
        }
        put::<Self>(&mut panel.scales, &scales);
        if <Self as Wide>::ZERO.is_none() {
            put::<Self>(&mut panel.offsets, &offsets);
        }
    }
}

/// The bits of sixteen integers times a float.
#[inline]
#[target_feature(enable = "avx512f")]
fn scaled(sixteens: __m256i, by: f32) -> __m512i {
    let floats = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(sixteens));
    _mm512_castps_si512(_mm512_mul_ps(floats, _mm512_set1_ps(by)))
}

/// Puts the factors of sixteen rows, in each those of even sixteens of weights first, in the order of the weights.
#[inline]
#[target_feature(enable = "avx512f")]
fn put<T: Wide>(factors: &mut [Floats; SCALES], of_rows: &[__m512i; LANES]) {
    for (i, column) in transposed(of_rows).into_iter().enumerate() {
        // Where 32 weights have one factor, those of even sixteens are all there is to read.
        let place = if T::SCALE_FOR_16 { 2 * (i % PARTS) + i / PARTS } else { i };
        factors[place].store(_mm512_castsi512_ps(column));
    }
}

/// `x` (rows, width) times the transpose of a matrix of whole blocks: (rows, outputs).
///
/// A row's result depends neither on the other rows nor on threads.
pub fn products<T: Wide>(simd: V3, x: &[f32], blocks: &[u8], width: usize) -> Vec<f32> {
    assert!(is_available(), "kernels are chosen by what the processor has");
    let per_row = width / Summed32::WIDTH;
    let row_bytes = T::BYTES * per_row / BLOCKS;
    let (rows, outputs) = (x.len() / width, blocks.len() / row_bytes);
    let x: Vec<Summed32> = round_all(simd, x);
    in_columns(rows, outputs, COLUMNS, |columns, out| {
        let (weights, ahead) = blocks[columns.start * row_bytes..].split_at(columns.len() * row_bytes);
        // SAFETY: the processor has the instructions.
        unsafe { fill::<T>(simd, &x, per_row, [weights, ahead], out) }
    })
}

/// Fills `out` with the products of all rows of `x` with these rows of weights, at most [`COLUMNS`]; meanwhile about as many of
/// those ahead are fetched from memory, where a thread mostly goes on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn fill<T: Wide>(simd: V3, x: &[Summed32], per_row: usize, [weights, ahead]: [&[u8]; 2], out: &mut Columns) {
    let row_bytes = T::BYTES * per_row / BLOCKS;
    let mut ahead = ahead[..weights.len().min(ahead.len())].chunks(CACHE_LINE);
    let mut panels = Box::new([const { Panel::EMPTY }; PANELS]);
    for first in (0..per_row).step_by(BLOCKS) {
        let found = first..per_row.min(first + BLOCKS);
        let bytes = first / BLOCKS * T::BYTES..row_bytes.min((first / BLOCKS + 1) * T::BYTES);
        for (panel, weights) in panels.iter_mut().zip(weights.chunks(LANES * row_bytes)) {
            let mut rows = [&[][..]; LANES];
            rows.iter_mut().zip(weights.chunks_exact(row_bytes)).for_each(|(row, all)| *row = &all[bytes.clone()]);
            set::<T>(simd, panel, &rows, &mut ahead);
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

/// At most 256 weights of each of sixteen rows become a panel. One after the other lines `ahead` are asked for, about as many as
/// these have; all at once they would keep the panel from its own memory.
#[target_feature(enable = "avx512f,avx512bw")]
fn set<T: Wide>(simd: V3, panel: &mut Panel, rows: &[&[u8]; LANES], ahead: &mut Chunks<u8>) {
    let mut parts = [_mm512_setzero_si512(); LANES];
    for (part, fours) in panel.fours.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        for (to, row) in parts.iter_mut().zip(rows) {
            let [low, high] = T::weights(simd, row, part);
            *to = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            ahead.next().into_iter().for_each(prefetch);
        }
        for (line, column) in fours.iter_mut().zip(transposed(&parts)) {
            line.store(column);
        }
    }
    // SAFETY: the processor has the instructions.
    unsafe { T::set_factors(simd, panel, rows) }
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
