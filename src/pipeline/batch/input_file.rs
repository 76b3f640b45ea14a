//! Files of inputs: JSON records, and lists of paths.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::Input;
use super::json_lines::next_line;
use crate::data::RecordIndex;
use crate::error::one_line;
use crate::{Result, files};

/// The inputs of a file, read one by one: an iterator of [`Input`]s.
///
/// - A file with the extension `txt` is a list of image files, one a line; blank lines are skipped. Relative names are
///   relative to the folder of the list.
/// - Any other file holds JSON records, one a line or in an array; see [`Input::record`].
#[derive(Debug)]
pub struct InputFile<R = BufReader<File>> {
    form: Form<R>,
    images: PathBuf,
}

#[derive(Debug)]
enum Form<R> {
    Records { index: RecordIndex, next: usize },
    Lines(R),
    Ended,
}

impl InputFile {
    /// Opens a file. `images` is the folder that image names of records are relative to and must lie in; by default that
    /// of the file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be read, and the errors of [`RecordIndex::open`].
    pub fn open(path: impl AsRef<Path>, images: Option<&Path>) -> Result<Self> {
        let path = path.as_ref();
        let folder = images.or(path.parent()).unwrap_or(Path::new("")).to_path_buf();
        let is_list = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
        let form = match is_list {
            true => Form::Lines(BufReader::new(files::open(path)?)),
            false => Form::Records { index: RecordIndex::open(path)?, next: 0 },
        };
        Ok(Self { form, images: folder })
    }
}

impl<R: BufRead> InputFile<R> {
    /// The inputs of a stream, such as stdin, one a line: JSON records, and names of image files. Relative names are
    /// relative to the folder `images`.
    pub fn from_lines(lines: R, images: impl Into<PathBuf>) -> Self {
        Self { form: Form::Lines(lines), images: images.into() }
    }

    /// The next line that is not blank.
    fn next_line(lines: &mut R, images: &Path) -> Option<std::result::Result<Input, String>> {
        loop {
            match next_line(lines) {
                Ok(None) => return None,
                Ok(Some(line)) if line.content.trim_ascii().is_empty() => {}
                Ok(Some(line)) => return Some(Ok(of_line(&line.content, images))),
                Err(e) => return Some(Err(format!("the inputs cannot be read any further ({e})"))),
            }
        }
    }
}

/// The input of a line: a record if it begins as a JSON object, else the name of an image file.
fn of_line(line: &[u8], images: &Path) -> Input {
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    if line.first() == Some(&b'{') {
        return Input::record(line, images);
    }
    match path(line) {
        Some(path) if is_address(&path) => Input::image(path),
        Some(path) => Input::image(images.join(path)),
        None => {
            let shown = one_line(&String::from_utf8_lossy(line));
            Input::bad(format!("the line `{shown}` is not UTF-8, expected the name of an image file"))
        }
    }
}

fn is_address(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.contains("://"))
}

/// A path as bytes; on Unix, a path need not be UTF-8.
#[cfg(unix)]
fn path(bytes: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

/// A path as bytes, which must be UTF-8 here.
#[cfg(not(unix))]
fn path(bytes: &[u8]) -> Option<PathBuf> {
    std::str::from_utf8(bytes).ok().map(PathBuf::from)
}

impl<R: BufRead> Iterator for InputFile<R> {
    type Item = Input;

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.form {
            Form::Records { index, next } => (index.len() - next, Some(index.len() - next)),
            Form::Lines(_) => (0, None),
            Form::Ended => (0, Some(0)),
        }
    }

    fn next(&mut self) -> Option<Input> {
        match &mut self.form {
            Form::Records { index, next } => {
                let at = *next;
                if at >= index.len() {
                    return None;
                }
                *next += 1;
                Some(match index.read(at) {
                    Ok(json) => Input::record(&json, &self.images).numbered(at),
                    Err(e) => Input::bad(e.to_string()).numbered(at),
                })
            }
            Form::Lines(lines) => match Self::next_line(lines, &self.images)? {
                Ok(input) => Some(input),
                Err(reason) => {
                    self.form = Form::Ended;
                    Some(Input::bad(reason))
                }
            },
            Form::Ended => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(inputs: impl Iterator<Item = Input>) -> Vec<String> {
        inputs.map(|input| input.name()).collect()
    }

    #[test]
    fn lists_records_and_streams_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let list = write("list.txt", "\u{feff}a.png\r\n\n  sub/b c.png\n/c.png");
        let expected = ["a.png", "  sub/b c.png"].map(|name| folder.path().join(name).display().to_string());
        let found = names(InputFile::open(list, None).unwrap());
        assert_eq!((&found[..2], found[2].as_str()), (&expected[..], "/c.png"));
        let lines = write("a.jsonl", "{\"image\": \"a.png\"}\nnonsense\n{\"id\": 3}\n");
        assert_eq!(names(InputFile::open(lines, None).unwrap()), ["a.png", "record 2", "3"]);
        let array = write("a.json", "[{\"image\": [\"a.png\", \"b.png\"]}, {}]");
        assert_eq!(names(InputFile::open(array, None).unwrap()), [r#"["a.png","b.png"]"#, "record 2"]);
        let stream = InputFile::from_lines(&b"{\"image\": \"a.png\"}\nhttps://a.org/b.png\n"[..], "x");
        assert_eq!(names(stream), ["a.png", "https://a.org/b.png"]);
    }

    #[test]
    fn a_stream_that_cannot_be_read_ends_with_one_bad_input() {
        let endless = BufReader::new(std::io::repeat(b'a'));
        assert_eq!(InputFile::from_lines(endless, "").count(), 1);
        assert!(InputFile::open("no such file.jsonl", None).is_err());
    }
}
