//! Losses of both training stages.
//!
//! Each is a [`LossSum`]: a sum with the number of its terms, so that the mean can be taken over all micro-batches of
//! a step, however the terms are spread over them.

mod cross_entropy;
mod distillation;
mod precomputed_grad;

pub use cross_entropy::linear_cross_entropy;
pub use distillation::{current_token_prediction, feature_distillation, vision_distillation};

use candle_core::{DType, Device, Tensor};

use crate::Result;

/// A sum of loss terms, differentiable, and how many they are.
#[derive(Debug, Clone)]
pub struct LossSum {
    /// The sum, a scalar, f32.
    pub sum: Tensor,
    /// Number of terms, such as labelled tokens; 0 makes `sum` a constant 0.
    pub count: usize,
}

impl LossSum {
    /// A sum of nothing: 0, and no gradient.
    ///
    /// # Errors
    /// From candle only.
    pub fn zero(device: &Device) -> Result<Self> {
        Ok(Self { sum: Tensor::zeros((), DType::F32, device)?, count: 0 })
    }

    /// The mean over the terms, 0 if there is none.
    ///
    /// # Errors
    /// From candle only.
    pub fn mean(&self) -> Result<Tensor> {
        Ok((&self.sum / self.count.max(1) as f64)?)
    }
}
