//! Matmuls with a matrix of fewer bits, whose tiles are widened to f32 in the cache, so that no f32 copy of it exists.

use std::convert::Infallible;
use std::ops::Range;

use rayon::prelude::*;

use super::dispatch::GEMV_MAX_ROWS;
use super::gemv::gemv;
use super::mat::{MatMut, MatRef};
use super::matmul::{Gemm, GemmScratch};
use super::parallel::parallel_columns;
use crate::options::Precision;

/// Rows and columns of a tile: 256 KiB in f32, which L2 holds. Columns are whole blocks of every quantisation.
pub const TILE: usize = 256;
/// Weights that a task of a forward pass widens at a time.
const FORWARD_WEIGHTS: usize = 1 << 16;

/// A matrix (outputs, inputs) whose tiles can be widened.
pub trait WidenTile: Sync {
    /// Error of widening.
    type Error: Send;

    /// Numbers of outputs and inputs.
    fn dims2(&self) -> (usize, usize);

    /// Writes the weights of some outputs and inputs into `tile`, row by row; returns the distance of its rows, which
    /// may be padded. The first output is a multiple of 16, the first input one of [`TILE`].
    ///
    /// # Errors
    /// If the blocks cannot be read.
    fn widen(&self, outputs: Range<usize>, inputs: Range<usize>, tile: &mut Vec<f32>) -> Result<usize, Self::Error>;
}

/// `x W^T` for `x` (rows, inputs): (rows, outputs). A row of up to 32 rows has the bits that the GEMV gives for the
/// widened matrix, whatever the other rows.
pub fn matmul_widened(x: &[f32], weight: &impl WidenTile<Error = Infallible>) -> Vec<f32> {
    let (outputs, inputs) = weight.dims2();
    let rows = x.len().checked_div(inputs).unwrap_or_default();
    let per_task = (FORWARD_WEIGHTS / inputs.max(1)).next_multiple_of(16).max(16);
    parallel_columns(rows, outputs, per_task, |range, mut out| {
        let mut tile = Vec::new();
        let Ok(stride) = weight.widen(range.clone(), 0..inputs, &mut tile);
        if rows <= GEMV_MAX_ROWS && stride == inputs && inputs > 0 {
            let y = gemv(x, &tile, inputs);
            let parts = y.chunks(range.len().max(1)).enumerate();
            parts.for_each(|(row, y)| out.row_part(row, 0, usize::MAX).copy_from_slice(y));
        } else {
            let tile = MatRef::new(&tile, (range.len(), inputs), stride);
            run(false, out, MatRef::contiguous(x, (rows, inputs)), tile.transposed());
        }
    })
}

/// `g W` for `g` (rows, outputs): (rows, inputs).
///
/// # Errors
/// The errors of widening.
pub fn input_gradient<W: WidenTile>(g: &[f32], weight: &W) -> Result<Vec<f32>, W::Error> {
    let (outputs, inputs) = weight.dims2();
    let rows = g.len().checked_div(outputs).unwrap_or_default();
    let mut dx = vec![0f32; rows * inputs];
    if dx.is_empty() {
        return Ok(dx);
    }
    let tasks: Vec<MatMut> = MatMut::contiguous(&mut dx, (rows, inputs)).column_blocks(TILE).collect();
    tasks.into_par_iter().enumerate().try_for_each(|(task, mut out)| {
        let (first, columns, mut tile) = (task * TILE, out.columns(), Vec::new());
        for start in (0..outputs).step_by(TILE) {
            let range = start..outputs.min(start + TILE);
            let stride = weight.widen(range.clone(), first..first + columns, &mut tile)?;
            let right = MatRef::new(&tile, (range.len(), columns), stride);
            let left = MatRef::new(&g[start..], (rows, range.len()), outputs);
            run(start > 0, out.tile(0..rows, 0..columns), left, right);
        }
        Ok(())
    })?;
    Ok(dx)
}

fn run(accumulate: bool, out: MatMut, left: MatRef, right: MatRef) {
    let gemm = Gemm { accumulate, scale: 1.0, precision: Precision::Full };
    gemm.run(out, left, right, &mut GemmScratch::default());
}
