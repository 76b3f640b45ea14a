//! LoRA or DoRA adapter of one linear layer.

use candle_core::{DType, Tensor};

use super::ops::{self, FixedLora, LowRank, RowScale};
use crate::options::Precision;
use crate::{Error, Result};

/// Low-rank adapter of a linear layer: adds `scale * B A dropout(x)` to its result. With a magnitude (DoRA), each row of
/// the adapted weight also has a trained norm.
#[derive(Debug, Clone)]
pub struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
    /// Norms of the rows of the adapted weight, (out), if they are trained.
    magnitude: Option<Tensor>,
    dropout: f64,
    stream: u64,
    /// Whether the values will not change.
    is_constant: bool,
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
        Ok(Self { a, b, scale, magnitude: None, dropout: 0.0, stream: 0, is_constant: false, fixed: None })
    }

    /// The same adapter as DoRA (Liu et al., arXiv 2402.09353): the row `i` of `W + scale * B A` is scaled to the norm
    /// `magnitude[i]`, as PEFT does with `use_dora`; gradients do not pass through the norm before.
    ///
    /// # Errors
    /// [`Error::Weights`] unless `magnitude` has one element for each output.
    pub fn with_magnitude(self, magnitude: Tensor) -> Result<Self> {
        let outputs = self.b.dim(0)?;
        if magnitude.dims() != [outputs] {
            let message = format!("lora_magnitude_vector is {:?}, expected [{outputs}]", magnitude.dims());
            return Err(Error::weights(message));
        }
        Ok(Self { magnitude: Some(magnitude), ..self })
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
            return Ok(Self { dropout: 0.0, is_constant: true, ..self });
        }
        let fixed = FixedLora::new(&self.a, &self.b, self.scale, half)?;
        Ok(Self { dropout: 0.0, is_constant: true, fixed: Some(fixed), ..self })
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

    /// Norms of the rows of the adapted weight, (out), if they are trained (DoRA).
    pub fn magnitude(&self) -> Option<&Tensor> {
        self.magnitude.as_ref()
    }

    /// All tensors of the adapter.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.matrices().into_iter().chain(&self.magnitude)
    }

    /// The update of the weight, which a magnitude scales with the weight.
    pub(super) fn low_rank(&self) -> LowRank<'_> {
        LowRank { a: &self.a, b: &self.b, scale: self.scale }
    }

    /// Whether the adapter's values will not change.
    pub(super) fn is_constant(&self) -> bool {
        self.is_constant
    }

    /// Merges the adapter into consecutive rows of the weight, `weight` (rows, in), of which the first is row `first`.
    ///
    /// # Errors
    /// If the adapter has no such rows.
    pub fn merged_rows(&self, weight: &Tensor, first: usize) -> Result<Tensor> {
        let rows = weight.dim(0)?;
        let b = self.b.detach().narrow(0, first, rows)?;
        let merged = (weight + (b.matmul(&self.a.detach())? * self.scale)?)?;
        let Some(magnitude) = &self.magnitude else { return Ok(merged) };
        let norms = merged.sqr()?.sum(1)?.sqrt()?;
        let factor = ops::row_factors(&magnitude.detach().narrow(0, first, rows)?, &norms)?;
        Ok(merged.broadcast_mul(&factor.unsqueeze(1)?)?)
    }

    /// The input of the adapter: `x` with dropout in training, `x` itself elsewhere.
    ///
    /// # Errors
    /// Errors of candle only.
    pub(super) fn dropped(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::dropout(x, self.dropout, self.stream)?)
    }

    /// What dropout takes from the input of the adapter, if it takes anything.
    ///
    /// # Errors
    /// Errors of candle only.
    pub(super) fn dropped_rest(&self, x: &Tensor) -> Result<Option<Tensor>> {
        Ok(ops::dropout_rest(x, self.dropout, self.stream)?)
    }

    /// Adds the update of `x`, whose consecutive `in` elements are a row, to the fresh result `y` of the layer, of any shape,
    /// which nothing else reads, then scales the sum: `y` is not kept beside the new result, unless that is scaled. Dropout of
    /// `x` is the caller's.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(super) fn add_to(&self, y: Tensor, x: &Tensor, row_scale: Option<RowScale<'_>>) -> Result<Tensor> {
        let (rank, in_size) = self.a.dims2()?;
        let rows = x.elem_count().checked_div(in_size).unwrap_or_default();
        if let Some(fixed) = self.fixed.as_ref().filter(|fixed| fixed.is_for(&y, x, rows, row_scale)) {
            return Ok(fixed.add_to(&y, x, rows, row_scale)?);
        }
        let (a, b) = (self.a.to_dtype(x.dtype())?, self.b.to_dtype(x.dtype())?);
        let z = ops::linear_as(x, &a, None, Precision::Full, (rows, rank))?;
        let sum = ops::low_rank_update_of_fresh(&y, &z, &b, self.scale)?;
        match row_scale {
            Some(row_scale) => Ok(row_scale.apply(&sum)?),
            None => Ok(sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::super::Linear;
    use super::super::ops::testing::{max_diff, values};
    use super::*;
    use crate::options::Quantization;

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

    #[test]
    fn a_fresh_magnitude_changes_no_bit() {
        let (a, b, x, bias) = (values(&[2, 40], 0.1), values(&[5, 2], 0.0), values(&[3, 40], 0.2), values(&[5], 0.3));
        let fresh = Lora::new(a, b.zeros_like().unwrap(), 0.7).unwrap();
        for kind in [None, Some(Quantization::Q8_0)] {
            let mut linear = Linear::from_tensors(values(&[5, 40], 0.4), Some(bias.clone()));
            if let Some(kind) = kind {
                linear.quantize(kind).unwrap();
            }
            let plain = linear.forward(&x).unwrap();
            let magnitude = linear.adapted_norms(&fresh).unwrap();
            linear.set_lora(Some(fresh.clone().with_magnitude(magnitude).unwrap())).unwrap();
            assert_eq!(max_diff(&linear.forward(&x).unwrap(), &plain), 0.0);
        }
    }

    #[test]
    fn norms_that_are_held_follow_a_new_weight() {
        let (weight, x) = (values(&[5, 3], 0.2), values(&[2, 3], 0.1));
        let adapter = || Lora::new(values(&[2, 3], 0.4), values(&[5, 2], 0.3), 0.7).unwrap();
        let adapter = || adapter().with_magnitude(values(&[5], 0.5)).unwrap();
        let mut linear = Linear::from_tensors(values(&[5, 3], 0.9), None);
        linear.set_lora(Some(adapter().fixed(false).unwrap())).unwrap();
        linear.set_weight(weight.clone()).unwrap();
        let mut expected = Linear::from_tensors(weight, None);
        expected.set_lora(Some(adapter())).unwrap();
        assert!(max_diff(&linear.forward(&x).unwrap(), &expected.forward(&x).unwrap()) < 1e-6);
    }

    #[test]
    fn dropout_takes_from_the_update_what_it_leaves_in_the_weight() {
        let (weight, x) = (values(&[5, 3], 0.2), values(&[40, 3], 0.1));
        let (a, b, m) = (values(&[2, 3], 0.4), values(&[5, 2], 0.3), values(&[5], 0.5));
        let with = |lora: Lora| lora.with_magnitude(m.clone()).unwrap().with_dropout(0.5, 1);
        // PEFT's formula: W x + (m / n - 1) W d + m / n * s B A d, for the input d after dropout.
        crate::nn::ops::with_dropout(1, || {
            let lora = with(Lora::new(a.clone(), b.clone(), 0.7).unwrap());
            let dropped = lora.dropped(&x).unwrap();
            let product = |x: &Tensor, w: &Tensor| x.matmul(&w.t().unwrap()).unwrap();
            let update = (b.matmul(&a).unwrap() * 0.7).unwrap();
            let norms = (&weight + &update).unwrap().sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
            let factor = (&m / norms).unwrap();
            let scaled = product(&dropped, &weight).broadcast_mul(&(&factor - 1.0).unwrap()).unwrap();
            let update = product(&dropped, &update).broadcast_mul(&factor).unwrap();
            let expected = (product(&x, &weight) + scaled).unwrap().add(&update).unwrap();
            let mut linear = Linear::from_tensors(weight.clone(), None);
            linear.set_lora(Some(lora)).unwrap();
            assert!(max_diff(&linear.forward(&x).unwrap(), &expected) < 1e-5);
            assert!(max_diff(&dropped, &x) > 0.1);
        });
    }
}
