//! GEMM over quantised weights for AVX-512 VNNI: weights are packed for sixteen outputs side by side, and each lane
//! accumulates four byte products at a time for one output.
//!
//! A packed weight of any type is `scale * byte - offset`, with a scale and an offset for each 16 or 32 weights of an
//! output; `x` is quantised to 8 bits in blocks of 32.

use std::arch::x86_64::*;
use std::hint::black_box;
use std::slice::Chunks;

use pulp::cast;
use pulp::x86::V3;

use super::super::avx512::{F32x16, U32x16, lane_mask, transpose_16x16};
use super::super::dispatch::has_avx512_vnni;
use super::super::mat::MatMut;
use super::super::parallel::parallel_columns;
use super::super::prefetch::prefetch;
use super::super::simd_math::AVX512_F32_LANES as LANES;
use super::Q8_0_BYTES;
use super::kquant_format::{KQuant, KQuantBlock, PARTS, Q4K, Q6K};
use super::quantize_activations::{BlockI8x32WithSums, QuantizedBlock, quantize_rows};

/// Number of panels in the micro-kernel.
const PANELS: usize = 3;
/// Rows of `x` in the micro-kernel: all sums stay in registers.
const ROWS: usize = 4;
/// Number of outputs of a task.
const COLUMNS: usize = PANELS * LANES;
/// Number of inputs of a panel: three panels and the rows of `x` fit into L1.
const INPUTS: usize = 256;
/// Number of blocks of `x` in a panel.
const BLOCKS: usize = INPUTS / BlockI8x32WithSums::WIDTH;
/// Maximum number of scales of an output in a panel.
const SCALES: usize = INPUTS / 16;

const CACHE_LINE: usize = 64;

/// 256 packed weights of each of sixteen outputs.
pub struct VnniPanel {
    /// Four neighbouring weights of each output, as unsigned bytes.
    fours: [U32x16; INPUTS / 4],
    scales: [F32x16; SCALES],
    offsets: [F32x16; SCALES],
}

impl VnniPanel {
    const EMPTY: Self =
        Self { fours: [U32x16::ZERO; INPUTS / 4], scales: [F32x16::ZERO; SCALES], offsets: [F32x16::ZERO; SCALES] };
}

/// A weight type that can be packed.
pub trait VnniWeights {
    /// Bytes of 256 weights.
    const BYTES: usize;
    /// Whether there is one scale per 16 weights, not per 32.
    const SCALE_FOR_16: bool;
    /// Zero point as a power of two, if the type has a zero point instead of offsets.
    const ZERO: Option<u32>;

    /// The 64 weights from `64 * part` on, as unsigned bytes; missing ones count as zeros.
    fn weights(simd: V3, blocks: &[u8], part: usize) -> [__m256i; 2];

    /// Packs the scales of 256 weights of sixteen outputs, and the offsets if the type has any; missing ones become
    /// zeros.
    ///
    /// # Safety
    /// The CPU must have AVX-512.
    unsafe fn pack_factors(simd: V3, panel: &mut VnniPanel, rows: &[&[u8]; LANES]);
}

/// Blocks of 32 signed bytes with a common scale.
pub struct Q8_0;

impl VnniWeights for Q8_0 {
    const BYTES: usize = BLOCKS * Q8_0_BYTES;
    const SCALE_FOR_16: bool = false;
    const ZERO: Option<u32> = Some(7);

    #[inline(always)]
    fn weights(simd: V3, blocks: &[u8], part: usize) -> [__m256i; 2] {
        // Flipping the sign bit adds the zero point, 128.
        let sign = simd.avx._mm256_set1_epi8(-128);
        let mut weights = [sign; 2];
        for (i, weights) in weights.iter_mut().enumerate() {
            let at = (2 * part + i) * Q8_0_BYTES + 2;
            let bytes = blocks.get(at..).and_then(|bytes| bytes.first_chunk::<32>()).unwrap_or(&[0; 32]);
            *weights = simd.avx2._mm256_xor_si256(cast(*bytes), sign);
        }
        weights
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn pack_factors(_: V3, panel: &mut VnniPanel, rows: &[&[u8]; LANES]) {
        for (block, scales) in panel.scales.iter_mut().take(BLOCKS).enumerate() {
            let mut bits = [0u16; LANES];
            for (bits, row) in bits.iter_mut().zip(rows) {
                let bytes = row.get(block * Q8_0_BYTES..).and_then(|bytes| bytes.first_chunk()).unwrap_or(&[0; 2]);
                *bits = u16::from_le_bytes(*bytes);
            }
            // Infinite scales stay infinite here; `f16_to_f32` makes them large. No valid file has any.
            scales.store(_mm512_cvtph_ps(cast(bits)));
        }
    }
}

/// The zero point of a K-quant type.
trait KQuantZero: KQuant {
    const ZERO: Option<u32>;
}

impl KQuantZero for Q4K {
    const ZERO: Option<u32> = None;
}

impl KQuantZero for Q6K {
    const ZERO: Option<u32> = Some(5);
}

impl<K: KQuantZero> VnniWeights for K {
    const BYTES: usize = <K as KQuant>::BYTES;
    const SCALE_FOR_16: bool = !K::OFFSET_FOR_32;
    const ZERO: Option<u32> = <K as KQuantZero>::ZERO;

    #[inline(always)]
    fn weights(simd: V3, blocks: &[u8], part: usize) -> [__m256i; 2] {
        let block = K::read(blocks);
        [block.weights(simd, 2 * part), block.weights(simd, 2 * part + 1)]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn pack_factors(simd: V3, panel: &mut VnniPanel, rows: &[&[u8]; LANES]) {
        let (mut scales, mut offsets) = ([_mm512_setzero_si512(); LANES], [_mm512_setzero_si512(); LANES]);
        for ((scales, offsets), row) in scales.iter_mut().zip(&mut offsets).zip(rows) {
            let block = K::read(row);
            let [scale, min] = block.factors();
            *scales = scale_bits(block.scales(simd), scale);
            *offsets = scale_bits(block.mins(simd), min);
        }
        store_factors::<Self>(&mut panel.scales, &scales);
        if <Self as VnniWeights>::ZERO.is_none() {
            store_factors::<Self>(&mut panel.offsets, &offsets);
        }
    }
}

/// Multiplies sixteen integers by a float; the result as bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn scale_bits(integers: __m256i, by: f32) -> __m512i {
    let floats = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(integers));
    _mm512_castps_si512(_mm512_mul_ps(floats, _mm512_set1_ps(by)))
}

/// Stores the factors of sixteen rows, whose groups of even index come first, in the order of the weights.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_factors<T: VnniWeights>(factors: &mut [F32x16; SCALES], of_rows: &[__m512i; LANES]) {
    for (i, column) in transpose_16x16(of_rows).into_iter().enumerate() {
        // Where 32 weights share a factor, those of even groups are the first sixteen.
        let place = if T::SCALE_FOR_16 { 2 * (i % PARTS) + i / PARTS } else { i };
        factors[place].store(_mm512_castsi512_ps(column));
    }
}

/// `x` (rows, width) times the transpose of a matrix of whole blocks: (rows, outputs).
///
/// A row's result depends neither on the other rows nor on the number of threads.
pub fn gemm<T: VnniWeights>(simd: V3, x: &[f32], blocks: &[u8], width: usize) -> Vec<f32> {
    assert!(has_avx512_vnni(), "the dispatch checks for AVX-512 VNNI");
    let per_row = width / BlockI8x32WithSums::WIDTH;
    let row_bytes = T::BYTES * per_row / BLOCKS;
    let (rows, outputs) = (x.len() / width, blocks.len() / row_bytes);
    let x: Vec<BlockI8x32WithSums> = quantize_rows(simd, x);
    parallel_columns(rows, outputs, COLUMNS, |columns, out| {
        let (weights, ahead) = blocks[columns.start * row_bytes..].split_at(columns.len() * row_bytes);
        // SAFETY: the CPU has AVX-512 VNNI, as asserted.
        unsafe { fill::<T>(simd, &x, per_row, [weights, ahead], out) }
    })
}

/// Fills `out` with the matmul of all rows of `x` and these rows of weights, at most [`COLUMNS`], and prefetches about
/// as many of the following rows, where a thread mostly continues.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn fill<T: VnniWeights>(
    simd: V3,
    x: &[BlockI8x32WithSums],
    per_row: usize,
    [weights, ahead]: [&[u8]; 2],
    mut out: MatMut,
) {
    let row_bytes = T::BYTES * per_row / BLOCKS;
    let mut ahead = ahead[..weights.len().min(ahead.len())].chunks(CACHE_LINE);
    let mut panels = Box::new([const { VnniPanel::EMPTY }; PANELS]);
    for first in (0..per_row).step_by(BLOCKS) {
        let found = first..per_row.min(first + BLOCKS);
        let bytes = first / BLOCKS * T::BYTES..row_bytes.min((first / BLOCKS + 1) * T::BYTES);
        for (panel, weights) in panels.iter_mut().zip(weights.chunks(LANES * row_bytes)) {
            let mut rows = [&[][..]; LANES];
            rows.iter_mut().zip(weights.chunks_exact(row_bytes)).for_each(|(row, all)| *row = &all[bytes.clone()]);
            pack::<T>(simd, panel, &rows, &mut ahead);
        }
        let rows = x.len() / per_row;
        for row in (0..rows).step_by(ROWS) {
            // Missing rows repeat the last one, whose sums are stored again.
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
                        *sum = load(out.row_part(at[i], p * LANES, LANES));
                    }
                }
            }
            if T::SCALE_FOR_16 {
                micro_kernel::<T, 16>(&panels, x_of, &mut sums);
            } else {
                micro_kernel::<T, 32>(&panels, x_of, &mut sums);
            }
            for i in 0..ROWS {
                for (p, sum) in sums[i].iter().enumerate() {
                    store(*sum, out.row_part(at[i], p * LANES, LANES));
                }
            }
        }
    }
}

/// Loads at most sixteen floats; the other lanes become zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[f32]) -> __m512 {
    // SAFETY: masked to the slice.
    unsafe { _mm512_maskz_loadu_ps(lane_mask(from.len()), from.as_ptr()) }
}

/// Stores as many lanes as the slice has room for.
#[inline]
#[target_feature(enable = "avx512f")]
fn store(floats: __m512, to: &mut [f32]) {
    // SAFETY: masked to the slice.
    unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), lane_mask(to.len()), floats) }
}

/// Packs at most 256 weights of each of sixteen rows. Cache lines of `ahead` are prefetched one at a time meanwhile,
/// so that they do not delay the loads of the panel.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack<T: VnniWeights>(simd: V3, panel: &mut VnniPanel, rows: &[&[u8]; LANES], ahead: &mut Chunks<u8>) {
    let mut parts = [_mm512_setzero_si512(); LANES];
    for (part, fours) in panel.fours.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        for (to, row) in parts.iter_mut().zip(rows) {
            let [low, high] = T::weights(simd, row, part);
            *to = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            ahead.next().into_iter().for_each(prefetch);
        }
        for (register, column) in fours.iter_mut().zip(transpose_16x16(&parts)) {
            register.store(column);
        }
    }
    // SAFETY: the CPU has AVX-512, as this function requires.
    unsafe { T::pack_factors(simd, panel, rows) }
}

/// Accumulates the dot products of four rows of `x` with three panels; `SUB` weights share a scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn micro_kernel<T: VnniWeights, const SUB: usize>(
    panels: &[VnniPanel; PANELS],
    x: [&[BlockI8x32WithSums]; ROWS],
    sums: &mut [[__m512; PANELS]; ROWS],
) {
    // `black_box` prevents unrolling, which would spill registers.
    let (subs, fours) = black_box((32 / SUB, SUB / 4));
    for block in 0..x[0].len() {
        for sub in 0..subs {
            let mut products = [[_mm512_setzero_si512(); PANELS]; ROWS];
            if let Some(zero) = T::ZERO {
                for (products, x) in products.iter_mut().zip(x) {
                    let minus_sum = if SUB == 16 { &x[block].minus_half_sums[sub] } else { &x[block].minus_sum };
                    *products =
                        [_mm512_sllv_epi32(_mm512_set1_epi32(*minus_sum), _mm512_set1_epi32(zero as i32)); PANELS];
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
