//! Low-rank update of a linear layer's result, `y + scale * z B^T`: the second half of a LoRA adapter.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{contiguous_slice, is_cpu_f32, with_slices};
use crate::nn::deliver;
use crate::nn::kernels::dispatch::MatmulBackend;
use crate::nn::kernels::gemv::gemv;
use crate::nn::kernels::mat::MatRef;
use crate::nn::kernels::matmul::matmul;
use crate::nn::tape::apply3;
use crate::nn::tensor_data::CHUNK;
use crate::options::Precision;

/// `y + scale * z B^T` for `y` of any shape whose consecutive `out` elements are a row, `z` (rows, rank) and `b`
/// (out, rank); the result has the shape of `y`. The bits of a row of up to 32 rows do not depend on the other rows.
///
/// The gradients are `dy = g`, `dz = scale * g B` and `dB = scale * g^T z`.
///
/// # Errors
/// Errors of candle, if shapes, devices or dtypes do not fit.
pub fn low_rank_update(y: &Tensor, z: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let ((rows, rank), (outputs, inner)) = (z.dims2()?, b.dims2()?);
    if rank != inner || y.elem_count() != rows * outputs {
        candle_core::bail!("low-rank update of {:?} from {:?} and {:?}", y.dims(), z.dims(), b.dims());
    }
    if is_cpu_f32(&[y, z, b]) {
        let op = LowRankUpdate { rows, rank, outputs, scale: scale as f32 };
        return apply3(&y.contiguous()?, &z.contiguous()?, &b.contiguous()?, op);
    }
    y + (z.matmul(&b.t()?)? * scale)?.reshape(y.shape())?
}

/// The custom op.
struct LowRankUpdate {
    rows: usize,
    rank: usize,
    outputs: usize,
    scale: f32,
}

impl LowRankUpdate {
    /// `scale * left right`.
    fn product(&self, left: MatRef, right: MatRef) -> Vec<f32> {
        let mut product = matmul(left, right, Precision::Full);
        product.iter_mut().for_each(|value| *value *= self.scale);
        product
    }

    fn z_gradient(&self, g: &Tensor, b: &Tensor) -> Result<Tensor> {
        let dz = with_slices([g, b], |[g, b]| {
            let g = MatRef::contiguous(g, (self.rows, self.outputs));
            self.product(g, MatRef::contiguous(b, (self.outputs, self.rank)))
        })?;
        Tensor::from_vec(dz, (self.rows, self.rank), g.device())
    }

    fn b_gradient(&self, g: &Tensor, z: &Tensor) -> Result<Tensor> {
        let db = with_slices([g, z], |[g, z]| {
            let g = MatRef::contiguous(g, (self.rows, self.outputs));
            self.product(g.transposed(), MatRef::contiguous(z, (self.rows, self.rank)))
        })?;
        Tensor::from_vec(db, (self.outputs, self.rank), g.device())
    }
}

impl CustomOp3 for LowRankUpdate {
    fn name(&self) -> &'static str {
        "low-rank-update"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        ly: &Layout,
        z: &CpuStorage,
        lz: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (y, z, b) = (contiguous_slice(y, ly)?, contiguous_slice(z, lz)?, contiguous_slice(b, lb)?);
        let mut sum = match MatmulBackend::for_linear(self.rows, Precision::Full) {
            MatmulBackend::Gemv if self.rank > 0 => gemv(z, b, self.rank),
            _ => {
                let b = MatRef::contiguous(b, (self.outputs, self.rank));
                matmul(MatRef::contiguous(z, (self.rows, self.rank)), b.transposed(), Precision::Full)
            }
        };
        let add = |(sum, y): (&mut [f32], &[f32])| {
            sum.iter_mut().zip(y).for_each(|(sum, y)| *sum = self.scale.mul_add(*sum, *y));
        };
        sum.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(add);
        Ok((CpuStorage::F32(sum), ly.shape().clone()))
    }

    fn bwd(
        &self,
        y: &Tensor,
        z: &Tensor,
        b: &Tensor,
        _sum: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.detach().contiguous()?;
        let dz = z.track_op().then(|| self.z_gradient(&g, &b.detach())).transpose()?;
        let db = if b.track_op() { deliver(b, self.b_gradient(&g, &z.detach())?)? } else { None };
        Ok((y.track_op().then_some(g), dz, db))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;

    #[test]
    fn values_and_gradients_equal_those_of_composed_operations() -> Result<()> {
        for rows in [1, 3, 33] {
            let (y, z, b) = (values(&[rows, 2, 5], 0.1), values(&[rows * 2, 3], 0.2), values(&[5, 3], 0.3));
            let expected = (&y + (z.matmul(&b.t()?)? * 0.7)?.reshape(y.shape())?)?;
            assert!(max_diff(&low_rank_update(&y, &z, &b, 0.7)?, &expected) < 1e-5);
        }
        let inputs = [values(&[2, 5], 0.1), values(&[2, 3], 0.2), values(&[5, 3], 0.3)];
        check_gradients(&inputs, |t| low_rank_update(&t[0], &t[1], &t[2], 0.7)?.sqr());
        assert!(low_rank_update(&values(&[2, 5], 0.1), &values(&[3, 3], 0.2), &values(&[5, 3], 0.3), 1.0).is_err());
        Ok(())
    }

    #[test]
    fn rows_are_the_same_bits_in_any_number() -> Result<()> {
        let (y, z, b) = (values(&[9, 40], 0.1), values(&[9, 16], 0.2), values(&[40, 16], 0.3));
        let all = low_rank_update(&y, &z, &b, 2.0)?;
        for row in 0..9 {
            let alone = low_rank_update(&y.narrow(0, row, 1)?, &z.narrow(0, row, 1)?, &b, 2.0)?;
            assert_eq!(alone.to_vec2::<f32>()?, all.narrow(0, row, 1)?.to_vec2::<f32>()?);
        }
        Ok(())
    }
}
