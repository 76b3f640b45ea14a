//! GGUF files: language models as written by llama.cpp, read under HF tensor names, and quantised HaploVL models.

mod header;
mod llm;
mod names;
mod split;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::QTensor;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

pub use header::GgufValue;
use header::{Header, TensorInfo};
pub use write::save_gguf;

use super::TensorSource;
use super::finite::check_ggml;
use crate::nn::ops::QuantizedWeight;
use crate::options::Quantization;
use crate::{Error, Result, files};

/// File name of the weights in the folder of a quantised model.
pub(super) const MODEL_FILE: &str = "model.gguf";

/// Metadata key of the vocabulary.
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";

/// A `.gguf` file: a language model of architecture `llama`, `qwen2` or `qwen3`, or a quantised HaploVL.
///
/// A file that is split into parts (`NAME-00001-of-00003.gguf`) is opened by the name of any part.
/// Opening reads and checks the headers only. The files must not be modified while they are memory-mapped.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    /// The parts of a split file, in order, or the only file.
    maps: Vec<Mmap>,
    metadata: BTreeMap<String, GgufValue>,
    /// Part and description of each tensor, by HF name.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

impl GgufFile {
    /// Opens a file, with its other parts if it is split.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Format`] if one is truncated or inconsistent, a part is missing, or a
    /// tensor is of an unsupported GGML type.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let parts = split::parts(path)?;
        let mut whole =
            Self { path: path.to_path_buf(), maps: Vec::new(), metadata: BTreeMap::new(), tensors: BTreeMap::new() };
        for (part, path) in parts.iter().enumerate() {
            whole.add(path, part, parts.len())?;
        }
        split::check_tensor_count(&whole.metadata, whole.tensors.len()).map_err(|e| Error::format(path, e))?;
        Ok(whole)
    }

    /// Adds the tensors of part `part` of `parts`.
    fn add(&mut self, path: &Path, part: usize, parts: usize) -> Result<()> {
        let file = files::open(path)?;
        // SAFETY: the map is read-only; callers must not truncate the file while it is mapped, as documented.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let header = Header::parse(&map).map_err(|message| Error::format(path, message))?;
        split::check_part(&header.metadata, part, parts).map_err(|message| Error::format(path, message))?;
        for (name, info) in header.tensors {
            let hf = names::to_hf(&name);
            if self.tensors.insert(hf, (part, info)).is_some() {
                return Err(Error::format(path, format!("has two tensors that are HF's `{}`", names::to_hf(&name))));
            }
        }
        if part == 0 {
            self.metadata = header.metadata;
        }
        self.maps.push(map);
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata by GGUF key. Arrays are represented by their length.
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.metadata
    }

    /// The vocabulary in the order of ids, as the file's tokenizer writes tokens; `None` if the file has none.
    ///
    /// # Errors
    /// [`Error::Format`] if the list is broken.
    pub fn tokens(&self) -> Result<Option<Vec<String>>> {
        let Some(file) = self.maps.first() else { return Ok(None) };
        header::texts(file, TOKENS_KEY).map_err(|message| Error::format(&self.path, message))
    }

    /// Shape of the tensor with this HF name, outermost dimension first as in HF; `None` if there is none.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, info)| info.shape.as_slice())
    }

    fn is_permuted(&self) -> bool {
        self.metadata.get("general.architecture") == Some(&GgufValue::Text("llama".into()))
    }

    /// Description and bytes of a tensor.
    fn entry(&self, name: &str) -> Result<(&TensorInfo, &[u8])> {
        let missing = || Error::weights(format!("{}: there is no tensor `{name}`", self.path.display()));
        let (part, info) = self.tensors.get(name).ok_or_else(missing)?;
        let map = self.maps.get(*part).ok_or_else(missing)?;
        Ok((info, map.get(info.bytes.clone()).ok_or_else(missing)?))
    }

    /// A tensor as it is stored.
    fn stored(&self, name: &str) -> Result<QTensor> {
        let (info, bytes) = self.entry(name)?;
        Ok(qtensor_from_ggml(info.dtype, bytes, info.shape.clone(), &Device::Cpu)?)
    }

    /// Reverts the permutation of query and key rows that the conversion to GGUF applies.
    fn unpermute(&self, name: &str, tensor: Tensor) -> Result<Tensor> {
        let heads = match name {
            _ if !self.is_permuted() => return Ok(tensor),
            _ if name.contains(".q_proj.") => self.integer("attention.head_count")?,
            _ if name.contains(".k_proj.") => self.key_value_heads()?,
            _ => return Ok(tensor),
        };
        names::split_rotary_pairs(&tensor, heads)
    }
}

impl TensorSource for GgufFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensor_names(&self) -> Vec<String> {
        // The RoPE frequency divisors are part of the configuration, not a tensor of the model.
        self.tensors.keys().filter(|name| *name != llm::ROPE_DIVISORS).cloned().collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.shape(name)
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.unpermute(name, self.stored(name)?.dequantize(&Device::Cpu)?)?;
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }

    fn check_finite(&self, name: &str) -> Result<()> {
        let (info, bytes) = self.entry(name)?;
        check_ggml(&self.path.display().to_string(), name, bytes, info.dtype)
    }

    fn quantization(&self, name: &str) -> Option<Quantization> {
        let dtype = self.tensors.get(name)?.1.dtype;
        Quantization::ALL.into_iter().find(|kind| kind.ggml_dtype() == dtype && !self.is_permuted())
    }

    fn load_quantized(&self, name: &str, in_size: usize) -> Result<Option<QuantizedWeight>> {
        match self.quantization(name) {
            Some(_) => Ok(Some(QuantizedWeight::from_qtensor(self.stored(name)?, in_size)?)),
            None => Ok(None),
        }
    }
}
