//! The cast of keys and values to the dtype of their cache.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{contiguous_slice, is_cpu_f32};

/// Numbers that one thread rounds at a time.
const CHUNK: usize = 1 << 14;

/// `x` as a cache of `dtype` holds it; without a gradient. What is too large for a half, from 65,520 on, becomes the largest.
///
/// # Errors
/// From candle only.
pub(crate) fn held_as(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F16 if is_cpu_f32(&[x]) => x.detach().contiguous()?.apply_op1_no_bwd(&Round),
        _ => x.detach().to_dtype(dtype),
    }
}

/// Floats to halves; candle does it on one thread, and makes large ones infinite.
struct Round;

impl CustomOp1 for Round {
    fn name(&self) -> &'static str {
        "round-to-half"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_slice(x, layout)?;
        let mut halves = vec![f16::ZERO; x.len()];
        let parts = halves.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
        parts.for_each(|(halves, x)| {
            halves.convert_from_f32_slice(x);
            for half in halves.iter_mut().filter(|half| half.is_infinite()) {
                *half = if half.is_sign_negative() { f16::MIN } else { f16::MAX };
            }
        });
        Ok((CpuStorage::F16(halves), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_rounded_as_candle_does() -> Result<()> {
        let x = super::super::testing::values(&[3, 7, 2000], 0.1).transpose(0, 1)?;
        let found = held_as(&x, DType::F16)?;
        let bits = |x: &Tensor| x.flatten_all()?.to_vec1::<f16>();
        assert_eq!((found.dims(), bits(&found)?), (x.dims(), bits(&x.to_dtype(DType::F16)?)?));
        let extremes = [1e6, -1e6, f32::INFINITY, 65_519.0, 1e-7, f32::NAN];
        let found = bits(&held_as(&Tensor::new(&extremes, x.device())?, DType::F16)?)?;
        assert_eq!(found[..5], [f16::MAX, f16::MIN, f16::MAX, f16::MAX, f16::from_f32(1e-7)]);
        assert!(found[5].is_nan());
        Ok(())
    }
}
