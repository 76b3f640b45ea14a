//! Rotary position embedding, in the half-split form of HF's Llama.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{contiguous_slice, is_cpu_f32};
use crate::nn::kernels::simd_math::vectorised;
use crate::nn::tape::apply3;

/// Rotates each head of `x` (batch, seq, heads, head_dim) by its position's angles.
///
/// `cos` and `sin` are (batch or 1, seq, head_dim / 2), f32. The pair (i, i + head_dim / 2) turns as
/// `(a cos - b sin, b cos + a sin)`; the gradient is the opposite rotation.
///
/// # Errors
/// Errors of candle, if the shapes do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, seq, _, head_dim) = x.dims4()?;
    let (rows, positions, half) = cos.dims3()?;
    if (rows != 1 && rows != batch) || positions != seq || 2 * half != head_dim || cos.dims() != sin.dims() {
        candle_core::bail!("rotary angles {:?} and {:?} do not fit {:?}", cos.dims(), sin.dims(), x.dims());
    }
    if is_cpu_f32(&[x, cos, sin]) {
        return apply3(&x.contiguous()?, cos, sin, RotaryOp { backwards: false });
    }
    let (cos, sin) = (cos.unsqueeze(2)?.to_dtype(x.dtype())?, sin.unsqueeze(2)?.to_dtype(x.dtype())?);
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[left, right], D::Minus1)
}

struct RotaryOp {
    backwards: bool,
}

impl CustomOp3 for RotaryOp {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        cos: &CpuStorage,
        lc: &Layout,
        sin: &CpuStorage,
        ls: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, seq, heads, head_dim) = lx.shape().dims4()?;
        let (rows, _, half) = lc.shape().dims3()?;
        let (x, cos, sin) = (contiguous_slice(x, lx)?, contiguous_slice(cos, lc)?, contiguous_slice(sin, ls)?);
        let sign = if self.backwards { -1.0 } else { 1.0 };
        let mut y = vec![0f32; x.len()];
        let one_token = |(token, (y, x)): (usize, (&mut [f32], &[f32]))| {
            let at = if rows == 1 { token % seq } else { token } * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            vectorised(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_mut(head_dim).zip(x.chunks(head_dim)) {
                        let (a, b) = x.split_at(half);
                        let (left, right) = y.split_at_mut(half);
                        for i in 0..half {
                            left[i] = a[i] * cos[i] - b[i] * sign * sin[i];
                            right[i] = b[i] * cos[i] + a[i] * sign * sin[i];
                        }
                    }
                },
            );
        };
        let width = heads * head_dim;
        y.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().with_min_len(32).for_each(one_token);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let opposite = RotaryOp { backwards: !self.backwards };
        Ok((Some(g.contiguous()?.apply_op3_no_bwd(cos, sin, &opposite)?), None, None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;
    use candle_core::DType;

    #[test]
    fn gradient_matches_finite_differences() {
        let angles = values(&[2, 3, 2], 0.4);
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        check_gradients(&[values(&[2, 3, 2, 4], 0.1)], |t| rope(&t[0], &cos, &sin));
    }

    #[test]
    fn kernel_equals_the_composed_form_also_with_shared_angles() -> Result<()> {
        let x = values(&[2, 3, 2, 4], 0.1);
        for rows in [1, 2] {
            let angles = values(&[rows, 3, 2], 0.4);
            let (cos, sin) = (angles.cos()?, angles.sin()?);
            let wide = |t: &Tensor| t.to_dtype(DType::F64);
            let expected = rope(&wide(&x)?, &wide(&cos)?, &wide(&sin)?)?.to_dtype(DType::F32)?;
            assert!(max_diff(&rope(&x, &cos, &sin)?, &expected) < 1e-6);
        }
        Ok(())
    }
}
