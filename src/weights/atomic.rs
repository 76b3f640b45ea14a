//! Atomic writes: a file is complete or absent.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::files::kind_of;
use crate::{Error, Result};

/// Most symbolic links on the way to a file, as in Linux.
const MAX_LINKS: usize = 40;

/// Writes `path` atomically: after a crash it has either its old content or all of the new content.
///
/// The content is written to a temporary file in the same folder (which must exist), synced to disk and then renamed;
/// the folder is synced too, so that the rename survives a power cut. A symbolic link stays, and the file that it names is
/// written. A file that is replaced leaves its permissions to the new one.
///
/// # Errors
/// Errors of `write`, and [`Error::Io`] naming `path`, which must not be a folder, pipe, socket or device; the temporary file
/// is removed in either case.
pub fn write_atomically<T>(path: impl AsRef<Path>, write: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<T> {
    let path = path.as_ref();
    let (staged, value) = StagedFile::write(path, write)?;
    staged.publish()?;
    Ok(value)
}

/// Writes content that is already in memory, see [`write_atomically`].
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn write_bytes_atomically(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    write_atomically(path, |writer| writer.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// A complete temporary file, not renamed yet; dropping it removes the file.
pub(super) struct StagedFile {
    temporary: TempPath,
    path: PathBuf,
}

impl StagedFile {
    /// Writes and syncs a temporary file next to `path`.
    pub(super) fn write<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<(Self, T)> {
        let io = |e| Error::io(path, e);
        let path = &destination(path)?;
        let (file, temporary) = temporary_file(folder_of(path)).map_err(io)?.into_parts();
        if let Ok(replaced) = path.metadata() {
            file.set_permissions(replaced.permissions()).map_err(io)?;
        }
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        let value = write(&mut writer)?;
        let file = writer.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(io)?;
        Ok((Self { temporary, path: path.to_path_buf() }, value))
    }

    /// Renames the file to its final path, replacing an existing file.
    pub(super) fn publish(self) -> Result<()> {
        let Self { temporary, path } = self;
        temporary.persist(&path).map_err(|e| Error::io(&path, e.error))?;
        sync_folder(folder_of(&path))
    }
}

/// The regular file that a path names, or would name, through symbolic links: renaming a file to the path would replace a
/// link, or a device.
fn destination(path: &Path) -> Result<PathBuf> {
    let mut target = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match std::fs::symlink_metadata(&target) {
            Ok(found) if found.is_symlink() => {
                let link = std::fs::read_link(&target).map_err(|e| Error::io(path, e))?;
                target = folder_of(&target).join(link);
            }
            Ok(found) if !found.is_file() => {
                let kind = kind_of(&found);
                return Err(Error::io(path, io::Error::other(format!("is {kind}: name a file to write"))));
            }
            _ => return Ok(target),
        }
    }
    Err(Error::io(path, io::Error::other(format!("leads through more than {MAX_LINKS} symbolic links: remove it"))))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn temporary_file(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".haplovl-").suffix(".tmp");
    // Temporary files are private by default; the final file gets the permissions of the user's umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(|error| match error.kind() {
        ErrorKind::NotFound => io::Error::new(ErrorKind::NotFound, "its folder does not exist: make it first"),
        _ => error,
    })
}

/// Makes renames and removals in `folder` durable. Only Unix can open and sync a folder.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn replaces_the_content_and_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_bytes_atomically(&path, b"old").unwrap();
        write_bytes_atomically(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_folders_pipes_and_devices_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::os::unix::fs::symlink("real.json", at("link.json")).unwrap();
        std::os::unix::fs::symlink("loop.json", at("loop.json")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for content in [b"one", b"two"] {
            write_bytes_atomically(at("link.json"), content).unwrap();
            assert_eq!(std::fs::read(at("real.json")).unwrap(), content);
            assert!(at("link.json").is_symlink());
        }
        let error = |path: &Path| write_bytes_atomically(path, b"x").unwrap_err().to_string();
        assert!(error(folder.path()).contains("is a folder"));
        assert!(error(&at("socket")).contains("pipe, socket or device"));
        assert!(error(&at("loop.json")).contains("symbolic links"));
        drop(socket);
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_bytes_atomically(&path, b"old").unwrap();
        let failed: Result<()> = write_atomically(&path, |writer| {
            writer.write_all(b"half").unwrap();
            Err(Error::training("stopped"))
        });
        assert!(matches!(failed, Err(Error::Training { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no/such/a.json");
        let message = write_bytes_atomically(&path, b"x").unwrap_err().to_string();
        assert!(message.contains("no/such/a.json: its folder does not exist"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let [ours, plain] = ["ours", "plain"].map(|n| folder.path().join(n));
        write_bytes_atomically(&ours, b"x").unwrap();
        std::fs::write(&plain, b"x").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
