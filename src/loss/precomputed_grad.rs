//! Autograd node for a scalar whose gradients were already computed in the forward pass.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::nn::deliver;
use crate::nn::precomputed_result::{Once, PrecomputedResult};
use crate::nn::tensor_data::{is_host_f32, with_slice_mut};

/// Records the scalar `value` as a function of `a` and `b` with the given gradients (`None`: no gradient).
///
/// The backward pass moves the gradients out, so it can run only once.
pub(super) fn with_gradients(value: Tensor, a: &Tensor, b: &Tensor, gradients: [Option<Tensor>; 2]) -> Result<Tensor> {
    a.apply_op2(b, Precomputed { value: PrecomputedResult::new(&value), gradients: Once::new(gradients) })
}

/// Custom operation that holds its value and the gradients with respect to its two inputs.
struct Precomputed {
    value: PrecomputedResult,
    gradients: Once<[Option<Tensor>; 2]>,
}

/// Computes `gradient * scale`. On the CPU this is done in place, since a head's gradient may be the model's largest.
fn scaled(gradient: Tensor, scale: &Tensor) -> Result<Tensor> {
    if !is_host_f32(&gradient) {
        return gradient.broadcast_mul(&scale.detach().to_dtype(gradient.dtype())?);
    }
    let scale: f32 = scale.to_dtype(DType::F32)?.to_scalar()?;
    with_slice_mut(&gradient, |values| {
        values.par_iter_mut().with_min_len(1 << 14).for_each(|value| *value *= scale);
    })?;
    Ok(gradient)
}

impl CustomOp2 for Precomputed {
    fn name(&self) -> &'static str {
        "precomputed-gradient"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.value.cpu(self.name())
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.value.cuda(self.name())
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.value.metal(self.name())
    }

    fn bwd(&self, _: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some([da, db]) = self.gradients.take() else {
            candle_core::bail!("{}: second backward pass over one loss: compute the loss again", self.name())
        };
        let db = db.map(|db| deliver(b, scaled(db, grad)?)).transpose()?.flatten();
        Ok((da.map(|da| scaled(da, grad)).transpose()?, db))
    }
}
