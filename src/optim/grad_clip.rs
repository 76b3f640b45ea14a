//! Gradient clipping by global norm.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::Gradients;
use crate::nn::ops::on_pool;
use crate::nn::tensor_data::{CHUNK, is_host_f32, with_slice};
use crate::{Error, Result};

/// The Euclidean norm of all gradients together, 0 if there are none.
///
/// Squares are summed in f64 in fixed chunks and in order of names, so that the result is deterministic and independent
/// of the number of threads (on a GPU: in f32 within a tensor).
///
/// # Errors
/// [`Error::Training`] naming the first gradient that contains NaN or infinity.
pub fn global_norm(gradients: &Gradients) -> Result<f64> {
    squared_norm(gradients).map(f64::sqrt)
}

/// The square of [`global_norm`], to be added up over the shards of several ranks.
///
/// # Errors
/// As [`global_norm`].
pub fn squared_norm(gradients: &Gradients) -> Result<f64> {
    on_pool(&gradients.device(), || {
        let mut total = 0.0;
        for (name, gradient) in gradients.iter() {
            let sum = sum_of_squares(gradient)?;
            if !sum.is_finite() {
                return Err(Error::training(format!(
                    "the gradient of `{name}` {:?} is not finite: lower the learning rate, or check the samples of \
                     this step",
                    gradient.dims()
                )));
            }
            total += sum;
        }
        Ok(total)
    })
}

/// The factor, at most 1, that scales gradients of norm `norm` down to `max_norm`.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    if norm > max_norm { max_norm / norm } else { 1.0 }
}

fn sum_of_squares(gradient: &Tensor) -> Result<f64> {
    if !is_host_f32(gradient) {
        return Ok(gradient.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>()?.into());
    }
    let partial: Vec<f64> = with_slice(gradient, |values| values.par_chunks(CHUNK).map(chunk_sum).collect())?;
    Ok(partial.iter().sum())
}

/// Sum of squares with eight partial sums, because the compiler may not reorder a single sum into vector lanes.
fn chunk_sum(values: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (eights, rest) = values.as_chunks::<8>();
    for eight in eights {
        lanes.iter_mut().zip(eight).for_each(|(lane, &x)| *lane += f64::from(x) * f64::from(x));
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
}
