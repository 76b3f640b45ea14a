//! Widening of interleaved weights to f32, for gradients.
//!
//! Lanes are outputs, so a tile comes out transposed: for each input, its weights of all outputs follow each other. Values
//! have the bits that candle's dequantisation gives.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::NullaryFnOnce;

use super::super::dispatch::QuantKernel;
use super::super::interleaved::InterleavedWeight;
use super::super::mat::MatRef;
use super::block_format::{BlockFormat, Blocks, KQuant, Q4K, Q6K, Q8_0};
use super::lanes::{Avx512Vnni, LANES, Lanes};
use crate::options::Quantization;

/// Widens the weights of some outputs and inputs into `buffer`, and returns them as a matrix (outputs, inputs). The first
/// output is a multiple of sixteen, the first input one of the block's width.
pub fn widen<'a>(
    kernel: QuantKernel,
    weight: &InterleavedWeight,
    outputs: Range<usize>,
    inputs: Range<usize>,
    buffer: &'a mut Vec<f32>,
) -> MatRef<'a> {
    let width = weight.kind().ggml_dtype().block_size();
    let blocks = inputs.start / width..inputs.end.div_ceil(width);
    let groups = weight.groups(outputs.clone(), blocks.clone());
    // One line more than there are groups: inputs at a distance of a power of two would share sets of the cache.
    let line_stride = groups.len() + 1;
    let (rows, stride) = (blocks.len() * width, line_stride * LANES);
    if buffer.len() < rows * stride {
        buffer.resize(rows * stride, 0.0);
    }
    let tile = Tile { groups, lines: buffer[..rows * stride].as_chunks_mut().0, line_stride };
    match weight.kind() {
        Quantization::Q8_0 => tile.write::<Q8_0>(kernel),
        Quantization::Q4K => tile.write::<Q4K>(kernel),
        Quantization::Q6K => tile.write::<Q6K>(kernel),
    }
    MatRef::new(buffer, (rows, outputs.len()), stride).rows_in(0..inputs.len()).transposed()
}

/// A block type that can be widened.
trait WidenBlocks: BlockFormat {
    /// Gives the weights of sixteen interleaved blocks, input by input.
    fn widen<S: Lanes>(simd: S, blocks: Blocks, put: impl FnMut(usize, [f32; LANES]));
}

impl WidenBlocks for Q8_0 {
    #[inline(always)]
    fn widen<S: Lanes>(simd: S, blocks: Blocks, mut put: impl FnMut(usize, [f32; LANES])) {
        let (fours, scales) = (Self::weights(simd, blocks), Self::scales(simd, blocks));
        for (i, four) in fours.into_iter().enumerate() {
            for j in 0..4 {
                put(4 * i + j, simd.floats(simd.scale(simd.signed_byte(four, j), scales)));
            }
        }
    }
}

impl<K: KQuant> WidenBlocks for K {
    #[inline(always)]
    fn widen<S: Lanes>(simd: S, blocks: Blocks, mut put: impl FnMut(usize, [f32; LANES])) {
        let mut fours = [[0; LANES]; 64];
        K::weights(simd, blocks, &mut fours);
        let ([scale, min], scales, mins) = (K::factors(simd, blocks), K::scales(simd, blocks), K::mins(simd, blocks));
        let zero = K::ZERO.map_or(0, |bit| 1 << bit);
        for (group, fours) in fours.chunks(K::GROUP / 4).enumerate() {
            let scale = simd.scale(simd.signed_byte(scales[group / 4], group % 4), scale);
            let offset = simd.scale(simd.signed_byte(mins[group / 4], group % 4), min);
            for (i, four) in fours.iter().enumerate() {
                let four = simd.words(*four);
                for j in 0..4 {
                    let weight = simd.scale(simd.less(simd.signed_byte(four, j), zero), scale);
                    let weight = if K::ZERO.is_some() { weight } else { simd.minus(weight, offset) };
                    put(group * K::GROUP + 4 * i + j, simd.floats(weight));
                }
            }
        }
    }
}

/// A tile of interleaved weights, and where they are written.
struct Tile<'a> {
    /// The blocks of sixteen outputs each, of these inputs.
    groups: Vec<&'a [u8]>,
    /// Lines of sixteen weights: for each input, `line_stride` of them.
    lines: &'a mut [[f32; LANES]],
    line_stride: usize,
}

impl Tile<'_> {
    fn write<F: WidenBlocks>(self, kernel: QuantKernel) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn write<F: WidenBlocks>(tile: Tile, simd: Avx512Vnni) {
            tile.write_lanes::<F, _>(simd);
        }
        match kernel {
            QuantKernel::Avx2(simd) => simd.vectorize(OnLanes::<F, _> { tile: self, simd, of: PhantomData }),
            // SAFETY: the CPU has AVX-512 VNNI, as the value proves.
            QuantKernel::Avx512Vnni(_, simd) => unsafe { write::<F>(self, simd) },
        }
    }

    #[inline(always)]
    fn write_lanes<F: WidenBlocks, S: Lanes>(self, simd: S) {
        for (group, bytes) in self.groups.iter().enumerate() {
            for (block, bytes) in bytes.chunks_exact(F::GROUP_BYTES).enumerate() {
                let lines = &mut self.lines[block * F::WIDTH * self.line_stride..];
                F::widen(
                    simd,
                    Blocks { bytes, ahead: bytes.len() },
                    #[inline(always)]
                    |input, weights| lines[input * self.line_stride + group] = weights,
                );
            }
        }
    }
}

/// [`Tile::write_lanes`] as pulp takes it.
struct OnLanes<'a, F, S> {
    tile: Tile<'a>,
    simd: S,
    of: PhantomData<F>,
}

impl<F: WidenBlocks, S: Lanes> NullaryFnOnce for OnLanes<'_, F, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.tile.write_lanes::<F, _>(self.simd);
    }
}
