//! Image files found by names, folders and patterns.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use glob::MatchOptions;
use image::ImageFormat;

use crate::{Error, Result};

/// Most files of one list, so that a wrong pattern such as `/**/*` ends.
const MAX_FILES: usize = 1 << 22;

/// Image files in the order of their names on a command line, and the files that were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageList {
    /// Image files: named ones as given, those of a folder or pattern sorted by name.
    pub images: Vec<PathBuf>,
    /// Entries of folders that were left out: files that are not images of a readable format, and subfolders.
    pub left_out: LeftOut,
}

/// Entries of folders that were left out of a list. Prints as one line, empty if there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Files that are not images of a readable format.
    pub files: Vec<PathBuf>,
    /// Subfolders, which are not searched.
    pub folders: Vec<PathBuf>,
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
            } else if let (Some(pattern), Err(_)) = (pattern(name), name.symlink_metadata()) {
                list.add_pattern(pattern)?;
            } else {
                list.images.push(name.to_path_buf());
            }
        }
        Ok(list)
    }

    fn add_folder(&mut self, folder: &Path) -> Result<()> {
        let io = |e| Error::io(folder, e);
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            entries.push(entry.map_err(io)?.path());
            check_count(entries.len(), folder)?;
        }
        entries.retain(|path| !is_hidden(path));
        entries.sort();
        let before = self.images.len();
        for path in entries {
            match (path.is_dir(), is_image(&path)) {
                (true, _) => self.left_out.folders.push(path),
                (false, true) => self.images.push(path),
                (false, false) => self.left_out.files.push(path),
            }
        }
        if self.images.len() == before {
            return Err(Error::data(format!(
                "the folder {} holds no image of a readable format{}: name another folder, or a pattern such as \
                 `{}/**/*.png` for its subfolders",
                folder.display(),
                self.left_out.beside(),
                folder.display()
            )));
        }
        Ok(())
    }

    fn add_pattern(&mut self, pattern: &str) -> Result<()> {
        let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
        let bad = |e: &dyn fmt::Display| Error::data(format!("the pattern `{pattern}` is not valid ({e})"));
        let found = glob::glob_with(pattern, options).map_err(|e| bad(&e))?;
        let before = self.images.len();
        for path in found {
            let path = path.map_err(|e| Error::io(e.path().to_path_buf(), e.into()))?;
            if !path.is_dir() {
                self.images.push(path);
            }
            check_count(self.images.len(), Path::new(pattern))?;
        }
        if self.images.len() == before {
            return Err(Error::data(format!(
                "the pattern `{pattern}` matches no file: check its folder and extension"
            )));
        }
        Ok(())
    }
}

impl LeftOut {
    /// The line, in brackets and with a space before it; empty if there are none.
    fn beside(&self) -> String {
        let line = self.to_string();
        if line.is_empty() { line } else { format!(" ({line})") }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.files.is_empty() {
            let count = self.files.len();
            let kinds = kinds(&self.files);
            parts.push(format!("{count} file(s) that are no readable images: {kinds}, such as {}", first(&self.files)));
        }
        if !self.folders.is_empty() {
            parts.push(format!("{} subfolder(s), such as {}", self.folders.len(), first(&self.folders)));
        }
        if !parts.is_empty() {
            write!(f, "left out {}", parts.join("; "))?;
        }
        Ok(())
    }
}

/// Numbers of files by extension, the most frequent first, at most five.
fn kinds(files: &[PathBuf]) -> String {
    const MOST: usize = 5;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for file in files {
        let extension = file.extension().map(|e| format!(".{}", e.to_string_lossy().to_lowercase()));
        *counts.entry(extension.unwrap_or_else(|| "without extension".into())).or_default() += 1;
    }
    let mut counts = Vec::from_iter(counts);
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let more = if counts.len() > MOST { ", .." } else { "" };
    let shown = counts.iter().take(MOST).map(|(kind, count)| format!("{count} {}", shortened(kind)));
    format!("{}{more}", Vec::from_iter(shown).join(", "))
}

/// The name of the first path.
fn first(paths: &[PathBuf]) -> String {
    let name = paths.first().and_then(|path| path.file_name()).unwrap_or_default();
    shortened(&name.to_string_lossy())
}

/// A name without control characters, cut to a length that fits a message.
fn shortened(name: &str) -> String {
    name.chars().take(60).collect::<String>().escape_debug().to_string()
}

/// The text of a pattern: a name with a wildcard that is no address.
fn pattern(name: &Path) -> Option<&str> {
    name.to_str().filter(|name| name.contains(['*', '?', '[']) && !name.contains("://"))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Whether the extension is one of a format that [`ImageDecoder`](crate::processor::ImageDecoder) reads.
fn is_image(path: &Path) -> bool {
    let jpe = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jpe"));
    jpe || ImageFormat::from_path(path).is_ok_and(|format| format.reading_enabled())
}

fn check_count(count: usize, place: &Path) -> Result<()> {
    if count <= MAX_FILES {
        return Ok(());
    }
    Err(Error::data(format!("{} names more than {MAX_FILES} files: divide them into folders", place.display())))
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
        let line = "left out 3 file(s) that are no readable images: 1 .avif, 1 .heic, 1 .txt, such as e.heic; \
                    1 subfolder(s), such as sub";
        assert_eq!(list.left_out.to_string(), line);
        let only = ImageList::find([folder.path().join("sub")]).unwrap();
        assert_eq!(only.left_out.to_string(), "");
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
        assert!(find("a[").unwrap_err().to_string().contains("not valid"));
    }

    #[test]
    fn named_files_keep_their_order_and_an_empty_folder_is_an_error() {
        let list = ImageList::find(["z.png", "missing.png", "a.txt"]).unwrap();
        assert_eq!(list.images, ["z.png", "missing.png", "a.txt"].map(PathBuf::from));
        let folder = folder(&["a.heic"]);
        let message = ImageList::find([folder.path()]).unwrap_err().to_string();
        assert!(message.contains("no image") && message.contains("1 .heic"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn names_need_not_be_utf_8() {
        use std::os::unix::ffi::OsStrExt;
        let folder = folder(&[]);
        let path = folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.png"));
        fs::write(&path, "").unwrap();
        assert_eq!(ImageList::find([folder.path()]).unwrap().images, [path]);
    }
}
