//! Linear layer `x W^T + b` in f32 over a frozen weight in bf16 or f16, on the CPU.

use std::convert::Infallible;
use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor, WithDType};

use super::linear::{add_bias, bias_gradient};
use super::{contiguous_slice, is_cpu_f32, with_slice};
use crate::nn::kernels::mat::MatRef;
use crate::nn::kernels::widened::{WidenTile, adapted_row_norms, input_gradient, matmul_widened};
use crate::nn::tape::{apply1, apply2};

/// [`linear_as`](super::linear_as) for `x` in f32 and a weight (out, in) in bf16 or f16, on the CPU. Tiles of the weight
/// are widened in the cache; no f32 copy of it is made, nor kept for a backward pass. Differentiable in `x` and `bias`.
///
/// # Errors
/// Errors of candle, if shapes do not fit, and for other dtypes and devices.
pub fn half_linear_as(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, shape: impl Into<Shape>) -> Result<Tensor> {
    let ((outputs, inputs), shape) = (weight.dims2()?, shape.into());
    let rows = x.elem_count().checked_div(inputs).unwrap_or_default();
    if !is_cpu_f32(&[x]) || x.elem_count() != rows * inputs || shape.elem_count() != rows * outputs {
        candle_core::bail!(
            "linear layer of {inputs} inputs and {outputs} outputs makes no {shape:?} of {:?} {:?}",
            x.dtype(),
            x.dims()
        );
    }
    let (x, op) = (x.contiguous()?, HalfLinear { weight: weight.detach().contiguous()?, shape });
    match bias {
        Some(bias) => apply2(&x, bias, op),
        None => apply1(&x, op),
    }
}

/// The custom op, without bias (one input) or with it (two).
struct HalfLinear {
    weight: Tensor,
    /// Shape of the result.
    shape: Shape,
}

/// Rows of a float weight.
struct Rows<'a, T>(&'a [T], (usize, usize));

impl<T: WithDType> WidenTile for Rows<'_, T> {
    type Error = Infallible;

    fn dims2(&self) -> (usize, usize) {
        self.1
    }

    fn widen<'a>(
        &self,
        outputs: Range<usize>,
        inputs: Range<usize>,
        buffer: &'a mut Vec<f32>,
    ) -> std::result::Result<MatRef<'a>, Infallible> {
        buffer.clear();
        for row in self.0.chunks_exact(self.1.1).take(outputs.end).skip(outputs.start) {
            buffer.extend(row[inputs.clone()].iter().map(|value| value.to_f64() as f32));
        }
        Ok(MatRef::contiguous(buffer, (outputs.len(), inputs.len())))
    }
}

/// What is computed from a weight.
#[derive(Clone, Copy)]
enum Product<'a> {
    /// The result for an input.
    Forward(&'a [f32]),
    /// The gradient of the input for that of the result.
    InputGradient(&'a [f32]),
    /// Norms of the rows with a low-rank update.
    RowNorms { a: &'a [f32], b: &'a [f32], scale: f32 },
}

impl Product<'_> {
    fn of<T: WithDType>(self, weight: &[T], dims: (usize, usize)) -> Vec<f32> {
        let rows = Rows(weight, dims);
        let Ok(product) = match self {
            Self::Forward(x) => Ok(matmul_widened(x, &rows)),
            Self::InputGradient(g) => input_gradient(g, &rows),
            Self::RowNorms { a, b, scale } => adapted_row_norms(&rows, a, b, scale),
        };
        product
    }

    /// The product with a contiguous float weight on the CPU.
    fn with(self, weight: &Tensor) -> Result<Vec<f32>> {
        let ((storage, layout), dims) = (weight.storage_and_layout(), weight.dims2()?);
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("expected a contiguous weight")
        };
        match &*storage {
            Storage::Cpu(CpuStorage::BF16(weight)) => Ok(self.of(&weight[start..end], dims)),
            Storage::Cpu(CpuStorage::F16(weight)) => Ok(self.of(&weight[start..end], dims)),
            Storage::Cpu(CpuStorage::F32(weight)) => Ok(self.of(&weight[start..end], dims)),
            _ => candle_core::bail!("expected a weight in f32, bf16 or f16 on the CPU, found {:?}", weight.dtype()),
        }
    }
}

/// Norms of the rows of `weight + scale * B A` for a weight in f32, bf16 or f16 on the CPU, and `a` (rank, in) and `b`
/// (out, rank).
///
/// # Errors
/// Errors of candle, for another weight.
pub(super) fn float_row_norms(weight: &Tensor, a: &[f32], b: &[f32], scale: f32) -> Result<Vec<f32>> {
    Product::RowNorms { a, b, scale }.with(&weight.detach().contiguous()?)
}

impl HalfLinear {
    fn backward(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        let dx = with_slice(&g.detach().contiguous()?, |g| Product::InputGradient(g).with(&self.weight))??;
        Tensor::from_vec(dx, x.shape(), x.device())
    }
}

impl CustomOp1 for HalfLinear {
    fn name(&self) -> &'static str {
        "half-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(Product::Forward(contiguous_slice(x, lx)?).with(&self.weight)?), self.shape.clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        self.backward(x, g).map(Some)
    }
}

/// The op with a bias.
impl CustomOp2 for HalfLinear {
    fn name(&self) -> &'static str {
        "half-linear-bias"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (mut y, shape) = CustomOp1::cpu_fwd(self, x, lx)?;
        add_bias(&mut y, self.weight.dim(0)?, b, lb)?;
        Ok((y, shape))
    }

    fn bwd(&self, x: &Tensor, b: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((x.track_op().then(|| self.backward(x, g)).transpose()?, bias_gradient(b, g)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::super::linear;
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;

    #[test]
    fn values_and_gradients_equal_those_of_the_widened_weight() -> Result<()> {
        for dtype in [DType::BF16, DType::F16] {
            for (rows, outputs, width) in [(1, 5, 7), (3, 300, 600), (33, 70, 257), (641, 70, 257)] {
                let weight = values(&[outputs, width], 0.2).to_dtype(dtype)?;
                let (x, bias) = (Var::from_tensor(&values(&[rows, width], 0.1))?, values(&[outputs], 0.3));
                let wide = linear(&x, &weight.to_dtype(DType::F32)?, Some(&bias))?;
                let found = half_linear_as(&x, &weight, Some(&bias), (rows, outputs))?;
                assert!(max_diff(&found, &wide) <= if rows <= 32 { 0.0 } else { 1e-4 }, "{dtype:?} {rows}");
                let gradient = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap().remove(&x).unwrap();
                let (found, expected) = (gradient(&found), gradient(&wide));
                let size = expected.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(max_diff(&found, &expected) < 1e-5 * size, "{dtype:?} {rows}");
            }
        }
        Ok(())
    }

    #[test]
    fn gradients_match_finite_differences() -> Result<()> {
        let weight = values(&[5, 4], 0.2).to_dtype(DType::BF16)?;
        check_gradients(&[values(&[2, 4], 0.1), values(&[5], 0.3)], |t| {
            half_linear_as(&t[0], &weight, Some(&t[1]), (2, 5))?.sqr()
        });
        assert!(half_linear_as(&values(&[2, 3], 0.1), &weight, None, (2, 5)).is_err());
        Ok(())
    }
}
