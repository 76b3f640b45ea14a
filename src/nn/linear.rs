//! A linear layer, with the weight in HF's (out, in) order.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{init, ops};
use crate::Result;

/// `x W^T + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` (out, in) and, if asked for, `bias` (out).
    ///
    /// # Errors
    /// If the store has no such tensors, or of another shape.
    pub fn new(in_size: usize, out_size: usize, bias: bool, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((out_size, in_size), "weight", init(in_size))?;
        let bias = bias.then(|| vb.get_with_hints(out_size, "bias", candle_nn::Init::Const(0.0))).transpose()?;
        Ok(Self { weight, bias })
    }

    /// A layer from its tensors: `weight` (out, in), `bias` (out).
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The weight, (out, in).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// (.., in) -> (.., out). Weights of another number type are cast to that of `x`; gradients pass through the cast.
    ///
    /// # Errors
    /// If `x` is not `in` wide.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let cast = |t: &Tensor| t.to_dtype(x.dtype());
        let bias = self.bias.as_ref().map(cast).transpose()?;
        Ok(ops::linear(x, &cast(&self.weight)?, bias.as_ref())?)
    }
}
