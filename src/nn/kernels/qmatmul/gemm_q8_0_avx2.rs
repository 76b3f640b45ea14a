//! Micro-kernel over interleaved `Q8_0` blocks for AVX2.

use std::cell::RefCell;

use pulp::x86::V3;
use pulp::{NullaryFnOnce, cast};

use super::block_format::{BlockFormat, Blocks, Q8_0};
use super::gemm::{INPUTS, Kernel, Sums};
use super::gemm_avx2::{HALVES, broadcast, load, store};
use super::lanes::{LANES, Lanes, Line};
use super::quantize_activations::BlockI16x32;

/// Number of blocks in a panel.
const BLOCKS: usize = INPUTS / Q8_0::WIDTH;

/// 256 weights of each of sixteen outputs, widened to 16 bits: AVX2 cannot multiply signed bytes, and an emulation
/// takes as many instructions. Sums of a block stay below `32 * 128 * 32,767`, 134 of 2,147 million.
#[repr(align(32))]
pub struct Panel {
    /// Weights 0 and 2, then 1 and 3 of each four.
    twos: [[Line; 16]; BLOCKS],
    scales: [[f32; LANES]; BLOCKS],
}

thread_local! {
    static SCRATCH: RefCell<Box<[Panel; 1]>> =
        RefCell::new(Box::new([Panel { twos: [[[0; LANES]; 16]; BLOCKS], scales: [[0.0; LANES]; BLOCKS] }]));
}

/// The kernel.
#[derive(Clone, Copy)]
pub struct Q8_0Avx2(pub V3);

impl Kernel for Q8_0Avx2 {
    type X = BlockI16x32;
    type Panel = Panel;
    const PANELS: usize = 1;
    const ROWS: usize = 4;
    const BYTES: usize = BLOCKS * Q8_0::GROUP_BYTES;

    fn with_panels(f: impl FnOnce(&mut [Panel])) {
        SCRATCH.with_borrow_mut(|panels| f(&mut panels[..]));
    }

    fn unpack(self, blocks: Blocks, panel: &mut Panel) {
        self.0.vectorize(Unpack { simd: self.0, blocks, panel });
    }

    fn multiply<const R: usize>(self, panels: &[Panel], x: [&[BlockI16x32]; R], sums: Sums) {
        let [panel, ..] = panels else { return };
        self.0.vectorize(Multiply { simd: self.0, panel, x, sums });
    }
}

struct Unpack<'a> {
    simd: V3,
    blocks: Blocks<'a>,
    panel: &'a mut Panel,
}

impl NullaryFnOnce for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, blocks, panel } = self;
        for (i, (twos, scales)) in panel.twos.iter_mut().zip(&mut panel.scales).enumerate() {
            if i >= blocks.bytes.len() / Q8_0::GROUP_BYTES {
                break;
            }
            let block = blocks.part(i * Q8_0::GROUP_BYTES, Q8_0::GROUP_BYTES);
            *scales = simd.floats(Q8_0::scales(simd, block));
            for (twos, fours) in twos.as_chunks_mut::<2>().0.iter_mut().zip(Q8_0::weights(simd, block)) {
                let (mut even, mut odd) = (fours, fours);
                for half in 0..HALVES {
                    let upper = simd.avx2._mm256_slli_epi16::<8>(fours[half]);
                    even[half] = simd.avx2._mm256_srai_epi16::<8>(upper);
                    odd[half] = simd.avx2._mm256_srai_epi16::<8>(fours[half]);
                }
                *twos = [simd.line(even), simd.line(odd)];
            }
        }
    }
}

struct Multiply<'a, 'b, 'c, const R: usize> {
    simd: V3,
    panel: &'a Panel,
    x: [&'a [BlockI16x32]; R],
    sums: Sums<'b, 'c>,
}

impl<const R: usize> NullaryFnOnce for Multiply<'_, '_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, panel, x, sums: mut to } = self;
        let mut sums = load::<R>(simd, &mut to);
        for block in 0..x[0].len() {
            let mut products = [[broadcast(simd, 0); HALVES]; R];
            let twos = &panel.twos[block];
            let mut x_twos = [&[0; 16]; R];
            for r in 0..R {
                x_twos[r] = &x[r][block].twos;
            }
            for two in 0..16 {
                let weights = simd.words(twos[two]);
                for r in 0..R {
                    let x = broadcast(simd, x_twos[r][two]);
                    for half in 0..HALVES {
                        let pairs = simd.avx2._mm256_madd_epi16(weights[half], x);
                        products[r][half] = simd.avx2._mm256_add_epi32(products[r][half], pairs);
                    }
                }
            }
            let scales: [_; HALVES] = cast(panel.scales[block]);
            for r in 0..R {
                let x_scale = simd.splat_f32x8(x[r][block].scale);
                for half in 0..HALVES {
                    let product = simd.convert_i32x8_to_f32x8(cast(products[r][half]));
                    sums[r][half] = simd.mul_add_f32x8(product, simd.mul_f32x8(scales[half], x_scale), sums[r][half]);
                }
            }
        }
        store(sums, &mut to);
    }
}
