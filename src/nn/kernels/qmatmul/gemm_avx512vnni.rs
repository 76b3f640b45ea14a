//! Micro-kernel over interleaved quantised weights for AVX-512 VNNI: each lane of a register accumulates four byte
//! products at a time for one output.
//!
//! An unpacked weight of any type is `scale * byte - offset`, with a scale and an offset for each 16 or 32 weights of an
//! output; `x` is quantised to 8 bits in blocks of 32.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::hint::black_box;
use std::marker::PhantomData;

use super::super::avx512::lane_mask;
use super::block_format::{BlockFormat, Blocks, KQuant, Q8_0};
use super::gemm::{INPUTS, Kernel, Sums};
use super::lanes::{Avx512Vnni, LANES, Lanes, Line};
use super::quantize_activations::BlockI8x32WithSums;

/// Number of panels in the micro-kernel: three and the rows of `x` fit into L1.
const PANELS: usize = 3;
/// Maximum number of scales of an output in a panel.
const SCALES: usize = INPUTS / 16;

/// 256 unpacked weights of each of sixteen outputs.
#[repr(align(64))]
pub struct Panel {
    /// Four neighbouring weights of each output, as unsigned bytes.
    fours: [Line; INPUTS / 4],
    scales: [[f32; LANES]; SCALES],
    offsets: [[f32; LANES]; SCALES],
}

impl Panel {
    const EMPTY: Self =
        Self { fours: [[0; LANES]; INPUTS / 4], scales: [[0.0; LANES]; SCALES], offsets: [[0.0; LANES]; SCALES] };
}

thread_local! {
    static SCRATCH: RefCell<Box<[Panel; PANELS]>> = RefCell::new(Box::new([const { Panel::EMPTY }; PANELS]));
}

/// The kernel for weights of type `T`.
#[derive(Clone, Copy)]
pub struct Vnni<T>(Avx512Vnni, PhantomData<T>);

impl<T> Vnni<T> {
    /// The kernel, for a CPU that has the instructions.
    pub fn new(simd: Avx512Vnni) -> Self {
        Self(simd, PhantomData)
    }
}

impl<T: VnniWeights> Kernel for Vnni<T> {
    type X = BlockI8x32WithSums;
    type Panel = Panel;
    const PANELS: usize = PANELS;
    // All sums stay in registers.
    const ROWS: usize = 4;
    const BYTES: usize = INPUTS / T::WIDTH * T::GROUP_BYTES;

    fn with_panels(f: impl FnOnce(&mut [Panel])) {
        SCRATCH.with_borrow_mut(|panels| f(&mut panels[..]));
    }

    fn unpack(self, blocks: Blocks, panel: &mut Panel) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn unpack<T: VnniWeights>(simd: Avx512Vnni, blocks: Blocks, panel: &mut Panel) {
            T::unpack(simd, blocks, panel);
        }
        // SAFETY: the CPU has AVX-512 VNNI, as the value proves.
        unsafe { unpack::<T>(self.0, blocks, panel) }
    }

    fn multiply<const R: usize>(self, panels: &[Panel], x: [&[BlockI8x32WithSums]; R], sums: Sums) {
        let Some(panels) = panels.first_chunk() else { return };
        // SAFETY: the CPU has AVX-512 VNNI, as the value proves.
        unsafe { multiply::<T, R>(panels, x, sums) }
    }
}

/// [`Kernel::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply<T: VnniWeights, const R: usize>(panels: &[Panel; PANELS], x: [&[BlockI8x32WithSums]; R], mut to: Sums) {
    let mut sums = [[_mm512_setzero_ps(); PANELS]; R];
    if to.accumulate {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (panel, sum) in sums.iter_mut().enumerate() {
                *sum = load(to.part(row, panel));
            }
        }
    }
    if T::GROUP == 16 {
        micro_kernel::<T, 16, R>(panels, x, &mut sums);
    } else {
        micro_kernel::<T, 32, R>(panels, x, &mut sums);
    }
    for (row, sums) in sums.iter().enumerate() {
        for (panel, sum) in sums.iter().enumerate() {
            store(*sum, to.part(row, panel));
        }
    }
}

/// A weight type that can be unpacked to a panel.
pub trait VnniWeights: BlockFormat + Copy + Sync {
    /// Number of weights that share a scale, 16 or 32.
    const GROUP: usize;
    /// Zero point as a power of two, if the type has a zero point instead of offsets.
    const ZERO: Option<u32>;

    /// Unpacks interleaved blocks of at most 256 weights. What they lack keeps its old values.
    fn unpack(simd: Avx512Vnni, blocks: Blocks, panel: &mut Panel);
}

impl VnniWeights for Q8_0 {
    const GROUP: usize = 32;
    const ZERO: Option<u32> = Some(7);

    #[inline(always)]
    fn unpack(simd: Avx512Vnni, blocks: Blocks, panel: &mut Panel) {
        // Flipping the sign bits adds the zero point, 128.
        const SIGNS: u32 = 0x8080_8080;
        let size = Self::GROUP_BYTES;
        for (i, fours) in panel.fours.as_chunks_mut::<8>().0.iter_mut().enumerate().take(blocks.bytes.len() / size) {
            let block = blocks.part(i * size, size);
            panel.scales[i] = simd.floats(Self::scales(simd, block));
            for (four, words) in fours.iter_mut().zip(Self::weights(simd, block)) {
                *four = simd.line(simd.xor(words, SIGNS));
            }
        }
    }
}

impl<K: KQuant> VnniWeights for K {
    const GROUP: usize = <K as KQuant>::GROUP;
    const ZERO: Option<u32> = <K as KQuant>::ZERO;

    #[inline(always)]
    fn unpack(simd: Avx512Vnni, blocks: Blocks, panel: &mut Panel) {
        let blocks = blocks.part(0, K::GROUP_BYTES);
        K::weights(simd, blocks, &mut panel.fours);
        let (scales, mins, [scale, min]) = (K::scales(simd, blocks), K::mins(simd, blocks), K::factors(simd, blocks));
        for group in 0..INPUTS / <K as KQuant>::GROUP {
            let integers = simd.signed_byte(scales[group / 4], group % 4);
            panel.scales[group] = simd.floats(simd.scale(integers, scale));
            if <K as KQuant>::ZERO.is_none() {
                let integers = simd.signed_byte(mins[group / 4], group % 4);
                panel.offsets[group] = simd.floats(simd.scale(integers, min));
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

/// Accumulates the dot products of `R` rows of `x` with the panels; `SUB` weights share a scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn micro_kernel<T: VnniWeights, const SUB: usize, const R: usize>(
    panels: &[Panel; PANELS],
    x: [&[BlockI8x32WithSums]; R],
    sums: &mut [[__m512; PANELS]; R],
) {
    // `black_box` prevents unrolling, which would spill registers.
    let (subs, fours) = black_box((32 / SUB, SUB / 4));
    for block in 0..x[0].len() {
        for sub in 0..subs {
            let mut products = [[_mm512_setzero_si512(); PANELS]; R];
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
                    // SAFETY: a line is as long as a register.
                    *weights = unsafe { _mm512_loadu_si512(panel.fours[block * 8 + four].as_ptr().cast()) };
                }
                for r in 0..R {
                    let x = _mm512_set1_epi32(x[r][block].fours[four]);
                    for p in 0..PANELS {
                        products[r][p] = _mm512_dpbusd_epi32(products[r][p], weights[p], x);
                    }
                }
            }
            let scale = block * subs + sub;
            for p in 0..PANELS {
                let (scales, offsets) = (load(&panels[p].scales[scale]), load(&panels[p].offsets[scale]));
                for r in 0..R {
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
