//! How threads share a product `x W^T`.

use std::ops::Range;

use rayon::prelude::*;

use super::shared_mut::SharedMut;

/// Weights of one task: enough work to be worth a thread.
const TASK_WEIGHTS: usize = 1 << 16;
/// Up to this many rows of `x`, tasks share the weights, so that each is read once.
const FEW_ROWS: usize = 64;
/// Outputs that kernels for floats take together.
pub const OUTPUTS: usize = 4;
/// Those of a task are a multiple of this, which is the most that any of the kernels that share it takes together.
pub const TASK_OUTPUTS: usize = 16;

/// Fills (rows, outputs) by blocks: `fill` is given some rows, some outputs, and the block (rows, outputs) to fill.
pub fn in_blocks(
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
        // Outputs of a task are apart in the result, so each fills a block of its own.
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

/// Fills (rows, outputs) by columns: `fill` is given some outputs and the place to put their products.
pub fn in_columns(
    rows: usize,
    outputs: usize,
    per_task: usize,
    fill: impl Fn(Range<usize>, &mut Columns) + Sync,
) -> Vec<f32> {
    let mut y = vec![0f32; rows * outputs];
    let shared = SharedMut::new(&mut y);
    let starts: Vec<usize> = (0..outputs).step_by(per_task).collect();
    starts.par_iter().for_each(|&first| {
        let columns = first..outputs.min(first + per_task);
        fill(columns.clone(), &mut Columns { y: shared, rows, stride: outputs, columns });
    });
    y
}

/// Some columns of a matrix of floats, which nothing else uses meanwhile.
pub struct Columns {
    y: SharedMut,
    rows: usize,
    stride: usize,
    columns: Range<usize>,
}

impl Columns {
    /// Those of a row from the `first` on, at most so many; none where they are beyond the last.
    #[inline(always)]
    pub fn of_row(&mut self, row: usize, first: usize, most: usize) -> &mut [f32] {
        let first = (self.columns.start + first).min(self.columns.end);
        let len = most.min(self.columns.end - first);
        assert!(row < self.rows);
        // SAFETY: inside of the matrix, and in columns that are this one's.
        unsafe { self.y.slice(row * self.stride + first, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_filled_row_by_row_and_end_where_the_outputs_end() {
        for (rows, outputs) in [(3, 100), (4, 1), (0, 7), (5, 48), (2, 0)] {
            let y = in_columns(rows, outputs, 48, |columns, out| {
                for row in 0..rows {
                    for first in [0, 16, 32] {
                        let found = out.of_row(row, first, 16);
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
    fn every_place_is_filled_once_and_nothing_is_no_work() {
        let width = 1 << 10;
        for (rows, outputs) in [(1, 3), (1, 300), (5, 300), (FEW_ROWS + 7, 5), (0, 300), (300, 0), (0, 0)] {
            let y = in_blocks(rows, outputs, width, |rows, columns, out| {
                assert_eq!(out.len(), rows.len() * columns.len());
                let places = rows.flat_map(|row| columns.clone().map(move |column| row * outputs + column));
                out.iter_mut().zip(places).for_each(|(out, place)| *out += place as f32);
            });
            assert!(y.iter().enumerate().all(|(place, y)| *y == place as f32), "{rows} {outputs}");
            assert_eq!(y.len(), rows * outputs);
        }
    }
}
