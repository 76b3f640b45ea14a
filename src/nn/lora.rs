//! LoRA adapter of one linear layer.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::ops::{self, FixedLora};
use crate::options::Precision;
use crate::{Error, Result};

/// Low-rank adapter of a linear layer: adds `scale * B A dropout(x)` to its result.
#[derive(Debug, Clone)]
pub struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
    dropout: f64,
    stream: u64,
    /// The matrices as decoding reads them, if they do not change.
    fixed: Option<FixedLora>,
}

impl Lora {
    /// An adapter of `lora_A` (rank, in) and `lora_B` (out, rank); `scale` is `alpha / rank`, or `alpha / sqrt(rank)`
    /// if it is rank-stabilised.
    ///
    /// # Errors
    /// [`Error::Weights`] if the ranks differ.
    pub fn new(a: Tensor, b: Tensor, scale: f64) -> Result<Self> {
        let (rank, inner) = (a.dims2()?.0, b.dims2()?.1);
        if rank != inner {
            let message = format!("lora_A is {:?} and lora_B {:?}, expected one rank in both", a.dims(), b.dims());
            return Err(Error::weights(message));
        }
        Ok(Self { a, b, scale, dropout: 0.0, stream: 0, fixed: None })
    }

    /// The same adapter with dropout of its input in training, with masks from the random stream of this name.
    #[must_use]
    pub fn with_dropout(self, probability: f64, stream: u64) -> Self {
        Self { dropout: probability, stream, ..self }
    }

    /// The same adapter without dropout, whose values will not change and need no gradients: a copy of the matrices makes
    /// decoding on the CPU faster, in f16 with `half` where the CPU reads it as fast. Other dtypes and devices get no copy.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn fixed(self, half: bool) -> Result<Self> {
        let matrices = [&self.a, &self.b];
        if !matrices.iter().all(|matrix| matrix.device().is_cpu() && matrix.dtype() == DType::F32) {
            return Ok(Self { dropout: 0.0, ..self });
        }
        let fixed = FixedLora::new(&self.a, &self.b, self.scale, half)?;
        Ok(Self { dropout: 0.0, fixed: Some(fixed), ..self })
    }

    /// Numbers of outputs and inputs.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        Ok((self.b.dims2()?.0, self.a.dims2()?.1))
    }

    /// `lora_A` (rank, in) and `lora_B` (out, rank).
    pub fn matrices(&self) -> [&Tensor; 2] {
        [&self.a, &self.b]
    }

    /// The update of the weight, `scale * B A`: (out, in).
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn delta(&self) -> Result<Tensor> {
        self.delta_rows(0..self.b.dim(0)?)
    }

    /// Rows of the update of the weight: (rows, in).
    ///
    /// # Errors
    /// If there are no such rows.
    pub fn delta_rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let b = self.b.detach().narrow(0, rows.start, rows.len())?;
        Ok((b.matmul(&self.a.detach())? * self.scale)?)
    }

    /// Adds the update of `x`, whose consecutive `in` elements are a row, to the result `y` of the layer, of any shape.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn add_to(&self, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.update(y, x, false)
    }

    /// [`Self::add_to`] of a fresh result of a linear layer, which nothing else reads: it is not kept beside the new one.
    ///
    /// # Errors
    /// As [`Self::add_to`].
    pub(super) fn add_to_fresh(&self, y: Tensor, x: &Tensor) -> Result<Tensor> {
        self.update(&y, x, true)
    }

    fn update(&self, y: &Tensor, x: &Tensor, is_fresh: bool) -> Result<Tensor> {
        let (rank, in_size) = self.a.dims2()?;
        let rows = x.elem_count().checked_div(in_size).unwrap_or_default();
        let x = &ops::dropout(x, self.dropout, self.stream)?;
        if let Some(fixed) = self.fixed.as_ref().filter(|fixed| fixed.is_for(y, x, rows)) {
            return Ok(fixed.add_to(y, x, rows)?);
        }
        let (a, b) = (self.a.to_dtype(x.dtype())?, self.b.to_dtype(x.dtype())?);
        let z = ops::linear_as(x, &a, None, Precision::Full, (rows, rank))?;
        let update = if is_fresh { ops::low_rank_update_of_fresh } else { ops::low_rank_update };
        Ok(update(y, &z, &b, self.scale)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::super::Linear;
    use super::super::ops::testing::{max_diff, values};
    use super::*;

    /// A layer of three inputs and five outputs, adapted with a rank of two, and its result for some rows of `x`.
    fn adapted(weight: &Tensor, lora: impl FnOnce(Lora) -> Lora, x: &Tensor) -> Tensor {
        let mut linear = Linear::from_tensors(weight.clone(), None);
        let adapter = Lora::new(values(&[2, 3], 0.4), values(&[5, 2], 0.3), 0.7).unwrap();
        linear.set_lora(Some(lora(adapter))).unwrap();
        linear.forward(x).unwrap()
    }

    #[test]
    fn a_layer_that_is_trained_keeps_its_gradients_beside_a_fixed_adapter() {
        let (weight, x) = (Var::from_tensor(&values(&[5, 3], 0.2)).unwrap(), values(&[2, 3], 0.1));
        let [fixed, plain] = [true, false].map(|is_fixed| {
            let y = adapted(&weight, |lora| if is_fixed { lora.fixed(false).unwrap() } else { lora }, &x);
            let gradient = y.sqr().unwrap().sum_all().unwrap().backward().unwrap().remove(&weight).unwrap();
            assert!(max_diff(&y, &adapted(&weight.detach(), |lora| lora.fixed(false).unwrap(), &x)) < 1e-5);
            gradient
        });
        assert!(max_diff(&fixed, &plain) < 1e-6);
    }

    #[test]
    fn a_fixed_adapter_drops_nothing() {
        let (weight, x) = (values(&[5, 3], 0.2), values(&[40, 3], 0.1));
        let [plain, fixed, dropped] = [(false, 0.0), (true, 0.9), (false, 0.9)].map(|(is_fixed, probability)| {
            let lora = |lora: Lora| {
                let lora = lora.with_dropout(probability, 1);
                if is_fixed { lora.fixed(false).unwrap() } else { lora }
            };
            crate::nn::ops::with_dropout(1, || adapted(&weight, lora, &x))
        });
        assert!(max_diff(&plain, &fixed) < 1e-6 && max_diff(&plain, &dropped) > 0.1);
    }
}
