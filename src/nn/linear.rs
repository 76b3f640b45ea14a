//! Linear layer, with the weight in HF's (out, in) order.

use candle_core::{DType, Shape, Tensor};
use candle_nn::VarBuilder;

use super::ops::{self, QuantizedWeight, RowScale};
use super::{Lora, init};
use crate::options::{Precision, Quantization};
use crate::{Error, Result};

/// Linear layer `x W^T + b`, optionally with a LoRA or DoRA adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    precision: Precision,
    lora: Option<Lora>,
    /// What a DoRA adapter scales rows by, if it is held.
    held: Option<HeldScale>,
}

/// A DoRA adapter's magnitude and the norms of the rows of the adapted weight; or, without norms, their quotient.
#[derive(Debug, Clone)]
struct HeldScale {
    magnitude: Tensor,
    norms: Option<Tensor>,
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
        Self { weight: Weight::Float(weight), bias, precision: Precision::Full, lora: None, held: None }
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
            self.replace(Weight::Quantized(QuantizedWeight::quantize(weight, kind)?));
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
        self.replace(Weight::Float(weight));
        Ok(())
    }

    /// Replaces the weight by a quantised one of the same shape.
    ///
    /// # Errors
    /// [`Error::Weights`] if the shape differs.
    pub fn set_quantized(&mut self, weight: QuantizedWeight) -> Result<()> {
        self.check_dims(weight.dims2()?)?;
        self.replace(Weight::Quantized(weight));
        Ok(())
    }

    /// Norms of another weight are computed again.
    fn replace(&mut self, weight: Weight) {
        (self.weight, self.held) = (weight, None);
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
        let lora = self.lora.iter().flat_map(Lora::tensors);
        let all = weight.into_iter().chain(&self.bias).chain(lora);
        all.filter(|tensor| tensor.track_op()).collect()
    }

    /// Attaches a LoRA or DoRA adapter in place of a former one; `None` detaches it.
    ///
    /// # Errors
    /// [`Error::Weights`] if the adapter belongs to a layer of another size.
    pub fn set_lora(&mut self, lora: Option<Lora>) -> Result<()> {
        lora.as_ref().map_or(Ok(()), |lora| self.check_dims(lora.dims2()?))?;
        (self.lora, self.held) = (lora, None);
        let is_trained = self.weight().is_ok_and(Tensor::track_op);
        let constant = self.lora.as_ref().filter(|lora| lora.is_constant() && !is_trained);
        if let Some((lora, magnitude)) = constant.and_then(|lora| Some((lora, lora.magnitude()?))) {
            let magnitude = ops::row_factors(&magnitude.detach().to_dtype(DType::F32)?, &self.adapted_norms(lora)?)?;
            self.held = Some(HeldScale { magnitude, norms: None });
        }
        Ok(())
    }

    /// Computes the norms that a DoRA adapter needs now, for all passes until weight or adapter are replaced, while neither
    /// changes in place. Otherwise each pass computes them, unless an adapter is constant over a frozen weight.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn hold_norms(&mut self) -> Result<()> {
        let Some((lora, magnitude)) = self.lora.as_ref().and_then(|lora| Some((lora, lora.magnitude()?))) else {
            return Ok(());
        };
        if self.held.is_none() {
            self.held = Some(HeldScale { magnitude: magnitude.clone(), norms: Some(self.adapted_norms(lora)?) });
        }
        Ok(())
    }

    /// Norms of the rows of the adapted weight, (out): for DoRA, and its magnitude at the start of training.
    ///
    /// # Errors
    /// Errors of candle only.
    pub(crate) fn adapted_norms(&self, lora: &Lora) -> Result<Tensor> {
        Ok(match &self.weight {
            Weight::Float(weight) => lora.low_rank().row_norms(weight)?,
            Weight::Quantized(weight) => lora.low_rank().row_norms_quantized(weight)?,
        })
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
        match &self.lora {
            None => self.product(x, bias.as_ref(), shape.into()),
            Some(lora) => match lora.magnitude() {
                None => lora.add_to(self.product(x, bias.as_ref(), shape.into())?, &lora.dropped(x)?, None),
                Some(magnitude) => self.forward_scaled(x, bias.as_ref(), shape.into(), (lora, magnitude)),
            },
        }
    }

    /// The result without adapter.
    fn product(&self, x: &Tensor, bias: Option<&Tensor>, shape: Shape) -> Result<Tensor> {
        Ok(match &self.weight {
            Weight::Float(weight) if is_frozen_half(weight, x) => ops::half_linear_as(x, weight, bias, shape)?,
            Weight::Float(weight) => ops::linear_as(x, &weight.to_dtype(x.dtype())?, bias, self.precision, shape)?,
            Weight::Quantized(weight) => ops::quantized_linear_as(x, weight, bias, shape)?,
        })
    }

    /// The result with a DoRA adapter: `m / |W + s B A| * (W + s B A) x + b`. As in PEFT, what dropout takes from `x` still
    /// passes through the weight as it was.
    fn forward_scaled(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        shape: Shape,
        (lora, magnitude): (&Lora, &Tensor),
    ) -> Result<Tensor> {
        let held = match &self.held {
            Some(held) => held.clone(),
            None => HeldScale { magnitude: magnitude.clone(), norms: Some(self.adapted_norms(lora)?) },
        };
        let row_scale = RowScale { magnitude: &held.magnitude, norms: held.norms.as_ref(), bias };
        let dropped = lora.dropped(x)?;
        let y = lora.add_to(self.product(&dropped, None, shape.clone())?, &dropped, Some(row_scale))?;
        match lora.dropped_rest(x)? {
            Some(rest) => Ok(ops::residual(&y, &self.product(&rest, None, shape)?)?),
            None => Ok(y),
        }
    }
}

/// Whether a weight is frozen, in 16 bits, and multiplied with f32 on the CPU.
fn is_frozen_half(weight: &Tensor, x: &Tensor) -> bool {
    let is_half = matches!(weight.dtype(), DType::BF16 | DType::F16);
    is_half && x.dtype() == DType::F32 && x.device().is_cpu() && !weight.track_op()
}
