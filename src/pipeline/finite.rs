//! A source of weights that refuses NaN and infinity.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::nn::ops::QuantizedWeight;
use crate::options::Quantization;
use crate::weights::TensorSource;
use crate::{Error, Result};

/// Elements that are checked at a time, so that no second copy of a large tensor is made.
const CHUNK: usize = 1 << 20;

/// Another source, each of whose tensors is checked when it is loaded.
pub(super) struct FiniteTensors(pub(super) Arc<dyn TensorSource>);

impl TensorSource for FiniteTensors {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.0.tensor_names()
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.0.tensor_shape(name)
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.0.load_tensor(name, dtype, device)?;
        match first_not_finite(&tensor)? {
            None => Ok(tensor),
            Some((at, value)) => Err(Error::weights(format!(
                "{}: tensor `{name}` holds {value} at element {at}, expected finite weights: download or train the \
                 model again",
                self.path().display()
            ))),
        }
    }

    fn quantization(&self, name: &str) -> Option<Quantization> {
        self.0.quantization(name)
    }

    fn load_quantized(&self, name: &str, in_size: usize) -> Result<Option<QuantizedWeight>> {
        self.0.load_quantized(name, in_size)
    }
}

/// The first element that is NaN or infinite, with its index in the flattened tensor.
fn first_not_finite(tensor: &Tensor) -> Result<Option<(usize, f32)>> {
    let flat = tensor.flatten_all()?;
    for start in (0..flat.elem_count()).step_by(CHUNK) {
        let chunk = flat.narrow(0, start, CHUNK.min(flat.elem_count() - start))?;
        let values = chunk.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Ok(Some((start + at, values[at])));
        }
    }
    Ok(None)
}
