//! Resizing a grid of position embeddings.

use candle_core::{DType, Device, Tensor};

use crate::Result;

/// Resamples `[n, n, width]` to `[side, side, width]` bicubically, as PyTorch's `interpolate` does with `align_corners
/// = false` and without anti-aliasing. A grid of the requested size is returned unchanged, bit for bit.
pub(super) fn resample_grid(grid: &Tensor, side: usize) -> Result<Tensor> {
    let (rows, columns, width) = grid.dims3()?;
    if (rows, columns) == (side, side) {
        return Ok(grid.clone());
    }
    // Both directions use the same small weight matrix: first over rows, then over columns.
    let down = weights(rows, side)?.matmul(&grid.reshape((rows, columns * width))?)?;
    let across = weights(columns, side)?;
    let down = down.reshape((side, columns, width))?;
    Ok(across.broadcast_matmul(&down)?)
}

/// Interpolation weights `[to, from]`: row `i` holds the weights of the source points for target point `i`.
fn weights(from: usize, to: usize) -> Result<Tensor> {
    let mut weights = vec![0f64; from * to];
    for (i, row) in weights.chunks_mut(from.max(1)).enumerate() {
        let centre = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let left = centre.floor();
        for offset in -1..=2 {
            let at = left + f64::from(offset);
            // Border points are repeated beyond the border.
            let index = at.clamp(0.0, from as f64 - 1.0) as usize;
            if let Some(weight) = row.get_mut(index) {
                *weight += cubic(centre - at);
            }
        }
    }
    Ok(Tensor::from_vec(weights, (to, from), &Device::Cpu)?.to_dtype(DType::F32)?)
}

/// Keys' convolution kernel with a = -0.75.
fn cubic(distance: f64) -> f64 {
    const A: f64 = -0.75;
    let x = distance.abs();
    match x {
        x if x <= 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(values: &[f32], side: usize) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap().reshape((side, side, 1)).unwrap()
    }

    #[test]
    fn a_grid_of_the_same_size_is_unchanged() {
        let values: Vec<f32> = (0..9).map(|v| v as f32 * 0.37).collect();
        let same = resample_grid(&grid(&values, 3), 3).unwrap();
        assert_eq!(same.flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
    }

    #[test]
    fn a_constant_stays_constant() {
        for side in [1, 2, 5, 7] {
            let resized = resample_grid(&grid(&[2.5; 16], 4), side).unwrap();
            assert_eq!(resized.dims(), [side, side, 1]);
            let values = resized.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values.iter().all(|v| (v - 2.5).abs() < 1e-6), "{values:?}");
        }
    }

    #[test]
    fn rows_and_columns_are_not_swapped() {
        // Computed by hand: 4 points from 2 lie at -1/4, 1/4, 3/4, 5/4; the kernel at 5/4 is -0.10546875, and at 3/4
        // and 7/4 together 0.2265625.
        let resized = resample_grid(&grid(&[0.0, 1.0, 10.0, 11.0], 2), 4).unwrap();
        let values = resized.squeeze(2).unwrap().to_vec2::<f32>().unwrap();
        let unit = [-0.10546875, 0.2265625, 1.0 - 0.2265625, 1.0 + 0.10546875];
        for (i, row) in values.iter().enumerate() {
            for (j, value) in row.iter().enumerate() {
                assert!((value - (10.0 * unit[i] + unit[j])).abs() < 1e-5, "{i} {j} {value}");
            }
        }
    }
}
