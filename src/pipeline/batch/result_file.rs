//! A file of results, one JSON line each, to which an interrupted run is added.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, BufWriter, Read, Take, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::json_lines::next_line;
use crate::weights::write_atomically;
use crate::{Error, Result, files};

/// Longest part of a value that a message shows, in characters.
const SHOWN_CHARS: usize = 60;

/// A JSONL file of results. Each line is written whole, so that a run that is cut off leaves at most one torn line, which
/// the next result of a resumed run replaces.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
    file: File,
    /// Complete lines of an earlier run that are not read yet.
    earlier: Option<BufReader<Take<File>>>,
    /// Length in bytes of all complete lines, if a torn one follows.
    torn_at: Option<u64>,
    lines: usize,
    failed: usize,
}

impl ResultFile {
    /// Whether there is a file of an earlier run that wrote something.
    pub fn is_begun(path: impl AsRef<Path>) -> bool {
        path.as_ref().metadata().is_ok_and(|found| found.is_file() && found.len() > 0)
    }

    /// Creates a file, which must not exist unless it is empty, and the folders above it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file has content, cannot be written, or is being written by another process.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let io = |e| Error::io(path, e);
        // A symbolic link may name a file that does not exist yet.
        if path.exists() {
            files::open(path)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        lock(&file, path)?;
        // A run that failed before its first result leaves an empty file.
        if file.metadata().map_err(io)?.len() > 0 {
            return Err(io(std::io::Error::other("exists already: name another file, or remove it first")));
        }
        Ok(Self { path: path.to_path_buf(), file, earlier: None, torn_at: None, lines: 0, failed: 0 })
    }

    /// Opens a file that an earlier run left, or creates it. [`Self::earlier`] or [`Self::next_earlier`] then tell which
    /// inputs are done. Nothing is changed before the first [`Self::write`] or [`Self::replace`].
    ///
    /// # Errors
    /// [`Error::Io`] if the file is not a regular one, cannot be read or written, or is being written by another process, and
    /// [`Error::Format`] if its last line has no line break and is not a torn result.
    pub fn resume(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !files::exists(path)? {
            return Self::create(path);
        }
        let io = |e| Error::io(path, e);
        files::open(path)?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        lock(&file, path)?;
        let (length, tail) = complete_length(&mut BufReader::new(files::open(path)?)).map_err(io)?;
        if tail.as_ref().is_some_and(|tail| !is_torn(tail, length > 0)) {
            let message = "its last line has no line break and is no result cut off: add a line break if it is whole, or name \
                           another file";
            return Err(Error::format(path, message));
        }
        let earlier = Some(BufReader::new(files::open(path)?.take(length)));
        let torn_at = tail.map(|_| length);
        Ok(Self { path: path.to_path_buf(), file, earlier, torn_at, lines: 0, failed: 0 })
    }

    /// The result of the next input if the file holds it already. `about` are fields that an answer repeats, such as
    /// [`Input::about`](super::Input::about); an error may be of an input that was corrected since.
    ///
    /// # Errors
    /// [`Error::Format`] if the next line is not the answer to that input, which says what differs, and [`Error::Io`].
    pub fn earlier(&mut self, about: &Map<String, Value>) -> Result<Option<Map<String, Value>>> {
        let Some(result) = self.next_earlier()? else { return Ok(None) };
        let is_error = result.contains_key("error");
        if let Some(difference) = difference(&result, about).filter(|_| !is_error) {
            return Err(self.refuse(&format!("not the result of input {}: {difference}", self.lines)));
        }
        Ok(Some(result))
    }

    /// The next result of an earlier run, in the order of the file; `None` after the last one.
    ///
    /// # Errors
    /// [`Error::Format`] if the next line is no result, and [`Error::Io`].
    pub fn next_earlier(&mut self) -> Result<Option<Map<String, Value>>> {
        let Some(earlier) = &mut self.earlier else { return Ok(None) };
        let Some(line) = next_line(earlier).map_err(|e| Error::io(&self.path, e))? else {
            self.earlier = None;
            return Ok(None);
        };
        self.lines += 1;
        let result: Option<Map<String, Value>> = serde_json::from_slice(&line.content).ok();
        let Some(result) = result.filter(is_result) else { return Err(self.refuse("no result")) };
        self.failed += usize::from(result.contains_key("error"));
        Ok(Some(result))
    }

    fn refuse(&self, found: &str) -> Error {
        Error::format(&self.path, format!("line {} is {found}: name another file", self.lines))
    }

    /// Appends a result.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&mut self, result: &Map<String, Value>) -> Result<()> {
        if let Some(length) = self.torn_at.take() {
            self.file.set_len(length).map_err(|e| Error::io(&self.path, e))?;
        }
        self.lines += 1;
        self.failed += usize::from(result.contains_key("error"));
        let mut line = serde_json::to_vec(result).map_err(|e| Error::io(&self.path, e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, e))
    }

    /// Puts results in the places of earlier ones, by the numbers of their lines from 1. The file is whole at any time; its
    /// folder must be writable.
    ///
    /// # Errors
    /// [`Error::Format`] if there is no such line, or results of an earlier run are left that were not read; and
    /// [`Error::Io`].
    pub fn replace(&mut self, results: &BTreeMap<usize, Map<String, Value>>) -> Result<()> {
        if results.is_empty() {
            return Ok(());
        }
        self.check_end()?;
        if let Some(line) = results.keys().find(|line| !(1..=self.lines).contains(*line)) {
            let message = format!("line {line} is to be replaced, and there are {}: name another file", self.lines);
            return Err(Error::format(&self.path, message));
        }
        let failed = write_atomically(&self.path, |file| copy_with(file, &self.path, results))?;
        let file = OpenOptions::new().append(true).open(&self.path).map_err(|e| Error::io(&self.path, e))?;
        lock(&file, &self.path)?;
        (self.file, self.failed, self.torn_at) = (file, failed, None);
        Ok(())
    }

    /// Checks that no result is left of inputs that do not exist, after the last input.
    ///
    /// # Errors
    /// [`Error::Format`] if there is one, and [`Error::Io`].
    pub fn check_end(&mut self) -> Result<()> {
        let Some(earlier) = &mut self.earlier else { return Ok(()) };
        match next_line(earlier).map_err(|e| Error::io(&self.path, e))? {
            None => Ok(()),
            Some(_) => {
                let lines = self.lines;
                let message = format!("has more than {lines} lines, one for each input: name another file");
                Err(Error::format(&self.path, message))
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

/// Copies the complete lines of a file of results with others in their places, and returns how many are errors.
fn copy_with(to: &mut BufWriter<File>, path: &Path, results: &BTreeMap<usize, Map<String, Value>>) -> Result<usize> {
    let io = |e| Error::io(path, e);
    let from = files::open(path)?;
    let (mut lines, mut number, mut failed) = (BufReader::new(from), 0, 0);
    while let Some(line) = next_line(&mut lines).map_err(io)?.filter(|line| line.complete) {
        number += 1;
        let is_error = match results.get(&number) {
            Some(result) => {
                serde_json::to_writer(&mut *to, result).map_err(|e| io(e.into()))?;
                result.contains_key("error")
            }
            None => {
                to.write_all(&line.content).map_err(io)?;
                serde_json::from_slice(&line.content).is_ok_and(|line: Map<String, Value>| line.contains_key("error"))
            }
        };
        to.write_all(b"\n").map_err(io)?;
        failed += usize::from(is_error);
    }
    Ok(failed)
}

/// The first field in which a result differs, also inside an object such as `settings`.
fn difference(result: &Map<String, Value>, about: &Map<String, Value>) -> Option<String> {
    let (name, value) = about.iter().find(|(name, value)| result.get(*name) != Some(value))?;
    Some(match (result.get(name), value) {
        (Some(Value::Object(found)), Value::Object(value)) => {
            let inner = difference(found, value).or_else(|| {
                let more = found.keys().find(|name| !value.contains_key(*name))?;
                Some(format!("`{more}` is {}, not the default", found.get(more).map_or_else(String::new, short)))
            });
            format!("in `{name}`, {}", inner.unwrap_or_else(|| "other fields".into()))
        }
        (Some(Value::String(found)), Value::String(value)) => {
            let [found, value] = from_difference(found, value);
            format!("`{name}` is {found:?}, not {value:?}")
        }
        (found, value) => {
            let found = found.map_or_else(|| "missing".into(), short);
            format!("`{name}` is {found}, not {}", short(value))
        }
    })
}

/// Two texts, shortened to the place where they begin to differ if that is far behind.
fn from_difference(a: &str, b: &str) -> [String; 2] {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let skipped = if same > SHOWN_CHARS / 2 { same - SHOWN_CHARS / 4 } else { 0 };
    let dots = if skipped > 0 { "..." } else { "" };
    [a, b].map(|text| format!("{dots}{}", String::from_iter(text.chars().skip(skipped).take(SHOWN_CHARS))))
}

/// The beginning of a value.
fn short(value: &Value) -> String {
    value.to_string().chars().take(SHOWN_CHARS).collect()
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

/// Whether an incomplete line is the beginning of a result: only behind whole ones, which are checked before it is cut off,
/// and not if it is whole. File systems leave zeros behind what a crash cut off.
fn is_torn(line: &[u8], has_results: bool) -> bool {
    let end = line.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = line.get(..end).unwrap_or_default();
    let is_whole = || serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok();
    text.is_empty() || has_results && (b"{\"".starts_with(text) || text.starts_with(b"{\"") && !is_whole())
}

/// Length in bytes of all complete lines, and the incomplete one behind them.
fn complete_length(file: &mut BufReader<File>) -> std::io::Result<(u64, Option<Vec<u8>>)> {
    let mut length = 0;
    while let Some(line) = next_line(file)? {
        if !line.complete {
            return Ok((length, Some(line.content)));
        }
        length += line.length;
    }
    Ok((length, None))
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

    fn has(file: &mut ResultFile, name: &str) -> bool {
        file.earlier(&about(name)).unwrap().is_some()
    }

    #[test]
    fn errors_are_replaced_in_their_places() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let line = |name: &str, field: &str| json!({ "image": name, field: "x" }).to_string();
        let lines = [line("a", "error"), line("b", "text"), line("c", "error")];
        std::fs::write(&path, lines.join("\n") + "\n{\"ima").unwrap();
        let mut file = ResultFile::resume(&path).unwrap();
        let first = BTreeMap::from([(1, fields(json!({ "image": "a", "text": "y" })))]);
        assert!(file.replace(&first).unwrap_err().to_string().contains("more than 0 lines"));
        drop(file);
        let mut file = ResultFile::resume(&path).unwrap();
        assert!(["a", "b", "c"].iter().all(|name| has(&mut file, name)) && !has(&mut file, "d"));
        file.replace(&first).unwrap();
        assert_eq!((file.lines(), file.failed()), (3, 1));
        assert!(ResultFile::resume(&path).is_err(), "the new file is locked");
        let beyond = BTreeMap::from([(4, fields(json!({ "text": "y" })))]);
        assert!(file.replace(&beyond).unwrap_err().to_string().contains("line 4 is to be replaced, and there are 3"));
        file.write(&fields(json!({ "image": "d", "text": "z" }))).unwrap();
        file.check_end().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let first = r#"{"image":"a","text":"y"}"#;
        assert_eq!(Vec::from_iter(text.lines()), [first, &lines[1], &lines[2], r#"{"image":"d","text":"z"}"#]);
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_stays_private() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        std::fs::write(&path, "{\"image\": \"a\", \"error\": \"x\"}\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut file = ResultFile::resume(&path).unwrap();
        assert!(has(&mut file, "a"));
        file.replace(&BTreeMap::from([(1, fields(json!({ "image": "a", "text": "y" })))])).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_differs_is_said() {
        let [long, other] = ["x", "y"].map(|end| format!("{}{end}", "word ".repeat(40)));
        let found = fields(json!({ "image": long, "settings": { "model": "a", "seed": 3, "top_k": 5 }, "id": 7 }));
        for (about, expected) in [
            (json!({ "image": long, "settings": { "model": "a", "seed": 4 } }), "in `settings`, `seed` is 3, not 4"),
            (json!({ "settings": { "model": "a", "seed": 3 } }), "in `settings`, `top_k` is 5, not the default"),
            (json!({ "id": "7" }), "`id` is 7, not \"7\""),
            (json!({ "video": "7" }), "`video` is missing, not \"7\""),
        ] {
            assert_eq!(difference(&found, &fields(about)).as_deref(), Some(expected));
        }
        let text = difference(&found, &fields(json!({ "image": other }))).unwrap();
        assert_eq!(text, "`image` is \"...word word word x\", not \"...word word word y\"");
        assert_eq!(difference(&found, &fields(json!({ "id": 7 }))), None);
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
        assert!(has(&mut next, "a") && has(&mut next, "b") && !has(&mut next, "c"));
        next.write(&fields(json!({ "image": "c", "text": "z" }))).unwrap();
        assert_eq!((next.lines(), next.failed()), (3, 1));
        next.check_end().unwrap();
        drop(next);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("{\"image\":\"c\",\"text\":\"z\"}\n"), "{text}");
        assert!(ResultFile::create(&path).unwrap_err().to_string().contains("exists already"));
    }

    #[test]
    fn files_that_are_not_results_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.json");
        let result = r#"{"image": "a", "text": "x"}"#;
        for (content, is_torn) in [
            (r#"{"info": {}, "annotations": []}"#.to_owned(), false),
            (r#"{"info": {"score": NaN}, "annotations": []}"#.to_owned(), false),
            (r#"{"info": {"sco"#.to_owned(), false),
            (format!("{result}\n\u{89}PNG"), false),
            (format!("{result}\n[1, 2"), false),
            (format!("{result}\n{result}"), false),
            (format!("{result}\n\0\0"), true),
            (format!("{result}\n{{\"ima\0\0"), true),
            (format!("{result}\n{{"), true),
            ("{\n  \"info\": {".to_owned(), false),
        ] {
            std::fs::write(&path, &content).unwrap();
            let opened = ResultFile::resume(&path).and_then(|mut file| file.earlier(&about("a")));
            assert_eq!(opened.is_ok(), is_torn, "{content:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn earlier_results_come_in_the_order_of_the_file_and_an_empty_file_is_created_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        std::fs::write(&path, "").unwrap();
        ResultFile::create(&path).unwrap().write(&fields(json!({ "image": "b", "error": "y" }))).unwrap();
        let mut file = ResultFile::resume(&path).unwrap();
        assert_eq!(file.next_earlier().unwrap().unwrap()["image"], "b");
        assert_eq!((file.next_earlier().unwrap(), file.lines(), file.failed()), (None, 1, 1));
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
        assert!(has(&mut ResultFile::resume(&path).unwrap(), "a"));
    }

    #[test]
    fn results_of_other_inputs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let another = "line 1 is not the result of input 1: `image` is \"a\", not \"b\": name another file";
        let none = "line 1 is no result";
        for (line, name, expected) in [
            (r#"{"image": "a", "text": "x"}"#, "b", another),
            (r#"{"image": "a"}"#, "a", none),
            ("nonsense", "a", none),
        ] {
            std::fs::write(&path, format!("{line}\n")).unwrap();
            let message = ResultFile::resume(&path).unwrap().earlier(&about(name)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        std::fs::write(&path, "{\"image\": \"a\", \"text\": \"x\"}\n").unwrap();
        assert!(ResultFile::resume(&path).unwrap().check_end().unwrap_err().to_string().contains("more than 0 lines"));
        assert!(ResultFile::resume(folder.path()).is_err());
    }
}
