//! Files of `torch.save`: zip archives since PyTorch 1.6, and the consecutive pickles of earlier versions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::machine;
use super::reader::{Parsed, Reader};
use super::state_dict::{self, StateDict};
use super::value::{StorageRef, Value};
use super::view::Layout;

/// Entry of an archive that holds the program, below a folder of any name.
const PROGRAM: &str = "data.pkl";
/// Longest program in bytes; a checkpoint has some 200 a tensor.
const MAX_PROGRAM: usize = 64 << 20;
/// First value of a file in the old format, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Second value of a file in the old format.
const PROTOCOL: i64 = 1001;

/// Tensors of one file.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) tensors: BTreeMap<String, StoredTensor>,
    /// Entries of the state dict that are no tensors.
    pub(super) others: Vec<String>,
}

/// A tensor in a file.
#[derive(Debug)]
pub(super) struct StoredTensor {
    pub(super) layout: Layout,
    /// Byte range of its storage in the file.
    storage: Range<usize>,
    /// CRC-32 of the storage, where the format has one.
    checksum: Option<u32>,
    is_big_endian: bool,
}

impl StoredTensor {
    /// The elements in row-major order, little-endian; `file` is the whole file.
    pub(super) fn bytes<'a>(&self, file: &'a [u8]) -> Parsed<Cow<'a, [u8]>> {
        let storage = file.get(self.storage.clone()).unwrap_or_default();
        if self.checksum.is_some_and(|expected| crc32fast::hash(storage) != expected) {
            return Err("does not have its checksum: the file is damaged, download it again".into());
        }
        let bytes = match self.layout.is_contiguous() {
            true => self.layout.slice(storage).map(Cow::Borrowed),
            false => self.layout.gather(storage).map(Cow::Owned),
        };
        let mut bytes = bytes.ok_or("ends beyond the file: download it again")?;
        if self.is_big_endian && self.layout.element.size > 1 {
            bytes.to_mut().chunks_exact_mut(self.layout.element.size).for_each(<[u8]>::reverse);
        }
        Ok(bytes)
    }
}

/// A storage in a file: its byte range, and its checksum if it has one.
type Located = (Range<usize>, Option<u32>);

/// Reads the program of a file. No tensor is read.
pub(super) fn read(file: &[u8]) -> Parsed<Contents> {
    match file {
        [b'P', b'K', ..] => read_zip(file),
        // Old files begin with a pickle's version; the others are pickles of other programs, which the unpickler names.
        [0x80 | b'c' | b'(', ..] => read_legacy(file),
        _ => Err("is no file of torch.save: it is neither a zip archive nor a pickle; download it again".into()),
    }
}

fn read_zip(file: &[u8]) -> Parsed<Contents> {
    let entries = Entries::read(file)?;
    let (folder, program) = entries.program()?;
    let (range, checksum) = program;
    let program = file.get(range).filter(|program| program.len() <= MAX_PROGRAM);
    let program = program.ok_or_else(|| format!("has a {PROGRAM} of more than {MAX_PROGRAM} bytes"))?;
    if checksum.is_some_and(|expected| crc32fast::hash(program) != expected) {
        return Err(format!("has a {PROGRAM} without its checksum: it is damaged, download it again"));
    }
    let order = entries.0.get(format!("{folder}byteorder").as_bytes()).and_then(|entry| entry.stored.clone());
    let is_big_endian = order.is_some_and(|(range, _)| file.get(range) == Some(b"big"));
    let unpickled = machine::run(program, 0)?;
    let found = state_dict::find(&unpickled.values, unpickled.root)?;
    contents(found, is_big_endian, |storage| entries.stored(&format!("{folder}data/{}", storage.key)))
}

/// Entries of an archive by name.
struct Entries(BTreeMap<Vec<u8>, Entry>);

struct Entry {
    /// Place in the file; `None` if it is compressed or encrypted.
    stored: Option<Located>,
}

impl Entries {
    fn read(file: &[u8]) -> Parsed<Self> {
        let damaged = |e| format!("is no readable zip archive ({e}): it is truncated or damaged, download it again");
        let mut archive = ZipArchive::new(Cursor::new(file)).map_err(damaged)?;
        if archive.has_duplicate_names() || archive.has_overlapping_entries().map_err(damaged)? {
            return Err("is a zip archive whose entries overlap or share a name: download it again".into());
        }
        let mut entries = BTreeMap::new();
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(damaged)?;
            let is_plain = entry.compression() == CompressionMethod::Stored && !entry.encrypted();
            let range = entry.data_start().and_then(|start| byte_range(start, entry.size()));
            // PyTorch can leave out checksums, and then writes 0.
            let checksum = Some(entry.crc32()).filter(|checksum| *checksum != 0);
            let stored = range.filter(|range| is_plain && range.end <= file.len()).map(|range| (range, checksum));
            entries.insert(entry.name_raw().to_vec(), Entry { stored });
        }
        Ok(Self(entries))
    }

    /// Folder of the program with its slash, and the place of the program.
    fn program(&self) -> Parsed<(String, Located)> {
        let names = self.0.keys().filter_map(|name| std::str::from_utf8(name).ok());
        let mut folders = names
            .filter_map(|name| name.strip_suffix(PROGRAM))
            .filter(|folder| folder.is_empty() || folder.ends_with('/') && folder.matches('/').count() == 1);
        let folder = folders.next().ok_or_else(|| format!("is a zip archive without {PROGRAM}: not of torch.save"))?;
        if folders.next().is_some() {
            return Err(format!("is a zip archive with several {PROGRAM}: not of torch.save"));
        }
        if self.0.contains_key(format!("{folder}constants.pkl").as_bytes()) {
            return Err("is a TorchScript program, which is not run: save the model's state_dict() instead".into());
        }
        Ok((folder.to_string(), self.stored(&format!("{folder}{PROGRAM}"))?))
    }

    fn stored(&self, name: &str) -> Parsed<Located> {
        match self.0.get(name.as_bytes()) {
            Some(Entry { stored: Some(located) }) => Ok(located.clone()),
            Some(_) => Err(format!(
                "has the compressed or truncated entry `{name}`, but torch.save stores entries as they are: save the \
                 tensors again"
            )),
            None => Err(format!("has no entry `{name}`: it is damaged, download it again")),
        }
    }
}

fn byte_range(start: u64, length: u64) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    Some(start..start.checked_add(usize::try_from(length).ok()?)?)
}

/// Five pickles (magic number, protocol version, facts of the system, the object, storage keys), then the storages in
/// the order of their keys, each behind its length. Lengths and elements are little-endian on every system.
fn read_legacy(file: &[u8]) -> Parsed<Contents> {
    let magic = machine::run(file, 0)?;
    if *magic.values.get(magic.root) != Value::LongInt(&MAGIC) {
        return Err("is a pickle, but not of torch.save: save the model's state_dict() with it".into());
    }
    let version = machine::run(file, magic.end)?;
    if *version.values.get(version.root) != Value::Int(PROTOCOL) {
        return Err(format!("is of an unknown version of torch.save, expected {PROTOCOL}"));
    }
    let object = machine::run(file, machine::run(file, version.end)?.end)?;
    let keys = machine::run(file, object.end)?;
    let wrong = || "has no list of storages: it is damaged, download it again".to_string();
    let order = keys.values.items(keys.root).ok_or_else(wrong)?;
    let order = order.iter().map(|&id| keys.values.text(id)).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    let described = object.values.0.iter().filter_map(|value| match value {
        Value::Storage(storage) => Some((storage.key, *storage)),
        _ => None,
    });
    let storages = locate(file, keys.end, &order, &described.collect())?;
    let found = state_dict::find(&object.values, object.root)?;
    contents(found, false, |storage| {
        let missing = || format!("has no storage `{:.40}`: it is damaged, download it again", storage.key);
        let range = storages.get(storage.key).cloned().ok_or_else(missing)?;
        Ok((range, None))
    })
}

/// Byte ranges of the storages that follow each other from `position`.
fn locate<'a>(
    file: &[u8],
    position: usize,
    order: &[&'a str],
    described: &BTreeMap<&str, StorageRef<'_>>,
) -> Parsed<BTreeMap<&'a str, Range<usize>>> {
    let mut reader = Reader::new(file, position);
    let mut storages = BTreeMap::new();
    for key in order {
        let storage =
            described.get(key).ok_or_else(|| format!("lists an unknown storage `{key:.40}`: it is damaged"))?;
        let length = u64::from_le_bytes(reader.array()?);
        if length != storage.root_length as u64 {
            return Err(format!("has {length} elements in storage `{key:.40}`, expected {}", storage.root_length));
        }
        let start = reader.position;
        reader.take(storage.root_length.saturating_mul(storage.element.size))?;
        storages.insert(*key, start..reader.position);
    }
    Ok(storages)
}

/// Finds the storage of each tensor, and checks that it is as long as the program says.
fn contents(
    found: StateDict<'_>,
    is_big_endian: bool,
    locate: impl Fn(&StorageRef<'_>) -> Parsed<Located>,
) -> Parsed<Contents> {
    let mut tensors = BTreeMap::new();
    for (name, view) in found.tensors {
        let (storage, checksum) = locate(&view.storage)?;
        let expected = view.storage.root_length.checked_mul(view.storage.element.size);
        if expected != Some(storage.len()) {
            return Err(format!(
                "has {} bytes in the storage of tensor `{name}`, expected {} elements of {}: it is damaged",
                storage.len(),
                view.storage.root_length,
                view.storage.element.name
            ));
        }
        tensors.insert(name, StoredTensor { layout: view.layout, storage, checksum, is_big_endian });
    }
    Ok(Contents { tensors, others: found.others.into_iter().map(String::from).collect() })
}

#[cfg(test)]
mod tests;
