//! Products of large matrices of floats whose numbers are rounded to bf16 first, for AVX512-BF16. Sums are f32.
//!
//! Both sides are packed alike: sixteen rows of a matrix side by side, two numbers of each in a register. A register of the
//! right side then meets eight pairs of the left one, each repeated in all lanes.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::avx512::{Line, transposed, up_to};
use super::matmul::{Matrix, Product};
use super::shared_mut::SharedMut;

/// Rows of a matrix that are packed side by side.
const LANES: usize = 16;
/// Of these, those of the left side that are multiplied together.
const ROWS: usize = LANES / 2;
/// Panels of the right side that they meet: all sums fit into the registers.
const PANELS: usize = 3;
/// Lines of a block of the depth: those of three panels and what meets them fit into the nearest cache.
const LINES: usize = 96;

/// Numbers of a row in a line: pairs of neighbours in the depth.
const PAIR: usize = 2;

/// Two vectors, rounded: first all of one, then all of the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn rounded(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both types are 512 bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

/// The same bits, known to be bf16.
#[inline(always)]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

/// Two vectors, rounded: a number of one, then its counterpart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn paired(first: __m512, second: __m512) -> __m512i {
    const IN_TURN: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + LANES * (i % 2)) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: as long as a register.
    let in_turn = unsafe { _mm512_loadu_si512(IN_TURN.as_ptr().cast()) };
    _mm512_permutexvar_epi16(in_turn, rounded(first, second))
}

/// Sixteen rows of a matrix over a block of its depth.
type Panel = [Line; LINES];

const EMPTY: Panel = [Line::ZERO; LINES];

/// Rows of a matrix, the numbers of each `depth` long.
#[derive(Clone, Copy)]
struct Side {
    matrix: Matrix,
    rows: usize,
    depth: usize,
}

// SAFETY: it is only read, and whoever makes one vouches for what it points to.
unsafe impl Send for Side {}
// SAFETY: as above.
unsafe impl Sync for Side {}

impl Side {
    fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// How many tasks it makes as a right side.
    fn tasks(&self) -> usize {
        self.panels().div_ceil(PANELS)
    }

    /// The panels of a task; all tasks have as many, or one less.
    fn task(&self, task: usize) -> Range<usize> {
        task * self.panels() / self.tasks()..(task + 1) * self.panels() / self.tasks()
    }

    fn blocks(&self) -> usize {
        self.depth.div_ceil(LINES * PAIR)
    }

    /// Packs one panel of a block; what lies beyond the matrix becomes zeros. Returns the lines that hold anything.
    ///
    /// # Safety
    /// The processor must have the instructions, and the matrix must be there, its rows or its columns consecutive.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack(&self, panel: usize, block: usize, to: &mut Panel) -> usize {
        let (first_row, first) = (panel * LANES, block * LINES * PAIR);
        let (rows, depth) = ((self.rows - first_row).min(LANES), (self.depth - first).min(LINES * PAIR));
        let lines = depth.div_ceil(PAIR);
        let Matrix { pointer, row_stride, column_stride } = self.matrix;
        // SAFETY: inside of the matrix, which the caller vouches for.
        let start = unsafe { pointer.add(first_row * row_stride + first * column_stride) };
        if column_stride == 1 {
            // Sixteen lines at a time, from sixteen rows.
            for (part, to) in to[..lines.next_multiple_of(LANES)].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let mut along = [_mm512_setzero_si512(); LANES];
                for (row, along) in along.iter_mut().enumerate().take(rows) {
                    let at = part * LANES * PAIR;
                    // SAFETY: masked to what the matrix has.
                    unsafe {
                        let from = start.add(row * row_stride + at);
                        let first = _mm512_maskz_loadu_ps(up_to(depth - at), from);
                        let rest = (depth - at).saturating_sub(LANES);
                        let second = _mm512_maskz_loadu_ps(up_to(rest), from.wrapping_add(LANES));
                        *along = rounded(first, second);
                    }
                }
                for (line, column) in to.iter_mut().zip(transposed(&along)) {
                    line.store(column);
                }
            }
        } else {
            let mask = up_to(rows);
            for (i, line) in to[..lines].iter_mut().enumerate() {
                let at = i * PAIR;
                // SAFETY: rows are consecutive, and masked to what the matrix has.
                unsafe {
                    let first = _mm512_maskz_loadu_ps(mask, start.add(at * column_stride));
                    let there = if at + 1 < depth { mask } else { 0 };
                    let second = _mm512_maskz_loadu_ps(there, start.wrapping_add((at + 1) * column_stride));
                    line.store(paired(first, second));
                }
            }
        }
        lines
    }
}

/// Where a product goes: rows of consecutive numbers, `stride` apart, that nothing else uses meanwhile.
#[derive(Clone, Copy)]
struct Target {
    to: SharedMut,
    stride: usize,
    rows: usize,
    columns: usize,
    /// What the product is multiplied with.
    scale: f32,
    /// Whether it is added to what is there.
    accumulate: bool,
}

impl Target {
    /// Puts eight rows of sums in their place, as far as there is room for them.
    ///
    /// # Safety
    /// The processor must have the instructions, and the target must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn put<const N: usize>(self, (row, column): (usize, usize), sums: &[[__m512; N]; ROWS]) {
        let scale = _mm512_set1_ps(self.scale);
        for (r, sums) in sums.iter().enumerate().take(self.rows - row) {
            for (p, sum) in sums.iter().enumerate() {
                let column = column + p * LANES;
                let mask = up_to(self.columns.saturating_sub(column));
                // SAFETY: masked to what the target has.
                unsafe {
                    let to = self.to.at((row + r) * self.stride).wrapping_add(column);
                    let before = if self.accumulate { _mm512_maskz_loadu_ps(mask, to) } else { _mm512_setzero_ps() };
                    _mm512_mask_storeu_ps(to, mask, _mm512_fmadd_ps(*sum, scale, before));
                }
            }
        }
    }
}

/// `left right^T` of matrices (rows, depth) and (columns, depth), on all threads: (rows, columns). Each has its rows' numbers
/// side by side, or its columns'.
///
/// A number of the result depends neither on the others nor on threads.
///
/// # Safety
/// The processor must have the instructions, no size may be zero, and all that sizes and strides name must be there.
pub unsafe fn product((rows, columns, depth): (usize, usize, usize), left: Matrix, right: Matrix) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * columns);
    let to = SharedMut::from_pointer(out.as_mut_ptr());
    let target = Target { to, stride: columns, rows, columns, scale: 1.0, accumulate: false };
    let left = Side { matrix: left, rows, depth };
    let right = Side { matrix: right, rows: columns, depth };
    let panels = left.panels();
    let needed = panels * left.blocks();
    // Taken, not borrowed: while it waits for others, this thread may begin another product.
    let mut kept = if needed <= KEPT { PACKED.take() } else { Vec::new() };
    if kept.len() < needed {
        kept = vec![EMPTY; needed];
    }
    let packed = &mut kept[..needed];
    packed.par_iter_mut().enumerate().with_min_len(4).for_each(|(i, panel)| {
        // SAFETY: the caller vouches for processor and matrix.
        unsafe { left.pack(i % panels, i / panels, panel) };
    });
    (0..right.tasks()).into_par_iter().for_each_init(TaskScratch::default, |scratch, task| {
        // SAFETY: as above; each task has columns of its own.
        unsafe { columns_of(packed, right, right.task(task), scratch, target) }
    });
    if needed <= KEPT {
        PACKED.set(kept);
    }
    // SAFETY: the tasks have written every row of all columns.
    unsafe { out.set_len(rows * columns) };
    out
}

/// Most panels of a left side that a thread keeps for the next product: 12 MiB.
const KEPT: usize = 2048;

thread_local! {
    /// The longest left side of no more panels, so that not every product begins with zeros for it.
    static PACKED: Cell<Vec<Panel>> = const { Cell::new(Vec::new()) };
}

/// What a thread keeps from product to product.
#[derive(Default)]
pub struct Scratch {
    left: Vec<Panel>,
    task: TaskScratch,
}

/// What a thread keeps from task to task.
#[derive(Default)]
struct TaskScratch {
    /// Of the right side.
    panels: Vec<Panel>,
    /// Those of the blocks before, side by side: in the result, rows may be so far apart that caches cannot hold them.
    sums: Vec<[[Line; PANELS]; ROWS]>,
}

/// The product on this thread.
///
/// # Safety
/// As [`Product::run`]; no size may be zero, and the processor must have the instructions.
pub unsafe fn matmul(
    Product { sizes: (rows, columns, depth), accumulate, scale }: Product,
    (out, stride): (*mut f32, usize),
    left: Matrix,
    right: Matrix,
    scratch: &mut Scratch,
) {
    let target = Target { to: SharedMut::from_pointer(out), stride, rows, columns, scale, accumulate };
    let left = Side { matrix: left, rows, depth };
    let right = Side { matrix: right.transposed(), rows: columns, depth };
    let (panels, blocks) = (left.panels(), left.blocks());
    if scratch.left.len() < panels * blocks {
        scratch.left.resize(panels * blocks, EMPTY);
    }
    for (i, panel) in scratch.left.iter_mut().enumerate().take(panels * blocks) {
        // SAFETY: the caller vouches for processor and matrix.
        unsafe { left.pack(i % panels, i / panels, panel) };
    }
    for task in 0..right.tasks() {
        // SAFETY: as above.
        unsafe { columns_of(&scratch.left[..panels * blocks], right, right.task(task), &mut scratch.task, target) };
    }
}

/// Some panels of columns of a product, at most [`PANELS`].
///
/// # Safety
/// As [`product`].
unsafe fn columns_of(left: &[Panel], right: Side, panels: Range<usize>, scratch: &mut TaskScratch, target: Target) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        match panels.len() {
            1 => columns_of_panels::<1>(left, right, panels.start, scratch, target),
            2 => columns_of_panels::<2>(left, right, panels.start, scratch, target),
            _ => columns_of_panels::<PANELS>(left, right, panels.start, scratch, target),
        }
    }
}

/// # Safety
/// As [`product`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn columns_of_panels<const N: usize>(
    left: &[Panel],
    right: Side,
    first: usize,
    scratch: &mut TaskScratch,
    target: Target,
) {
    let (blocks, tiles) = (right.blocks(), target.rows.div_ceil(ROWS));
    scratch.panels.resize(PANELS, EMPTY);
    if blocks > 1 && scratch.sums.len() < tiles {
        scratch.sums.resize(tiles, [[Line::ZERO; PANELS]; ROWS]);
    }
    for (block, left) in left.chunks(target.rows.div_ceil(LANES)).enumerate() {
        let mut lines = 0;
        for (i, panel) in scratch.panels.iter_mut().enumerate().take(N) {
            // SAFETY: the caller vouches for processor and matrix.
            lines = unsafe { right.pack(first + i, block, panel) };
        }
        let panels: [&[Line]; N] = std::array::from_fn(|i| &scratch.panels[i][..lines]);
        for tile in 0..tiles {
            let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
            if block > 0 {
                for (sums, before) in sums.iter_mut().zip(&scratch.sums[tile]) {
                    for (sum, before) in sums.iter_mut().zip(before) {
                        *sum = _mm512_castsi512_ps(before.load());
                    }
                }
            }
            add(&left[tile * ROWS / LANES][..lines], tile * ROWS % LANES, panels, &mut sums);
            if block + 1 == blocks {
                // SAFETY: the caller vouches for the target.
                unsafe { target.put((tile * ROWS, first * LANES), &sums) };
            } else {
                for (sums, after) in sums.iter().zip(&mut scratch.sums[tile]) {
                    for (sum, after) in sums.iter().zip(after) {
                        after.store(_mm512_castps_si512(*sum));
                    }
                }
            }
        }
    }
}

/// Adds the products of eight rows with some panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn add<const N: usize>(left: &[Line], lane: usize, right: [&[Line]; N], sums: &mut [[__m512; N]; ROWS]) {
    for (i, left) in left.iter().enumerate() {
        let mut of_right = [_mm512_setzero_si512(); N];
        for (of_right, panel) in of_right.iter_mut().zip(right) {
            *of_right = panel[i].load();
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let left = _mm512_set1_epi32(left.0[lane + r] as i32);
            for (sum, right) in sums.iter_mut().zip(of_right) {
                *sum = _mm512_dpbf16_ps(*sum, pairs(left), pairs(right));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ops::testing::{max_diff, values};
    use crate::options::Precision;
    use candle_core::{DType, Device, Result, Tensor};

    #[test]
    fn products_are_those_of_the_rounded_numbers_however_they_lie() -> Result<()> {
        if !Precision::has_fast_bf16() {
            return Ok(());
        }
        let round = |x: &Tensor| x.to_dtype(DType::BF16)?.to_dtype(DType::F32);
        for (rows, columns, depth) in [(1, 1, 1), (9, 50, 33), (16, 48, 192), (40, 97, 515), (17, 3, 7), (5, 20, 300)] {
            let (x, w) = (values(&[rows, depth], 0.1), values(&[columns, depth], 0.2));
            let expected = round(&x)?.matmul(&round(&w)?.t()?)?;
            let numbers = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
            let (x_turned, w_turned) = (numbers(&x.t()?)?, numbers(&w.t()?)?);
            let (x, w) = (numbers(&x)?, numbers(&w)?);
            let lefts = [Matrix::rows(x.as_ptr(), depth), Matrix::rows(x_turned.as_ptr(), rows).transposed()];
            let rights = [Matrix::rows(w.as_ptr(), depth), Matrix::rows(w_turned.as_ptr(), columns).transposed()];
            for (left, right) in lefts.into_iter().flat_map(|left| rights.map(|right| (left, right))) {
                // SAFETY: sizes and strides are those of the numbers above, and the processor was asked.
                let found = unsafe { product((rows, columns, depth), left, right) };
                let found = Tensor::from_vec(found, (rows, columns), &Device::Cpu)?;
                let error = max_diff(&found, &expected);
                assert!(error < 4e-7 * depth as f32 + 1e-6, "{rows} {columns} {depth}: {error}");
            }
        }
        Ok(())
    }
}
