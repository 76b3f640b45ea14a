//! Cast of keys and values to the dtype of their cache.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{contiguous_slice, is_cpu_f32};

/// Elements of one parallel task.
const CHUNK: usize = 1 << 14;

/// Casts `x` to the dtype of a KV cache, without a gradient. f16 saturates: magnitudes from 65,520 on become 65,504.
///
/// # Errors
/// Errors of candle only.
pub(crate) fn cast_for_cache(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F16 if is_cpu_f32(&[x]) => x.detach().contiguous()?.apply_op1_no_bwd(&CastToF16),
        _ => x.detach().to_dtype(dtype),
    }
}

/// Cast from f32 to f16; candle's cast runs on one thread and makes large elements infinite.
struct CastToF16;

impl CustomOp1 for CastToF16 {
    fn name(&self) -> &'static str {
        "cast-to-f16"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_slice(x, layout)?;
        let mut converted = vec![f16::ZERO; x.len()];
        let parts = converted.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
        parts.for_each(|(converted, x)| {
            converted.convert_from_f32_slice(x);
            for y in converted.iter_mut().filter(|y| y.is_infinite()) {
                *y = if y.is_sign_negative() { f16::MIN } else { f16::MAX };
            }
        });
        Ok((CpuStorage::F16(converted), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cast_rounds_as_candle_and_saturates() -> Result<()> {
        let x = super::super::testing::values(&[3, 7, 2000], 0.1).transpose(0, 1)?;
        let found = cast_for_cache(&x, DType::F16)?;
        let bits = |x: &Tensor| x.flatten_all()?.to_vec1::<f16>();
        assert_eq!((found.dims(), bits(&found)?), (x.dims(), bits(&x.to_dtype(DType::F16)?)?));
        let extremes = [1e6, -1e6, f32::INFINITY, 65_519.0, 1e-7, f32::NAN];
        let found = bits(&cast_for_cache(&Tensor::new(&extremes, x.device())?, DType::F16)?)?;
        assert_eq!(found[..5], [f16::MAX, f16::MIN, f16::MAX, f16::MAX, f16::from_f32(1e-7)]);
        assert!(found[5].is_nan());
        Ok(())
    }
}
