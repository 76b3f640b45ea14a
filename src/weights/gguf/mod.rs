//! GGUF files: language models as written by llama.cpp, read under HF tensor names, and quantised HaploVL models.

mod header;
mod llm;
mod names;
mod split;
mod stored_as;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

pub use header::GgufValue;
use header::{Header, TensorInfo};
pub(crate) use names::{from_hf as gguf_name, merge_rotary_pairs};
pub(crate) use stored_as::StoredAs;
pub(crate) use write::{GgufTensor, WriteBytes, save_gguf};

use super::TensorSource;
use super::finite::check_ggml;
use super::source::{EachPart, row_parts};
use crate::files::MappedBytes;
use crate::nn::MappedRows;
use crate::nn::interleaved::{InterleavedWeight, LANES, in_file_order};
use crate::nn::ops::QuantizedWeight;
use crate::options::Quantization;
use crate::{Error, Result, files};

/// Metadata key of the vocabulary.
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";

/// A `.gguf` file: a language model of architecture `llama`, `qwen2` or `qwen3`, or a quantised HaploVL.
///
/// A file that is split into parts (`NAME-00001-of-00003.gguf`) is opened by the name of any part.
/// Opening reads and checks the headers only. The files must not be modified while they are memory-mapped: a quantised model
/// uses its weights there as long as it exists.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    /// The parts of a split file, in order, or the only file.
    maps: Vec<Arc<Mmap>>,
    metadata: BTreeMap<String, GgufValue>,
    /// Part and description of each tensor, by HF name.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

impl GgufFile {
    /// File name of the weights in the folder of a quantised model.
    pub const MODEL: &str = "model.gguf";

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
        self.maps.push(Arc::new(map));
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
    fn entry(&self, name: &str) -> Result<(&TensorInfo, MappedBytes)> {
        let missing = || Error::weights(format!("{}: there is no tensor `{name}`", self.path.display()));
        let (part, info) = self.tensors.get(name).ok_or_else(missing)?;
        let map = self.maps.get(*part).ok_or_else(missing)?;
        Ok((info, MappedBytes::new(map, info.bytes.clone()).ok_or_else(missing)?))
    }

    /// A tensor as it is stored, but in the order of a file.
    fn stored(&self, name: &str) -> Result<QTensor> {
        let (info, bytes) = self.entry(name)?;
        Ok(qtensor_from_ggml(info.dtype, &ordered(info, &bytes, all_rows(info)), info.shape.clone(), &Device::Cpu)?)
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

/// The bytes of some rows of a tensor in the order of a file; rows of an interleaved matrix begin at a multiple of sixteen.
fn ordered<'a>(info: &TensorInfo, bytes: &'a [u8], rows: Range<usize>) -> Cow<'a, [u8]> {
    let count = info.shape.first().copied().unwrap_or(1);
    match (Quantization::of_blocks(info.dtype).filter(|_| info.is_interleaved), info.shape.as_slice()) {
        (Some(kind), [_, width]) => {
            let row_bytes = bytes.len() / count.next_multiple_of(LANES).max(1);
            in_file_order(kind, &bytes[rows.start * row_bytes..], (rows.len(), *width)).into()
        }
        _ => {
            let row_bytes = bytes.len() / count.max(1);
            bytes[rows.start * row_bytes..rows.end * row_bytes].into()
        }
    }
}

/// All rows of a tensor.
fn all_rows(info: &TensorInfo) -> Range<usize> {
    0..info.shape.first().copied().unwrap_or(1)
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
        check_ggml(&self.path.display().to_string(), name, &ordered(info, &bytes, all_rows(info)), info.dtype)
    }

    fn for_each_part(&self, name: &str, dtype: DType, rows: usize, each: &mut EachPart<'_>) -> Result<()> {
        if self.is_permuted() {
            return each(self.load_tensor(name, dtype, &Device::Cpu)?);
        }
        let (info, bytes) = self.entry(name)?;
        row_parts(&info.shape, rows.next_multiple_of(LANES)).try_for_each(|(rows, shape)| {
            let part = qtensor_from_ggml(info.dtype, &ordered(info, &bytes, rows), shape, &Device::Cpu)?;
            each(part.dequantize(&Device::Cpu)?.to_dtype(dtype)?)
        })
    }

    fn mapped_rows(&self, name: &str) -> Option<MappedRows> {
        let (info, bytes) = self.entry(name).ok()?;
        match info.shape.as_slice() {
            [rows, width] if !info.is_interleaved => MappedRows::new(bytes, info.dtype, (*rows, *width)),
            _ => None,
        }
    }

    fn quantization(&self, name: &str) -> Option<Quantization> {
        let dtype = self.tensors.get(name)?.1.dtype;
        Quantization::ALL.into_iter().find(|kind| kind.ggml_dtype() == dtype && !self.is_permuted())
    }

    fn load_quantized(&self, name: &str, in_size: usize) -> Result<Option<QuantizedWeight>> {
        let Some(kind) = self.quantization(name) else { return Ok(None) };
        let (info, bytes) = self.entry(name)?;
        match info.shape.as_slice() {
            [rows, width] if info.is_interleaved => {
                bytes.read_ahead();
                let weight = InterleavedWeight::mapped(kind, bytes, (*rows, *width));
                let broken = || Error::format(&self.path, format!("tensor `{name}` has not the bytes of its shape"));
                Ok(Some(QuantizedWeight::from_interleaved(weight.ok_or_else(broken)?, in_size)?))
            }
            _ => Ok(Some(QuantizedWeight::from_qtensor(self.stored(name)?, in_size)?)),
        }
    }
}
