//! Micro-kernel over interleaved K-quant blocks (Q4_K and Q6_K) for AVX2.

use std::arch::x86_64::__m256i;
use std::cell::RefCell;
use std::hint::black_box;
use std::marker::PhantomData;

use pulp::x86::V3;
use pulp::{NullaryFnOnce, cast, f32x8};

use super::block_format::{Blocks, KQuant};
use super::gemm::{INPUTS, Kernel, Sums};
use super::gemm_avx2::{HALVES, broadcast, load, store};
use super::lanes::{LANES, Lanes, Line};
use super::quantize_activations::BlockI8x256;

/// Parts of 32 weights.
const PARTS: usize = INPUTS / 32;
/// Sixteen groups of 16 weights.
const GROUPS: usize = INPUTS / 16;

/// An unpacked block of each of sixteen outputs.
#[repr(align(32))]
pub struct Panel {
    /// Four neighbouring weights of each output, as unsigned bytes.
    fours: [Line; INPUTS / 4],
    /// The 16-bit scale of each group, twice.
    scales: [Line; GROUPS],
    /// The 16-bit offsets of two even groups each, then of two odd ones; those only if neighbours may differ.
    mins: [Line; GROUPS / 2],
    scale: [f32; LANES],
    min: [f32; LANES],
}

thread_local! {
    static SCRATCH: RefCell<Box<[Panel; 1]>> = RefCell::new(Box::new([Panel {
        fours: [[0; LANES]; INPUTS / 4],
        scales: [[0; LANES]; GROUPS],
        mins: [[0; LANES]; GROUPS / 2],
        scale: [0.0; LANES],
        min: [0.0; LANES],
    }]));
}

/// The kernel for weights of type `K`.
#[derive(Clone, Copy)]
pub struct KQuantAvx2<K>(V3, PhantomData<K>);

impl<K> KQuantAvx2<K> {
    /// The kernel.
    pub fn new(simd: V3) -> Self {
        Self(simd, PhantomData)
    }
}

impl<K: KQuant> Kernel for KQuantAvx2<K> {
    type X = BlockI8x256;
    type Panel = Panel;
    const PANELS: usize = 1;
    const ROWS: usize = 2;
    const BYTES: usize = K::GROUP_BYTES;

    fn with_panels(f: impl FnOnce(&mut [Panel])) {
        SCRATCH.with_borrow_mut(|panels| f(&mut panels[..]));
    }

    fn unpack(self, blocks: Blocks, panel: &mut Panel) {
        self.0.vectorize(Unpack::<K> { simd: self.0, blocks, panel, of: PhantomData });
    }

    fn multiply<const R: usize>(self, panels: &[Panel], x: [&[BlockI8x256]; R], sums: Sums) {
        let [panel, ..] = panels else { return };
        self.0.vectorize(Multiply::<K, R> { simd: self.0, panel, x, sums, of: PhantomData });
    }
}

struct Unpack<'a, K> {
    simd: V3,
    blocks: Blocks<'a>,
    panel: &'a mut Panel,
    of: PhantomData<K>,
}

impl<K: KQuant> NullaryFnOnce for Unpack<'_, K> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, blocks, panel, .. } = self;
        let blocks = blocks.part(0, K::GROUP_BYTES);
        K::weights(simd, blocks, &mut panel.fours);
        let scales = K::scales(simd, blocks);
        for group in 0..INPUTS / K::GROUP {
            let scale = simd.signed_byte(scales[group / 4], group % 4);
            panel.scales[group] = simd.line([twice(simd, scale[0]), twice(simd, scale[1])]);
        }
        if K::ZERO.is_none() {
            let mins = K::mins(simd, blocks);
            for pair in 0..INPUTS / K::GROUP / 2 {
                let first = simd.signed_byte(mins[pair / 2], 2 * pair % 4);
                let second = simd.signed_byte(mins[pair / 2], 2 * pair % 4 + 1);
                panel.mins[pair] =
                    simd.line([side_by_side(simd, first[0], second[0]), side_by_side(simd, first[1], second[1])]);
            }
        } else {
            for (i, [low, high]) in scales.into_iter().enumerate() {
                panel.mins[i] = simd.line([even_zero_points(simd, low), even_zero_points(simd, high)]);
                panel.mins[4 + i] = simd.line([zero_points(simd, low), zero_points(simd, high)]);
            }
        }
        let [scale, min] = K::factors(simd, blocks);
        (panel.scale, panel.min) = (simd.floats(scale), simd.floats(min));
    }
}

/// Repeats the lower 16 bits of each lane, which are all it has.
#[inline(always)]
fn twice(simd: V3, words: __m256i) -> __m256i {
    side_by_side(simd, words, words)
}

/// The lower 16 bits of each lane of two registers.
#[inline(always)]
fn side_by_side(simd: V3, low: __m256i, high: __m256i) -> __m256i {
    simd.avx2._mm256_blend_epi16::<0b10101010>(low, simd.avx2._mm256_slli_epi32::<16>(high))
}

/// 32 times the signed byte in the lower half of each 16 bits.
#[inline(always)]
fn even_zero_points(simd: V3, words: __m256i) -> __m256i {
    zero_points(simd, simd.avx2._mm256_slli_epi16::<8>(words))
}

/// 32 times the signed byte in the upper half of each 16 bits.
#[inline(always)]
fn zero_points(simd: V3, words: __m256i) -> __m256i {
    simd.avx2._mm256_slli_epi16::<5>(simd.avx2._mm256_srai_epi16::<8>(words))
}

struct Multiply<'a, 'b, 'c, K, const R: usize> {
    simd: V3,
    panel: &'a Panel,
    x: [&'a [BlockI8x256]; R],
    sums: Sums<'b, 'c>,
    of: PhantomData<K>,
}

impl<K: KQuant, const R: usize> NullaryFnOnce for Multiply<'_, '_, '_, K, R> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, panel, x, sums: mut to, .. } = self;
        let mut sums = load::<R>(simd, &mut to);
        let mut products = [[broadcast(simd, 0); HALVES]; R];
        // `black_box` prevents unrolling, which would spill registers.
        for part in 0..black_box(PARTS) {
            let fours = &panel.fours.as_chunks::<8>().0[part];
            let mut x_fours = [&[0; 8]; R];
            for r in 0..R {
                x_fours[r] = &x[r][0].fours.as_chunks::<8>().0[part];
            }
            for first in (0..8).step_by(K::I16_SUMS) {
                let mut short = [[broadcast(simd, 0); HALVES]; R];
                for four in first..first + K::I16_SUMS {
                    let weights = simd.words(fours[four]);
                    for r in 0..R {
                        let x = broadcast(simd, x_fours[r][four]);
                        for half in 0..HALVES {
                            let pairs = simd.avx2._mm256_maddubs_epi16(weights[half], x);
                            short[r][half] = simd.avx2._mm256_add_epi16(short[r][half], pairs);
                        }
                    }
                }
                let scales = simd.words(panel.scales[(8 * part + first) / (K::GROUP / 4)]);
                for r in 0..R {
                    for half in 0..HALVES {
                        let scaled = simd.avx2._mm256_madd_epi16(short[r][half], scales[half]);
                        products[r][half] = simd.avx2._mm256_add_epi32(products[r][half], scaled);
                    }
                }
            }
        }
        let (scale, min): ([f32x8; HALVES], [f32x8; HALVES]) = (cast(panel.scale), cast(panel.min));
        for r in 0..R {
            let step = simd.splat_f32x8(x[r][0].scale);
            let offsets = offset_products::<K>(simd, panel, x[r][0].sums);
            for half in 0..HALVES {
                let product = simd.convert_i32x8_to_f32x8(cast(products[r][half]));
                let offset = simd.mul_f32x8(simd.convert_i32x8_to_f32x8(cast(offsets[half])), min[half]);
                let both = simd.mul_sub_f32x8(product, scale[half], offset);
                sums[r][half] = simd.mul_add_f32x8(both, step, sums[r][half]);
            }
        }
        store(sums, &mut to);
    }
}

/// Dot products of offsets and sums of `x`.
#[inline(always)]
fn offset_products<K: KQuant>(simd: V3, panel: &Panel, sums: [i16; GROUPS]) -> [__m256i; HALVES] {
    let mut pairs: [i32; GROUPS / 2] = cast(sums);
    if K::GROUP == 32 {
        for i in 0..4 {
            // Neither sum exceeds 32 * 127.
            pairs[i] = cast([sums[2 * i] + sums[8 + 2 * i], sums[2 * i + 1] + sums[9 + 2 * i]]);
        }
    }
    let mut products = [broadcast(simd, 0); HALVES];
    for (mins, pair) in panel.mins.iter().zip(pairs).take(INPUTS / K::GROUP / 2) {
        let (mins, x) = (simd.words(*mins), broadcast(simd, pair));
        for half in 0..HALVES {
            let product = simd.avx2._mm256_madd_epi16(mins[half], x);
            products[half] = simd.avx2._mm256_add_epi32(products[half], product);
        }
    }
    products
}
