//! Sources of weights, independent of the file format.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::gguf::MODEL_FILE;
use super::safetensors::{INDEX_FILE, SINGLE_FILE};
use super::{GgufFile, SafetensorsFiles, check_tensors};
use crate::nn::ops::QuantizedWeight;
use crate::options::Quantization;
use crate::{Error, Result};

/// A source of tensors, by HF name.
pub trait TensorSource: Send + Sync {
    /// The file or folder, for messages.
    fn path(&self) -> &Path;

    /// The names of all tensors, sorted.
    fn tensor_names(&self) -> Vec<String>;

    /// Stored shape of a tensor; `None` if there is no tensor with this name.
    fn tensor_shape(&self, name: &str) -> Option<&[usize]>;

    /// Copies a tensor to `device`, converted to `dtype`.
    ///
    /// # Errors
    /// [`Error::Weights`](crate::Error::Weights) if there is no tensor with this name, or its dtype cannot be
    /// converted.
    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor>;

    /// Quantisation of a matrix, if layers can use its stored blocks without conversion.
    fn quantization(&self, _name: &str) -> Option<Quantization> {
        None
    }

    /// Copies a matrix with rows of `in_size` values in its stored quantisation; `None` if [`Self::quantization`] is
    /// `None`.
    ///
    /// # Errors
    /// As [`Self::load_tensor`].
    fn load_quantized(&self, _name: &str, _in_size: usize) -> Result<Option<QuantizedWeight>> {
        Ok(None)
    }

    /// Refuses a tensor that holds NaN or infinity. Loading does not look: the check costs a third of a load, and generation
    /// refuses logits that are not finite. Sources that are no files accept everything.
    ///
    /// # Errors
    /// [`Error::Weights`] naming the tensor and the first such element or block, or if there is no such tensor.
    fn check_finite(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    /// Whether there is a tensor of this name.
    fn has_tensor(&self, name: &str) -> bool {
        self.tensor_shape(name).is_some()
    }
}

/// Opens the weights of a model folder: safetensors, or the `model.gguf` of a quantised model.
///
/// # Errors
/// As [`SafetensorsFiles::open`] and [`GgufFile::open`], and [`Error::Format`] if the folder contains both formats.
pub fn open_weights(folder: impl AsRef<Path>) -> Result<Arc<dyn TensorSource>> {
    let folder = folder.as_ref();
    let gguf = folder.join(MODEL_FILE);
    let safetensors = [SINGLE_FILE, INDEX_FILE].into_iter().find(|name| folder.join(name).is_file());
    match (gguf.is_file(), safetensors) {
        (true, Some(other)) => {
            Err(Error::format(folder, format!("holds both {MODEL_FILE} and {other}: move one of them elsewhere")))
        }
        (true, None) => Ok(Arc::new(GgufFile::open(gguf)?)),
        (false, _) => Ok(Arc::new(SafetensorsFiles::open(folder)?)),
    }
}

/// Checks that a source has exactly the tensors of `expected`, see [`check_tensors`]; rows of quantised matrices may be
/// padded.
///
/// # Errors
/// As [`check_tensors`].
pub fn check_source(source: &dyn TensorSource, expected: &BTreeMap<String, Vec<usize>>) -> Result<()> {
    let found = source.tensor_names().into_iter().filter_map(|name| {
        let shape = source.tensor_shape(&name)?.to_vec();
        let wanted = expected.get(&name).filter(|wanted| is_padded(source, &name, &shape, wanted));
        Some((name, wanted.cloned().unwrap_or(shape)))
    });
    check_tensors(&source.path().display().to_string(), expected, &found.collect())
}

/// Whether a stored quantised matrix of shape `shape` is a matrix of shape `wanted` with padded rows.
fn is_padded(source: &dyn TensorSource, name: &str, shape: &[usize], wanted: &[usize]) -> bool {
    match (source.quantization(name), shape, wanted) {
        (Some(kind), [rows, padded], [outputs, in_size]) => rows == outputs && kind.may_pad(*in_size, *padded),
        _ => false,
    }
}

/// A builder that returns the tensors of `source` as constants, without gradients. Tensors named in `later` are zeros
/// that take no memory; the caller replaces them.
pub fn source_var_builder(
    source: Arc<dyn TensorSource>,
    later: BTreeSet<String>,
    dtype: DType,
    device: &Device,
) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Backend { source, later }), dtype, device.clone())
}

struct Backend {
    source: Arc<dyn TensorSource>,
    later: BTreeSet<String>,
}

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        if self.later.contains(name) {
            return Tensor::zeros((), dtype, device)?.broadcast_as(shape);
        }
        let found = self.source.tensor_shape(name).unwrap_or_default();
        let padded = is_padded(&*self.source, name, found, shape.dims());
        if self.source.has_tensor(name) && found != shape.dims() && !padded {
            let path = self.source.path().display();
            candle_core::bail!("{path}: tensor `{name}` is {found:?}, expected {:?}", shape.dims());
        }
        let tensor = self.get_unchecked(name, dtype, device)?;
        if padded { tensor.narrow(1, 0, shape.dims2()?.1)?.contiguous() } else { Ok(tensor) }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.source.load_tensor(name, dtype, device).map_err(candle_core::Error::wrap)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.source.has_tensor(name)
    }
}
