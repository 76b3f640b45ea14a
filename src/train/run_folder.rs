//! Lock and writable files in the folder of a run.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::{Error, Result, files};

/// Opens a regular file for writing without truncating it, and creates it if it does not exist.
///
/// # Errors
/// [`Error::Io`], also for a pipe, device or folder of this name, which could block forever.
pub(super) fn open_for_writing(path: &Path) -> Result<File> {
    if files::exists(path)? {
        files::open(path)?;
    }
    OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(|e| Error::io(path, e))
}

/// Creates the run's folder if necessary and locks it; other processes cannot train in it while the file is open.
pub(super) fn lock(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).map_err(|e| {
        let message = format!("the folder {} cannot be made ({e}): choose another", folder.display());
        Error::config("output", message).caused_by(e)
    })?;
    let file = open_for_writing(&folder.join("lock"))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let folder = folder.display();
            Err(Error::training(format!(
                "another process is training in {folder}: wait for it, or set another `output`"
            )))
        }
        // Some file systems do not support locks; other processes are not excluded there.
        _ => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_their_content_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        open_for_writing(&path).unwrap();
        std::fs::write(&path, "kept").unwrap();
        open_for_writing(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
        assert!(open_for_writing(folder.path()).unwrap_err().to_string().contains("is a folder"));
    }
}
