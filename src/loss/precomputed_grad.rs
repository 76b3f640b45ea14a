//! A scalar whose gradients were computed along with it, hung into the graph.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::nn::deliver;
use crate::nn::precomputed_result::{Once, PrecomputedResult};
use crate::nn::tensor_data::{is_host_f32, with_slice_mut};

/// Makes the scalar `value` a function of `a` and `b` with the given gradients; `None` for an input without one.
///
/// A backward pass takes the gradients, so there can be only one.
pub(super) fn with_gradients(value: Tensor, a: &Tensor, b: &Tensor, gradients: [Option<Tensor>; 2]) -> Result<Tensor> {
    a.apply_op2(b, Precomputed { value: PrecomputedResult::new(&value), gradients: Once::new(gradients) })
}

struct Precomputed {
    value: PrecomputedResult,
    gradients: Once<[Option<Tensor>; 2]>,
}

/// `gradient * scale`, in the memory of `gradient` where it is on the CPU: that of a head may be the largest of a model.
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
            candle_core::bail!("{}: a second backward pass", self.name())
        };
        let db = db.map(|db| deliver(b, scaled(db, grad)?)).transpose()?.flatten();
        Ok((da.map(|da| scaled(da, grad)).transpose()?, db))
    }
}
