//! `x W^T + b`, which spends nothing on gradients of frozen weights.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::bf16;
use super::math::Matrix;
use super::{Precision, contiguous_slice, dots, is_cpu_f32, with_slices};
use crate::nn::deliver;

/// `x W^T + b` for `x` (.., in), `weight` (out, in) and `bias` (out); the result is (.., out).
///
/// The gradients are `dx = g W`, `dW = g^T x` and `db = 1^T g`. candle's own matmul computes `dW` even for a weight that
/// is not trained; this one does not.
///
/// # Errors
/// From candle, if shapes, devices or number types do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_with(x, weight, bias, Precision::Full)
}

/// As [`linear`], with products of f32 matrices on the CPU as exact as asked for; forward, up to eight rows are exact in any case.
///
/// # Errors
/// As [`linear`].
pub fn linear_with(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    let (out_size, in_size) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == in_size => *last = out_size,
        _ => candle_core::bail!("linear layer expects width {in_size}, found {:?}", x.dims()),
    }
    let rows = x.reshape(((), in_size))?.contiguous()?;
    let y = match bias {
        Some(bias) if is_cpu_f32(&[x, weight, bias]) => rows.apply_op3(weight, bias, LinearBias(precision))?,
        Some(bias) => rows.apply_op2(weight, Linear(precision))?.broadcast_add(bias)?,
        None => rows.apply_op2(weight, Linear(precision))?,
    };
    y.reshape(shape)
}

struct Linear(Precision);
struct LinearBias(Precision);

pub(super) fn forward<S: BackendStorage>(x: &S, lx: &Layout, w: &S, lw: &Layout) -> Result<(S, Shape)> {
    let (n, k) = lx.shape().dims2()?;
    let (m, _) = lw.shape().dims2()?;
    let y = x.matmul(w, (1, n, m, k), lx, &lw.transpose(0, 1)?)?;
    Ok((y, Shape::from((n, m))))
}

/// As [`forward`]; few rows, as in decoding, take a single pass over the weights.
fn cpu_forward(
    x: &CpuStorage,
    lx: &Layout,
    w: &CpuStorage,
    lw: &Layout,
    precision: Precision,
) -> Result<(CpuStorage, Shape)> {
    let ((rows, width), (outputs, _)) = (lx.shape().dims2()?, lw.shape().dims2()?);
    if let (CpuStorage::F32(_), CpuStorage::F32(_), 1.., 1..) = (x, w, rows, width)
        && lw.is_contiguous()
    {
        let (x, w) = (contiguous_slice(x, lx)?, contiguous_slice(w, lw)?);
        let y = if rows <= dots::MAX_ROWS {
            Some(dots::products(x, w, width))
        } else {
            large_product((rows, outputs, width), Operand::rows(x, width), Operand::rows(w, width), precision)
        };
        if let Some(y) = y {
            return Ok((CpuStorage::F32(y), Shape::from((rows, outputs))));
        }
    }
    forward(x, lx, w, lw)
}

/// A matrix of numbers that follow each other by row, or by column.
#[derive(Clone, Copy)]
struct Operand<'a> {
    numbers: &'a [f32],
    matrix: Matrix,
}

impl<'a> Operand<'a> {
    fn rows(numbers: &'a [f32], width: usize) -> Self {
        Self { numbers, matrix: Matrix::rows(numbers.as_ptr(), width) }
    }

    fn transposed(self) -> Self {
        Self { matrix: self.matrix.transposed(), ..self }
    }
}

/// `left right^T` of (rows, depth) and (columns, depth) in own kernels, if there are any of this precision.
fn large_product(
    (rows, columns, depth): (usize, usize, usize),
    left: Operand,
    right: Operand,
    precision: Precision,
) -> Option<Vec<f32>> {
    assert!(left.numbers.len() == rows * depth && right.numbers.len() == columns * depth);
    match precision {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor is asked, and the sizes are those of the numbers.
        Precision::Bf16 if Precision::has_fast_bf16() => unsafe {
            Some(bf16::product((rows, columns, depth), left.matrix, right.matrix))
        },
        _ => None,
    }
}

/// `g w` for `g` (rows, out) and `w` (out, in).
fn input_gradient(g: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    let ((rows, outputs), (_, inputs)) = (g.dims2()?, w.dims2()?);
    let product = |[g, w]: [&[f32]; 2]| {
        large_product(
            (rows, inputs, outputs),
            Operand::rows(g, outputs),
            Operand::rows(w, inputs).transposed(),
            precision,
        )
    };
    match if is_cpu_f32(&[g, w]) { with_slices([g, w], product)? } else { None } {
        Some(values) => Tensor::from_vec(values, (rows, inputs), g.device()),
        None => g.matmul(w),
    }
}

/// `g^T x` for `g` (rows, out) and `x` (rows, in).
fn weight_gradient(g: &Tensor, x: &Tensor, precision: Precision) -> Result<Tensor> {
    let ((rows, outputs), (_, inputs)) = (g.dims2()?, x.dims2()?);
    let product = |[g, x]: [&[f32]; 2]| {
        let (g, x) = (Operand::rows(g, outputs).transposed(), Operand::rows(x, inputs).transposed());
        large_product((outputs, inputs, rows), g, x, precision)
    };
    match if is_cpu_f32(&[g, x]) { with_slices([g, x], product)? } else { None } {
        Some(values) => Tensor::from_vec(values, (outputs, inputs), g.device()),
        None => g.t()?.matmul(x),
    }
}

fn backward(x: &Tensor, w: &Tensor, g: &Tensor, precision: Precision) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let g = g.detach().contiguous()?;
    let dx = || input_gradient(&g, &w.detach().contiguous()?, precision);
    let dw = || deliver(w, weight_gradient(&g, &x.detach().contiguous()?, precision)?);
    Ok((x.track_op().then(dx).transpose()?, if w.track_op() { dw()? } else { None }))
}

/// Adds the bias to every row of `y` (rows, out), in place.
pub(super) fn add_bias(y: &mut CpuStorage, shape: &Shape, bias: &CpuStorage, layout: &Layout) -> Result<()> {
    let (bias, (_, outputs)) = (contiguous_slice(bias, layout)?, shape.dims2()?);
    let CpuStorage::F32(y) = y else { candle_core::bail!("a bias is added to f32") };
    if bias.len() != outputs {
        candle_core::bail!("linear layer of {outputs} outputs has a bias of {}", bias.len());
    }
    let add = |row: &mut [f32]| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    if y.len() > 1 << 15 {
        y.par_chunks_mut(outputs).with_min_len(16).for_each(add);
    } else if outputs > 0 {
        y.chunks_mut(outputs).for_each(add);
    }
    Ok(())
}

/// The sum of the rows of `g`, if the bias is trained.
pub(super) fn bias_gradient(bias: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
    // A product with ones: candle's sum over rows runs on one thread and is thirty times slower.
    let sum_rows =
        || Tensor::ones((1, g.dim(0)?), DType::F32, g.device())?.matmul(&g.detach().contiguous()?)?.squeeze(0);
    bias.track_op().then(sum_rows).transpose()
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        cpu_forward(x, lx, w, lw, self.0)
    }

    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, w: &CudaStorage, lw: &Layout) -> Result<(CudaStorage, Shape)> {
        forward(x, lx, w, lw)
    }

    fn metal_fwd(&self, x: &MetalStorage, lx: &Layout, w: &MetalStorage, lw: &Layout) -> Result<(MetalStorage, Shape)> {
        forward(x, lx, w, lw)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        backward(x, w, g, self.0)
    }
}

impl CustomOp3 for LinearBias {
    fn name(&self) -> &'static str {
        "linear-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut y, shape) = cpu_forward(x, lx, w, lw, self.0)?;
        add_bias(&mut y, &shape, b, lb)?;
        Ok((y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = backward(x, w, g, self.0)?;
        Ok((dx, dw, bias_gradient(b, g)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;

    #[test]
    fn gradients_match_finite_differences() {
        let inputs = [values(&[2, 3, 4], 0.1), values(&[5, 4], 0.2), values(&[5], 0.3)];
        check_gradients(&inputs, |t| linear(&t[0], &t[1], Some(&t[2])));
        check_gradients(&inputs[..2], |t| linear(&t[0], &t[1], None));
    }

    #[test]
    fn equals_matmul_and_add() -> Result<()> {
        let (x, w, b) = (values(&[2, 3, 4], 0.1), values(&[5, 4], 0.2), values(&[5], 0.3));
        let expected = x.broadcast_matmul(&w.t()?)?.broadcast_add(&b)?;
        assert!(max_diff(&linear(&x, &w, Some(&b))?, &expected) < 1e-6);
        Ok(())
    }

    #[test]
    fn rounded_products_are_those_of_rounded_tensors_forward_and_backward() -> Result<()> {
        if !Precision::has_fast_bf16() {
            return Ok(());
        }
        let round = |t: &Tensor| t.to_dtype(DType::BF16)?.to_dtype(DType::F32);
        let (x, w) = (values(&[20, 33], 0.1), values(&[50, 33], 0.2));
        let (x, w, g) =
            (candle_core::Var::from_tensor(&x)?, candle_core::Var::from_tensor(&w)?, values(&[20, 50], 0.4));
        let y = linear_with(&x, &w, None, Precision::Bf16)?;
        assert!(max_diff(&y, &round(&x)?.matmul(&round(&w)?.t()?)?) < 2e-5);
        let grads = (y * &g)?.sum_all()?.backward()?;
        let gradient = |var| grads.get(var).ok_or_else(|| candle_core::Error::Msg("no gradient".into()));
        assert!(max_diff(gradient(&x)?, &round(&g)?.matmul(&round(&w)?)?) < 2e-5);
        assert!(max_diff(gradient(&w)?, &round(&g)?.t()?.matmul(&round(&x)?)?) < 2e-5);
        for (rows, outputs, depth) in [(0, 50, 33), (20, 0, 33), (20, 50, 0), (0, 0, 0)] {
            let (x, w) = (vec![1.0; rows * depth], vec![1.0; outputs * depth]);
            let (x, w) = (Operand::rows(&x, depth), Operand::rows(&w, depth));
            let product = large_product((rows, outputs, depth), x, w, Precision::Bf16);
            assert_eq!(product, Some(vec![0.0; rows * outputs]));
        }
        Ok(())
    }

    #[test]
    fn frozen_weight_gets_no_gradient() -> Result<()> {
        let x = candle_core::Var::from_tensor(&values(&[3, 4], 0.1))?;
        let w = values(&[5, 4], 0.2);
        let grads = linear(&x, &w, None)?.sum_all()?.backward()?;
        assert!(grads.get(&x).is_some());
        assert!(grads.get(&w).is_none());
        Ok(())
    }

    #[test]
    fn wrong_width_is_an_error() {
        assert!(linear(&values(&[2, 3], 0.0), &values(&[5, 4], 0.0), None).is_err());
    }
}
