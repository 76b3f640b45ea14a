//! Saving of checkpoints in HF's layout: one safetensors file, or shards with an index.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use super::atomic::{StagedFile, write_atomically};
use super::safetensors::{INDEX_FILE, SINGLE_FILE};
use super::source::for_each_unpadded;
use super::{EachPart, TensorSource};
use crate::{Error, Result};

/// Elements converted and written at a time, so that saving needs no second copy of a tensor.
const CHUNK: usize = 1 << 20;

/// Options of [`save_safetensors`].
#[derive(Debug, Clone)]
pub struct SaveOptions {
    /// Dtype on disk; the dtype of each tensor if `None`.
    pub dtype: Option<DType>,
    /// Largest number of tensor bytes in one file; a single larger tensor still is one file.
    pub max_shard_bytes: u64,
    /// Metadata stored in the header of every file, beside `format: pt`.
    pub metadata: BTreeMap<String, String>,
}

impl Default for SaveOptions {
    /// The dtypes of the tensors, and shards of 5 GB as in HF.
    fn default() -> Self {
        Self { dtype: None, max_shard_bytes: 5_000_000_000, metadata: BTreeMap::new() }
    }
}

/// Saves tensors as `model.safetensors`, or above `max_shard_bytes` as `model-00001-of-0000N.safetensors` with
/// `model.safetensors.index.json`, into `folder`, which is created.
///
/// All files are complete on disk before the first is renamed to its final name. Files of an earlier save are removed
/// at the end; if the process dies in between, the folder opens as the old save, as the new one, or not at all, never
/// as a mixture.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written, [`Error::Candle`] if a tensor cannot be read from its device.
pub fn save_safetensors(
    folder: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    options: &SaveOptions,
) -> Result<()> {
    save_shards(folder.as_ref(), &in_memory(tensors, options, |_| false), options)
}

/// Saves tensors of a source as [`save_safetensors`] does, in parts, so that little exists in memory. Each has the dtype
/// that it is stored in, f32 if that is unknown, or [`SaveOptions::dtype`]. `shapes` names them; padding of quantised
/// rows is left out.
///
/// # Errors
/// As [`save_safetensors`], and errors of the source.
pub fn save_source(
    folder: impl AsRef<Path>,
    source: &dyn TensorSource,
    shapes: &BTreeMap<String, Vec<usize>>,
    options: &SaveOptions,
) -> Result<()> {
    let tensors: Vec<Pending<'_>> =
        shapes.iter().map(|(name, dims)| from_source(source, name, dims, options)).collect();
    save_shards(folder.as_ref(), &tensors, options)
}

fn from_source<'a>(
    source: &'a dyn TensorSource,
    name: &'a str,
    dims: &'a [usize],
    options: &SaveOptions,
) -> Pending<'a> {
    let dtype = options.dtype.or(source.stored_dtype(name)).unwrap_or(DType::F32);
    let parts = move |each: &mut EachPart<'_>| for_each_unpadded(source, name, dims, dtype, each);
    Pending { name: name.into(), dims: dims.to_vec(), dtype, parts: Box::new(parts) }
}

fn save_shards(folder: &Path, tensors: &[Pending<'_>], options: &SaveOptions) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let shards = split(tensors, options);
    match shards.as_slice() {
        [] => write_single(folder, &[], options)?,
        [one] => write_single(folder, one, options)?,
        many => write_shards(folder, many, options)?,
    }
    remove_stale(folder, shards.len())
}

/// Saves tensors as a single file `path` of any size, atomically.
///
/// # Errors
/// As [`save_safetensors`].
pub fn save_safetensors_file(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    options: &SaveOptions,
) -> Result<()> {
    save_safetensors_file_keeping(path, tensors, options, |_| false)
}

/// [`save_safetensors_file`] where tensors of the names that `is_kept` holds for keep their dtype.
///
/// # Errors
/// As [`save_safetensors`].
pub(crate) fn save_safetensors_file_keeping(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    options: &SaveOptions,
    is_kept: impl Fn(&str) -> bool,
) -> Result<()> {
    let path = path.as_ref();
    let tensors = in_memory(tensors, options, is_kept);
    write_atomically(path, |writer| write_file(writer, path, &tensors.iter().collect::<Vec<_>>(), options))
}

/// A tensor to be written, loaded in parts when its turn comes.
struct Pending<'a> {
    name: String,
    dims: Vec<usize>,
    /// Dtype on disk.
    dtype: DType,
    parts: Box<Parts<'a>>,
}

/// Loads a tensor in parts.
type Parts<'a> = dyn Fn(&mut EachPart<'_>) -> Result<()> + 'a;

impl Pending<'_> {
    fn bytes(&self) -> u64 {
        (self.dims.iter().product::<usize>() * self.dtype.size_in_bytes()) as u64
    }
}

fn in_memory<'a>(
    tensors: &'a BTreeMap<String, Tensor>,
    options: &SaveOptions,
    is_kept: impl Fn(&str) -> bool,
) -> Vec<Pending<'a>> {
    let pending = |(name, tensor): (&String, &'a Tensor)| {
        let dtype = options.dtype.filter(|_| !is_kept(name)).unwrap_or(tensor.dtype());
        let parts = |each: &mut EachPart<'_>| each(tensor.detach());
        Pending { name: name.clone(), dims: tensor.dims().to_vec(), dtype, parts: Box::new(parts) }
    };
    tensors.iter().map(pending).collect()
}

type Shard<'a> = Vec<&'a Pending<'a>>;

fn split<'a>(tensors: &'a [Pending<'a>], options: &SaveOptions) -> Vec<Shard<'a>> {
    let (mut shards, mut current, mut filled) = (Vec::new(), Vec::new(), 0u64);
    for tensor in tensors {
        let bytes = tensor.bytes();
        if !current.is_empty() && filled.saturating_add(bytes) > options.max_shard_bytes {
            shards.push(std::mem::take(&mut current));
            filled = 0;
        }
        current.push(tensor);
        filled = filled.saturating_add(bytes);
    }
    if !current.is_empty() {
        shards.push(current);
    }
    shards
}

fn write_single(folder: &Path, tensors: &[&Pending<'_>], options: &SaveOptions) -> Result<()> {
    let path = folder.join(SINGLE_FILE);
    write_atomically(&path, |writer| write_file(writer, &path, tensors, options))
}

fn write_shards(folder: &Path, shards: &[Shard<'_>], options: &SaveOptions) -> Result<()> {
    let (mut staged, mut weight_map, mut total_size) = (Vec::new(), Map::new(), 0);
    for (i, tensors) in shards.iter().enumerate() {
        let name = shard_name(i, shards.len());
        let path = folder.join(&name);
        staged.push(StagedFile::write(&path, |writer| write_file(writer, &path, tensors, options))?.0);
        total_size += tensors.iter().map(|tensor| tensor.bytes()).sum::<u64>();
        weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), Value::from(name.as_str()))));
    }
    let index = folder.join(INDEX_FILE);
    let content = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let (new_index, ()) =
        StagedFile::write(&index, |writer| writeln!(writer, "{content:#}").map_err(|e| Error::io(&index, e)))?;
    // Without an index, shards of two saves can never be read as one checkpoint.
    remove_file(&index)?;
    staged.into_iter().try_for_each(StagedFile::publish)?;
    new_index.publish()
}

/// Writes the safetensors format: length of the header, header (JSON, padded to 8 bytes), data in the header's order.
fn write_file(writer: &mut impl Write, path: &Path, tensors: &[&Pending<'_>], options: &SaveOptions) -> Result<()> {
    let mut tensors = tensors.to_vec();
    // Widest dtypes first, so that every tensor is aligned; the sort is stable and keeps names in order.
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size_in_bytes()));
    let mut header = header(&tensors, options)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let io = |e| Error::io(path, e);
    writer.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    writer.write_all(&header).map_err(io)?;
    for tensor in tensors {
        let mut left = tensor.bytes();
        (tensor.parts)(&mut |part| {
            let bytes = (part.elem_count() * tensor.dtype.size_in_bytes()) as u64;
            left = left.checked_sub(bytes).ok_or_else(|| changed(&tensor.name))?;
            write_part(writer, path, &part, tensor.dtype)
        })?;
        if left > 0 {
            return Err(changed(&tensor.name));
        }
    }
    Ok(())
}

/// The error for a tensor of another size than its header says.
fn changed(name: &str) -> Error {
    Error::weights(format!("tensor `{name}` has another size than its shape says: open its source again"))
}

fn write_part(writer: &mut impl Write, path: &Path, part: &Tensor, dtype: DType) -> Result<()> {
    let flat = part.flatten_all()?;
    for start in (0..flat.elem_count()).step_by(CHUNK) {
        let chunk = flat.narrow(0, start, CHUNK.min(flat.elem_count() - start))?;
        let chunk = chunk.to_dtype(dtype)?.to_device(&Device::Cpu)?;
        writer.write_all(&little_endian(&chunk)?).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
}

fn header(tensors: &[&Pending<'_>], options: &SaveOptions) -> Result<Vec<u8>> {
    let mut metadata: Map<String, Value> = Map::from_iter([("format".to_string(), Value::from("pt"))]);
    metadata.extend(options.metadata.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))));
    let mut header = Map::from_iter([("__metadata__".to_string(), Value::Object(metadata))]);
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let dtype = safetensors::Dtype::from(tensor.dtype);
        let entry = json!({ "dtype": dtype.to_string(), "shape": tensor.dims, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
        start = end;
    }
    serde_json::to_vec(&header).map_err(|e| Error::weights(format!("the header cannot be serialised: {e}")))
}

fn little_endian(flat: &Tensor) -> Result<Vec<u8>> {
    Ok(match flat.dtype() {
        DType::F64 => bytes(flat.to_vec1()?, f64::to_le_bytes),
        DType::F32 => bytes(flat.to_vec1()?, f32::to_le_bytes),
        DType::F16 => bytes(flat.to_vec1()?, half::f16::to_le_bytes),
        DType::BF16 => bytes(flat.to_vec1()?, half::bf16::to_le_bytes),
        DType::I64 => bytes(flat.to_vec1()?, i64::to_le_bytes),
        DType::U32 => bytes(flat.to_vec1()?, u32::to_le_bytes),
        DType::U8 => flat.to_vec1()?,
        other => {
            return Err(Error::weights(format!("tensors of {} cannot be saved: convert them first", other.as_str())));
        }
    })
}

fn bytes<T, const N: usize>(values: Vec<T>, to_bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.into_iter().flat_map(to_bytes).collect()
}

fn shard_name(index: usize, count: usize) -> String {
    format!("model-{:05}-of-{count:05}.safetensors", index + 1)
}

/// Removes files of an earlier save with another number of shards.
fn remove_stale(folder: &Path, shards: usize) -> Result<()> {
    let keep: Vec<String> = match shards {
        0 | 1 => vec![SINGLE_FILE.to_string()],
        n => (0..n).map(|i| shard_name(i, n)).chain([INDEX_FILE.to_string()]).collect(),
    };
    for path in weight_files(folder)? {
        if path.file_name().is_some_and(|name| !keep.iter().any(|kept| name == kept.as_str())) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// Weight files in `folder` of this or an earlier save.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| Error::io(folder, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_name().to_str().is_some_and(is_weight_file) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn is_weight_file(name: &str) -> bool {
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let shard = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let numbers = shard.and_then(|rest| rest.split_once("-of-"));
    name == SINGLE_FILE || name == INDEX_FILE || numbers.is_some_and(|(a, b)| digits(a) && digits(b))
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}
