//! A source some of whose tensors are replaced.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::TensorSource;
use crate::Result;
use crate::nn::MappedRows;
use crate::nn::ops::QuantizedWeight;
use crate::options::Quantization;

/// A source of which some tensors are replaced by others in memory, of any shape.
pub(crate) struct OverlaySource {
    /// The source below.
    pub base: Arc<dyn TensorSource>,
    /// The tensors on top, by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl TensorSource for OverlaySource {
    fn path(&self) -> &Path {
        self.base.path()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.base.tensor_names()
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(Tensor::dims).or_else(|| self.base.tensor_shape(name))
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor.to_dtype(dtype)?.to_device(device)?),
            None => self.base.load_tensor(name, dtype, device),
        }
    }

    fn mapped_rows(&self, name: &str) -> Option<MappedRows> {
        if self.tensors.contains_key(name) { None } else { self.base.mapped_rows(name) }
    }

    fn quantization(&self, name: &str) -> Option<Quantization> {
        if self.tensors.contains_key(name) { None } else { self.base.quantization(name) }
    }

    fn load_quantized(&self, name: &str, in_size: usize) -> Result<Option<QuantizedWeight>> {
        if self.tensors.contains_key(name) { Ok(None) } else { self.base.load_quantized(name, in_size) }
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name).map(Tensor::dtype).or_else(|| self.base.stored_dtype(name))
    }

    fn renaming(&self) -> Option<&str> {
        self.base.renaming()
    }
}
