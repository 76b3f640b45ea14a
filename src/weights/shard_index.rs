//! Indices of sharded weights: `*.index.json`, which says in which file each tensor is.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::{Error, Result, files};

/// Largest index in bytes; a real one names some thousand tensors.
const MAX_INDEX_BYTES: u64 = 100 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards of a checkpoint, and its tensors with the number of their shard.
type Sharded<S, T> = (Vec<S>, BTreeMap<String, (usize, T)>);

/// Opens every shard that the index `file_name` in `folder` names. `open` returns a shard and all its tensors.
///
/// # Errors
/// [`Error::Format`] if the index is invalid, or names a missing shard or tensor, and the errors of `open`.
pub(super) fn open<S, T>(
    folder: &Path,
    file_name: &str,
    mut open: impl FnMut(&Path) -> Result<(S, BTreeMap<String, T>)>,
) -> Result<Sharded<S, T>> {
    let index = folder.join(file_name);
    let mut by_shard: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in read(&index)?.weight_map {
        by_shard.entry(shard).or_default().push(tensor);
    }
    let (mut shards, mut tensors) = (Vec::new(), BTreeMap::new());
    for (shard_name, names) in by_shard {
        let (shard, mut found) = open(&shard_path(folder, &index, &shard_name)?)?;
        for name in names {
            let tensor = found.remove(&name).ok_or_else(|| {
                let message = format!("says that tensor `{name}` is in {shard_name}, but it is not");
                Error::format(&index, format!("{message}: download both files again"))
            })?;
            tensors.insert(name, (shards.len(), tensor));
        }
        shards.push(shard);
    }
    Ok((shards, tensors))
}

fn read(path: &Path) -> Result<Index> {
    let text = files::read(path, MAX_INDEX_BYTES)?;
    serde_json::from_slice(&text).map_err(|e| {
        Error::format(path, format!("{e}; expected an object with `weight_map`: {{tensor: file name}}")).caused_by(e)
    })
}

/// Path of a shard, which must be in the folder of its index: a downloaded index must not refer to other files.
fn shard_path(folder: &Path, index: &Path, name: &str) -> Result<PathBuf> {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if !plain || name.contains(['/', '\\', '\0']) {
        return Err(Error::format(index, format!("names the shard `{name}`, expected a file name without folders")));
    }
    let path = folder.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(Error::format(index, format!("names the shard `{name}`, which is not in the folder: download it too")))
    }
}
