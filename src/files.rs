//! Safe reading of files: only regular files, up to a size limit.
//!
//! All files that this crate reads as a whole are read by this module. Files of weights are mapped, see [`MappedBytes`]. A
//! FIFO or device is an error instead of a hang or unbounded memory, and a dangling symbolic link is an unreadable file, not
//! an absent one.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Seek};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Most bytes of a recipe or another small text file.
pub(crate) const MAX_TEXT_BYTES: u64 = 4 << 20;

/// Most bytes of a JSON file of a model folder. Published ones have 1.2 MB at most, but a `tokenizer_config.json` grows with
/// the added tokens; parsed JSON takes up to 30 times its bytes.
pub(crate) const MAX_MODEL_JSON_BYTES: u64 = 16 << 20;

/// The path that `~/..` stands for, in the home folder; `None` for other paths.
pub(crate) fn in_home(path: impl AsRef<Path>) -> Option<PathBuf> {
    let rest = path.as_ref().strip_prefix("~").ok()?;
    Some(std::env::home_dir()?.join(rest))
}

/// First bytes of the small text that a clone has in place of a large file if Git LFS is not installed.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// What something is that is no regular file, for messages.
pub(crate) fn kind_of(found: &Metadata) -> &'static str {
    if found.is_dir() { "a folder" } else { "a pipe, socket or device" }
}

/// Opens a regular file for reading.
///
/// # Errors
/// [`Error::Io`] if the file does not exist or is not a regular file, [`Error::Format`] for a pointer of Git LFS.
pub(crate) fn open(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    // Checked before opening, since opening a FIFO waits for a writer.
    let found = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !found.is_file() {
        let kind = kind_of(&found);
        return Err(Error::io(path, std::io::Error::other(format!("is {kind}, expected a regular file"))));
    }
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut head = Vec::with_capacity(LFS_POINTER.len());
    let read = (&file).take(LFS_POINTER.len() as u64).read_to_end(&mut head).and_then(|_| file.rewind());
    read.map_err(|e| Error::io(path, e))?;
    if head == LFS_POINTER {
        return Err(Error::format(path, "is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"));
    }
    Ok(file)
}

/// A part of a file that is used where it is mapped: processes that map the same file share its memory.
///
/// The file must not be truncated or overwritten while it is mapped: on Unix, reading beyond its new end kills the process
/// (SIGBUS). Replacing it by another file of the same name, as this crate and `mv` do, is safe: the map keeps the old one.
#[derive(Debug, Clone)]
pub(crate) struct MappedBytes {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl MappedBytes {
    /// A part of a map; `None` unless it lies in it.
    pub(crate) fn new(map: &Arc<Mmap>, range: Range<usize>) -> Option<Self> {
        map.get(range.clone())?;
        Some(Self { map: Arc::clone(map), range })
    }

    /// Asks the system to read the part ahead, and to map it in large pages. Systems that cannot do either read it later.
    pub(crate) fn read_ahead(&self) {
        #[cfg(target_os = "linux")]
        for advice in [memmap2::Advice::HugePage, memmap2::Advice::WillNeed] {
            let advised = self.map.advise_range(advice, self.range.start, self.range.len());
            advised.unwrap_or_else(|error| tracing::debug!(?advice, %error, "no advice on mapped weights"));
        }
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.get(self.range.clone()).unwrap_or_default()
    }
}

/// Reads all bytes of a regular file.
///
/// # Errors
/// As [`open`], and [`Error::Format`] for more than `limit` bytes.
pub(crate) fn read(path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    let file = open(path)?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::format(path, format!("is larger than {limit} bytes, the limit for this kind of file")));
    }
    Ok(bytes)
}

/// Reads a regular file as text.
///
/// # Errors
/// As [`read`], and [`Error::Format`] if the content is not UTF-8.
pub(crate) fn read_text(path: impl AsRef<Path>, limit: u64) -> Result<String> {
    let path = path.as_ref();
    String::from_utf8(read(path, limit)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(path, format!("is not UTF-8 from byte {at} on: save it as UTF-8")).caused_by(e)
    })
}

/// Value of a JSON file of a model folder.
///
/// # Errors
/// The errors of [`read`] with [`MAX_MODEL_JSON_BYTES`], and [`Error::Format`] if the content is not what is expected.
pub(crate) fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    serde_json::from_slice(&read(path, MAX_MODEL_JSON_BYTES)?).map_err(|e| {
        let problem = if e.is_data() { "has an unexpected value" } else { "is not JSON" };
        Error::format(path, format!("{problem} ({e}): correct it, or copy or download it again")).caused_by(e)
    })
}

/// Whether a file of any kind exists at this path, dangling symbolic links included.
///
/// # Errors
/// [`Error::Io`] if the check fails.
pub(crate) fn exists(path: impl AsRef<Path>) -> Result<bool> {
    match std::fs::symlink_metadata(&path) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// Rejects a folder to write to that is in use: it must not exist, or be empty. A dangling symbolic link exists.
///
/// # Errors
/// [`Error::Io`] naming the folder.
pub fn check_new_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let in_use = |what: &str| {
        let message = format!("{what}: name a new folder, or remove it first");
        Err(Error::io(path, std::io::Error::new(ErrorKind::AlreadyExists, message)))
    };
    if !exists(path)? {
        return Ok(());
    }
    if !path.is_dir() {
        return in_use("exists already and is no folder");
    }
    let mut entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    if entries.next().is_some() { in_use("exists already and is not empty") } else { Ok(()) }
}

/// Rejects the path of a file to write at which something is.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub(crate) fn check_new_file(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    if exists(path)? {
        let error =
            std::io::Error::new(ErrorKind::AlreadyExists, "exists already: name a new file, or remove it first");
        return Err(Error::io(path, error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert!(!exists(&path).unwrap() && read(&path, 9).is_err());
        std::fs::write(&path, "123456789").unwrap();
        assert_eq!(read_text(&path, 9).unwrap(), "123456789");
        assert!(read(&path, 8).unwrap_err().to_string().contains("larger than 8 bytes"));
        std::fs::write(&path, b"ab\xff").unwrap();
        assert!(read_text(&path, 9).unwrap_err().to_string().contains("from byte 2 on"));
        assert!(read(folder.path(), 9).unwrap_err().to_string().contains("is a folder"));
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert!(read(&path, 99).unwrap_err().to_string().contains("run `git lfs pull`"));
    }

    #[test]
    fn folders_in_use_are_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let within = folder.path().join("new");
        check_new_folder(&within).unwrap();
        check_new_folder(folder.path()).unwrap();
        std::fs::write(&within, "").unwrap();
        assert!(check_new_folder(&within).unwrap_err().to_string().contains("is no folder"));
        assert!(check_new_folder(folder.path()).unwrap_err().to_string().contains("is not empty"));
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_rejected_and_a_dangling_link_exists() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        assert!(read(&link, 9).unwrap_err().to_string().contains("device"));
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(exists(&link).unwrap() && read(&link, 9).is_err());
    }
}
