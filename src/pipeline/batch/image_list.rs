//! Image files found by names, folders and patterns.

use std::fs;
use std::path::{Path, PathBuf};

use crate::data::{LeftOut, expand_pattern, has_image_name};
use crate::{Error, Result};

/// Most entries of a folder.
const MAX_ENTRIES: usize = 1 << 22;

/// Image files in the order of their names on a command line, and the files that were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageList {
    /// Image files: named ones as given, those of a folder or pattern sorted by name.
    pub images: Vec<PathBuf>,
    /// Entries of folders that were left out: files that are not images of a readable format, and subfolders.
    pub left_out: LeftOut,
}

impl ImageList {
    /// Finds images. Each name is a file, a folder, whose images are taken without those of its subfolders, or a pattern
    /// with `*`, `?`, `[..]` or `**`. Names with a leading dot in folders are passed over.
    ///
    /// A file is taken whatever its name is, also if it does not exist: what is wrong with it is an error of that image
    /// when it is opened.
    ///
    /// # Errors
    /// [`Error::Data`] for a folder without images, and for a pattern that is invalid or matches no file, and
    /// [`Error::Io`] for a folder that cannot be read.
    pub fn find<P: AsRef<Path>>(names: impl IntoIterator<Item = P>) -> Result<Self> {
        let mut list = Self::default();
        for name in names {
            let name = name.as_ref();
            if name.is_dir() {
                list.add_folder(name)?;
            } else if name.to_string_lossy().contains("://") {
                // An address may hold the characters of a pattern.
                list.images.push(name.to_path_buf());
            } else {
                list.add_matches(name)?;
            }
        }
        Ok(list)
    }

    fn add_matches(&mut self, pattern: &Path) -> Result<()> {
        let before = self.images.len();
        let found = expand_pattern(pattern)?.into_iter();
        self.images.extend(found.filter(|path| path == pattern || !path.is_dir()));
        if self.images.len() == before {
            let message = format!("the pattern {} matches folders only: add `/*` to it", pattern.display());
            return Err(Error::data(message));
        }
        Ok(())
    }

    fn add_folder(&mut self, folder: &Path) -> Result<()> {
        let io = |e| Error::io(folder, e);
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            entries.push(entry.map_err(io)?.path());
            if entries.len() > MAX_ENTRIES {
                let message = format!("{} has more than {MAX_ENTRIES} files: divide them", folder.display());
                return Err(Error::data(message));
            }
        }
        entries.sort();
        let before = self.images.len();
        entries.into_iter().for_each(|path| self.add_entry(path));
        if self.images.len() == before {
            return Err(Error::data(format!(
                "the folder {} holds no image of a readable format: name another folder, or a pattern such as `**/*.png` \
                 for its subfolders",
                folder.display()
            )));
        }
        Ok(())
    }

    fn add_entry(&mut self, path: PathBuf) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
        } else if path.is_dir() {
            self.left_out.add(&name, "is a subfolder, which is not searched");
        } else if has_image_name(&name) {
            self.images.push(path);
        } else {
            self.left_out.add(&name, "is no image of a readable format");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn names(folder: &Path, list: &ImageList) -> Vec<String> {
        list.images.iter().map(|path| path.strip_prefix(folder).unwrap_or(path).display().to_string()).collect()
    }

    #[test]
    fn a_folder_gives_its_images_by_name_and_says_what_is_left_out() {
        let folder = folder(&[
            "b.PNG",
            "a.jpg",
            "c.jfif",
            "d.jpe",
            "._a.jpg",
            ".x.png",
            "e.heic",
            "f.avif",
            "n.txt",
            "sub/g.png",
        ]);
        let list = ImageList::find([folder.path()]).unwrap();
        assert_eq!(names(folder.path(), &list), ["a.jpg", "b.PNG", "c.jfif", "d.jpe"]);
        assert_eq!((list.left_out.files, list.left_out.named.len()), (4, 4));
        assert_eq!(list.left_out.named[0], "e.heic: is no image of a readable format");
        assert_eq!(list.left_out.named[3], "sub: is a subfolder, which is not searched");
        let only = ImageList::find([folder.path().join("sub")]).unwrap();
        assert_eq!(only.left_out.files, 0);
    }

    #[test]
    fn patterns_match_files_without_hidden_ones() {
        let folder = folder(&["a.jpg", "b.png", ".c.png", "sub/d.png", "odd[1].png"]);
        let find = |pattern: &str| ImageList::find([folder.path().join(pattern)]);
        assert_eq!(names(folder.path(), &find("*.png").unwrap()), ["b.png", "odd[1].png"]);
        assert_eq!(names(folder.path(), &find("**/*.png").unwrap()), ["b.png", "odd[1].png", "sub/d.png"]);
        // A file of just that name is no pattern.
        assert_eq!(names(folder.path(), &find("odd[1].png").unwrap()), ["odd[1].png"]);
        assert!(find("*.webp").unwrap_err().to_string().contains("matches no file"));
        assert!(find("a[").unwrap_err().to_string().contains("is invalid"));
    }

    #[test]
    fn named_files_keep_their_order_and_an_empty_folder_is_an_error() {
        let list = ImageList::find(["z.png", "missing.png", "a.txt"]).unwrap();
        assert_eq!(list.images, ["z.png", "missing.png", "a.txt"].map(PathBuf::from));
        let folder = folder(&["a.heic"]);
        let message = ImageList::find([folder.path()]).unwrap_err().to_string();
        assert!(message.contains("holds no image"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn names_need_not_be_utf_8() {
        use std::os::unix::ffi::OsStrExt;
        let folder = folder(&[]);
        let path = folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.png"));
        fs::write(&path, "").unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for pattern in ["", "*.png", "caf?.png", "**/*.png"] {
            let found = ImageList::find([folder.path().join(pattern)]).unwrap();
            assert_eq!(found.images, [path.as_path()], "{pattern}");
        }
        let find = |pattern: &str| ImageList::find([folder.path().join(pattern)]).unwrap_err().to_string();
        assert!(find("*.jpg").contains("matches no file"));
        assert!(find("s*").contains("matches folders only"));
    }
}
