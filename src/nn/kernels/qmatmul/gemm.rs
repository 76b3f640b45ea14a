//! Matmul of any number of rows with interleaved weights, common to the instruction sets: 256 weights of some groups of
//! outputs are unpacked to panels, which all rows of `x` meet before the next weights.

use pulp::x86::V3;

use super::super::interleaved::InterleavedWeight;
use super::super::mat::MatMut;
use super::super::parallel::parallel_columns;
use super::block_format::Blocks;
use super::lanes::LANES;
use super::quantize_activations::{QuantizedBlock, quantize_rows};

/// Number of inputs of a panel.
pub const INPUTS: usize = 256;

/// Unpacking and multiplication of one weight type with one instruction set; the value is the proof that the CPU has it.
pub trait Kernel: Copy + Sync {
    /// Quantised form of `x`.
    type X: QuantizedBlock;
    /// [`INPUTS`] unpacked weights of each of sixteen outputs.
    type Panel;
    /// Number of panels that are multiplied together.
    const PANELS: usize;
    /// Maximum number of rows of `x` that are multiplied together: 2 or 4.
    const ROWS: usize;
    /// Bytes of [`INPUTS`] weights of sixteen outputs.
    const BYTES: usize;

    /// Calls `f` with [`PANELS`](Self::PANELS) panels of this thread.
    fn with_panels(f: impl FnOnce(&mut [Self::Panel]));

    /// Unpacks interleaved blocks of at most [`INPUTS`] weights. What they lack keeps its old values.
    fn unpack(self, blocks: Blocks, panel: &mut Self::Panel);

    /// Adds the dot products of the panels with `R` rows of `x` to `sums`.
    fn multiply<const R: usize>(self, panels: &[Self::Panel], x: [&[Self::X]; R], sums: Sums);
}

/// Where sums of a micro-kernel go: some rows of a tile of the result.
pub struct Sums<'a, 'b> {
    out: &'a mut MatMut<'b>,
    first: usize,
    /// Whether there are sums of earlier inputs.
    pub accumulate: bool,
}

impl Sums<'_, '_> {
    /// Sixteen outputs of a row, fewer at the end. Rows after the last one are the last one.
    #[inline(always)]
    pub fn part(&mut self, row: usize, panel: usize) -> &mut [f32] {
        let row = (self.first + row).min(self.out.rows() - 1);
        self.out.row_part(row, panel * LANES, LANES)
    }
}

/// `x` (rows, width) times the transpose of an interleaved matrix (outputs, width): (rows, outputs).
///
/// A row's result depends neither on the other rows, nor on their number, nor on the number of threads.
pub fn gemm<K: Kernel>(kernel: K, simd: V3, x: &[f32], weight: &InterleavedWeight) -> Vec<f32> {
    let (weights, (outputs, width)) = (&**weight, weight.dims2());
    let (per_row, group_bytes) = (width / K::X::WIDTH, width * K::BYTES / INPUTS);
    let x_blocks: Vec<K::X> = quantize_rows(simd, x);
    parallel_columns(x.len() / width, outputs, K::PANELS * LANES, |columns, out| {
        let ahead = columns.len().div_ceil(LANES) * group_bytes;
        let bytes = &weights[columns.start / LANES * group_bytes..][..ahead];
        K::with_panels(|panels| fill(kernel, panels, &x_blocks, per_row, group_bytes, Blocks { bytes, ahead }, out));
    })
}

/// Fills `out` with the matmul of all rows of `x` and as many groups of outputs as there are panels. The weights after
/// these, where a thread mostly continues, are prefetched meanwhile.
fn fill<K: Kernel>(
    kernel: K,
    panels: &mut [K::Panel],
    x: &[K::X],
    per_row: usize,
    group_bytes: usize,
    groups: Blocks,
    mut out: MatMut,
) {
    let per_panel = INPUTS / K::X::WIDTH;
    for (i, first) in (0..per_row).step_by(per_panel).enumerate() {
        let bytes = i * K::BYTES..group_bytes.min((i + 1) * K::BYTES);
        for (group, panel) in panels.iter_mut().enumerate().take(groups.bytes.len() / group_bytes) {
            kernel.unpack(groups.part(group * group_bytes + bytes.start, bytes.len()), panel);
        }
        let of = |row: usize| &x[row.min(x.len() / per_row - 1) * per_row..][first..per_row.min(first + per_panel)];
        let mut rows = 0..out.rows();
        while let Some(first_row) = rows.next() {
            let sums = Sums { out: &mut out, first: first_row, accumulate: first > 0 };
            let together = (rows.len() + 1).next_power_of_two().min(K::ROWS);
            match together {
                1 => kernel.multiply(panels, [of(first_row)], sums),
                2 => kernel.multiply(panels, [of(first_row), of(first_row + 1)], sums),
                _ => kernel.multiply(panels, [0, 1, 2, 3].map(|i| of(first_row + i)), sums),
            }
            rows.start += together - 1;
        }
    }
}
