//! GEMM of f32 matrices for AVX-512, in f32 or, with AVX512-BF16, of elements rounded to bf16. Sums are f32.
//!
//! Both operands are packed alike: sixteen rows side by side, a register holding one element of each, or two neighbouring
//! ones in bf16. The micro-kernel multiplies three registers of the right operand with eight elements of the left one,
//! each broadcast.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::avx512::{U32x16, lane_mask, transpose_16x16};
use super::mat::{MatMut, MatRef};
use super::matmul::Gemm;
use super::simd_math::AVX512_F32_LANES as LANES;
use crate::options::Precision;

/// Rows of the left operand in the micro-kernel.
const ROWS: usize = LANES / 2;
/// Panels of the right operand in the micro-kernel: all sums stay in registers.
const PANELS: usize = 3;
/// Registers in a panel's depth block: three panels and the left operand's block stay in L1.
const BLOCK: usize = 96;

/// Packed elements: a lane of a register holds some neighbours along the depth.
///
/// # Safety
/// [`with_features`](Self::with_features) must compile its argument for the instructions that the others use.
pub unsafe trait Packed {
    /// Number of neighbours in a lane, at most 2.
    const NEIGHBOURS: usize;

    /// Whether the CPU has the instructions.
    fn is_supported() -> bool;

    /// Calls `f`, which is compiled for the instructions.
    ///
    /// # Safety
    /// The CPU must have them.
    unsafe fn with_features<R>(f: impl FnOnce() -> R) -> R;

    /// Packs consecutive elements of a row.
    ///
    /// # Safety
    /// To be called inside [`with_features`](Self::with_features), as the others below.
    unsafe fn of_row(elements: [__m512; 2]) -> __m512i;

    /// Packs neighbouring columns.
    ///
    /// # Safety
    /// As above.
    unsafe fn of_columns(columns: [__m512; 2]) -> __m512i;

    /// Adds the products of each lane to `sums`.
    ///
    /// # Safety
    /// As above.
    unsafe fn multiply_add(sums: __m512, left: __m512i, right: __m512i) -> __m512;
}

/// Elements as they are.
pub struct F32;

// SAFETY: all is AVX-512 F.
unsafe impl Packed for F32 {
    const NEIGHBOURS: usize = 1;

    fn is_supported() -> bool {
        std::is_x86_feature_detected!("avx512f")
    }

    #[inline(always)]
    unsafe fn with_features<R>(f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f")]
        fn call<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: the caller vouches for the instructions.
        unsafe { call(f) }
    }

    #[inline(always)]
    unsafe fn of_row([elements, _]: [__m512; 2]) -> __m512i {
        // SAFETY: the caller vouches for the instructions.
        unsafe { _mm512_castps_si512(elements) }
    }

    #[inline(always)]
    unsafe fn of_columns([column, _]: [__m512; 2]) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_castps_si512(column) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sums: __m512, left: __m512i, right: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(left), _mm512_castsi512_ps(right), sums) }
    }
}

/// Elements rounded to bf16, two neighbours in a lane.
pub struct Bf16;

/// Reinterprets a register's bits as bf16.
#[inline(always)]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

// SAFETY: all is AVX-512 F, BW and BF16.
unsafe impl Packed for Bf16 {
    const NEIGHBOURS: usize = 2;

    fn is_supported() -> bool {
        Precision::has_fast_bf16()
    }

    #[inline(always)]
    unsafe fn with_features<R>(f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
        fn call<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: the caller vouches for the instructions.
        unsafe { call(f) }
    }

    #[inline(always)]
    unsafe fn of_row([first, second]: [__m512; 2]) -> __m512i {
        // SAFETY: the caller vouches for the instructions; both types of the cast are 512 bits.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
    }

    #[inline(always)]
    unsafe fn of_columns(columns: [__m512; 2]) -> __m512i {
        // The lanes of the first, interleaved with those of the second.
        const ORDER: [u16; 32] = {
            let mut places = [0; 32];
            let mut i = 0;
            while i < 32 {
                places[i] = (i / 2 + LANES * (i % 2)) as u16;
                i += 1;
            }
            places
        };
        // SAFETY: as above, and the array is as long as a register.
        unsafe { _mm512_permutexvar_epi16(_mm512_loadu_si512(ORDER.as_ptr().cast()), Self::of_row(columns)) }
    }

    #[inline(always)]
    unsafe fn multiply_add(sums: __m512, left: __m512i, right: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_dpbf16_ps(sums, as_bf16(left), as_bf16(right)) }
    }
}

/// Sixteen packed rows over a block of the depth.
type PackedPanel = [U32x16; BLOCK];

const EMPTY: PackedPanel = [U32x16::ZERO; BLOCK];

/// Whether the GEMM takes these operands: rows or columns of each are consecutive elements.
pub fn are_packable(left: &MatRef, right: &MatRef) -> bool {
    [left, right].iter().all(|matrix| matrix.column_stride() == 1 || matrix.row_stride() == 1)
}

/// A matrix (rows, depth) that is packed by panels of sixteen rows.
#[derive(Clone, Copy)]
struct Operand<'a>(MatRef<'a>);

impl<'a> Operand<'a> {
    /// An operand whose rows or columns are consecutive elements.
    fn new(matrix: MatRef<'a>) -> Self {
        assert!(matrix.column_stride() == 1 || matrix.row_stride() == 1, "rows or columns must be consecutive");
        Self(matrix)
    }

    fn panels(&self) -> usize {
        self.0.rows().div_ceil(LANES)
    }

    /// Tasks of a right operand.
    fn tasks(&self) -> usize {
        self.panels().div_ceil(PANELS)
    }

    /// The panels of a task; task sizes differ by at most one.
    fn task(&self, task: usize) -> Range<usize> {
        task * self.panels() / self.tasks()..(task + 1) * self.panels() / self.tasks()
    }

    fn blocks<P: Packed>(&self) -> usize {
        self.0.columns().div_ceil(BLOCK * P::NEIGHBOURS)
    }

    /// Packs one panel of a block, zero beyond the matrix. Returns how many registers are used.
    ///
    /// # Safety
    /// To be called inside [`Packed::with_features`].
    #[inline(always)]
    unsafe fn pack<P: Packed>(&self, panel: usize, block: usize, to: &mut PackedPanel) -> usize {
        let (first_row, first) = (panel * LANES, block * BLOCK * P::NEIGHBOURS);
        let rows = (self.0.rows() - first_row).min(LANES);
        let depth = (self.0.columns() - first).min(BLOCK * P::NEIGHBOURS);
        let used = depth.div_ceil(P::NEIGHBOURS);
        let (row_stride, column_stride) = (self.0.row_stride(), self.0.column_stride());
        // SAFETY: the offset of an element of the matrix, which lies in its buffer.
        let start = unsafe { self.0.as_ptr().add(first_row * row_stride + first * column_stride) };
        if column_stride == 1 {
            // Sixteen registers at a time, from sixteen rows.
            for (part, to) in to[..used.next_multiple_of(LANES)].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let at = part * LANES * P::NEIGHBOURS;
                // SAFETY: masked to the elements of the matrix.
                unsafe {
                    let mut along = [_mm512_setzero_si512(); LANES];
                    for (row, along) in along.iter_mut().enumerate().take(rows) {
                        let from = start.add(row * row_stride + at);
                        let mut elements = [_mm512_maskz_loadu_ps(lane_mask(depth - at), from), _mm512_setzero_ps()];
                        if P::NEIGHBOURS == 2 {
                            let mask = lane_mask((depth - at).saturating_sub(LANES));
                            elements[1] = _mm512_maskz_loadu_ps(mask, from.wrapping_add(LANES));
                        }
                        *along = P::of_row(elements);
                    }
                    for (register, column) in to.iter_mut().zip(transpose_16x16(&along)) {
                        register.store(column);
                    }
                }
            }
        } else {
            let mask = lane_mask(rows);
            for (i, register) in to[..used].iter_mut().enumerate() {
                let at = i * P::NEIGHBOURS;
                // SAFETY: elements of a column are consecutive, and masked to those of the matrix.
                unsafe {
                    let mut columns = [_mm512_maskz_loadu_ps(mask, start.add(at * column_stride)), _mm512_setzero_ps()];
                    if P::NEIGHBOURS == 2 && at + 1 < depth {
                        columns[1] = _mm512_maskz_loadu_ps(mask, start.add((at + 1) * column_stride));
                    }
                    register.store(P::of_columns(columns));
                }
            }
        }
        used
    }
}

/// Output of the GEMM, and how results are stored.
struct Output<'a> {
    to: MatMut<'a>,
    /// Factor of the result.
    scale: f32,
    /// Whether the result is added to the elements of `to`.
    accumulate: bool,
}

impl Output<'_> {
    /// Stores eight rows of sums from (row, column) on, as far as the matrix reaches.
    ///
    /// # Safety
    /// The CPU must have AVX-512, for which the caller is compiled.
    #[inline(always)]
    unsafe fn store_tile<const N: usize>(&mut self, (row, column): (usize, usize), sums: &[[__m512; N]; ROWS]) {
        let (rows, columns, stride) = (self.to.rows(), self.to.columns(), self.to.row_stride());
        let start = self.to.as_mut_ptr();
        for (r, sums) in sums.iter().enumerate().take(rows - row) {
            for (p, sum) in sums.iter().enumerate() {
                let column = column + p * LANES;
                let mask = lane_mask(columns.saturating_sub(column));
                // SAFETY: masked to the elements of the matrix.
                unsafe {
                    let to = start.add((row + r) * stride).wrapping_add(column);
                    let before = if self.accumulate { _mm512_maskz_loadu_ps(mask, to) } else { _mm512_setzero_ps() };
                    _mm512_mask_storeu_ps(to, mask, _mm512_fmadd_ps(*sum, _mm512_set1_ps(self.scale), before));
                }
            }
        }
    }
}

/// Multiplies `left (m, k) right (k, n)` on all threads: (m, n), contiguous. No size is zero, and rows or columns of
/// each operand are consecutive.
///
/// An element of the result depends neither on the others nor on the number of threads.
pub fn matmul<P: Packed>(left: MatRef, right: MatRef) -> Vec<f32> {
    assert!(P::is_supported(), "the dispatch checks the CPU");
    let (rows, columns) = (left.rows(), right.columns());
    let (left, right) = (Operand::new(left), Operand::new(right.transposed()));
    let panels = left.panels();
    let needed = panels * left.blocks::<P>();
    // Taken, not borrowed: while this thread waits for others, it may begin another GEMM.
    let mut kept = if needed <= MAX_KEPT_PANELS { PACKED_LEFT.take() } else { Vec::new() };
    if kept.len() < needed {
        kept = vec![EMPTY; needed];
    }
    let packed = &mut kept[..needed];
    packed.par_iter_mut().enumerate().with_min_len(4).for_each(|(i, panel)| {
        // SAFETY: the CPU has the instructions, as asserted.
        unsafe { pack::<P>(left, i % panels, i / panels, panel) };
    });
    let mut out = Vec::with_capacity(rows * columns);
    // SAFETY: the tasks overwrite all elements, and read none.
    let mut rest = unsafe { MatMut::uninit(out.spare_capacity_mut(), (rows, columns)) };
    let mut tasks = Vec::with_capacity(right.tasks());
    for panels in (0..right.tasks()).map(|task| right.task(task)) {
        let (to, others) = rest.split_columns((panels.end * LANES).min(columns) - panels.start * LANES);
        tasks.push((panels, Output { to, scale: 1.0, accumulate: false }));
        rest = others;
    }
    tasks.into_par_iter().for_each_init(TaskScratch::default, |scratch, (panels, mut out)| {
        // SAFETY: as above.
        unsafe { multiply_panels::<P>(packed, right, panels, scratch, &mut out) }
    });
    if needed <= MAX_KEPT_PANELS {
        PACKED_LEFT.set(kept);
    }
    // SAFETY: the tasks have written all rows of all columns.
    unsafe { out.set_len(rows * columns) };
    out
}

/// Maximum number of panels of a packed left operand that a thread keeps: 12 MiB.
const MAX_KEPT_PANELS: usize = 2048;

thread_local! {
    /// Buffer of the longest packed left operand so far, so that not every GEMM allocates and zeroes one.
    static PACKED_LEFT: Cell<Vec<PackedPanel>> = const { Cell::new(Vec::new()) };
}

/// Packing buffers that a thread reuses across GEMMs.
#[derive(Default)]
pub struct Scratch {
    left: Vec<PackedPanel>,
    task: TaskScratch,
}

/// Buffers that a thread reuses across tasks.
#[derive(Default)]
struct TaskScratch {
    /// Packed panels of the right operand.
    panels: Vec<PackedPanel>,
    /// Sums of earlier depth blocks, tile by tile: rows of the result may be too far apart for caches.
    sums: Vec<[[U32x16; PANELS]; ROWS]>,
}

/// GEMM on this thread: `out (m, n) = [out +] scale * left (m, k) right (k, n)`. No size is zero, and rows or columns
/// of each operand are consecutive.
pub fn gemm<P: Packed>(
    Gemm { accumulate, scale, .. }: Gemm,
    to: MatMut,
    left: MatRef,
    right: MatRef,
    scratch: &mut Scratch,
) {
    assert!(P::is_supported(), "the dispatch checks the CPU");
    let mut rest = to;
    let (left, right) = (Operand::new(left), Operand::new(right.transposed()));
    let columns = right.0.rows();
    let panels = left.panels();
    let packed = panels * left.blocks::<P>();
    if scratch.left.len() < packed {
        scratch.left.resize(packed, EMPTY);
    }
    for (i, panel) in scratch.left.iter_mut().enumerate().take(packed) {
        // SAFETY: the CPU has the instructions, as asserted.
        unsafe { pack::<P>(left, i % panels, i / panels, panel) };
    }
    for panels in (0..right.tasks()).map(|task| right.task(task)) {
        let (to, others) = rest.split_columns((panels.end * LANES).min(columns) - panels.start * LANES);
        rest = others;
        let mut out = Output { to, scale, accumulate };
        // SAFETY: as above.
        unsafe { multiply_panels::<P>(&scratch.left[..packed], right, panels, &mut scratch.task, &mut out) };
    }
}

/// [`Operand::pack`], compiled for the instructions.
///
/// # Safety
/// The CPU must have them.
unsafe fn pack<P: Packed>(operand: Operand, panel: usize, block: usize, to: &mut PackedPanel) {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        P::with_features(
            #[inline(always)]
            || operand.pack::<P>(panel, block, to),
        );
    }
}

/// Multiplies by at most [`PANELS`] panels of the right operand, which are the columns of `out`.
///
/// # Safety
/// The CPU must have the instructions.
unsafe fn multiply_panels<P: Packed>(
    left: &[PackedPanel],
    right: Operand,
    panels: Range<usize>,
    scratch: &mut TaskScratch,
    out: &mut Output,
) {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        P::with_features(
            #[inline(always)]
            || match panels.len() {
                1 => multiply_n_panels::<P, 1>(left, right, panels.start, scratch, out),
                2 => multiply_n_panels::<P, 2>(left, right, panels.start, scratch, out),
                _ => multiply_n_panels::<P, PANELS>(left, right, panels.start, scratch, out),
            },
        );
    }
}

/// # Safety
/// To be called inside [`Packed::with_features`].
#[inline(always)]
unsafe fn multiply_n_panels<P: Packed, const N: usize>(
    left: &[PackedPanel],
    right: Operand,
    first: usize,
    scratch: &mut TaskScratch,
    out: &mut Output,
) {
    let (blocks, tiles) = (right.blocks::<P>(), out.to.rows().div_ceil(ROWS));
    scratch.panels.resize(PANELS, EMPTY);
    if blocks > 1 && scratch.sums.len() < tiles {
        scratch.sums.resize(tiles, [[U32x16::ZERO; PANELS]; ROWS]);
    }
    for (block, left) in left.chunks(out.to.rows().div_ceil(LANES)).enumerate() {
        let mut used = 0;
        for (i, panel) in scratch.panels.iter_mut().enumerate().take(N) {
            // SAFETY: as the caller.
            used = unsafe { right.pack::<P>(first + i, block, panel) };
        }
        let panels: [&[U32x16]; N] = std::array::from_fn(|i| &scratch.panels[i][..used]);
        for tile in 0..tiles {
            let left = &left[tile * ROWS / LANES][..used];
            // SAFETY: as the caller.
            unsafe {
                let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
                if block > 0 {
                    for (sums, before) in sums.iter_mut().zip(&scratch.sums[tile]) {
                        for (sum, before) in sums.iter_mut().zip(before) {
                            *sum = _mm512_castsi512_ps(before.load());
                        }
                    }
                }
                micro_kernel::<P, N>(left, tile * ROWS % LANES, panels, &mut sums);
                if block + 1 == blocks {
                    out.store_tile((tile * ROWS, 0), &sums);
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
}

/// Adds the dot products of eight rows, from `lane` on in the left panel, with some panels.
///
/// # Safety
/// To be called inside [`Packed::with_features`].
#[inline(always)]
unsafe fn micro_kernel<P: Packed, const N: usize>(
    left: &[U32x16],
    lane: usize,
    right: [&[U32x16]; N],
    sums: &mut [[__m512; N]; ROWS],
) {
    for (i, left) in left.iter().enumerate() {
        // SAFETY: as the caller.
        unsafe {
            let mut loaded = [_mm512_setzero_si512(); N];
            for (register, panel) in loaded.iter_mut().zip(right) {
                *register = panel[i].load();
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_epi32(left.0[lane + r] as i32);
                for (sum, right) in sums.iter_mut().zip(loaded) {
                    *sum = P::multiply_add(*sum, left, right);
                }
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

    /// The largest difference of our matmuls of some sizes and all layouts from candle's with rounded operands, relative
    /// to what it may be.
    fn error<P: Packed>(round: impl Fn(&Tensor) -> Result<Tensor>) -> Result<f32> {
        let mut worst = 0f32;
        for (rows, columns, depth) in [(1, 1, 1), (9, 50, 33), (16, 48, 192), (40, 97, 515), (17, 3, 7), (5, 20, 300)] {
            let (x, w) = (values(&[rows, depth], 0.1), values(&[columns, depth], 0.2));
            let expected = round(&x)?.matmul(&round(&w)?.t()?)?;
            let elements = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
            let (x_turned, w_turned) = (elements(&x.t()?)?, elements(&w.t()?)?);
            let (x, w) = (elements(&x)?, elements(&w)?);
            let lefts =
                [MatRef::contiguous(&x, (rows, depth)), MatRef::contiguous(&x_turned, (depth, rows)).transposed()];
            let rights = [
                MatRef::contiguous(&w, (columns, depth)).transposed(),
                MatRef::contiguous(&w_turned, (depth, columns)),
            ];
            for (left, right) in lefts.into_iter().flat_map(|left| rights.map(|right| (left, right))) {
                let mut scaled = vec![1.0; rows * columns];
                let gemm = Gemm { accumulate: true, scale: -0.5, precision: Precision::Full };
                let to = MatMut::contiguous(&mut scaled, (rows, columns));
                super::gemm::<P>(gemm, to, left, right, &mut Scratch::default());
                let scaled = Tensor::from_vec(scaled, (rows, columns), &Device::Cpu)?;
                let found = Tensor::from_vec(matmul::<P>(left, right), (rows, columns), &Device::Cpu)?;
                let error = max_diff(&found, &expected).max(max_diff(&scaled, &expected.affine(-0.5, 1.0)?));
                worst = worst.max(error / (4e-7 * depth as f32 + 1e-6));
            }
        }
        Ok(worst)
    }

    #[test]
    fn matmul_equals_the_product_of_rounded_operands_in_any_layout() -> Result<()> {
        if F32::is_supported() {
            // Products are rounded, too; those of bf16 are exact.
            let worst = error::<F32>(|x| Ok(x.clone()))?;
            assert!(worst < 2.0, "f32: {worst} times the bound");
        }
        if Bf16::is_supported() {
            let worst = error::<Bf16>(|x| x.to_dtype(DType::BF16)?.to_dtype(DType::F32))?;
            assert!(worst < 1.0, "bf16: {worst} times the bound");
        }
        Ok(())
    }
}
