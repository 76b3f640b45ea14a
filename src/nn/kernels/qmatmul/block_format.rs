//! Layouts of GGUF blocks, and their interleaved form: sixteen outputs side by side, as the kernels multiply them.
//!
//! In a file, a row of weights is one block after the other. Interleaved, the blocks at the same place of sixteen rows
//! are cut into 32-bit words, and the first words of all sixteen make a [`Line`], then the second ones, and so on; a
//! 16-bit scale beside the words of a block comes last. So lanes of registers are outputs, no sum crosses lanes, and
//! unpacking needs no shuffles. It takes no more bytes, and is undone without loss.

use std::ops::Range;

use pulp::cast;
use rayon::prelude::*;

use super::super::prefetch::prefetch_address;
use super::lanes::{LANES, Lanes, Line};

/// Bytes of a line.
const LINE: usize = size_of::<Line>();

/// A GGUF block type.
pub trait BlockFormat {
    /// Number of weights of a block.
    const WIDTH: usize;
    /// Number of words of a block.
    const WORDS: usize;
    /// Byte in the file's block at which a 16-bit scale lies between or after the words.
    const SCALE_AT: Option<usize>;
    /// Bytes of a block.
    const BYTES: usize = 4 * Self::WORDS + if Self::SCALE_AT.is_some() { 2 } else { 0 };
    /// Bytes of sixteen interleaved blocks.
    const GROUP_BYTES: usize = LANES * Self::BYTES;

    /// Bytes of a row of `width` weights.
    fn row_bytes(width: usize) -> usize {
        width / Self::WIDTH * Self::BYTES
    }
}

/// Interleaves the blocks of a matrix whose rows have `width` weights. The last group of rows is filled up with zeros.
pub fn interleave<F: BlockFormat>(file: &[u8], width: usize) -> Vec<u8> {
    let row_bytes = F::row_bytes(width);
    let rows = file.len() / row_bytes;
    let mut bytes = vec![0; rows.next_multiple_of(LANES) * row_bytes];
    let groups = bytes.par_chunks_mut(LANES * row_bytes).zip(file.par_chunks(LANES * row_bytes));
    groups.for_each(|(group, rows)| {
        for_each_word::<F>(row_bytes, rows.len() / row_bytes, |from, to, len| {
            group[to..to + len].copy_from_slice(&rows[from..from + len]);
        });
    });
    bytes
}

/// The file's order of an interleaved matrix (rows, width).
pub fn in_file_order<F: BlockFormat>(interleaved: &[u8], (rows, width): (usize, usize)) -> Vec<u8> {
    let row_bytes = F::row_bytes(width);
    let mut file = vec![0; rows * row_bytes];
    let groups = interleaved.par_chunks(LANES * row_bytes).zip(file.par_chunks_mut(LANES * row_bytes));
    groups.for_each(|(group, rows)| {
        for_each_word::<F>(row_bytes, rows.len() / row_bytes, |to, from, len| {
            rows[to..to + len].copy_from_slice(&group[from..from + len]);
        });
    });
    file
}

/// The file's order of a tile of an interleaved matrix with rows of `width` weights: of some rows, from a multiple of
/// sixteen on, and some of their blocks.
pub fn tile_in_file_order<F: BlockFormat>(
    interleaved: &[u8],
    width: usize,
    rows: Range<usize>,
    blocks: Range<usize>,
) -> Vec<u8> {
    let group_bytes = LANES * F::row_bytes(width);
    let mut tile = Vec::with_capacity(rows.len() * blocks.len() * F::BYTES);
    for first in rows.clone().step_by(LANES) {
        let start = first / LANES * group_bytes + blocks.start * F::GROUP_BYTES;
        let group = interleaved.get(start..start + blocks.len() * F::GROUP_BYTES).unwrap_or_default();
        tile.extend(in_file_order::<F>(group, (LANES.min(rows.end - first), blocks.len() * F::WIDTH)));
    }
    tile
}

/// Calls `f` with the place of each word or scale of a group in the file, its place in the interleaved group, and its
/// length.
fn for_each_word<F: BlockFormat>(row_bytes: usize, rows: usize, mut f: impl FnMut(usize, usize, usize)) {
    for (block, row) in (0..row_bytes / F::BYTES).flat_map(|block| (0..rows).map(move |row| (block, row))) {
        let (from, to) = (row * row_bytes + block * F::BYTES, block * F::GROUP_BYTES);
        let scale = F::SCALE_AT.unwrap_or(F::BYTES);
        for word in 0..F::WORDS {
            let skipped = if 4 * word < scale { 0 } else { 2 };
            f(from + 4 * word + skipped, to + word * LINE + 4 * row, 4);
        }
        if F::SCALE_AT.is_some() {
            f(from + scale, to + F::WORDS * LINE + 2 * row, 2);
        }
    }
}

/// Interleaved blocks of sixteen outputs.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    pub bytes: &'a [u8],
    /// How many bytes further the next task reads: as each line is read, the line there is prefetched.
    pub ahead: usize,
}

impl<'a> Blocks<'a> {
    /// The `len` bytes from `at` on. With a constant length, the compiler checks no line's place.
    #[inline(always)]
    pub fn part(self, at: usize, len: usize) -> Blocks<'a> {
        Blocks { bytes: &self.bytes[at..][..len], ahead: self.ahead }
    }

    /// The `at`-th line; zeros beyond the end.
    #[inline(always)]
    fn line<S: Lanes>(self, simd: S, at: usize) -> S::Words {
        prefetch_address(self.bytes.as_ptr().wrapping_add(self.ahead + at * LINE));
        simd.words(cast(*self.bytes.get(at * LINE..).and_then(|bytes| bytes.first_chunk()).unwrap_or(&[0; LINE])))
    }

    /// The 16-bit scales after the lines.
    #[inline(always)]
    fn scales_after<F: BlockFormat, S: Lanes>(self, simd: S) -> S::Floats {
        let bytes = self.bytes.get(F::WORDS * LINE..).and_then(|bytes| bytes.first_chunk()).unwrap_or(&[0; 32]);
        simd.halves(simd.words(cast::<_, [u16; LANES]>(*bytes).map(u32::from)))
    }
}

/// 32 signed bytes after their common f16 scale.
#[derive(Clone, Copy)]
pub struct Q8_0;

impl BlockFormat for Q8_0 {
    const WIDTH: usize = 32;
    const WORDS: usize = 8;
    const SCALE_AT: Option<usize> = Some(0);
}

impl Q8_0 {
    /// The weights of sixteen interleaved blocks, four neighbours of each in a line.
    #[inline(always)]
    pub fn weights<S: Lanes>(simd: S, blocks: Blocks) -> [S::Words; 8] {
        let mut fours = [simd.words([0; LANES]); 8];
        fours.iter_mut().enumerate().for_each(
            #[inline(always)]
            |(i, four)| *four = blocks.line(simd, i),
        );
        fours
    }

    /// The scales of the blocks.
    #[inline(always)]
    pub fn scales<S: Lanes>(simd: S, blocks: Blocks) -> S::Floats {
        blocks.scales_after::<Self, S>(simd)
    }
}

/// A block type of 256 weights: each is `scale * scales[group] * weight - min * mins[group]`.
pub trait KQuant: BlockFormat + Copy + Sync {
    /// Number of pair sums that are added in 16 bits before they are scaled: a pair sum is at most `2 * 127` times the
    /// largest weight.
    const I16_SUMS: usize;
    /// Number of weights of a group, 16 or 32.
    const GROUP: usize;
    /// The common zero point of all weights, as a power of two, if `mins` are `scales` times it.
    const ZERO: Option<u32>;

    /// The weights of sixteen interleaved blocks as unsigned bytes, four neighbours of each in a line.
    fn weights<S: Lanes>(simd: S, blocks: Blocks, fours: &mut [Line; 64]);

    /// The scales of the groups, a signed byte each, four groups a line; groups of 32 need only two lines.
    fn scales<S: Lanes>(simd: S, blocks: Blocks) -> [S::Words; 4];

    /// The offsets of the groups in the same form, if there is no zero point.
    fn mins<S: Lanes>(simd: S, blocks: Blocks) -> [S::Words; 4];

    /// Scale and min of each block.
    fn factors<S: Lanes>(simd: S, blocks: Blocks) -> [S::Floats; 2];
}

const NIBBLES: u32 = 0x0f0f_0f0f;
const SIX_BITS: u32 = 0x3f3f_3f3f;
const TWO_BITS: u32 = 0x0303_0303;

/// 4 bits a weight, 6-bit scale and offset for each 32, f16 scale and min for all.
///
/// In order: the two f16, 12 bytes of scales and offsets, and 32 bytes for each 64 weights (lower nibbles, then upper).
#[derive(Clone, Copy)]
pub struct Q4K;

impl BlockFormat for Q4K {
    const WIDTH: usize = 256;
    const WORDS: usize = 36;
    const SCALE_AT: Option<usize> = None;
}

impl KQuant for Q4K {
    // 8 * 2 * 127 * 15 = 30,480
    const I16_SUMS: usize = 8;
    const GROUP: usize = 32;
    const ZERO: Option<u32> = None;

    #[inline(always)]
    fn weights<S: Lanes>(simd: S, blocks: Blocks, fours: &mut [Line; 64]) {
        for (part, fours) in fours.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            for i in 0..8 {
                let both = blocks.line(simd, 4 + 8 * part + i);
                fours[i] = simd.line(simd.bits(both, 0, NIBBLES));
                fours[8 + i] = simd.line(simd.bits(both, 4, NIBBLES));
            }
        }
    }

    /// The first four are the low six bits of a byte each; the last four, four bits of a byte each, and above them the
    /// two high bits next to the first four.
    #[inline(always)]
    fn scales<S: Lanes>(simd: S, blocks: Blocks) -> [S::Words; 4] {
        let (low, high) = (blocks.line(simd, 1), blocks.line(simd, 3));
        let last = simd.with_high(simd.bits(high, 0, NIBBLES), simd.bits(low, 6, TWO_BITS));
        [simd.bits(low, 0, SIX_BITS), last, last, last]
    }

    #[inline(always)]
    fn mins<S: Lanes>(simd: S, blocks: Blocks) -> [S::Words; 4] {
        let (low, high) = (blocks.line(simd, 2), blocks.line(simd, 3));
        let last = simd.with_high(simd.bits(high, 4, NIBBLES), simd.bits(low, 6, TWO_BITS));
        [simd.bits(low, 0, SIX_BITS), last, last, last]
    }

    #[inline(always)]
    fn factors<S: Lanes>(simd: S, blocks: Blocks) -> [S::Floats; 2] {
        let both = blocks.line(simd, 0);
        [simd.halves(both), simd.halves(simd.bits(both, 16, u32::MAX))]
    }
}

/// 6 bits a weight with a zero point of 32, an 8-bit scale for each 16, an f16 scale for all.
///
/// In order: 64 bytes of lower nibbles for each 128 weights, 32 bytes of upper two bits for each 128, the scales, the
/// f16.
#[derive(Clone, Copy)]
pub struct Q6K;

impl BlockFormat for Q6K {
    const WIDTH: usize = 256;
    const WORDS: usize = 52;
    const SCALE_AT: Option<usize> = Some(208);
}

impl KQuant for Q6K {
    // 2 * 2 * 127 * 63 = 32,004; with scales and all of a block, 64 * 32,004 * 128 = 262 million of 2,147
    const I16_SUMS: usize = 2;
    const GROUP: usize = 16;
    const ZERO: Option<u32> = Some(5);

    #[inline(always)]
    fn weights<S: Lanes>(simd: S, blocks: Blocks, fours: &mut [Line; 64]) {
        for (half, fours) in fours.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for i in 0..8 {
                let upper = blocks.line(simd, 32 + 8 * half + i);
                let (even, odd) = (blocks.line(simd, 16 * half + i), blocks.line(simd, 16 * half + 8 + i));
                let nibbles = [
                    simd.bits(even, 0, NIBBLES),
                    simd.bits(odd, 0, NIBBLES),
                    simd.bits(even, 4, NIBBLES),
                    simd.bits(odd, 4, NIBBLES),
                ];
                let highs = [
                    simd.bits(upper, 0, TWO_BITS),
                    simd.bits(upper, 2, TWO_BITS),
                    simd.bits(upper, 4, TWO_BITS),
                    simd.bits(upper, 6, TWO_BITS),
                ];
                for quarter in 0..4 {
                    fours[8 * quarter + i] = simd.line(simd.with_high(nibbles[quarter], highs[quarter]));
                }
            }
        }
    }

    #[inline(always)]
    fn scales<S: Lanes>(simd: S, blocks: Blocks) -> [S::Words; 4] {
        [blocks.line(simd, 48), blocks.line(simd, 49), blocks.line(simd, 50), blocks.line(simd, 51)]
    }

    #[inline(always)]
    fn mins<S: Lanes>(simd: S, _: Blocks) -> [S::Words; 4] {
        [simd.words([0; LANES]); 4]
    }

    #[inline(always)]
    fn factors<S: Lanes>(simd: S, blocks: Blocks) -> [S::Floats; 2] {
        [blocks.scales_after::<Self, S>(simd); 2]
    }
}
