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

/// A weight type whose blocks unpack to unsigned bytes with scales and offsets.
pub trait VnniWeights: BlockFormat + Copy + Sync {
    /// Number of weights that share a scale, 16 or 32.
    const GROUP: usize;
    /// Zero point as a power of two, if the type has a zero point instead of offsets.
    const ZERO: Option<u32>;
    /// Scales and offsets of sixteen interleaved blocks, in registers.
    type Scales;

    /// Four neighbouring weights of each of sixteen interleaved blocks as unsigned bytes: the `at`-th of the eight fours in
    /// the `eighth`-th 32 weights.
    fn four(simd: Avx512Vnni, blocks: Blocks, eighth: usize, at: usize) -> __m512i;

    /// All weights of the blocks, a four in a line.
    fn weights(simd: Avx512Vnni, blocks: Blocks, fours: &mut [Line]);

    /// Scales and offsets of the blocks.
    fn scales(simd: Avx512Vnni, blocks: Blocks) -> Self::Scales;

    /// The scales of a group of weights.
    fn scale(simd: Avx512Vnni, scales: &Self::Scales, group: usize) -> __m512;

    /// The offsets of a group of weights; anything, if there is a zero point.
    fn offset(simd: Avx512Vnni, scales: &Self::Scales, group: usize) -> __m512;
}

impl VnniWeights for Q8_0 {
    const GROUP: usize = 32;
    const ZERO: Option<u32> = Some(7);
    type Scales = __m512;

    #[inline(always)]
    fn four(simd: Avx512Vnni, blocks: Blocks, _: usize, at: usize) -> __m512i {
        // Flipping the sign bits adds the zero point, 128.
        simd.xor(Self::four(simd, blocks, at), 0x8080_8080)
    }

    #[inline(always)]
    fn weights(simd: Avx512Vnni, blocks: Blocks, fours: &mut [Line]) {
        for (at, four) in fours.iter_mut().enumerate() {
            *four = simd.line(<Self as VnniWeights>::four(simd, blocks, 0, at));
        }
    }

    #[inline(always)]
    fn scales(simd: Avx512Vnni, blocks: Blocks) -> __m512 {
        Self::scales(simd, blocks)
    }

    #[inline(always)]
    fn scale(_: Avx512Vnni, scales: &__m512, _: usize) -> __m512 {
        *scales
    }

    #[inline(always)]
    fn offset(_: Avx512Vnni, scales: &__m512, _: usize) -> __m512 {
        *scales
    }
}

/// Scales and mins of the groups of a K type, and the factors of both.
pub struct KQuantScales {
    scales: [__m512i; 4],
    mins: [__m512i; 4],
    factors: [__m512; 2],
}

impl<K: KQuant> VnniWeights for K {
    const GROUP: usize = <K as KQuant>::GROUP;
    const ZERO: Option<u32> = <K as KQuant>::ZERO;
    type Scales = KQuantScales;

    #[inline(always)]
    fn four(simd: Avx512Vnni, blocks: Blocks, eighth: usize, at: usize) -> __m512i {
        <K as KQuant>::four(simd, blocks, eighth, at)
    }

    #[inline(always)]
    fn weights(simd: Avx512Vnni, blocks: Blocks, fours: &mut [Line]) {
        if let Some(fours) = fours.first_chunk_mut() {
            <K as KQuant>::weights(simd, blocks, fours);
        }
    }

    #[inline(always)]
    fn scales(simd: Avx512Vnni, blocks: Blocks) -> KQuantScales {
        KQuantScales {
            scales: <K as KQuant>::scales(simd, blocks),
            mins: K::mins(simd, blocks),
            factors: K::factors(simd, blocks),
        }
    }

    #[inline(always)]
    fn scale(simd: Avx512Vnni, KQuantScales { scales, factors, .. }: &KQuantScales, group: usize) -> __m512 {
        simd.scale(simd.signed_byte(scales[group / 4], group % 4), factors[0])
    }

    #[inline(always)]
    fn offset(simd: Avx512Vnni, KQuantScales { mins, factors, .. }: &KQuantScales, group: usize) -> __m512 {
        simd.scale(simd.signed_byte(mins[group / 4], group % 4), factors[1])
    }
}

/// Unpacks interleaved blocks of at most 256 weights. What they lack keeps its old values.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn unpack<T: VnniWeights>(simd: Avx512Vnni, all: Blocks, panel: &mut Panel) {
    let (fours, groups) = (T::WIDTH / 4, T::WIDTH / T::GROUP);
    for i in 0..all.bytes.len() / T::GROUP_BYTES {
        let blocks = all.part(i * T::GROUP_BYTES, T::GROUP_BYTES);
        let scales = T::scales(simd, blocks);
        T::weights(simd, blocks, &mut panel.fours[i * fours..][..fours]);
        for group in 0..groups {
            panel.scales[i * groups + group] = simd.floats(T::scale(simd, &scales, group));
            if T::ZERO.is_none() {
                panel.offsets[i * groups + group] = simd.floats(T::offset(simd, &scales, group));
            }
        }
    }
}

/// What the products of a row of `x` with a group of weights start at: minus the zero point, times the elements of `x`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn zero_point<T: VnniWeights>(x: &BlockI8x32WithSums, sub: usize) -> __m512i {
    let Some(zero) = T::ZERO else { return _mm512_setzero_si512() };
    let minus_sum = if T::GROUP == 16 { x.minus_half_sums[sub] } else { x.minus_sum };
    _mm512_sllv_epi32(_mm512_set1_epi32(minus_sum), _mm512_set1_epi32(zero as i32))
}

/// Adds the products of a group of weights to a sum.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn add_scaled<T: VnniWeights>(
    sum: __m512,
    products: __m512i,
    scales: __m512,
    offsets: __m512,
    x: &BlockI8x32WithSums,
) -> __m512 {
    let scales = _mm512_mul_ps(scales, _mm512_set1_ps(x.scale));
    let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scales, sum);
    if T::ZERO.is_some() { sum } else { _mm512_fnmadd_ps(offsets, _mm512_set1_ps(x.sum), sum) }
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
pub fn store(floats: __m512, to: &mut [f32]) {
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
            for r in 0..R {
                products[r] = [zero_point::<T>(&x[r][block], sub); PANELS];
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
                    sums[r][p] = add_scaled::<T>(sums[r][p], products[r][p], scales, offsets, &x[r][block]);
                }
            }
        }
    }
}
