//! Linear layer, with the weight in HF's (out, in) order.

use candle_core::{DType, Shape, Tensor};
use candle_nn::VarBuilder;

use super::ops::{self, QuantizedWeight};
use super::{Lora, init};
use crate::options::{Precision, Quantization};
use crate::{Error, Result};

/// Linear layer `x W^T + b`, optionally with a LoRA adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    precision: Precision,
    lora: Option<Lora>,
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
        Self { weight: Weight::Float(weight), bias, precision: Precision::Full, lora: None }
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

    /// The bias, (out).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Replaces the bias of a layer that has one.
    ///
    /// # Errors
    /// [`Error::Weights`] if the shape differs, or the layer has none.
    pub fn set_bias(&mut self, bias: Tensor) -> Result<()> {
        match &mut self.bias {
            Some(before) if before.dims() == bias.dims() => *before = bias,
            before => {
                let before = before.as_ref().map(Tensor::dims);
                return Err(Error::weights(format!("a new bias is {:?}, expected {before:?}", bias.dims())));
            }
        }
        Ok(())
    }

    /// The LoRA adapter.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// The tensors that are trained.
    pub fn trained(&self) -> Vec<&Tensor> {
        let weight = self.weight().ok();
        let lora = self.lora.as_ref().map(Lora::matrices);
        let all = weight.into_iter().chain(&self.bias).chain(lora.into_iter().flatten());
        all.filter(|tensor| tensor.track_op()).collect()
    }

    /// Attaches a LoRA adapter in place of a former one; `None` detaches it.
    ///
    /// # Errors
    /// [`Error::Weights`] if the adapter belongs to a layer of another size.
    pub fn set_lora(&mut self, lora: Option<Lora>) -> Result<()> {
        lora.as_ref().map_or(Ok(()), |lora| self.check_dims(lora.dims2()?))?;
        self.lora = lora;
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
    /// cast. A frozen weight in 16 bits under f32 activations on the CPU is not cast as a whole.
    ///
    /// # Errors
    /// If `x` is not `in` wide.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (out_size, in_size) = self.dims2()?;
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == in_size => *last = out_size,
            _ => return Err(Error::weights(format!("a linear layer of {in_size} inputs got {:?}", x.dims()))),
        }
        self.forward_as(x, shape)
    }

    /// [`Self::forward`] for any shape of `x` and of the result, which splits or merges heads: each `in` consecutive
    /// elements of `x` are a row, and each `out` consecutive elements of the result, which has shape `shape`, are its
    /// output.
    ///
    /// # Errors
    /// If sizes do not fit.
    pub fn forward_as<S: Into<Shape>>(&self, x: &Tensor, shape: S) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(x.dtype())).transpose()?;
        let y = match &self.weight {
            Weight::Float(weight) if is_frozen_half(weight, x) => ops::half_linear_as(x, weight, bias.as_ref(), shape)?,
            Weight::Float(weight) => {
                ops::linear_as(x, &weight.to_dtype(x.dtype())?, bias.as_ref(), self.precision, shape)?
            }
            Weight::Quantized(weight) => ops::quantized_linear_as(x, weight, bias.as_ref(), shape)?,
        };
        self.adapted(y, x)
    }

    /// The result `y` of the layer for `x` with the update of the adapter.
    fn adapted(&self, y: Tensor, x: &Tensor) -> Result<Tensor> {
        match &self.lora {
            Some(lora) => lora.add_to_fresh(y, x),
            None => Ok(y),
        }
    }
}

/// Whether a weight is frozen, in 16 bits, and multiplied with f32 on the CPU.
fn is_frozen_half(weight: &Tensor, x: &Tensor) -> bool {
    let is_half = matches!(weight.dtype(), DType::BF16 | DType::F16);
    is_half && x.dtype() == DType::F32 && x.device().is_cpu() && !weight.track_op()
}
