//! Split of a matmul `x W^T` into parallel tasks.

use std::ops::Range;

use rayon::prelude::*;

#[cfg(any(test, all(target_arch = "x86_64", not(haplovl_portable))))]
use super::mat::MatMut;

/// Number of weights of one task: enough to hide the cost of a task.
const TASK_WEIGHTS: usize = 1 << 16;
/// Number of rows of `x` up to which tasks split the outputs, so that each weight is read once; beyond, they split the
/// rows.
const FEW_ROWS: usize = 64;
/// Number of outputs of the micro-kernel for floats.
pub const OUTPUTS: usize = 4;
/// Granularity of a task's outputs: the largest number of outputs of a micro-kernel.
pub const TASK_OUTPUTS: usize = 16;

/// Fills (rows, outputs) by tiles: `fill` gets a range of rows, a range of outputs, and the contiguous tile of them.
pub fn parallel_tiles(
    rows: usize,
    outputs: usize,
    width: usize,
    fill: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut y = vec![0f32; rows * outputs];
    if y.is_empty() {
        return y;
    }
    let per_task = (TASK_WEIGHTS / width).next_multiple_of(TASK_OUTPUTS).max(TASK_OUTPUTS);
    if rows <= FEW_ROWS && outputs <= per_task {
        fill(0..rows, 0..outputs, &mut y);
    } else if rows == 1 {
        let parts = y.par_chunks_mut(per_task).enumerate();
        parts.for_each(|(i, part)| fill(0..1, i * per_task..i * per_task + part.len(), part));
    } else if rows <= FEW_ROWS {
        // The outputs of a task are strided in the result, so each task fills a contiguous buffer.
        let starts: Vec<usize> = (0..outputs).step_by(per_task).collect();
        let block = |first: &usize| {
            let count = per_task.min(outputs - first);
            let mut block = vec![0f32; rows * count];
            fill(0..rows, *first..first + count, &mut block);
            block
        };
        let blocks: Vec<Vec<f32>> = starts.par_iter().map(block).collect();
        for (first, block) in starts.iter().zip(&blocks) {
            let count = block.len() / rows;
            for (row, values) in block.chunks(count).enumerate() {
                y[row * outputs + first..][..count].copy_from_slice(values);
            }
        }
    } else {
        let per_task = rows.div_ceil(4 * rayon::current_num_threads()).clamp(16, FEW_ROWS);
        let parts = y.par_chunks_mut(per_task * outputs).enumerate();
        parts.for_each(|(i, part)| {
            let first = i * per_task;
            fill(first..first + part.len() / outputs, 0..outputs, part);
        });
    }
    y
}

/// Fills (rows, outputs) by blocks of columns: `fill` gets a range of outputs and the matrix (rows, outputs of the
/// range).
#[cfg(any(test, all(target_arch = "x86_64", not(haplovl_portable))))]
pub fn parallel_columns(
    rows: usize,
    outputs: usize,
    per_task: usize,
    fill: impl Fn(Range<usize>, MatMut) + Sync,
) -> Vec<f32> {
    let mut y = vec![0f32; rows * outputs];
    let tasks: Vec<MatMut> = MatMut::contiguous(&mut y, (rows, outputs)).column_blocks(per_task).collect();
    tasks.into_par_iter().enumerate().for_each(|(i, out)| {
        let first = i * per_task;
        fill(first..first + out.columns(), out);
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_filled_once_and_end_with_the_outputs() {
        for (rows, outputs) in [(3, 100), (4, 1), (0, 7), (5, 48), (2, 0)] {
            let y = parallel_columns(rows, outputs, 48, |columns, mut out| {
                for row in 0..rows {
                    for first in [0, 16, 32] {
                        let found = out.row_part(row, first, 16);
                        let before = columns.start + first;
                        assert_eq!(found.len(), columns.end.saturating_sub(before).min(16));
                        let places = (before..).map(|column| row * outputs + column);
                        found.iter_mut().zip(places).for_each(|(y, place)| *y += place as f32);
                    }
                }
            });
            assert!(y.iter().enumerate().all(|(place, y)| *y == place as f32), "{rows} {outputs}");
            assert_eq!(y.len(), rows * outputs);
        }
    }

    #[test]
    fn every_element_is_filled_once_also_without_work() {
        let width = 1 << 10;
        for (rows, outputs) in [(1, 3), (1, 300), (5, 300), (FEW_ROWS + 7, 5), (0, 300), (300, 0), (0, 0)] {
            let y = parallel_tiles(rows, outputs, width, |rows, columns, out| {
                assert_eq!(out.len(), rows.len() * columns.len());
                let places = rows.flat_map(|row| columns.clone().map(move |column| row * outputs + column));
                out.iter_mut().zip(places).for_each(|(out, place)| *out += place as f32);
            });
            assert!(y.iter().enumerate().all(|(place, y)| *y == place as f32), "{rows} {outputs}");
            assert_eq!(y.len(), rows * outputs);
        }
    }
}
