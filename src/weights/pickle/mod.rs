//! Reading of `pytorch_model.bin`, as `torch.save` writes it, without Python.
//!
//! Opening reads the pickle program of a file and checks that every tensor lies within its storage; tensors are read
//! from the memory-mapped file when they are loaded, one by one.

mod archive;
mod globals;
mod machine;
mod reader;
mod rebuild;
mod state_dict;
mod value;
mod view;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use archive::StoredTensor;

use super::finite::check_floats;
use super::raw_tensor::RawTensor;
use super::shard_index;
use super::source::TensorSource;
use crate::{Error, Result, files};

/// File name of weights in a single file.
pub(super) const SINGLE_FILE: &str = "pytorch_model.bin";
/// File name of the index of sharded weights.
pub(super) const INDEX_FILE: &str = "pytorch_model.bin.index.json";
/// Names of entries without a tensor in one event.
const LISTED: usize = 5;

/// The tensors of a file of `torch.save`, or of all shards of a checkpoint folder.
///
/// Zip archives and the older format without an archive are read; element types are converted from `f64`, `f32`, `f16` and
/// `bf16`. Views, shared and transposed storages are read as PyTorch reads them. A state dict may be nested under
/// `state_dict`, `model` or another usual key. The program of the file is interpreted with a list of the few objects that
/// tensors need: a file that refers to any other is refused, and nothing of it is run.
///
/// The files must not be modified while they are memory-mapped.
#[derive(Debug)]
pub struct PickleFiles {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, (usize, StoredTensor)>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
}

impl PickleFiles {
    /// Opens a file, or a folder with `pytorch_model.bin` or `pytorch_model.bin.index.json` (looked for in this order).
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::Format`] if a file is truncated or no file of tensors, refers to
    /// a Python object that no tensor needs, or an index names a missing shard or tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Self::open_single(path, path);
        }
        let single = path.join(SINGLE_FILE);
        if single.is_file() { Self::open_single(path, &single) } else { Self::open_sharded(path) }
    }

    fn open_single(path: &Path, file: &Path) -> Result<Self> {
        let (shard, tensors) = Shard::open(file)?;
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, (0, tensor))).collect();
        Ok(Self { path: path.to_path_buf(), shards: vec![shard], tensors })
    }

    fn open_sharded(folder: &Path) -> Result<Self> {
        let (shards, tensors) = shard_index::open(folder, INDEX_FILE, Shard::open)?;
        Ok(Self { path: folder.to_path_buf(), shards, tensors })
    }

    fn bytes(&self, name: &str) -> Result<(&Shard, &StoredTensor, Cow<'_, [u8]>)> {
        let missing = || Error::weights(format!("{}: there is no tensor `{name}`", self.path.display()));
        let (shard, tensor) = self.tensors.get(name).ok_or_else(missing)?;
        let shard = self.shards.get(*shard).ok_or_else(missing)?;
        let failed = |message| Error::format(&shard.path, format!("tensor `{name}` {message}"));
        let bytes = tensor.bytes(&shard.map).map_err(failed)?;
        Ok((shard, tensor, bytes))
    }
}

impl TensorSource for PickleFiles {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensor_names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, tensor)| tensor.layout.shape.as_slice())
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let (shard, StoredTensor { layout, .. }, bytes) = self.bytes(name)?;
        let element = layout.element;
        let raw = RawTensor { name, type_name: element.name, dtype: element.dtype, shape: &layout.shape };
        raw.load(&shard.path, &bytes, dtype, device)
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name)?.1.layout.element.dtype.filter(DType::is_float)
    }

    fn check_finite(&self, name: &str) -> Result<()> {
        let (shard, tensor, bytes) = self.bytes(name)?;
        let dtype = tensor.layout.element.dtype;
        dtype.map_or(Ok(()), |dtype| check_floats(&shard.path.display().to_string(), name, &bytes, dtype))
    }
}

impl Shard {
    fn open(path: &Path) -> Result<(Self, BTreeMap<String, StoredTensor>)> {
        let file = files::open(path)?;
        // SAFETY: the map is read-only; callers must not truncate the file while it is mapped, as documented.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let contents = archive::read(&map).map_err(|message| Error::format(path, message))?;
        if !contents.others.is_empty() {
            let names = contents.others.iter().take(LISTED).map(|name| crate::error::one_line(name));
            let names = names.collect::<Vec<_>>().join(", ");
            tracing::info!(file = %path.display(), count = contents.others.len(), names, "entries without a tensor");
        }
        Ok((Self { path: path.to_path_buf(), map }, contents.tensors))
    }
}
