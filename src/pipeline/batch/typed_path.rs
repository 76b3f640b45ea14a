//! Paths as people type or drop them into a prompt.

use std::path::PathBuf;

use crate::files;

/// The path that somebody means who typed `text`: without quotes around it, with `~/` as the home folder, and with
/// backslashes before spaces taken off, as a terminal writes a dropped file, unless a file has just that name.
pub fn typed_path(text: &str) -> PathBuf {
    let text = text.trim();
    let plain = unquoted(text).unwrap_or(text);
    if let Some(path) = files::in_home(plain) {
        return path;
    }
    let path = PathBuf::from(plain);
    if cfg!(unix) && plain.contains('\\') && path.symlink_metadata().is_err() {
        return PathBuf::from(unescaped(plain));
    }
    path
}

/// The text between two equal quotes.
fn unquoted(text: &str) -> Option<&str> {
    ['"', '\''].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
}

/// `text` without the backslash before each escaped character.
fn unescaped(text: &str) -> String {
    let mut chars = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn quotes_escapes_and_the_home_folder_are_understood() {
        for (typed, path) in [
            ("cat.jpg", "cat.jpg"),
            (" \"my cat.png\" ", "my cat.png"),
            ("'my cat.png'", "my cat.png"),
            ("\"half", "\"half"),
            ("\"", "\""),
            ("", ""),
        ] {
            assert_eq!(typed_path(typed), Path::new(path), "{typed}");
        }
        if let Some(home) = std::env::home_dir() {
            assert_eq!(typed_path("~/cat.png"), home.join("cat.png"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn escaped_spaces_are_spaces_unless_the_file_has_the_backslash() {
        assert_eq!(typed_path(r"my\ cat\(1\).png"), Path::new("my cat(1).png"));
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join(r"my\ cat.png");
        std::fs::write(&odd, "").unwrap();
        assert_eq!(typed_path(odd.to_str().unwrap()), odd);
    }
}
