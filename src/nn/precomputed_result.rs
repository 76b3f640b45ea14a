//! Forward pass of custom ops with a precomputed result, one function per backend.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CudaStorage, Layout, MetalStorage, Result, Shape, Storage, Tensor};

/// Tensor that a custom op hands to candle as its result, once.
pub(crate) struct PrecomputedResult(Once<Tensor>);

impl PrecomputedResult {
    /// Forward pass that returns `result`, without the graph that computed it.
    pub fn new(result: &Tensor) -> Self {
        Self(Once::new(result.detach()))
    }

    /// The result as the CPU storage of the op `name`.
    pub fn cpu(&self, name: &str) -> Result<(CpuStorage, Shape)> {
        self.storage(|storage, layout| match storage.try_clone(layout)? {
            Storage::Cpu(storage) => Ok(storage),
            _ => candle_core::bail!("{name}: the result is not on the CPU, where the input is"),
        })
    }

    /// The result as the CUDA storage of the op `name`.
    pub fn cuda(&self, name: &str) -> Result<(CudaStorage, Shape)> {
        self.storage(|storage, layout| match storage.try_clone(layout)? {
            Storage::Cuda(storage) => Ok(storage),
            _ => candle_core::bail!("{name}: the result is not on the CUDA device of the input"),
        })
    }

    /// The result as the Metal storage of the op `name`.
    pub fn metal(&self, name: &str) -> Result<(MetalStorage, Shape)> {
        self.storage(|storage, layout| match storage.try_clone(layout)? {
            Storage::Metal(storage) => Ok(storage),
            _ => candle_core::bail!("{name}: the result is not on the Metal device of the input"),
        })
    }

    fn storage<S>(&self, copy: impl FnOnce(&Storage, &Layout) -> Result<S>) -> Result<(S, Shape)> {
        let Some(result) = self.0.take() else { candle_core::bail!("a precomputed result was already taken") };
        // `try_clone` copies the whole storage, while the tensor may be a view of a part.
        let result = result.force_contiguous()?;
        let (storage, layout) = result.storage_and_layout();
        Ok((copy(&storage, layout)?, layout.shape().clone()))
    }
}

/// Value that can be taken once, by any thread.
pub(crate) struct Once<T>(Mutex<Option<T>>);

impl<T> Once<T> {
    /// A value that was not taken yet.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(Some(value)))
    }

    /// The value; `None` after the first call.
    pub fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
