//! Lines of bounded length.

use std::io::{self, BufRead, Read};

/// Longest line in bytes: an image in a data URL has megabytes.
pub(super) const MAX_LINE_BYTES: u64 = 16 << 20;

/// A line of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Content without the line break.
    pub content: Vec<u8>,
    /// Length in bytes, line break included.
    pub length: u64,
    /// Whether the line ends in a line break; only the last line of a file may not.
    pub complete: bool,
}

/// Reads the next line; `None` at the end.
///
/// # Errors
/// If the input cannot be read, or the line is longer than [`MAX_LINE_BYTES`].
pub(super) fn next_line(input: &mut impl BufRead) -> io::Result<Option<Line>> {
    let mut content = Vec::new();
    let length = input.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut content)? as u64;
    if length > MAX_LINE_BYTES {
        return Err(io::Error::other(format!(
            "a line is longer than {MAX_LINE_BYTES} bytes: is a line break missing?"
        )));
    }
    let complete = content.last() == Some(&b'\n');
    while content.pop_if(|byte| matches!(byte, b'\n' | b'\r')).is_some() {}
    Ok((length > 0).then_some(Line { content, length, complete }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_say_whether_they_are_complete() {
        let mut input = &b"one\r\n\ntwo"[..];
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input).unwrap() {
            lines.push((String::from_utf8(line.content).unwrap(), line.length, line.complete));
        }
        assert_eq!(lines, [("one".into(), 5, true), (String::new(), 1, true), ("two".into(), 3, false)]);
        let mut endless = io::BufReader::new(io::repeat(b'a'));
        assert!(next_line(&mut endless).unwrap_err().to_string().contains("longer than"));
    }
}
