//! Linear layer, with the weight in HF's (out, in) order.

use candle_core::{Shape, Tensor};
use candle_nn::VarBuilder;

use super::init;
use super::ops::{self, QuantizedWeight};
use crate::options::{Precision, Quantization};
use crate::{Error, Result};

/// Linear layer `x W^T + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    precision: Precision,
}

#[derive(Debug, Clone)]
enum Weight {
    Float(Tensor),
    Quantized(QuantizedWeight),
}

impl Linear {
    /// Reads `weight` (out, in) and, with `bias`, `bias` (out).
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(in_size: usize, out_size: usize, bias: bool, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((out_size, in_size), "weight", init(in_size))?;
        let bias = bias.then(|| vb.get_with_hints(out_size, "bias", candle_nn::Init::Const(0.0))).transpose()?;
        Ok(Self::from_tensors(weight, bias))
    }

    /// A layer from its tensors: `weight` (out, in), `bias` (out).
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Float(weight), bias, precision: Precision::Full }
    }

    /// The weight, (out, in).
    ///
    /// # Errors
    /// [`Error::Weights`] if it is quantised.
    pub fn weight(&self) -> Result<&Tensor> {
        match &self.weight {
            Weight::Float(weight) => Ok(weight),
            Weight::Quantized(_) => Err(Error::weights(
                "the weights are quantised, and this needs floats: load the model without quantisation",
            )),
        }
    }

    /// The weight, if it is quantised.
    pub fn quantized_weight(&self) -> Option<&QuantizedWeight> {
        match &self.weight {
            Weight::Quantized(weight) => Some(weight),
            Weight::Float(_) => None,
        }
    }

    /// Quantises the weight; a quantised weight is unchanged.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn quantize(&mut self, kind: Quantization) -> Result<()> {
        if let Weight::Float(weight) = &self.weight {
            self.weight = Weight::Quantized(QuantizedWeight::quantize(weight, kind)?);
        }
        Ok(())
    }

    /// Sets the precision of the matmul on the CPU, if the weight is not quantised.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Replaces the weight by another one of the same shape.
    ///
    /// # Errors
    /// [`Error::Weights`] if the shape differs.
    pub fn set_weight(&mut self, weight: Tensor) -> Result<()> {
        self.check_dims(weight.dims2()?)?;
        self.weight = Weight::Float(weight);
        Ok(())
    }

    /// Replaces the weight by a quantised one of the same shape.
    ///
    /// # Errors
    /// [`Error::Weights`] if the shape differs.
    pub fn set_quantized(&mut self, weight: QuantizedWeight) -> Result<()> {
        self.check_dims(weight.dims2()?)?;
        self.weight = Weight::Quantized(weight);
        Ok(())
    }

    fn check_dims(&self, found: (usize, usize)) -> Result<()> {
        let expected = self.dims2()?;
        if found != expected {
            return Err(Error::weights(format!("a new weight is {found:?}, expected {expected:?}")));
        }
        Ok(())
    }

    /// Numbers of outputs and inputs.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        Ok(match &self.weight {
            Weight::Float(weight) => weight.dims2()?,
            Weight::Quantized(weight) => weight.dims2()?,
        })
    }

    /// Projects (.., in) -> (.., out). A weight of another dtype is cast to that of `x`; gradients pass through the
    /// cast.
    ///
    /// # Errors
    /// If `x` is not `in` wide.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias_as(x)?;
        Ok(match &self.weight {
            Weight::Float(weight) => ops::linear_with(x, &weight.to_dtype(x.dtype())?, bias.as_ref(), self.precision)?,
            Weight::Quantized(weight) => ops::quantized_linear(x, weight, bias.as_ref())?,
        })
    }

    /// [`Self::forward`] for any shape of `x` and of the result, which splits or merges heads: each `in` consecutive
    /// elements of `x` are a row, and each `out` consecutive elements of the result, which has shape `shape`, are its
    /// output.
    ///
    /// # Errors
    /// If sizes do not fit.
    pub fn forward_as<S: Into<Shape>>(&self, x: &Tensor, shape: S) -> Result<Tensor> {
        let bias = self.bias_as(x)?;
        Ok(match &self.weight {
            Weight::Float(weight) => {
                ops::linear_as(x, &weight.to_dtype(x.dtype())?, bias.as_ref(), self.precision, shape)?
            }
            Weight::Quantized(weight) => {
                let rows = x.reshape(((), weight.dims2()?.1))?;
                ops::quantized_linear(&rows, weight, bias.as_ref())?.reshape(shape.into())?
            }
        })
    }

    fn bias_as(&self, x: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.bias.as_ref().map(|bias| bias.to_dtype(x.dtype())).transpose()?)
    }
}
