//! Files of inputs: JSON records, and lists of paths.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::json_lines::next_line;
use super::{Input, typed_path};
use crate::data::JsonObjects;
use crate::error::one_line;
use crate::{Error, Result, files};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The inputs of a file, read one by one: an iterator of [`Input`]s.
///
/// - A file with the extension `txt`, `lst` or `list` or without one is a list of image files, one a line, unless it
///   starts as JSON. Blank lines, and lines with `#` in front that name no file, are skipped. Relative names are relative
///   to the folder of the list; quotes, `~/` and spaces around a name are taken off.
/// - Any other file holds records: JSON, one a line or in an array, or CSV or TSV, also compressed with gzip; see
///   [`Input::record`].
#[derive(Debug)]
pub struct InputFile<R = BufReader<File>> {
    form: Form<R>,
    images: PathBuf,
}

#[derive(Debug)]
enum Form<R> {
    Records { objects: JsonObjects, next: usize },
    Lines(R),
    Ended,
}

impl InputFile {
    /// Opens a file. `images` is the folder that image names of records are relative to and must lie in; by default that
    /// of the file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, and [`Error::Format`] if it is of another format or without records.
    pub fn open(path: impl AsRef<Path>, images: Option<&Path>) -> Result<Self> {
        let path = path.as_ref();
        let folder = images.or(path.parent()).unwrap_or(Path::new("")).to_path_buf();
        let form = match list(path)? {
            Some(lines) => Form::Lines(lines),
            None => {
                let other = || Error::format(path, "is no list of images and no JSON or CSV: name one of these");
                Form::Records { objects: JsonObjects::open(path)?.ok_or_else(other)?, next: 0 }
            }
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
                Ok(Some(line)) => {
                    if let Some(input) = of_line(&line.content, images) {
                        return Some(Ok(input));
                    }
                }
                Err(e) => return Some(Err(format!("the inputs cannot be read any further ({e})"))),
            }
        }
    }
}

/// The lines of a file that is a list of images.
fn list(path: &Path) -> Result<Option<BufReader<File>>> {
    let extension = path.extension().unwrap_or_default();
    if !["", "txt", "lst", "list"].iter().any(|name| extension.eq_ignore_ascii_case(name)) {
        return Ok(None);
    }
    let mut lines = BufReader::new(files::open(path)?);
    let start = lines.fill_buf().map_err(|e| Error::io(path, e))?;
    let start = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start).trim_ascii_start();
    Ok((start.first() != Some(&b'[') && !start.contains(&0)).then_some(lines))
}

/// The input of a line: a record if it begins as a JSON object, else the name of an image file; `None` for a comment.
fn of_line(line: &[u8], images: &Path) -> Option<Input> {
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
    if line.trim_ascii_start().first() == Some(&b'{') {
        return Some(Input::record(line, images));
    }
    match path(line) {
        Some(path) if is_address(&path) => Some(Input::image(path)),
        Some(path) if images.join(&path).symlink_metadata().is_ok() => Some(Input::image(images.join(path))),
        Some(_) if line.first() == Some(&b'#') => None,
        Some(path) => Some(Input::image(images.join(path.to_str().map_or(path.clone(), typed_path)))),
        None => {
            let shown = one_line(&String::from_utf8_lossy(line));
            Some(Input::bad(format!("the line `{shown}` is not UTF-8, expected the name of an image file")))
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
            Form::Records { objects, next } => (objects.len() - next, Some(objects.len() - next)),
            Form::Lines(_) => (0, None),
            Form::Ended => (0, Some(0)),
        }
    }

    fn next(&mut self) -> Option<Input> {
        match &mut self.form {
            Form::Records { objects, next } => {
                let at = *next;
                if at >= objects.len() {
                    return None;
                }
                *next += 1;
                let fields = objects.read(at).map(|fields| Input::fields(fields, &self.images));
                Some(fields.unwrap_or_else(|e| Input::bad(e.to_string())).numbered(at))
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
        write("  odd.png", "");
        write("#1.png", "");
        let text = "\u{feff}a.png\r\n\n# comment\n#1.png\n  odd.png\n 'sub/b c.png' \n/c.png";
        let expected = ["a.png", "#1.png", "  odd.png", "sub/b c.png", "/c.png"];
        for name in ["list.txt", "list.lst", "list"] {
            let found = names(InputFile::open(write(name, text), None).unwrap());
            assert_eq!(found, expected.map(|name| folder.path().join(name).display().to_string()), "{name}");
        }
        let table = write("a.csv", "image,question,id\na.png,how many?,3\n");
        let found = InputFile::open(table, None).unwrap().next().unwrap();
        assert_eq!((found.name(), found.question()), ("a.png".to_owned(), Some("how many?")));
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
