//! A file of results, one JSON line each, to which an interrupted run is added.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::json_lines::next_line;
use crate::{Error, Result, files};

/// A JSONL file of results, in the order of their inputs. Each line is written whole, so that a run that is cut off
/// leaves at most one torn line, which [`Self::resume`] drops.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
    file: File,
    /// Results of an earlier run that are not compared with their inputs yet.
    earlier: Option<BufReader<File>>,
    lines: usize,
    failed: usize,
}

impl ResultFile {
    /// Creates a file, which must not exist, and the folders above it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file exists, cannot be written, or is being written by another process.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let file = OpenOptions::new().create_new(true).append(true).open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Error::io(path, std::io::Error::other("exists already: name another file, or remove it first"))
            }
            _ => Error::io(path, e),
        })?;
        lock(&file, path)?;
        Ok(Self { path: path.to_path_buf(), file, earlier: None, lines: 0, failed: 0 })
    }

    /// Opens a file that an earlier run of the same inputs left, or creates it. A torn last line is dropped;
    /// [`Self::has`] then tells which inputs are done.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is not a regular one, cannot be read or written, or is being written by another process.
    pub fn resume(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !files::exists(path)? {
            return Self::create(path);
        }
        let io = |e| Error::io(path, e);
        files::open(path)?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        lock(&file, path)?;
        let length = complete_length(&mut BufReader::new(files::open(path)?)).map_err(io)?;
        file.set_len(length).map_err(io)?;
        let earlier = Some(BufReader::new(files::open(path)?));
        Ok(Self { path: path.to_path_buf(), file, earlier, lines: 0, failed: 0 })
    }

    /// Whether the file holds the result of the next input already. `about` are the fields of the input that a result
    /// repeats, see [`Input::about`](super::Input::about).
    ///
    /// # Errors
    /// [`Error::Format`] if the next line is not the result of that input, and [`Error::Io`].
    pub fn has(&mut self, about: &Map<String, Value>) -> Result<bool> {
        let Some(earlier) = &mut self.earlier else { return Ok(false) };
        let Some(line) = next_line(earlier).map_err(|e| Error::io(&self.path, e))? else {
            self.earlier = None;
            return Ok(false);
        };
        let result: Option<Map<String, Value>> = serde_json::from_slice(&line.content).ok();
        let matches = |result: &&Map<String, Value>| {
            is_result(result) && about.iter().all(|(name, value)| result.get(name) == Some(value))
        };
        self.lines += 1;
        let Some(result) = result.as_ref().filter(matches) else {
            let message = format!(
                "line {} is not the result of input {}, as in a run with other inputs: name another file",
                self.lines, self.lines
            );
            return Err(Error::format(&self.path, message));
        };
        self.failed += usize::from(result.contains_key("error"));
        Ok(true)
    }

    /// Appends a result.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, and [`Error::Format`] if results of an earlier run were not all compared.
    pub fn write(&mut self, result: &Map<String, Value>) -> Result<()> {
        self.lines += 1;
        self.failed += usize::from(result.contains_key("error"));
        let mut line = serde_json::to_vec(result).map_err(|e| Error::io(&self.path, e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, e))
    }

    /// Checks that no result is left of inputs that do not exist, after the last input.
    ///
    /// # Errors
    /// [`Error::Format`] if there is one, and [`Error::Io`].
    pub fn finish(mut self) -> Result<()> {
        let Some(earlier) = &mut self.earlier else { return Ok(()) };
        match next_line(earlier).map_err(|e| Error::io(&self.path, e))? {
            None => Ok(()),
            Some(_) => {
                Err(Error::format(&self.path, format!("has more than {} lines, one for each input", self.lines)))
            }
        }
    }

    /// Number of results, those of earlier runs included.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Number of results that are errors, those of earlier runs included.
    pub fn failed(&self) -> usize {
        self.failed
    }
}

/// Locks a file of results while it is open, so that no two processes mix their lines.
fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let message = "is being written by another process: wait for it, or name another file";
            Err(Error::io(path, std::io::Error::other(message)))
        }
        // Some file systems do not support locks; other processes are not excluded there.
        _ => Ok(()),
    }
}

/// Whether a line is a result, not an input: it has an answer, or the error in its place.
fn is_result(line: &Map<String, Value>) -> bool {
    ["text", "error"].iter().any(|name| line.get(*name).is_some_and(Value::is_string))
}

/// Length in bytes of all complete lines.
fn complete_length(file: &mut BufReader<File>) -> std::io::Result<u64> {
    let mut length = 0;
    while let Some(line) = next_line(file)?.filter(|line| line.complete) {
        length += line.length;
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(json: Value) -> Map<String, Value> {
        match json {
            Value::Object(fields) => fields,
            other => panic!("{other}"),
        }
    }

    fn about(name: &str) -> Map<String, Value> {
        fields(json!({ "image": name }))
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_later_results_follow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/out.jsonl");
        let mut first = ResultFile::create(&path).unwrap();
        first.write(&fields(json!({ "image": "a", "text": "x" }))).unwrap();
        first.write(&fields(json!({ "image": "b", "error": "y" }))).unwrap();
        assert_eq!((first.lines(), first.failed()), (2, 1));
        drop(first);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"image\": \"c\", \"te").unwrap();
        let mut next = ResultFile::resume(&path).unwrap();
        assert!(next.has(&about("a")).unwrap() && next.has(&about("b")).unwrap() && !next.has(&about("c")).unwrap());
        next.write(&fields(json!({ "image": "c", "text": "z" }))).unwrap();
        assert_eq!((next.lines(), next.failed()), (3, 1));
        next.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("{\"image\":\"c\",\"text\":\"z\"}\n"), "{text}");
        assert!(ResultFile::create(&path).unwrap_err().to_string().contains("exists already"));
    }

    #[test]
    fn a_file_that_is_being_written_is_not_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let mut first = ResultFile::create(&path).unwrap();
        first.write(&fields(json!({ "image": "a", "text": "x" }))).unwrap();
        let message = ResultFile::resume(&path).unwrap_err().to_string();
        assert!(message.contains("written by another process"), "{message}");
        drop(first);
        assert!(ResultFile::resume(&path).unwrap().has(&about("a")).unwrap());
    }

    #[test]
    fn results_of_other_inputs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        for (line, name) in [(r#"{"image": "a", "text": "x"}"#, "b"), (r#"{"image": "a"}"#, "a"), ("nonsense", "a")] {
            std::fs::write(&path, format!("{line}\n")).unwrap();
            let message = ResultFile::resume(&path).unwrap().has(&about(name)).unwrap_err().to_string();
            assert!(message.contains("line 1 is not the result of input 1"), "{message}");
        }
        std::fs::write(&path, "{\"image\": \"a\", \"text\": \"x\"}\n").unwrap();
        assert!(ResultFile::resume(&path).unwrap().finish().unwrap_err().to_string().contains("more than 0 lines"));
        assert!(ResultFile::resume(folder.path()).is_err());
    }
}
