//! `x W^T + b`, which spends nothing on gradients of frozen weights.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{contiguous_slice, dots, is_cpu_f32};
use crate::nn::deliver;

/// `x W^T + b` for `x` (.., in), `weight` (out, in) and `bias` (out); the result is (.., out).
///
/// The gradients are `dx = g W`, `dW = g^T x` and `db = 1^T g`. candle's own matmul computes `dW` even for a weight that
/// is not trained; this one does not.
///
/// # Errors
/// From candle, if shapes, devices or number types do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_size, in_size) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == in_size => *last = out_size,
        _ => candle_core::bail!("linear layer expects width {in_size}, found {:?}", x.dims()),
    }
    let rows = x.reshape(((), in_size))?.contiguous()?;
    let y = match bias {
        Some(bias) if is_cpu_f32(&[x, weight, bias]) => rows.apply_op3(weight, bias, LinearBias)?,
        Some(bias) => rows.apply_op2(weight, Linear)?.broadcast_add(bias)?,
        None => rows.apply_op2(weight, Linear)?,
    };
    y.reshape(shape)
}

struct Linear;
struct LinearBias;

pub(super) fn forward<S: BackendStorage>(x: &S, lx: &Layout, w: &S, lw: &Layout) -> Result<(S, Shape)> {
    let (n, k) = lx.shape().dims2()?;
    let (m, _) = lw.shape().dims2()?;
    let y = x.matmul(w, (1, n, m, k), lx, &lw.transpose(0, 1)?)?;
    Ok((y, Shape::from((n, m))))
}

/// As [`forward`]; few rows, as in decoding, take a single pass over the weights.
fn cpu_forward(x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
    let (rows, width) = lx.shape().dims2()?;
    if let (CpuStorage::F32(_), CpuStorage::F32(_), 1..=dots::MAX_ROWS, 1..) = (x, w, rows, width)
        && lw.is_contiguous()
    {
        let y = dots::products(contiguous_slice(x, lx)?, contiguous_slice(w, lw)?, width);
        return Ok((CpuStorage::F32(y), Shape::from((rows, lw.shape().dims2()?.0))));
    }
    forward(x, lx, w, lw)
}

fn backward(x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let g = g.detach().contiguous()?;
    let dx = x.track_op().then(|| g.matmul(&w.detach())).transpose()?;
    let dw = || deliver(w, g.t()?.matmul(&x.detach())?);
    Ok((dx, if w.track_op() { dw()? } else { None }))
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        cpu_forward(x, lx, w, lw)
    }

    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, w: &CudaStorage, lw: &Layout) -> Result<(CudaStorage, Shape)> {
        forward(x, lx, w, lw)
    }

    fn metal_fwd(&self, x: &MetalStorage, lx: &Layout, w: &MetalStorage, lw: &Layout) -> Result<(MetalStorage, Shape)> {
        forward(x, lx, w, lw)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        backward(x, w, g)
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
        let (y, shape) = cpu_forward(x, lx, w, lw)?;
        let bias = contiguous_slice(b, lb)?;
        let CpuStorage::F32(mut y) = y else { candle_core::bail!("linear-bias expects f32") };
        if bias.len() != shape.dims2()?.1 {
            candle_core::bail!("linear layer of {} outputs has a bias of {}", shape.dims2()?.1, bias.len());
        }
        let add = |row: &mut [f32]| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        if y.len() > 1 << 15 {
            y.par_chunks_mut(bias.len()).with_min_len(16).for_each(add);
        } else {
            y.chunks_mut(bias.len()).for_each(add);
        }
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = backward(x, w, g)?;
        // A product with ones: candle's sum over rows runs on one thread and is thirty times slower.
        let sum_rows =
            || Tensor::ones((1, g.dim(0)?), DType::F32, g.device())?.matmul(&g.detach().contiguous()?)?.squeeze(0);
        let db = b.track_op().then(sum_rows).transpose()?;
        Ok((dx, dw, db))
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
