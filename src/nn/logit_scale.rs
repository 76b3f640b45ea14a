//! The learnt scale of similarities, as CLIP has it.

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::Result;

/// CLIP's start, `1 / temperature` of 0.07.
const INITIAL: f64 = 1.0 / 0.07;
/// CLIP's bound.
const MAX: f64 = 100.0;

/// A positive scale, kept as its logarithm.
#[derive(Debug, Clone)]
pub struct LogitScale(Tensor);

impl LogitScale {
    /// Reads `logit_scale`, one element.
    ///
    /// # Errors
    /// If the store has no such tensor, or of another shape.
    pub fn new(vb: VarBuilder) -> Result<Self> {
        Ok(Self(vb.get_with_hints(1, "logit_scale", Init::Const(INITIAL.ln()))?))
    }

    /// `min(exp(s), 100)`, one element, f32. Beyond the bound the gradient is that of `exp(s)`, so that it can come back.
    ///
    /// # Errors
    /// From candle only.
    pub fn value(&self) -> Result<Tensor> {
        let scale = self.0.to_dtype(DType::F32)?.exp()?;
        let excess = (scale.minimum(MAX)? - &scale)?.detach();
        Ok((scale + excess)?)
    }
}
