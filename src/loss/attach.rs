//! A scalar whose gradients were computed along with it, hung into the graph.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Storage, Tensor};

/// Makes the scalar `value` a function of `a` and `b` with the given gradients; `None` for an input without one.
pub(super) fn attach(value: Tensor, a: &Tensor, b: &Tensor, gradients: [Option<Tensor>; 2]) -> Result<Tensor> {
    a.apply_op2(b, Precomputed { value, gradients })
}

struct Precomputed {
    value: Tensor,
    gradients: [Option<Tensor>; 2],
}

impl Precomputed {
    fn scaled(&self, n: usize, scale: &Tensor) -> Result<Option<Tensor>> {
        let Some(gradient) = self.gradients.get(n).and_then(Option::as_ref) else { return Ok(None) };
        // The usual case, when the mean is taken by the optimizer: saves a pass over a gradient as large as the head.
        if scale.to_dtype(DType::F32)?.to_scalar::<f32>()? == 1.0 {
            return Ok(Some(gradient.clone()));
        }
        gradient.broadcast_mul(&scale.detach().to_dtype(gradient.dtype())?).map(Some)
    }
}

impl CustomOp2 for Precomputed {
    fn name(&self) -> &'static str {
        "precomputed-gradient"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, self.value.shape().clone())),
            _ => candle_core::bail!("{}: the value is not on the CPU as its inputs are", self.name()),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, self.value.shape().clone())),
            _ => candle_core::bail!("{}: the value is not on the GPU as its inputs are", self.name()),
        }
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Metal(storage) => Ok((storage.try_clone(layout)?, self.value.shape().clone())),
            _ => candle_core::bail!("{}: the value is not on the GPU as its inputs are", self.name()),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.scaled(0, grad)?, self.scaled(1, grad)?))
    }
}
