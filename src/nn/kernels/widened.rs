//! Matmuls with a matrix of fewer bits, whose tiles are widened to f32 in the cache, so that no f32 copy of it exists.

use std::cell::Cell;
use std::convert::Infallible;
use std::ops::Range;

use rayon::prelude::*;

use super::dispatch::GEMV_MAX_ROWS;
use super::gemv::gemv;
use super::mat::{MatMut, MatRef};
use super::matmul::{Gemm, GemmScratch};
use super::parallel::parallel_columns;
use super::simd_math::vectorised;
use crate::options::Precision;

/// Outputs and inputs of a tile: some 256 KiB in f32, for L2. Inputs are whole blocks of every quantisation.
pub const TILE: usize = 256;
/// Most rows of a task of the GEMM, so that many threads find work, and what a task reads and writes is near the size of L2.
const ROWS: usize = 320;
/// Weights that a task of the GEMV widens at a time.
const GEMV_WEIGHTS: usize = 1 << 16;

/// A matrix (outputs, inputs) whose tiles can be widened.
pub trait WidenTile: Sync {
    /// Error of widening.
    type Error: Send;

    /// Numbers of outputs and inputs.
    fn dims2(&self) -> (usize, usize);

    /// Widens the weights of some outputs and inputs into `buffer`, which may be longer and hold anything before, and
    /// returns them as a matrix (outputs, inputs). The first output is a multiple of 16, the first input one of [`TILE`].
    ///
    /// # Errors
    /// If the blocks cannot be read.
    fn widen<'a>(
        &self,
        outputs: Range<usize>,
        inputs: Range<usize>,
        buffer: &'a mut Vec<f32>,
    ) -> Result<MatRef<'a>, Self::Error>;
}

/// Buffers that a thread reuses across tiles.
#[derive(Default)]
struct Scratch {
    tile: Vec<f32>,
    gemm: GemmScratch,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl Scratch {
    /// Calls `f` with this thread's buffers. It takes them, so that a task that runs inside of another one has its own.
    fn with<R>(f: impl FnOnce(&mut Self) -> R) -> R {
        let mut scratch = SCRATCH.take();
        let result = f(&mut scratch);
        SCRATCH.set(scratch);
        result
    }
}

/// `x W^T` for `x` (rows, inputs): (rows, outputs). A row of up to 32 rows has the bits that the GEMV gives for the
/// widened matrix, whatever the other rows.
pub fn matmul_widened(x: &[f32], weight: &impl WidenTile<Error = Infallible>) -> Vec<f32> {
    let (outputs, inputs) = weight.dims2();
    let rows = x.len().checked_div(inputs).unwrap_or_default();
    if rows > GEMV_MAX_ROWS {
        let Ok(y) = gemm_over_tiles(x, (inputs, outputs), |inputs, outputs, buffer| {
            weight.widen(outputs, inputs, buffer).map(MatRef::transposed)
        });
        return y;
    }
    let per_task = (GEMV_WEIGHTS / inputs.max(1)).next_multiple_of(16).max(16);
    parallel_columns(rows, outputs, per_task, |range, mut out| {
        Scratch::with(|Scratch { tile, .. }| {
            let Ok(tile) = weight.widen(range, 0..inputs, tile);
            let y = gemv(x, tile.as_contiguous(), inputs);
            let parts = y.chunks(tile.rows().max(1)).enumerate();
            parts.for_each(|(row, y)| out.row_part(row, 0, usize::MAX).copy_from_slice(y));
        });
    })
}

/// `g W` for `g` (rows, outputs): (rows, inputs).
///
/// # Errors
/// The errors of widening.
pub fn input_gradient<W: WidenTile>(g: &[f32], weight: &W) -> Result<Vec<f32>, W::Error> {
    gemm_over_tiles(g, weight.dims2(), |outputs, inputs, buffer| weight.widen(outputs, inputs, buffer))
}

/// Norms of the rows of `weight + scale * B A`, for `a` (rank, inputs) and `b` (outputs, rank): (outputs).
///
/// # Errors
/// The errors of widening.
pub fn adapted_row_norms<W: WidenTile>(weight: &W, a: &[f32], b: &[f32], scale: f32) -> Result<Vec<f32>, W::Error> {
    let (outputs, inputs) = weight.dims2();
    let rank = b.len().checked_div(outputs).unwrap_or_default();
    let (a, b) = (MatRef::contiguous(a, (rank, inputs)), MatRef::contiguous(b, (outputs, rank)));
    let mut norms = vec![0f32; outputs];
    norms.par_chunks_mut(TILE).enumerate().try_for_each(|(block, norms)| {
        let outputs = block * TILE..block * TILE + norms.len();
        Scratch::with(|Scratch { tile, gemm }| {
            let (mut update, mut squares) = (Vec::new(), vec![0f64; norms.len()]);
            for start in (0..inputs).step_by(TILE) {
                let range = start..inputs.min(start + TILE);
                let tile = weight.widen(outputs.clone(), range.clone(), tile)?;
                let (left, right) = (b.rows_in(outputs.clone()), a.transposed().rows_in(range).transposed());
                add_squares(tile, (left, right, scale), &mut squares, &mut update, gemm);
            }
            norms.iter_mut().zip(squares).for_each(|(norm, square)| *norm = square.sqrt() as f32);
            Ok(())
        })
    })?;
    Ok(norms)
}

/// Adds the squares of the elements of `tile + scale * left right` to the sum of their row. `update` is a buffer.
fn add_squares(
    tile: MatRef,
    (left, right, scale): (MatRef, MatRef, f32),
    squares: &mut [f64],
    update: &mut Vec<f32>,
    scratch: &mut GemmScratch,
) {
    // Rows of a tile from interleaved blocks are its columns in memory.
    let is_transposed = tile.column_stride() != 1;
    let (tile, left, right) =
        if is_transposed { (tile.transposed(), right.transposed(), left.transposed()) } else { (tile, left, right) };
    let (rows, columns) = (tile.rows(), tile.columns());
    update.clear();
    update.resize(rows * columns, 0.0);
    let product = Gemm { accumulate: false, scale, precision: Precision::Full };
    product.run(MatMut::contiguous(update, (rows, columns)), left, right, scratch);
    vectorised(
        #[inline(always)]
        || {
            for (row, update) in update.chunks(columns.max(1)).enumerate() {
                match is_transposed {
                    true => squares.iter_mut().zip(tile.row(row)).zip(update).for_each(|((sum, weight), update)| {
                        *sum += f64::from(weight + update).powi(2);
                    }),
                    false => squares[row] += sum_of_squares(tile.row(row), update),
                }
            }
        },
    );
}

/// Sum of the squares of `x + y`, in lanes, so that the compiler can vectorise the loop.
#[inline(always)]
fn sum_of_squares(x: &[f32], y: &[f32]) -> f64 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    let mut lanes = [0f64; 16];
    for (x, y) in x.iter().zip(y) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += f64::from(x + y).powi(2);
        }
    }
    let rest = x_rest.iter().zip(y_rest).map(|(x, y)| f64::from(x + y).powi(2));
    lanes.into_iter().chain(rest).sum()
}

/// `left right` for `left` (rows, depth) and a matrix (depth, columns) of which `widen` gives tiles: (rows, columns).
///
/// # Errors
/// The errors of widening.
fn gemm_over_tiles<E: Send>(
    left: &[f32],
    (depth, columns): (usize, usize),
    widen: impl for<'a> Fn(Range<usize>, Range<usize>, &'a mut Vec<f32>) -> Result<MatRef<'a>, E> + Sync,
) -> Result<Vec<f32>, E> {
    let rows = left.len().checked_div(depth).unwrap_or_default();
    let mut out = vec![0f32; rows * columns];
    if out.is_empty() {
        return Ok(out);
    }
    // Blocks of rows, as equal as can be.
    let per_block = rows.div_ceil(rows.div_ceil(ROWS));
    let blocks = MatMut::contiguous(&mut out, (rows, columns)).row_blocks(per_block);
    let tasks = blocks
        .zip(left.chunks(per_block * depth))
        .flat_map(|(out, left)| out.column_blocks(TILE).enumerate().map(move |(block, out)| (left, block * TILE, out)));
    Vec::from_iter(tasks).into_par_iter().try_for_each(|(left, first, mut out)| {
        let (rows, columns) = (out.rows(), out.columns());
        Scratch::with(|Scratch { tile, gemm }| {
            for start in (0..depth).step_by(TILE) {
                let range = start..depth.min(start + TILE);
                let left = MatRef::new(&left[start..], (rows, range.len()), depth);
                let right = widen(range, first..first + columns, tile)?;
                let product = Gemm { accumulate: start > 0, scale: 1.0, precision: Precision::Full };
                product.run(out.tile(0..rows, 0..columns), left, right, gemm);
            }
            Ok(())
        })
    })?;
    Ok(out)
}
