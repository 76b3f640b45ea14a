//! Reading of safetensors: one file, or shards with an index, memory-mapped and fully validated.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::TensorInfo;

use super::finite::check_floats;
use super::raw_tensor::RawTensor;
use super::shard_index;
use super::source::{EachPart, TensorSource, check_source, row_parts, source_var_builder};
use crate::{Error, Result, files};

/// File name of weights in a single file.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// File name of the index of sharded weights.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors of a `.safetensors` file, or of all shards of a checkpoint folder.
///
/// Opening reads and checks the headers only. The files must not be modified while they are memory-mapped.
#[derive(Debug)]
pub struct SafetensorsFiles {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
    /// Offset of the tensor data in the file.
    data: usize,
}

/// The bytes of a whole file.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    /// Bytes embedded in the program.
    Embedded(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    info: TensorInfo,
}

impl Entry {
    /// Copies a tensor, or a part of one: the bytes and their shape.
    fn load(
        &self,
        name: &str,
        file: &Path,
        (bytes, shape): (&[u8], &[usize]),
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let stored = self.info.dtype;
        let raw = RawTensor { name, type_name: &stored.to_string(), dtype: DType::try_from(stored).ok(), shape };
        raw.load(file, bytes, dtype, device)
    }
}

impl SafetensorsFiles {
    /// Opens a `.safetensors` file, or a folder with `model.safetensors` or `model.safetensors.index.json` (looked for
    /// in this order, as HF does).
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Format`] if a file is truncated, a header contradicts the data,
    /// or an index names a missing shard or tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Self::open_single(path, path);
        }
        let (single, index) = (path.join(SINGLE_FILE), path.join(INDEX_FILE));
        match (single.is_file(), index.is_file()) {
            (true, _) => Self::open_single(path, &single),
            (false, true) => Self::open_sharded(path),
            (false, false) => Err(Error::format(path, format!("holds neither {SINGLE_FILE} nor {INDEX_FILE}"))),
        }
    }

    /// Reads tensors that are embedded in the program with `include_bytes!`; `name` identifies them in messages.
    ///
    /// # Errors
    /// [`Error::Format`] if the bytes are not safetensors.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::single(Path::new(name), Shard::new(Path::new(name), Bytes::Embedded(bytes))?)
    }

    fn open_single(path: &Path, file: &Path) -> Result<Self> {
        Self::single(path, Shard::open(file)?)
    }

    fn single(path: &Path, (shard, infos): (Shard, BTreeMap<String, TensorInfo>)) -> Result<Self> {
        let tensors = infos.into_iter().map(|(name, info)| (name, Entry { shard: 0, info })).collect();
        Ok(Self { path: path.to_path_buf(), shards: vec![shard], tensors })
    }

    fn open_sharded(folder: &Path) -> Result<Self> {
        let (shards, tensors) = shard_index::open(folder, INDEX_FILE, Shard::open)?;
        let tensors = tensors.into_iter().map(|(name, (shard, info))| (name, Entry { shard, info })).collect();
        Ok(Self { path: folder.to_path_buf(), shards, tensors })
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor; `None` if there is no tensor with this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.info.shape.as_slice())
    }

    /// The names and shapes of all tensors.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.tensors.iter().map(|(name, entry)| (name.clone(), entry.info.shape.clone())).collect()
    }

    /// Copies a tensor to `device`, converted from its stored float dtype to `dtype`.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no tensor with this name, its stored dtype is neither a float dtype nor `dtype`,
    /// or it contains NaN or infinity.
    pub fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let (shard, entry) = self.entry(name)?;
        entry.load(name, &shard.path, (shard.bytes(&entry.info)?, &entry.info.shape), dtype, device)
    }

    fn entry(&self, name: &str) -> Result<(&Shard, &Entry)> {
        let missing = || Error::weights(format!("{}: there is no tensor `{name}`", self.path.display()));
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        Ok((self.shards.get(entry.shard).ok_or_else(missing)?, entry))
    }

    /// Copies all tensors to `device`, in the types they are stored in.
    ///
    /// # Errors
    /// [`Error::Candle`] for a dtype that candle does not support.
    pub fn load_all(&self, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        self.load_where(device, |_| true)
    }

    /// Copies the tensors whose names are `wanted` to `device`, in the types they are stored in.
    ///
    /// # Errors
    /// As [`Self::load_all`].
    pub fn load_where(&self, device: &Device, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>> {
        let load = |(name, entry): (&String, &Entry)| {
            let dtype = DType::try_from(entry.info.dtype)?;
            Ok((name.clone(), self.load(name, dtype, device)?))
        };
        self.tensors.iter().filter(|(name, _)| wanted(name)).map(load).collect()
    }

    /// Checks that the tensors match `expected` exactly, see [`check_source`].
    ///
    /// # Errors
    /// One [`Error::Weights`] that lists every missing, unexpected and misshapen tensor.
    pub fn check(&self, expected: &BTreeMap<String, Vec<usize>>) -> Result<()> {
        check_source(self, expected)
    }

    /// A builder that returns these tensors as constants, without gradients.
    ///
    /// The builder fails on the first problem; call [`Self::check`] before for one message that lists all.
    pub fn var_builder(self: Arc<Self>, dtype: DType, device: &Device) -> VarBuilder<'static> {
        source_var_builder(self, BTreeSet::new(), dtype, device)
    }
}

impl TensorSource for SafetensorsFiles {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensor_names(&self) -> Vec<String> {
        self.names().map(String::from).collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.shape(name)
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.load(name, dtype, device)
    }

    fn for_each_part(&self, name: &str, dtype: DType, rows: usize, each: &mut EachPart<'_>) -> Result<()> {
        let (shard, entry) = self.entry(name)?;
        let (bytes, shape) = (shard.bytes(&entry.info)?, &entry.info.shape);
        let row_bytes = bytes.len() / shape.first().copied().unwrap_or(1).max(1);
        row_parts(shape, rows).try_for_each(|(rows, shape)| {
            let part = &bytes[rows.start * row_bytes..rows.end * row_bytes];
            each(entry.load(name, &shard.path, (part, &shape), dtype, &Device::Cpu)?)
        })
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        let dtype = DType::try_from(self.tensors.get(name)?.info.dtype).ok();
        dtype.filter(DType::is_float)
    }

    fn check_finite(&self, name: &str) -> Result<()> {
        let (shard, entry) = self.entry(name)?;
        match DType::try_from(entry.info.dtype) {
            Ok(stored) => check_floats(&shard.path.display().to_string(), name, shard.bytes(&entry.info)?, stored),
            Err(_) => Ok(()),
        }
    }
}

impl Shard {
    fn open(path: &Path) -> Result<(Self, BTreeMap<String, TensorInfo>)> {
        let file = files::open(path)?;
        // SAFETY: the map is read-only; callers must not truncate the file while it is mapped, as documented.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Self::new(path, Bytes::Mapped(map))
    }

    fn new(path: &Path, bytes: Bytes) -> Result<(Self, BTreeMap<String, TensorInfo>)> {
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| {
            let hint = "the file is truncated or not safetensors: download it again";
            Error::format(path, format!("{e} ({} bytes); {hint}", bytes.len())).caused_by(e)
        })?;
        let mut infos = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            check_shape(path, &name, &info.shape)?;
            infos.insert(name, info.clone());
        }
        Ok((Self { path: path.to_path_buf(), data: size_of::<u64>() + header, bytes }, infos))
    }

    fn bytes(&self, info: &TensorInfo) -> Result<&[u8]> {
        let (start, end) = info.data_offsets;
        let data = self.bytes.get(self.data..);
        data.and_then(|data| data.get(start..end)).ok_or_else(|| Error::format(&self.path, "offsets beyond the file"))
    }
}

/// Rejects shapes whose number of elements overflows: safetensors accepts `[0, 2^63, 2^63]`, whose strides overflow.
fn check_shape(path: &Path, name: &str, shape: &[usize]) -> Result<()> {
    let strides = shape.iter().filter(|d| **d != 0).try_fold(1usize, |product, d| product.checked_mul(*d));
    match strides {
        Some(_) => Ok(()),
        None => Err(Error::format(path, format!("tensor `{name}` has the impossible shape {shape:?}"))),
    }
}
