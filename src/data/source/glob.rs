//! Patterns of paths.

use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern, glob_with};

use crate::{Error, Result};

/// Most files that a pattern may match.
const MAX_MATCHES: usize = 1 << 17;

/// The files and folders that a pattern matches, sorted by name; a path that exists is no pattern.
///
/// # Errors
/// [`Error::Io`] for a path that does not exist, and [`Error::Data`] for a pattern without a match.
pub(crate) fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    let is_pattern = path.to_string_lossy().contains(['*', '?', '[']);
    let has_braces = path.to_string_lossy().contains('{');
    if path.exists() || !(is_pattern || has_braces) {
        return Ok(vec![path.to_path_buf()]);
    }
    let bad = |message: String| Error::data(format!("the pattern {} {message}", path.display()));
    let options =
        MatchOptions { require_literal_leading_dot: true, require_literal_separator: true, ..MatchOptions::new() };
    let matches = glob_with(&pattern_of(path), options).map_err(|e| bad(format!("is invalid: {e}")))?;
    let mut found = Vec::new();
    for path in matches.take(MAX_MATCHES + 1) {
        found.push(path.map_err(|e| bad(format!("cannot be matched: {e}")))?);
    }
    match found.len() {
        0 if has_braces => {
            Err(bad("matches no file, and braces are not expanded: use `*` or `?`, or name a list".into()))
        }
        0 => Err(bad("matches no file: check the path".into())),
        count if count > MAX_MATCHES => Err(bad(format!("matches more than {MAX_MATCHES} files"))),
        _ => {
            found.sort();
            Ok(found)
        }
    }
}

/// The pattern, with the folders that exist taken literally.
fn pattern_of(path: &Path) -> String {
    let folder = path.ancestors().find(|folder| !folder.as_os_str().is_empty() && folder.is_dir());
    match folder.and_then(|folder| Some((folder, path.strip_prefix(folder).ok()?))) {
        Some((folder, rest)) => Path::new(&Pattern::escape(&folder.to_string_lossy())).join(rest),
        None => path.to_path_buf(),
    }
    .to_string_lossy()
    .into_owned()
}
