//! The folder of one repository in the cache that programs share: contents by name of content, and per commit links to them.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hf_hub::{Repo, RepoType};

use crate::weights::atomic::write_bytes_atomically;
use crate::{Error, Result, files};

/// Most bytes of a file that names a commit.
const MAX_REF: u64 = 256;

/// A repository in the cache.
#[derive(Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    name: String,
    hub: hf_hub::CacheRepo,
}

/// Content that one process at a time may write.
#[derive(Debug)]
pub(super) struct Blob {
    path: PathBuf,
    _lock: File,
}

impl RepoCache {
    /// The repository `id` in the cache folder `root`; nothing is created yet.
    pub(super) fn new(root: &Path, id: &str) -> Self {
        let repository = Repo::new(id.to_string(), RepoType::Model);
        let name = repository.folder_name();
        Self { root: root.to_path_buf(), name, hub: hf_hub::Cache::new(root.to_path_buf()).repo(repository) }
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.hub.pointer_path(commit)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.root.join(&self.name).join("refs").join(revision)
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.root.join(&self.name).join("blobs").join(etag)
    }

    /// The folder of a revision's files, if they were downloaded.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`] if the name of its commit cannot be read.
    pub(super) fn downloaded(&self, revision: &str) -> Result<Option<PathBuf>> {
        let reference = self.reference(revision);
        let commit = match files::exists(&reference)? {
            true => files::read_text(&reference, MAX_REF)?.trim().to_string(),
            false => revision.to_string(),
        };
        let is_name = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
        Ok(is_name.then(|| self.snapshot(&commit)).filter(|folder| folder.is_dir()))
    }

    /// Notes which commit a revision stands for.
    pub(super) fn note(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.reference(revision);
        create_parent(&path)?;
        write_bytes_atomically(&path, commit.as_bytes())
    }

    /// The content called `etag`, as soon as no other process writes it.
    pub(super) fn lock(&self, etag: &str) -> Result<Blob> {
        let path = self.root.join(".locks").join(&self.name).join(format!("{etag}.lock"));
        create_parent(&path)?;
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let lock = opened.map_err(|e| Error::io(&path, e))?;
        match wait_for(&lock, etag) {
            // Some network file systems have no locks.
            Err(e) if e.kind() != ErrorKind::Unsupported => Err(Error::io(&path, e)),
            _ => Ok(Blob { path: self.blob(etag), _lock: lock }),
        }
    }

    /// Makes a content the file `name` of a commit.
    pub(super) fn link(&self, commit: &str, name: &str, blob: &Blob) -> Result<()> {
        let pointer = self.snapshot(commit).join(name);
        create_parent(&pointer)?;
        match link(&blob.path, &pointer, name) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|e| Error::io(&pointer, e)),
        }
    }
}

impl Blob {
    /// Whether all of it is there.
    pub(super) fn is_complete(&self) -> Result<bool> {
        files::exists(&self.path)
    }

    /// The file that becomes the content, with what an earlier download left in it.
    pub(super) fn partial(&self) -> Result<File> {
        let path = self.partial_path();
        create_parent(&path)?;
        OpenOptions::new().create(true).write(true).truncate(false).open(&path).map_err(|e| Error::io(&path, e))
    }

    /// Gives the partial file the name of the content.
    pub(super) fn publish(&self, partial: &File) -> Result<()> {
        let published = partial.sync_all().and_then(|()| std::fs::rename(self.partial_path(), &self.path));
        published.map_err(|e| Error::io(&self.path, e))
    }

    fn partial_path(&self) -> PathBuf {
        self.path.with_added_extension("incomplete")
    }
}

/// Locks a file, and reports to `tracing` if another process has to end its download of the content `etag` first.
fn wait_for(lock: &File, etag: &str) -> std::io::Result<()> {
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => {
            tracing::info!(etag, "waiting for another process that downloads the same content");
            lock.lock()
        }
        Err(TryLockError::Error(e)) => Err(e),
        Ok(()) => Ok(()),
    }
}

/// A link that holds wherever the cache is moved to; `name` says how deep it lies.
#[cfg(unix)]
fn link(blob: &Path, pointer: &Path, name: &str) -> std::io::Result<()> {
    let up = "../".repeat(2 + name.matches('/').count());
    let content = blob.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(content), pointer)
}

/// Only some users of other systems may make symbolic links.
#[cfg(not(unix))]
fn link(blob: &Path, pointer: &Path, _name: &str) -> std::io::Result<()> {
    std::fs::hard_link(blob, pointer)
}

fn create_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))
}
