//! Principal component analysis of an embedding table.

use candle_core::{DType, Device, Tensor};
use candle_nn::Init;
use rayon::prelude::*;

use crate::Result;
use crate::weights::init::initial_tensor;

/// Rows of the table in one matmul.
const ROWS: usize = 8192;
/// Rounds of orthogonal iteration. Only the spanned subspace matters, which converges much faster than the single
/// directions.
const ROUNDS: usize = 12;

/// The top `count` principal directions of the rows of `table` (`[n, width]`, f32), as orthonormal rows
/// `[count, width]`, on the CPU.
///
/// The table is not centred: these directions minimise the error of a projection and back-projection without a bias. If
/// `count` is at least `width`, the projection is lossless: the result is the identity, followed by zero rows.
///
/// # Errors
/// [`Error::Candle`](crate::Error::Candle) if `table` is not a matrix of floats.
pub fn principal_components(table: &Tensor, count: usize) -> Result<Tensor> {
    let (_, width) = table.dims2()?;
    if count >= width {
        let identity = Tensor::eye(width, DType::F32, &Device::Cpu)?;
        return Ok(identity.pad_with_zeros(0, 0, count - width)?);
    }
    let moment = second_moment(table)?;
    let start = Init::Randn { mean: 0.0, stdev: 1.0 };
    let shape = (count, width).into();
    let mut basis = initial_tensor(start, &shape, 0, "principal components", DType::F64, &Device::Cpu)?;
    for _ in 0..ROUNDS {
        basis = orthonormal_rows(&basis.matmul(&moment)?)?;
    }
    Ok(basis.to_dtype(DType::F32)?)
}

/// `table^T table`, `[width, width]`, in f64.
fn second_moment(table: &Tensor) -> Result<Tensor> {
    let (rows, width) = table.dims2()?;
    let mut moment = Tensor::zeros((width, width), DType::F64, &Device::Cpu)?;
    for start in (0..rows).step_by(ROWS) {
        let part = table.narrow(0, start, ROWS.min(rows - start))?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        moment = (moment + part.t()?.matmul(&part)?.to_dtype(DType::F64)?)?;
    }
    Ok(moment)
}

/// Orthonormalises rows by the modified, numerically stable Gram-Schmidt process. Linearly dependent rows become zero.
fn orthonormal_rows(matrix: &Tensor) -> Result<Tensor> {
    let (count, width) = matrix.dims2()?;
    let mut values = matrix.flatten_all()?.to_vec1::<f64>()?;
    let largest = values.iter().fold(0.0, |largest: f64, v| largest.max(v.abs()));
    let mut rest = values.as_mut_slice();
    while let Some((row, later)) = rest.split_at_mut_checked(width) {
        normalise(row, largest * 1e-12);
        let row = &*row;
        later.par_chunks_mut(width.max(1)).for_each(|other| {
            let along: f64 = row.iter().zip(&*other).map(|(a, b)| a * b).sum();
            other.iter_mut().zip(row).for_each(|(value, a)| *value -= along * a);
        });
        if later.is_empty() {
            break;
        }
        rest = later;
    }
    Ok(Tensor::from_vec(values, (count, width), &Device::Cpu)?)
}

fn normalise(row: &mut [f64], negligible: f64) {
    let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let scale = if length > negligible { 1.0 / length } else { 0.0 };
    row.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, columns: usize, name: &str) -> Tensor {
        let init = Init::Randn { mean: 0.0, stdev: 1.0 };
        initial_tensor(init, &(rows, columns).into(), 5, name, DType::F32, &Device::Cpu).unwrap()
    }

    fn largest(tensor: &Tensor) -> f32 {
        tensor.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn a_low_rank_table_is_reconstructed() {
        let table = random(300, 6, "a").matmul(&random(6, 20, "b")).unwrap();
        let down = principal_components(&table, 6).unwrap();
        assert_eq!(down.dims(), [6, 20]);
        let gram = down.matmul(&down.t().unwrap()).unwrap();
        let identity = Tensor::eye(6, DType::F32, &Device::Cpu).unwrap();
        assert!(largest(&(gram - identity).unwrap()) < 1e-5);
        let back = table.matmul(&down.t().unwrap()).unwrap().matmul(&down).unwrap();
        assert!(largest(&(back - &table).unwrap()) < 1e-3);
    }

    #[test]
    fn the_directions_of_largest_variance_are_kept() {
        let strengths: Vec<f32> = (0..16).map(|i| if i % 4 == 1 { 10.0 } else { 0.1 }).collect();
        let table = random(500, 16, "t").broadcast_mul(&Tensor::new(strengths, &Device::Cpu).unwrap()).unwrap();
        let down = principal_components(&table, 4).unwrap();
        let share = down.sqr().unwrap().sum(0).unwrap().to_vec1::<f32>().unwrap();
        for (i, share) in share.iter().enumerate() {
            assert!((share - if i % 4 == 1 { 1.0 } else { 0.0 }).abs() < 1e-2, "{i}: {share}");
        }
    }

    #[test]
    fn projection_to_full_width_is_lossless() {
        let table = random(10, 3, "t");
        let down = principal_components(&table, 5).unwrap();
        let back = table.matmul(&down.t().unwrap()).unwrap().matmul(&down).unwrap();
        assert_eq!(largest(&(back - &table).unwrap()), 0.0);
    }

    #[test]
    fn directions_beyond_the_rank_are_zero() {
        let table = random(2, 8, "t");
        let down = principal_components(&table, 4).unwrap();
        let values = down.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|v| v.is_finite()));
        let back = table.matmul(&down.t().unwrap()).unwrap().matmul(&down).unwrap();
        assert!(largest(&(back - &table).unwrap()) < 1e-4);
    }
}
