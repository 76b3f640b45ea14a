//! Split of a matmul `x W^T` into parallel tasks.

use std::ops::Range;

use rayon::prelude::*;

use super::mat::MatMut;

/// Number of outputs of the micro-kernel for floats.
pub const OUTPUTS: usize = 4;

/// Fills (rows, outputs) by blocks of columns: `fill` gets a range of outputs and the matrix (rows, outputs of the
/// range).
pub fn parallel_columns(
    rows: usize,
    outputs: usize,
    per_task: usize,
    fill: impl Fn(Range<usize>, MatMut) + Sync,
) -> Vec<f32> {
    let mut y = vec![0f32; rows * outputs];
    if outputs <= per_task {
        fill(0..outputs, MatMut::contiguous(&mut y, (rows, outputs)));
        return y;
    }
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
}
