//! Patterns of paths.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use crate::{Error, Result};

/// Most files that a pattern may match.
const MAX_MATCHES: usize = 1 << 17;
/// A pattern's component for any number of folders.
const ANY_FOLDERS: &str = "**";
/// Names with a leading dot match only a pattern with one.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// The files and folders that a pattern matches, sorted by name; a path that exists is no pattern. `**` stands for any
/// number of folders; links to folders are not followed by it. Names need not be UTF-8.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be read, and [`Error::Data`] for a pattern that is invalid or has no match.
pub(crate) fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    let has_braces = path.to_string_lossy().contains('{');
    if path.exists() || !(is_pattern(path.as_os_str()) || has_braces) {
        return Ok(vec![path.to_path_buf()]);
    }
    let bad = |message: &str| Error::data(format!("the pattern {} {message}", path.display()));
    let (folder, rest) = split(path);
    let parts = rest.components().map(|part| Part::new(part.as_os_str()));
    let parts: Vec<Part> =
        parts.collect::<std::result::Result<_, _>>().map_err(|e| bad(&format!("is invalid: {e}")))?;
    let mut found = Vec::new();
    search(folder, &parts, &mut found)?;
    match found.len() {
        0 if has_braces => Err(bad("matches no file, and braces are not expanded: use `*` or `?`, or name a list")),
        0 => Err(bad("matches no file: check the path")),
        count if count > MAX_MATCHES => Err(bad(&format!("matches more than {MAX_MATCHES} files"))),
        _ => {
            found.sort();
            found.dedup();
            Ok(found)
        }
    }
}

fn is_pattern(name: &OsStr) -> bool {
    name.to_string_lossy().contains(['*', '?', '['])
}

/// The folder that exists, and the pattern in it.
fn split(path: &Path) -> (&Path, &Path) {
    let folder = path.ancestors().find(|folder| !folder.as_os_str().is_empty() && folder.is_dir());
    let rest = |folder: &'_ Path| path.strip_prefix(folder).ok();
    match folder.and_then(|folder| Some((folder, rest(folder)?))) {
        Some(parts) => parts,
        None => (Path::new(""), path),
    }
}

/// Component of a pattern.
enum Part {
    /// A name, `..` or the root.
    Name(PathBuf),
    Pattern(Pattern),
    AnyFolders,
}

impl Part {
    fn new(part: &OsStr) -> std::result::Result<Self, glob::PatternError> {
        Ok(match part {
            name if !is_pattern(name) => Self::Name(name.into()),
            name if name == ANY_FOLDERS => Self::AnyFolders,
            name => Self::Pattern(Pattern::new(&name.to_string_lossy())?),
        })
    }
}

/// Adds what matches `parts` in a folder, up to one match too many.
fn search(folder: &Path, parts: &[Part], found: &mut Vec<PathBuf>) -> Result<()> {
    let Some((part, rest)) = parts.split_first() else {
        found.push(folder.to_path_buf());
        return Ok(());
    };
    if found.len() > MAX_MATCHES {
        return Ok(());
    }
    match part {
        Part::Name(name) => {
            let path = folder.join(name);
            if path.symlink_metadata().is_ok() { search(&path, rest, found) } else { Ok(()) }
        }
        Part::Pattern(pattern) => search_entries(folder, pattern, rest, found),
        Part::AnyFolders => {
            search(folder, rest, found)?;
            let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
            let below = entries(folder)?.into_iter().filter(|entry| is_folder(entry) && !is_hidden(entry));
            below.map(|entry| folder.join(entry.file_name())).try_for_each(|path| search(&path, parts, found))
        }
    }
}

fn search_entries(folder: &Path, pattern: &Pattern, rest: &[Part], found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in entries(folder)? {
        if pattern.matches_with(&entry.file_name().to_string_lossy(), OPTIONS) {
            let path = folder.join(entry.file_name());
            if rest.is_empty() || path.is_dir() {
                search(&path, rest, found)?;
            }
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !here.is_dir() {
        return Ok(vec![]);
    }
    fs::read_dir(here).and_then(Iterator::collect).map_err(|e| Error::io(here, e))
}

fn is_hidden(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with('.')
}
