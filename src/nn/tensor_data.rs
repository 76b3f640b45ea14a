//! Direct access to the numbers of a contiguous f32 CPU tensor, for passes that must neither copy nor allocate.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor};

/// Numbers that one thread treats at a time: small enough to balance, large enough to hide the cost of a task.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Whether [`with_slice`] and [`with_slice_mut`] can serve this tensor.
pub(crate) fn is_host_f32(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == candle_core::DType::F32 && tensor.is_contiguous()
}

/// Runs `read` on the numbers of `tensor`.
pub(crate) fn with_slice<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("expected a tensor on the CPU") };
    Ok(read(contiguous(storage.as_slice::<f32>()?, layout)?))
}

/// Runs `write` on the numbers of `tensor`, in place. Every tensor that shares the storage sees the change.
///
/// `write` must not touch `tensor` by another way: its storage is locked meanwhile.
pub(crate) fn with_slice_mut<R>(tensor: &Tensor, write: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let op = WithSliceMut { write: Cell::new(Some(write)), result: Cell::new(None) };
    tensor.inplace_op1(&op)?;
    op.result.take().ok_or_else(|| candle_core::Error::msg("the in-place pass did not run"))
}

struct WithSliceMut<F, R> {
    write: Cell<Option<F>>,
    result: Cell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for WithSliceMut<F, R> {
    fn name(&self) -> &'static str {
        "with-slice-mut"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { candle_core::bail!("expected f32 values") };
        let values = layout.contiguous_offsets().and_then(|(start, end)| values.get_mut(start..end));
        let (Some(values), Some(write)) = (values, self.write.take()) else {
            candle_core::bail!("expected a contiguous tensor")
        };
        self.result.set(Some(write(values)));
        Ok(())
    }
}

fn contiguous<'a>(values: &'a [f32], layout: &Layout) -> Result<&'a [f32]> {
    let range = layout.contiguous_offsets().and_then(|(start, end)| values.get(start..end));
    range.ok_or_else(|| candle_core::Error::msg("expected a contiguous tensor"))
}
