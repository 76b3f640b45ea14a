//! Learnable scale of logits, as in CLIP.

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::Result;

/// CLIP's initial temperature of 0.07, as a scale `1 / temperature`.
const INITIAL: f64 = 1.0 / 0.07;
/// CLIP's upper bound of the scale.
const MAX: f64 = 100.0;

/// Positive scale, stored as its logarithm.
#[derive(Debug, Clone)]
pub struct LogitScale(Tensor);

impl LogitScale {
    /// Reads `logit_scale`, one element.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(vb: VarBuilder) -> Result<Self> {
        Ok(Self(vb.get_with_hints(1, "logit_scale", Init::Const(INITIAL.ln()))?))
    }

    /// Computes `min(exp(s), 100)`, one element, f32. Beyond the bound, the gradient is that of `exp(s)`, so that `s`
    /// can return.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn value(&self) -> Result<Tensor> {
        let scale = self.0.to_dtype(DType::F32)?.exp()?;
        let excess = (scale.minimum(MAX)? - &scale)?.detach();
        Ok((scale + excess)?)
    }
}
