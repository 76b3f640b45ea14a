//! What weights can be inherited from.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::weights::SafetensorsFiles;
use crate::{Error, Result};

/// A configuration is some kilobytes; more than this is not one.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Tensors by HF name, wherever they are stored.
pub trait TensorSource: Send + Sync {
    /// The names of all tensors, sorted.
    fn tensor_names(&self) -> Vec<String>;

    /// Whether there is a tensor of this name.
    fn has_tensor(&self, name: &str) -> bool;

    /// Copies a tensor to `device`, converted to `dtype`.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is none of this name, or it cannot be converted.
    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor>;
}

impl TensorSource for SafetensorsFiles {
    fn tensor_names(&self) -> Vec<String> {
        self.names().map(String::from).collect()
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.load(name, dtype, device)
    }
}

/// Reads a `config.json` of bounded size.
pub(super) fn read_config(path: &Path) -> Result<Value> {
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if bytes > MAX_CONFIG_BYTES {
        return Err(Error::format(path, format!("is {bytes} bytes, expected a configuration")));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::format(path, format!("is not JSON: {e}")))
}
