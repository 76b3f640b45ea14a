//! Interleaved GGUF blocks: sixteen outputs side by side, as the kernels of `qmatmul` multiply them.
//!
//! In the order of a file, a row of weights is one block after the other. Interleaved, the blocks at the same place of
//! sixteen rows are cut into 32-bit words, and the first words of all sixteen make a line, then the second ones, and so on;
//! a 16-bit scale beside the words of a block comes last. So lanes of registers are outputs, no sum crosses lanes, and
//! unpacking needs no shuffles. It takes no more bytes, and is undone without loss. The last group of rows is filled up with
//! zeros.

use std::ops::{Deref, Range};

use rayon::prelude::*;

use crate::files::MappedBytes;
use crate::options::Quantization;

/// Number of outputs side by side.
pub const LANES: usize = 16;
/// Bytes of a word of each of sixteen outputs.
const LINE: usize = 4 * LANES;

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
}

/// 32 signed bytes after their common f16 scale.
#[derive(Clone, Copy)]
pub struct Q8_0;

impl BlockFormat for Q8_0 {
    const WIDTH: usize = 32;
    const WORDS: usize = 8;
    const SCALE_AT: Option<usize> = Some(0);
}

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

/// Copies of words between a group of rows in the order of a file and its interleaved form.
type CopyWords = fn(usize, &[u8], &mut [u8]);

/// Interleaves a group of up to sixteen rows of this many bytes.
fn interleave_group<F: BlockFormat>(row_bytes: usize, rows: &[u8], group: &mut [u8]) {
    for_each_word::<F>(row_bytes, rows.len() / row_bytes, |from, to, len| {
        group[to..to + len].copy_from_slice(&rows[from..from + len]);
    });
}

/// Undoes [`interleave_group`].
fn order_group<F: BlockFormat>(row_bytes: usize, group: &[u8], rows: &mut [u8]) {
    for_each_word::<F>(row_bytes, rows.len() / row_bytes, |to, from, len| {
        rows[to..to + len].copy_from_slice(&group[from..from + len]);
    });
}

/// Calls `f` with the place of each word or scale of a group in the file, its place in the interleaved group, and its
/// length.
#[inline(always)]
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

/// The interleaving of a group of this kind, and its reverse.
fn copies(kind: Quantization) -> (CopyWords, CopyWords) {
    match kind {
        Quantization::Q8_0 => (interleave_group::<Q8_0>, order_group::<Q8_0>),
        Quantization::Q6K => (interleave_group::<Q6K>, order_group::<Q6K>),
        Quantization::Q4K => (interleave_group::<Q4K>, order_group::<Q4K>),
    }
}

/// Bytes of a row of `width` weights.
fn row_bytes(kind: Quantization, width: usize) -> usize {
    width / kind.ggml_dtype().block_size() * kind.ggml_dtype().type_size()
}

/// Bytes of an interleaved matrix (outputs, width); `None` if that is no number, or `width` is not a number of blocks.
pub fn interleaved_bytes(kind: Quantization, (outputs, width): (usize, usize)) -> Option<usize> {
    let rows = outputs.checked_next_multiple_of(LANES)?;
    let row_bytes = (width / kind.ggml_dtype().block_size()).checked_mul(kind.ggml_dtype().type_size())?;
    width.is_multiple_of(kind.ggml_dtype().block_size()).then(|| rows.checked_mul(row_bytes))?
}

/// Interleaves a matrix of whole blocks in the order of a file, whose rows have `width` weights.
pub fn interleave(kind: Quantization, file: &[u8], width: usize) -> Vec<u8> {
    let row_bytes = row_bytes(kind, width).max(1);
    let mut bytes = vec![0; (file.len() / row_bytes).next_multiple_of(LANES) * row_bytes];
    let (copy, _) = copies(kind);
    let groups = file.par_chunks(LANES * row_bytes).zip(bytes.par_chunks_mut(LANES * row_bytes));
    groups.for_each(|(rows, group)| copy(row_bytes, rows, group));
    bytes
}

/// The order of a file of an interleaved matrix (rows, width).
pub fn in_file_order(kind: Quantization, interleaved: &[u8], (rows, width): (usize, usize)) -> Vec<u8> {
    let row_bytes = row_bytes(kind, width).max(1);
    let mut file = vec![0; rows * row_bytes];
    let (_, copy) = copies(kind);
    let groups = interleaved.par_chunks(LANES * row_bytes).zip(file.par_chunks_mut(LANES * row_bytes));
    groups.for_each(|(group, rows)| copy(row_bytes, group, rows));
    file
}

/// Bytes of a weight.
#[derive(Debug)]
enum WeightBytes {
    Owned(Vec<u8>),
    Mapped(MappedBytes),
}

/// A matrix (outputs, width) of quantised weights, interleaved; in memory, or where its file is mapped.
#[derive(Debug)]
pub struct InterleavedWeight {
    kind: Quantization,
    bytes: WeightBytes,
    outputs: usize,
    width: usize,
}

impl InterleavedWeight {
    /// Interleaves a matrix of whole blocks of a file, with rows of `width`.
    pub fn new(kind: Quantization, file: &[u8], width: usize) -> Self {
        let outputs = file.len().checked_div(row_bytes(kind, width)).unwrap_or_default();
        Self { kind, bytes: WeightBytes::Owned(interleave(kind, file, width)), outputs, width }
    }

    /// An interleaved matrix (outputs, width) of a mapped file; `None` unless it has exactly these bytes.
    pub fn mapped(kind: Quantization, bytes: MappedBytes, (outputs, width): (usize, usize)) -> Option<Self> {
        let fits = interleaved_bytes(kind, (outputs, width)) == Some(bytes.len());
        fits.then_some(Self { kind, bytes: WeightBytes::Mapped(bytes), outputs, width })
    }

    /// The format of the blocks.
    pub fn kind(&self) -> Quantization {
        self.kind
    }

    /// Numbers of outputs and inputs.
    pub fn dims2(&self) -> (usize, usize) {
        (self.outputs, self.width)
    }

    /// The interleaved blocks of some outputs, from a multiple of sixteen on, at some places of their rows: those of each
    /// sixteen outputs.
    pub fn groups(&self, outputs: Range<usize>, blocks: Range<usize>) -> Vec<&[u8]> {
        let (group, block) = (LANES * row_bytes(self.kind, self.width), LANES * self.kind.ggml_dtype().type_size());
        let groups = outputs.start / LANES..outputs.end.div_ceil(LANES);
        groups.map(|at| &self[at * group..][blocks.start * block..blocks.end * block]).collect()
    }

    /// The blocks in the file's order.
    pub fn in_file_order(&self) -> Vec<u8> {
        in_file_order(self.kind, self, self.dims2())
    }
}

impl Deref for InterleavedWeight {
    type Target = [u8];

    /// The interleaved blocks.
    fn deref(&self) -> &[u8] {
        match &self.bytes {
            WeightBytes::Owned(bytes) => bytes,
            WeightBytes::Mapped(bytes) => bytes,
        }
    }
}
