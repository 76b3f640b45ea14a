//! Losses of both training stages.
//!
//! Each loss returns a [`LossSum`]: the sum and the number of its terms. Dividing by the number of terms of a whole
//! step gives the same mean, however the terms are spread over micro-batches.

mod cross_entropy;
mod distillation;
mod precomputed_grad;

pub use cross_entropy::{head_cross_entropy, linear_cross_entropy};
pub use distillation::{current_token_prediction, feature_distillation, vision_distillation};

use candle_core::{DType, Device, Tensor};

use crate::Result;

/// Differentiable sum of loss terms, and the number of terms.
#[derive(Debug, Clone)]
pub struct LossSum {
    /// Sum of the terms: a scalar, f32.
    pub sum: Tensor,
    /// Number of terms, for example labelled tokens. If 0, `sum` is the constant 0.
    pub count: usize,
}

impl LossSum {
    /// Returns an empty sum: 0, without gradient.
    ///
    /// # Errors
    /// From candle only.
    pub fn zero(device: &Device) -> Result<Self> {
        Ok(Self { sum: Tensor::zeros((), DType::F32, device)?, count: 0 })
    }

    /// Returns the mean of the terms, or 0 if there are none.
    ///
    /// # Errors
    /// From candle only.
    pub fn mean(&self) -> Result<Tensor> {
        Ok((&self.sum / self.count.max(1) as f64)?)
    }
}
