//! Residual connection `x + y`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{contiguous_slice, is_cpu_f32};
use crate::nn::tape::apply2;

/// Elements of one parallel task.
const CHUNK: usize = 1 << 14;

/// Adds two tensors of the same shape.
///
/// candle adds large tensors on its own threads, which keep spinning afterwards and take CPU time from other kernels.
///
/// # Errors
/// Errors of candle, if the shapes differ.
pub fn residual(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() == y.dims() && is_cpu_f32(&[x, y]) {
        apply2(&x.contiguous()?, &y.contiguous()?, Residual)
    } else {
        x + y
    }
}

/// The custom op.
struct Residual;

impl CustomOp2 for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, y: &CpuStorage, ly: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, y) = (contiguous_slice(x, lx)?, contiguous_slice(y, ly)?);
        let mut sum = vec![0f32; x.len()];
        sum.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(y.par_chunks(CHUNK)).for_each(|((sum, x), y)| {
            for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
                *sum = x + y;
            }
        });
        Ok((CpuStorage::F32(sum), lx.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, _sum: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(g.clone()), Some(g.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;

    #[test]
    fn values_and_gradients_equal_those_of_candle() -> Result<()> {
        for shape in [&[2, 3][..], &[3, 7, 2000]] {
            let (x, y) = (values(shape, 0.1), values(shape, 0.7));
            assert_eq!(max_diff(&residual(&x, &y)?, &(&x + &y)?), 0.0);
            let turned = residual(&x.transpose(0, 1)?, &y.transpose(0, 1)?)?;
            assert_eq!(max_diff(&turned, &(x + y)?.transpose(0, 1)?), 0.0);
        }
        check_gradients(&[values(&[2, 3], 0.1), values(&[2, 3], 0.7)], |t| residual(&t[0], &t[1])?.sqr());
        check_gradients(&[values(&[2, 3], 0.1)], |t| residual(&t[0], &t[0])?.sqr());
        assert!(residual(&values(&[2, 3], 0.1), &values(&[3, 2], 0.1)).is_err());
        Ok(())
    }
}
