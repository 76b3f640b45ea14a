//! Normalisations of a decoder: RMSNorm and layer norm.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::{ParameterSlot, ParameterVisitor, ops};
use crate::Result;
use crate::config::NormKind;

/// Normalisation over the last dimension, accumulated in f32.
#[derive(Debug, Clone)]
pub struct Norm {
    weight: Tensor,
    /// Bias of a layer norm.
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    /// Reads `weight` (size) and, for layer norm, `bias` (size).
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(kind: NormKind, size: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(size, "weight", Init::Const(1.0))?;
        let bias = match kind {
            NormKind::LayerNorm => Some(vb.get_with_hints(size, "bias", Init::Const(0.0))?),
            NormKind::RmsNorm => None,
        };
        Ok(Self { weight, bias, eps })
    }

    /// Visits weight and bias, `name` being this module's name in the checkpoint.
    pub fn visit_parameters(&mut self, name: &str, visit: &mut ParameterVisitor<'_>) {
        visit(&format!("{name}.weight"), ParameterSlot::Tensor(&mut self.weight));
        if let Some(bias) = &mut self.bias {
            visit(&format!("{name}.bias"), ParameterSlot::Tensor(bias));
        }
    }

    /// Normalises (.., size) -> (.., size).
    ///
    /// # Errors
    /// If `x` is not `size` wide.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.bias {
            Some(bias) => ops::layer_norm(x, &self.weight, bias, self.eps)?,
            None => ops::rms_norm(x, &self.weight, self.eps)?,
        })
    }
}
