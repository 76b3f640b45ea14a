//! Conversion of stored elements to a tensor, the same for every file format.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// Description of a stored tensor.
pub(super) struct RawTensor<'a> {
    pub(super) name: &'a str,
    /// Stored element type in the format's own words.
    pub(super) type_name: &'a str,
    /// Candle's dtype of the stored elements, if it has one.
    pub(super) dtype: Option<DType>,
    pub(super) shape: &'a [usize],
}

impl RawTensor<'_> {
    /// Copies row-major little-endian elements to `device`, converted to `dtype`; `file` is named in errors.
    ///
    /// # Errors
    /// [`Error::Weights`] if the stored dtype is neither a float dtype nor `dtype`.
    pub(super) fn load(&self, file: &Path, bytes: &[u8], dtype: DType, device: &Device) -> Result<Tensor> {
        let convertible = |stored: &DType| *stored == dtype || is_float(*stored) && is_float(dtype);
        let Some(stored) = self.dtype.filter(convertible) else {
            return Err(Error::weights(format!(
                "{}: tensor `{}` has dtype {}, which cannot be converted to {}: expected f64, f32, f16 or bf16",
                file.display(),
                self.name,
                self.type_name,
                dtype.as_str()
            )));
        };
        Ok(Tensor::from_raw_buffer(bytes, stored, self.shape, device)?.to_dtype(dtype)?)
    }
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
}
