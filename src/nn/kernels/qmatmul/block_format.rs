//! Unpacking of [interleaved](super::super::interleaved) GGUF blocks to lanes.

use pulp::cast;

pub use super::super::interleaved::{BlockFormat, Q4K, Q6K, Q8_0};
use super::super::prefetch::prefetch_address;
use super::lanes::{LANES, Lanes, Line};

/// Bytes of a line.
const LINE: usize = size_of::<Line>();

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
        self.shared_line(simd, at, true)
    }

    /// A line that is read several times: the first time, the one `ahead` is prefetched.
    #[inline(always)]
    fn shared_line<S: Lanes>(self, simd: S, at: usize, is_first: bool) -> S::Words {
        if is_first {
            prefetch_address(self.bytes.as_ptr().wrapping_add(self.ahead + at * LINE));
        }
        simd.words(cast(*self.bytes.get(at * LINE..).and_then(|bytes| bytes.first_chunk()).unwrap_or(&[0; LINE])))
    }

    /// The 16-bit scales after the lines.
    #[inline(always)]
    fn scales_after<F: BlockFormat, S: Lanes>(self, simd: S) -> S::Floats {
        let bytes = self.bytes.get(F::WORDS * LINE..).and_then(|bytes| bytes.first_chunk()).unwrap_or(&[0; 32]);
        simd.halves(simd.words(cast::<_, [u16; LANES]>(*bytes).map(u32::from)))
    }
}

impl Q8_0 {
    /// Four neighbouring weights of each of sixteen interleaved blocks, the `at`-th of eight.
    #[inline(always)]
    pub fn four<S: Lanes>(simd: S, blocks: Blocks, at: usize) -> S::Words {
        blocks.line(simd, at)
    }

    /// All weights of the blocks, a four in a line.
    #[inline(always)]
    pub fn weights<S: Lanes>(simd: S, blocks: Blocks) -> [S::Words; 8] {
        let mut fours = [simd.words([0; LANES]); 8];
        fours.iter_mut().enumerate().for_each(
            #[inline(always)]
            |(at, four)| *four = Self::four(simd, blocks, at),
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

    /// Four neighbouring weights of each of sixteen interleaved blocks as unsigned bytes: the `at`-th of the eight fours in
    /// the `eighth`-th 32 weights.
    fn four<S: Lanes>(simd: S, blocks: Blocks, eighth: usize, at: usize) -> S::Words;

    /// All weights, a four in a line.
    #[inline(always)]
    fn weights<S: Lanes>(simd: S, blocks: Blocks, fours: &mut [Line; 64]) {
        // The innermost loop is unrolled: its lines are the same, and its shifts are constants.
        for (half, fours) in fours.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for at in 0..8 {
                for quarter in 0..4 {
                    fours[8 * quarter + at] = simd.line(Self::four(simd, blocks, 4 * half + quarter, at));
                }
            }
        }
    }

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

impl KQuant for Q4K {
    // 8 * 2 * 127 * 15 = 30,480
    const I16_SUMS: usize = 8;
    const GROUP: usize = 32;
    const ZERO: Option<u32> = None;

    /// A line has lower nibbles for 32 weights and upper ones for the next.
    #[inline(always)]
    fn four<S: Lanes>(simd: S, blocks: Blocks, eighth: usize, at: usize) -> S::Words {
        let both = blocks.shared_line(simd, 4 + 8 * (eighth / 2) + at, eighth.is_multiple_of(2));
        simd.bits(both, 4 * (eighth % 2) as u32, NIBBLES)
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

impl KQuant for Q6K {
    // 2 * 2 * 127 * 63 = 32,004; with scales and all of a block, 64 * 32,004 * 128 = 262 million of 2,147
    const I16_SUMS: usize = 2;
    const GROUP: usize = 16;
    const ZERO: Option<u32> = Some(5);

    /// A line has lower nibbles for 32 weights and upper ones for those 64 further on; another one the two high bits of
    /// all four times 32 weights of a half.
    #[inline(always)]
    fn four<S: Lanes>(simd: S, blocks: Blocks, eighth: usize, at: usize) -> S::Words {
        let (half, quarter) = (eighth / 4, eighth % 4);
        let upper = blocks.shared_line(simd, 32 + 8 * half + at, quarter == 0);
        let both = blocks.shared_line(simd, 16 * half + 8 * (quarter % 2) + at, quarter < 2);
        let (nibbles, highs) = (4 * (quarter / 2) as u32, 2 * quarter as u32);
        simd.with_high(simd.bits(both, nibbles, NIBBLES), simd.bits(upper, highs, TWO_BITS))
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
