//! Sources of weights, independent of the file format.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::known_buffers::is_known_buffer;
use super::renamed::LANGUAGE;
use super::{GgufFile, PickleFiles, SafetensorsFiles, check_tensors, pickle, safetensors};
use crate::nn::MappedRows;
use crate::nn::ops::QuantizedWeight;
use crate::options::Quantization;
use crate::{Error, Result};

/// Ends of the names of files of `torch.save`.
const PICKLES: [&str; 4] = ["bin", "pt", "pth", "ckpt"];
/// Name of the embedding table.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the language head.
pub(super) const HEAD: &str = "lm_head.weight";

/// Receiver of the parts of a tensor, see [`TensorSource::for_each_part`].
pub type EachPart<'f> = dyn FnMut(Tensor) -> Result<()> + 'f;

/// Ranges of at most `rows` rows of a tensor, with the shape of each part. A scalar is one part.
pub(super) fn row_parts(shape: &[usize], rows: usize) -> impl Iterator<Item = (Range<usize>, Vec<usize>)> {
    let (count, rows, shape) = (shape.first().copied().unwrap_or(1), rows.max(1), shape.to_vec());
    (0..count).step_by(rows).map(move |start| {
        let (range, mut shape) = (start..count.min(start.saturating_add(rows)), shape.clone());
        shape.iter_mut().take(1).for_each(|first| *first = range.len());
        (range, shape)
    })
}

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

    /// Loads a tensor on the CPU in parts of at most `rows` rows along its first dimension, and passes them to `each` in
    /// order. A source that can read a part of a tensor holds one part in memory; others hold the whole tensor.
    ///
    /// # Errors
    /// As [`Self::load_tensor`], and the errors of `each`.
    fn for_each_part(&self, name: &str, dtype: DType, rows: usize, each: &mut EachPart<'_>) -> Result<()> {
        let tensor = self.load_tensor(name, dtype, &Device::Cpu)?;
        row_parts(tensor.dims(), rows).try_for_each(|(rows, shape)| match shape.as_slice() {
            [] => each(tensor.clone()),
            _ => each(tensor.narrow(0, rows.start, rows.len())?),
        })
    }

    /// The rows of a matrix where its file is mapped; `None` if they must be loaded.
    fn mapped_rows(&self, _name: &str) -> Option<MappedRows> {
        None
    }

    /// Quantisation of a matrix, if layers can use its stored blocks without conversion.
    fn quantization(&self, _name: &str) -> Option<Quantization> {
        None
    }

    /// A matrix with rows of `in_size` values in its stored quantisation, copied or mapped; `None` if
    /// [`Self::quantization`] is `None`.
    ///
    /// # Errors
    /// As [`Self::load_tensor`].
    fn load_quantized(&self, _name: &str, _in_size: usize) -> Result<Option<QuantizedWeight>> {
        Ok(None)
    }

    /// The dtype that a tensor is stored in, if it is a dtype of floats; `None` for quantised blocks, and where a source
    /// does not say.
    fn stored_dtype(&self, _name: &str) -> Option<DType> {
        None
    }

    /// Refuses a tensor that holds NaN or infinity. Loading does not look: the check costs a third of a load, and generation
    /// refuses logits that are not finite. Sources that are no files accept everything.
    ///
    /// # Errors
    /// [`Error::Weights`] naming the tensor and the first such element or block, or if there is no such tensor.
    fn check_finite(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    /// The names that a source gives to the tensors of a larger model; `None` if they are as stored.
    fn renaming(&self) -> Option<&str> {
        None
    }

    /// Whether there is a tensor of this name.
    fn has_tensor(&self, name: &str) -> bool {
        self.tensor_shape(name).is_some()
    }
}

/// Opens the weights of a model folder (safetensors, `pytorch_model.bin`, or the `model.gguf` of a quantised model), or a
/// single file (`.safetensors`, `.gguf`, `.bin`, `.pt`, `.pth` or `.ckpt`). Where a folder holds the same weights twice, safetensors
/// are read.
///
/// # Errors
/// As [`SafetensorsFiles::open`], [`PickleFiles::open`] and [`GgufFile::open`], and [`Error::Format`] for a folder
/// without weights or with GGUF beside another format, and for another kind of file.
pub fn open_weights(path: impl AsRef<Path>) -> Result<Arc<dyn TensorSource>> {
    let path = path.as_ref();
    if path.is_file() {
        return open_file(path);
    }
    let found = |names: [&'static str; 2]| names.into_iter().find(|name| path.join(name).is_file());
    let safetensors = found([safetensors::SINGLE_FILE, safetensors::INDEX_FILE]);
    let pickle = found([pickle::SINGLE_FILE, pickle::INDEX_FILE]);
    match (path.join(GgufFile::MODEL).is_file(), safetensors.or(pickle)) {
        (true, Some(other)) => {
            Err(Error::format(path, format!("holds both {} and {other}: move one of them elsewhere", GgufFile::MODEL)))
        }
        (true, None) => Ok(Arc::new(GgufFile::open(path.join(GgufFile::MODEL))?)),
        (false, Some(_)) if safetensors.is_some() => Ok(Arc::new(SafetensorsFiles::open(path)?)),
        (false, Some(_)) => Ok(Arc::new(PickleFiles::open(path)?)),
        (false, None) => Err(no_weights(path)),
    }
}

/// The error for a folder without weights under one of the known names, which names the first file that may be meant.
fn no_weights(folder: &Path) -> Error {
    let (single, pickle, model) = (safetensors::SINGLE_FILE, pickle::SINGLE_FILE, GgufFile::MODEL);
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let known_name = |name: &str| match Path::new(name).extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "safetensors" => Some(single),
        "gguf" => Some(model),
        extension => PICKLES.contains(&extension).then_some(pickle),
    };
    let other = names.filter_map(|name| Some((name.to_str()?.to_string(), known_name(name.to_str()?)?))).min();
    Error::format(
        folder,
        match other {
            Some((name, _)) if name.starts_with("adapter_model.") => format!(
                "holds the adapter `{name:.60}`, but no model: name its model, and the folder as the adapter, or merge both"
            ),
            Some((name, known)) => format!(
                "holds `{name:.60}`, but no weights under a known name: rename it to {known}, shards with their \
                 `.index.json`, or name the file itself instead of the folder"
            ),
            None => format!(
                "holds no weights: expected {single}, {pickle}, one of the two with `.index.json` and its shards, or \
                 {model}"
            ),
        },
    )
}

/// As [`open_weights`], for a model with a decoder, whose names begin with `model.`: what trainers (`module.`,
/// `_orig_mod.`) and larger models (`language_model.`) put before them is taken off.
///
/// # Errors
/// As [`open_weights`], and [`Error::Format`] for several such models in one.
pub(crate) fn open_decoder_weights(path: impl AsRef<Path>) -> Result<Arc<dyn TensorSource>> {
    LANGUAGE.apply(open_weights(path)?)
}

fn open_file(path: &Path) -> Result<Arc<dyn TensorSource>> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match extension.as_str() {
        "safetensors" => Ok(Arc::new(SafetensorsFiles::open(path)?)),
        "gguf" => Ok(Arc::new(GgufFile::open(path)?)),
        pickle if PICKLES.contains(&pickle) => Ok(Arc::new(PickleFiles::open(path)?)),
        _ => {
            let expected = "expected a file named .safetensors, .gguf, .bin, .pt, .pth or .ckpt, or a model folder";
            Err(Error::format(path, format!("is no file of weights by its name: {expected}")))
        }
    }
}

/// Loads a tensor without the padding of quantised rows: `shape` is that of the model.
///
/// # Errors
/// The errors of [`TensorSource::load_tensor`].
pub(crate) fn load_unpadded(
    source: &dyn TensorSource,
    name: &str,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    Ok(unpadded(source.load_tensor(name, dtype, device)?, shape)?)
}

/// Elements of a part of a tensor that is converted and written, 64 MB in f32.
const PART: usize = 1 << 24;

/// Passes a tensor to `each` in parts of whole groups of sixteen rows, without the padding of quantised rows: `shape` is
/// that of the model.
///
/// # Errors
/// The errors of [`TensorSource::for_each_part`].
pub(crate) fn for_each_unpadded(
    source: &dyn TensorSource,
    name: &str,
    shape: &[usize],
    dtype: DType,
    each: &mut EachPart<'_>,
) -> Result<()> {
    let row = shape.iter().skip(1).product::<usize>().max(1);
    let rows = (PART / row).max(1).next_multiple_of(16);
    source.for_each_part(name, dtype, rows, &mut |part| each(unpadded(part, shape)?))
}

fn unpadded(tensor: Tensor, shape: &[usize]) -> candle_core::Result<Tensor> {
    match (tensor.dims(), shape) {
        ([_, padded], [_, width]) if padded > width => tensor.narrow(1, 0, *width)?.contiguous(),
        _ => Ok(tensor),
    }
}

/// Checks that a source has exactly the tensors of `expected`, see [`check_tensors`]; rows of quantised matrices may be
/// padded.
///
/// Buffers of old checkpoints (RoPE frequencies, position ids, causal masks) are passed over, and so is a head equal to the
/// embedding table that it is tied to.
///
/// # Errors
/// As [`check_tensors`], and [`Error::Weights`](crate::Error::Weights) for a head that differs from the table.
pub fn check_source(source: &dyn TensorSource, expected: &BTreeMap<String, Vec<usize>>) -> Result<()> {
    let mut names = source.tensor_names();
    let before = names.len();
    names.retain(|name| expected.contains_key(name) || !is_known_buffer(name));
    if names.len() < before {
        tracing::info!(path = %source.path().display(), count = before - names.len(), "known buffers passed over");
    }
    if !expected.contains_key(HEAD) && expected.contains_key(EMBEDDING) && source.has_tensor(HEAD) {
        check_tied(source)?;
        names.retain(|name| name != HEAD);
    }
    let found = names.into_iter().filter_map(|name| {
        let shape = source.tensor_shape(&name)?.to_vec();
        let wanted = expected.get(&name).filter(|wanted| is_padded(source, &name, &shape, wanted));
        Some((name, wanted.cloned().unwrap_or(shape)))
    });
    check_tensors(&source.path().display().to_string(), expected, &found.collect())
}

/// Checks that a head is the embedding table.
fn check_tied(source: &dyn TensorSource) -> Result<()> {
    let values = |name: &str| -> Result<Vec<f32>> {
        Ok(source.load_tensor(name, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1()?)
    };
    if source.tensor_shape(HEAD) == source.tensor_shape(EMBEDDING) && values(HEAD)? == values(EMBEDDING)? {
        return Ok(());
    }
    Err(Error::weights(format!(
        "{}: `{HEAD}` differs from `{EMBEDDING}`, but the configuration ties them: set tie_word_embeddings to false, or \
         remove the head",
        source.path().display()
    )))
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
