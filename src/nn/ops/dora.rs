//! DoRA (Liu et al., arXiv 2402.09353): the norms of the rows of an adapted weight, and a layer's result with each row's norm
//! replaced by a trained magnitude.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::half_linear::float_row_norms;
use super::linear::bias_gradient;
use super::norm::map_rows;
use super::{QuantizedWeight, contiguous_slice, is_cpu_f32, is_tracked, with_slice, with_slices};
use crate::nn::tape::apply3;

/// A low-rank update of a weight, `scale * B A`, of `a` (rank, in) and `b` (out, rank).
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// The matrix that reads the input.
    pub a: &'a Tensor,
    /// The matrix that writes the result.
    pub b: &'a Tensor,
    /// The factor.
    pub scale: f64,
}

impl LowRank<'_> {
    /// Norms (out) of the rows of `weight + update` in f32, without a graph. On the CPU no copy of the weight is made.
    ///
    /// # Errors
    /// Errors of candle, if shapes or devices do not fit.
    pub fn row_norms(self, weight: &Tensor) -> Result<Tensor> {
        let wide = |tensor: &Tensor| tensor.detach().to_dtype(DType::F32);
        match weight.dtype() {
            DType::F32 | DType::BF16 | DType::F16 if weight.device().is_cpu() => {
                self.norms_by(|a, b, scale| float_row_norms(weight, a, b, scale))
            }
            _ => (wide(weight)? + (wide(self.b)?.matmul(&wide(self.a)?)? * self.scale)?)?.sqr()?.sum(1)?.sqrt(),
        }
    }

    /// [`Self::row_norms`] of a quantised weight, as if it were dequantised.
    ///
    /// # Errors
    /// As [`Self::row_norms`].
    pub fn row_norms_quantized(self, weight: &QuantizedWeight) -> Result<Tensor> {
        self.norms_by(|a, b, scale| weight.row_norms(a, b, scale))
    }

    fn norms_by(self, norms: impl FnOnce(&[f32], &[f32], f32) -> Result<Vec<f32>>) -> Result<Tensor> {
        let [a, b] = [self.a, self.b].map(|matrix| matrix.detach().to_dtype(DType::F32)?.contiguous());
        let (a, b) = (a?, b?);
        let norms = with_slices([&a, &b], |[a, b]| norms(a, b, self.scale as f32))??;
        let count = norms.len();
        Tensor::from_vec(norms, count, a.device())
    }
}

/// What DoRA does to the rows of a weight: each gets the norm `magnitude` instead of `norms`, before `bias` is added to the
/// result; all are (out).
#[derive(Clone, Copy)]
pub struct RowScale<'a> {
    /// The trained norms.
    pub magnitude: &'a Tensor,
    /// The norms before, which are constants; `None` if `magnitude` is the quotient already. A row of norm 0, whose results are
    /// all 0, stays 0.
    pub norms: Option<&'a Tensor>,
    /// The bias of the layer.
    pub bias: Option<&'a Tensor>,
}

impl RowScale<'_> {
    /// `y * magnitude / norms + bias` for `y` of any shape whose consecutive `out` elements are a row.
    ///
    /// The gradients are `dy = g * magnitude / norms`, `dmagnitude = sum over rows of g * y / norms`, and `dbias = sum over
    /// rows of g`.
    ///
    /// # Errors
    /// Errors of candle, if shapes, devices or dtypes do not fit.
    pub fn apply(self, y: &Tensor) -> Result<Tensor> {
        let Self { magnitude, norms, bias } = self;
        let outputs = magnitude.dims1()?;
        let is_whole = outputs > 0 && y.elem_count().is_multiple_of(outputs);
        if !is_whole || norms.is_some_and(|norms| norms.dims() != [outputs]) {
            let norms = norms.map(Tensor::dims);
            candle_core::bail!("{outputs} magnitudes and {norms:?} norms of a result of {:?}", y.dims());
        }
        if self.is_cpu_f32() && is_cpu_f32(&[y]) {
            let bias = bias.map_or_else(|| magnitude.zeros_like(), |bias| bias.contiguous())?;
            let factors = quotient(&magnitude.detach(), norms)?.contiguous()?;
            let op = WithMagnitude { factors, norms: norms.cloned() };
            return apply3(&y.contiguous()?, &magnitude.contiguous()?, &bias, op);
        }
        // In f32, as the magnitude: quotients near 1 would lose what training changes.
        let factors = quotient(&magnitude.to_dtype(DType::F32)?, norms)?;
        let scaled = y.reshape(((), outputs))?.to_dtype(DType::F32)?.broadcast_mul(&factors)?.to_dtype(y.dtype())?;
        let scaled = bias.map_or_else(|| Ok(scaled.clone()), |bias| scaled.broadcast_add(bias))?;
        scaled.reshape(y.shape())
    }

    /// Whether [`Self::scale`] can serve it.
    pub(super) fn is_cpu_f32(self) -> bool {
        [Some(self.magnitude), self.norms, self.bias].into_iter().flatten().all(|tensor| is_cpu_f32(&[tensor]))
    }

    /// Whether a gradient is tracked.
    pub(super) fn is_tracked(self) -> bool {
        is_tracked(&[self.magnitude]) || self.bias.is_some_and(|bias| is_tracked(&[bias]))
    }

    /// [`Self::apply`] to few rows on the CPU, in place.
    ///
    /// # Errors
    /// Errors of candle, for other devices and dtypes.
    pub(super) fn scale(self, y: &mut [f32]) -> Result<()> {
        with_slice(&quotient(self.magnitude, self.norms)?, |factors| {
            let rows = y.chunks_mut(factors.len().max(1));
            rows.for_each(|y| y.iter_mut().zip(factors).for_each(|(y, factor)| *y *= factor));
        })?;
        let Some(bias) = self.bias else { return Ok(()) };
        with_slice(bias, |bias| {
            y.chunks_mut(bias.len().max(1)).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
        })
    }
}

/// `magnitude / norms`, and 0 for a norm of 0.
///
/// # Errors
/// Errors of candle, if shapes or dtypes differ.
pub fn row_factors(magnitude: &Tensor, norms: &Tensor) -> Result<Tensor> {
    let is_zero = norms.eq(0f32)?;
    // No division by 0, whose gradient would be NaN.
    let divisor = is_zero.where_cond(&norms.ones_like()?, norms)?;
    is_zero.where_cond(&norms.zeros_like()?, &(magnitude / divisor)?)
}

/// `magnitude / norms`, or `magnitude` if it is the quotient already.
fn quotient(magnitude: &Tensor, norms: Option<&Tensor>) -> Result<Tensor> {
    norms.map_or_else(|| Ok(magnitude.clone()), |norms| row_factors(magnitude, norms))
}

/// The custom op.
struct WithMagnitude {
    /// Factors of the elements of a row, [`quotient`] of magnitude and norms.
    factors: Tensor,
    /// Norms of the rows of the adapted weight, unless the magnitude is divided by them already.
    norms: Option<Tensor>,
}

impl WithMagnitude {
    fn y_gradient(&self, g: &Tensor) -> Result<Tensor> {
        let dy = with_slices([g, &self.factors], |[g, factors]| {
            map_rows(g, factors.len(), |g, dy| {
                dy.iter_mut().zip(g).zip(factors).for_each(|((dy, g), factor)| *dy = g * factor);
            })
        })?;
        Tensor::from_vec(dy, g.shape(), g.device())
    }

    fn magnitude_gradient(&self, y: &Tensor, g: &Tensor, shape: &Shape) -> Result<Tensor> {
        let width = shape.elem_count();
        let sums = with_slices([y, g], |[y, g]| {
            let mut sums = vec![0f32; width];
            sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(block, sums)| {
                for (y, g) in y.chunks(width).zip(g.chunks(width)) {
                    let products = y[block * COLUMNS..].iter().zip(&g[block * COLUMNS..]).map(|(y, g)| y * g);
                    sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
                }
            });
            sums
        })?;
        quotient(&Tensor::from_vec(sums, shape, g.device())?, self.norms.as_ref())
    }
}

/// Number of columns of one parallel task.
const COLUMNS: usize = 256;

impl CustomOp3 for WithMagnitude {
    fn name(&self) -> &'static str {
        "with-magnitude"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        ly: &Layout,
        _magnitude: &CpuStorage,
        _lm: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (y, bias, outputs) = (contiguous_slice(y, ly)?, contiguous_slice(bias, lb)?, self.factors.elem_count());
        if bias.len() != outputs {
            candle_core::bail!("{outputs} magnitudes and a bias of {}", bias.len());
        }
        let scaled = with_slice(&self.factors, |factors| {
            map_rows(y, outputs, |y, out| {
                let terms = y.iter().zip(factors).zip(bias);
                out.iter_mut().zip(terms).for_each(|(out, ((y, factor), bias))| *out = y * factor + bias);
            })
        })?;
        Ok((CpuStorage::F32(scaled), ly.shape().clone()))
    }

    fn bwd(
        &self,
        y: &Tensor,
        magnitude: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.detach().contiguous()?;
        let dy = y.track_op().then(|| self.y_gradient(&g)).transpose()?;
        let dm =
            magnitude.track_op().then(|| self.magnitude_gradient(&y.detach(), &g, magnitude.shape())).transpose()?;
        Ok((dy, dm, bias_gradient(bias, &g)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;
    use crate::options::Quantization;

    fn with_magnitude(y: &Tensor, magnitude: &Tensor, norms: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        RowScale { magnitude, norms: Some(norms), bias }.apply(y)
    }

    /// The formula, of candle's operations.
    fn composed(y: &Tensor, magnitude: &Tensor, norms: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let rows = y.reshape(((), magnitude.dim(0)?))?;
        rows.broadcast_mul(&(magnitude / norms)?)?.broadcast_add(bias)?.reshape(y.shape())
    }

    #[test]
    fn values_and_gradients_equal_those_of_composed_operations() -> Result<()> {
        let (m, norms, bias) = (values(&[300], 0.1), (values(&[300], 0.2).abs()? + 0.3)?, values(&[300], 0.3));
        for rows in [1, 3, 130] {
            let y = values(&[rows, 2, 150], 0.4);
            let found = with_magnitude(&y, &m, &norms, Some(&bias))?;
            assert!(max_diff(&found, &composed(&y, &m, &norms, &bias)?) < 1e-5);
            let plain = with_magnitude(&y, &m, &norms, None)?;
            assert!(max_diff(&plain, &composed(&y, &m, &norms, &bias.zeros_like()?)?) < 1e-5);
        }
        let norms = norms.narrow(0, 0, 5)?;
        let inputs = [values(&[4, 5], 0.1), values(&[5], 0.2), values(&[5], 0.3)];
        check_gradients(&inputs, |t| with_magnitude(&t[0], &t[1], &norms, Some(&t[2])));
        check_gradients(&inputs[..2], |t| with_magnitude(&t[0], &t[1], &norms, None));
        assert!(with_magnitude(&values(&[4, 4], 0.1), &m, &norms, None).is_err());
        Ok(())
    }

    #[test]
    fn norms_of_every_kind_of_weight_are_those_of_the_weight_in_floats() -> Result<()> {
        for (outputs, inputs) in [(3, 5), (300, 544)] {
            let (w, a, b) = (values(&[outputs, inputs], 0.1), values(&[2, inputs], 0.2), values(&[outputs, 2], 0.3));
            let update = LowRank { a: &a, b: &b, scale: 0.7 };
            let expected = |weight: &Tensor| -> Result<Tensor> {
                (weight.to_dtype(DType::F32)? + (b.matmul(&a)? * 0.7)?)?.sqr()?.sum(1)?.sqrt()
            };
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let w = w.to_dtype(dtype)?;
                let (found, expected) = (update.row_norms(&w)?, expected(&w)?);
                assert!(max_diff(&(found / &expected)?, &expected.ones_like()?) < 1e-5, "{dtype:?}");
            }
            for kind in Quantization::ALL {
                let w = QuantizedWeight::quantize(&w, kind)?;
                let (found, expected) = (update.row_norms_quantized(&w)?, expected(&w.dequantize()?)?);
                assert!(max_diff(&(found / &expected)?, &expected.ones_like()?) < 1e-5, "{kind:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_row_of_norm_zero_stays_zero() -> Result<()> {
        let y = Tensor::new(&[[0f32, 2.0]], &Device::Cpu)?;
        let (m, norms) = (Tensor::new(&[3f32, 3.0], &Device::Cpu)?, Tensor::new(&[0f32, 2.0], &Device::Cpu)?);
        assert_eq!(with_magnitude(&y, &m, &norms, None)?.to_vec2::<f32>()?, [[0.0, 3.0]]);
        // As on other devices, whose gradients are candle's.
        let m = Var::from_tensor(&m)?;
        let y = with_magnitude(&y.to_dtype(DType::BF16)?, &m, &norms, None)?.to_dtype(DType::F32)?;
        assert_eq!(y.to_vec2::<f32>()?, [[0.0, 3.0]]);
        let gradient = y.sum_all()?.backward()?.remove(&m).unwrap();
        assert_eq!(gradient.to_vec1::<f32>()?, [0.0, 1.0]);
        Ok(())
    }
}
