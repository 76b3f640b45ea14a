//! Direct access to the elements of contiguous f32 CPU tensors, for passes that must neither copy nor allocate.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor};

/// Elements of one parallel task: few enough to balance the threads, enough to hide the cost of a task.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Whether [`with_slices`] and [`with_slice_mut`] can serve this tensor.
pub(crate) fn is_host_f32(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == candle_core::DType::F32 && tensor.is_contiguous()
}

/// The elements of a contiguous f32 CPU storage.
pub(crate) fn contiguous_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("expected a contiguous tensor, found strides {:?}", layout.stride()),
    }
}

/// Runs `read` on the elements of contiguous f32 CPU tensors, without copying them.
pub(crate) fn with_slices<const N: usize, R>(tensors: [&Tensor; N], read: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices = [[].as_slice(); N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        match &**storage {
            Storage::Cpu(cpu) => *slice = contiguous_slice(cpu, layout)?,
            _ => candle_core::bail!("expected a tensor on the CPU"),
        }
    }
    Ok(read(slices))
}

/// Runs `read` on the elements of one contiguous f32 CPU tensor, without copying them.
pub(crate) fn with_slice<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_slices([tensor], |[slice]| read(slice))
}

/// Runs `write` on the elements of `tensor`, in place. Every tensor that shares the storage sees the change.
///
/// `write` must not access `tensor` otherwise: its storage is locked until `write` returns.
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

/// Moves the elements out of a contiguous f32 CPU tensor that is all of its storage, and leaves it without any; `None` for
/// other tensors, which are left as they are. Every tensor that shares the storage loses them, so nothing may read it again.
pub(crate) fn take_elements(tensor: &Tensor) -> Option<Vec<f32>> {
    let op = Take(Cell::new(None));
    tensor.inplace_op1(&op).ok()?;
    op.0.take()
}

struct Take(Cell<Option<Vec<f32>>>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        if let CpuStorage::F32(values) = storage
            && layout.contiguous_offsets() == Some((0, values.len()))
        {
            self.0.set(Some(std::mem::take(values)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn elements_are_taken_from_whole_tensors_only() -> Result<()> {
        let whole = Tensor::arange(0f32, 6.0, &Device::Cpu)?.reshape((2, 3))?;
        assert_eq!(take_elements(&whole.narrow(0, 1, 1)?), None);
        assert_eq!(take_elements(&whole.t()?), None);
        assert_eq!(take_elements(&whole.to_dtype(DType::F64)?), None);
        assert_eq!(whole.sum_all()?.to_scalar::<f32>()?, 15.0);
        assert_eq!(take_elements(&whole), Some(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
        Ok(())
    }
}
