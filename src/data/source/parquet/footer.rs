//! Check of a Parquet footer before the library parses it: the library allocates what lists say they have, and recurses
//! as deep as the schema says.

use std::fs::File;
use std::path::Path;

use super::{damaged, read_range};
use crate::{Error, Result};

/// Longest footer in bytes; one of 100,000 row groups has some 20 MB.
const MAX_FOOTER_BYTES: u64 = 64 << 20;
/// Most levels of columns within columns.
const MAX_DEPTH: usize = 32;
/// Length of the footer's length and the magic bytes behind it.
const TAIL: u64 = 8;

/// Rejects a file whose footer is not there, too long, not well-formed, or of a schema that is nested too deeply.
pub(super) fn check(path: &Path, file: &File) -> Result<()> {
    let io = |e| Error::io(path, e);
    let length = file.metadata().map_err(io)?.len();
    let tail = read_range(file, length.saturating_sub(TAIL)..length).map_err(io)?;
    let Some((bytes, b"PAR1")) = tail.split_first_chunk::<4>() else {
        return Err(damaged(path, "it does not end with the bytes PAR1"));
    };
    let footer = u64::from(u32::from_le_bytes(*bytes));
    let Some(start) = length.checked_sub(TAIL + footer).filter(|_| footer <= MAX_FOOTER_BYTES) else {
        return Err(damaged(path, &format!("its footer is said to have {footer} bytes")));
    };
    let bytes = read_range(file, start..length - TAIL).map_err(io)?;
    let children = Footer { rest: &bytes, children: Vec::new() }.children();
    match children.filter(|children| is_shallow(children)) {
        Some(_) => Ok(()),
        None => Err(damaged(path, "its footer is not well-formed")),
    }
}

/// Whether a schema, given as the number of children of each element in depth-first order, is one tree of few levels.
fn is_shallow(children: &[usize]) -> bool {
    // Numbers of elements that are still to come on each level.
    let mut open = vec![1usize];
    for &count in children {
        while open.last() == Some(&0) {
            open.pop();
        }
        let Some(left) = open.last_mut() else { return false };
        *left -= 1;
        open.push(count);
        if open.len() > MAX_DEPTH || count > children.len() {
            return false;
        }
    }
    open.iter().all(|&left| left == 0)
}

// Types of Thrift's compact protocol.
const STOP: u8 = 0;
const BYTE: u8 = 3;
const INT32: u8 = 5;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;
/// Most levels of structs and lists in a footer that is no attack.
const MAX_LEVELS: usize = 16;

/// A footer in Thrift's compact protocol. `None` means that it is not well-formed.
struct Footer<'a> {
    rest: &'a [u8],
    /// Number of children of each element of the schema.
    children: Vec<usize>,
}

impl Footer<'_> {
    /// Reads the whole footer.
    fn children(mut self) -> Option<Vec<usize>> {
        let mut field = 0;
        loop {
            let kind = self.field(&mut field)?;
            match (field, kind) {
                (_, STOP) => return Some(self.children),
                (2, LIST) => {
                    let (count, _) = self.list()?;
                    (0..count).try_for_each(|_| self.schema_element())?;
                }
                _ => self.skip(kind, 0)?,
            }
        }
    }

    fn schema_element(&mut self) -> Option<()> {
        let (mut field, mut children) = (0, 0);
        loop {
            let kind = self.field(&mut field)?;
            match (field, kind) {
                (_, STOP) => break,
                (5, INT32) => {
                    let zigzag = self.varint()?;
                    children = if zigzag & 1 == 0 { usize::try_from(zigzag >> 1).ok()? } else { return None };
                }
                _ => self.skip(kind, 0)?,
            }
        }
        self.children.push(children);
        Some(())
    }

    /// Type of the next field of a struct, whose number is put in `field`, or [`STOP`].
    fn field(&mut self, field: &mut i64) -> Option<u8> {
        let byte = self.byte()?;
        if byte == STOP {
            return Some(STOP);
        }
        *field = match byte >> 4 {
            0 => {
                let zigzag = self.varint()?;
                (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)
            }
            step => field.checked_add(i64::from(step))?,
        };
        Some(byte & 15)
    }

    /// Number and type of a list's elements; each takes at least a byte.
    fn list(&mut self) -> Option<(usize, u8)> {
        let byte = self.byte()?;
        let count = match byte >> 4 {
            15 => usize::try_from(self.varint()?).ok()?,
            count => usize::from(count),
        };
        (count <= self.rest.len()).then_some((count, byte & 15))
    }

    fn skip(&mut self, kind: u8, level: usize) -> Option<()> {
        if level > MAX_LEVELS {
            return None;
        }
        match kind {
            // Truth values are part of the field's type.
            1 | 2 => Some(()),
            BYTE => self.byte().map(drop),
            4..=6 => self.varint().map(drop),
            DOUBLE => self.take(8),
            BINARY => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.take(length)
            }
            LIST | SET => {
                let (count, kind) = self.list()?;
                // Truth values in lists take a byte.
                let kind = if kind <= 2 { BYTE } else { kind };
                (0..count).try_for_each(|_| self.skip(kind, level + 1))
            }
            MAP => self.skip_map(level),
            STRUCT => {
                let mut field = 0;
                loop {
                    match self.field(&mut field)? {
                        STOP => return Some(()),
                        kind => self.skip(kind, level + 1)?,
                    }
                }
            }
            _ => None,
        }
    }

    fn skip_map(&mut self, level: usize) -> Option<()> {
        let count = usize::try_from(self.varint()?).ok().filter(|&count| count <= self.rest.len())?;
        if count == 0 {
            return Some(());
        }
        let kinds = self.byte()?;
        for _ in 0..count {
            self.skip(kinds >> 4, level + 1)?;
            self.skip(kinds & 15, level + 1)?;
        }
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn take(&mut self, count: usize) -> Option<()> {
        self.rest = self.rest.get(count..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_and_incomplete_schemas_are_refused() {
        assert!(is_shallow(&[2, 0, 1, 0]));
        assert!(!is_shallow(&[2, 0]));
        assert!(!is_shallow(&[1, 0, 0]));
        assert!(!is_shallow(&[usize::MAX]));
        assert!(!is_shallow(&[1; 100_000]));
    }
}
