//! First directory of a TIFF: its tags, and copies of the file with other tag values.

use std::borrow::Cow;

/// Tags that this crate reads; the numbers are those of the TIFF 6.0 specification.
pub(super) mod tag {
    pub const NEW_SUBFILE_TYPE: u16 = 254;
    pub const WIDTH: u16 = 256;
    pub const HEIGHT: u16 = 257;
    pub const BITS_PER_SAMPLE: u16 = 258;
    pub const COMPRESSION: u16 = 259;
    pub const PHOTOMETRIC: u16 = 262;
    pub const STRIP_OFFSETS: u16 = 273;
    pub const ORIENTATION: u16 = 274;
    pub const SAMPLES_PER_PIXEL: u16 = 277;
    pub const ROWS_PER_STRIP: u16 = 278;
    pub const STRIP_BYTES: u16 = 279;
    pub const PLANAR: u16 = 284;
    pub const COLOR_MAP: u16 = 320;
    pub const TILE_OFFSETS: u16 = 324;
    pub const TILE_BYTES: u16 = 325;
    pub const SUB_IFDS: u16 = 330;
    pub const EXTRA_SAMPLES: u16 = 338;
    pub const SAMPLE_FORMAT: u16 = 339;
    pub const JPEG_TABLES: u16 = 347;
    pub const YCBCR_COEFFICIENTS: u16 = 529;
    pub const YCBCR_SUBSAMPLING: u16 = 530;
    pub const REFERENCE_BLACK_WHITE: u16 = 532;
}

/// First directory of a classic TIFF or a BigTIFF.
#[derive(Debug, Clone)]
pub(super) struct Directory<'a> {
    pub bytes: Cow<'a, [u8]>,
    little: bool,
    big: bool,
    /// Offset of the first entry, and number of entries.
    at: usize,
    count: usize,
}

/// Location of a tag's values.
struct Entry {
    kind: u16,
    count: usize,
    /// Offset of the entry itself, and of its values.
    at: usize,
    values: usize,
}

impl<'a> Directory<'a> {
    /// The first directory; `None` if the header or the directory is damaged.
    pub fn first(bytes: &'a [u8]) -> Option<Self> {
        let little = bytes.starts_with(b"II");
        let mut directory = Self { bytes: Cow::Borrowed(bytes), little, big: false, at: 0, count: 0 };
        directory.big = directory.integer(2, 2)? == 43;
        let (offset, size, length) = if directory.big { (8, 8, 8) } else { (4, 4, 2) };
        let start = usize::try_from(directory.integer(offset, size)?).ok()?;
        directory.count = usize::try_from(directory.integer(start, length)?).ok()?;
        directory.at = start.checked_add(length)?;
        (directory.end()? <= bytes.len().checked_add(3)?).then_some(directory)
    }

    /// End offset of the directory: its entries, and the offset of the next directory.
    pub fn end(&self) -> Option<usize> {
        let entries = self.count.checked_mul(self.entry_bytes())?;
        self.at.checked_add(entries)?.checked_add(if self.big { 8 } else { 4 })
    }

    fn entry_bytes(&self) -> usize {
        if self.big { 20 } else { 12 }
    }

    /// Unsigned integer of `size` bytes at an offset.
    fn integer(&self, at: usize, size: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(size)?)?;
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
    }

    fn entry(&self, tag: u16) -> Option<Entry> {
        let size = self.entry_bytes();
        let at = (0..self.count).map(|n| self.at + n * size).find(|&at| self.integer(at, 2) == Some(tag.into()))?;
        let word = if self.big { 8 } else { 4 };
        let kind = u16::try_from(self.integer(at + 2, 2)?).ok()?;
        let count = usize::try_from(self.integer(at + 4, word)?).ok()?;
        let inline = at + 4 + word;
        let values = match count.checked_mul(value_bytes(kind)?)? <= word {
            true => inline,
            false => usize::try_from(self.integer(inline, word)?).ok()?,
        };
        Some(Entry { kind, count, at, values })
    }

    /// All integer values of a tag; empty if the tag is absent, damaged or of another kind.
    pub fn integers(&self, tag: u16) -> Vec<u64> {
        let values = self.entry(tag).and_then(|Entry { kind, count, values, .. }| {
            let size = value_bytes(kind).filter(|_| matches!(kind, 1 | 3 | 4 | 7 | 16))?;
            let end = values.checked_add(count.checked_mul(size)?).filter(|&end| end <= self.bytes.len())?;
            Some((values..end).step_by(size).filter_map(|at| self.integer(at, size)).collect())
        });
        values.unwrap_or_default()
    }

    /// First integer value of a tag.
    pub fn integer_of(&self, tag: u16) -> Option<u64> {
        self.integers(tag).first().copied()
    }

    /// `N` fractions of a tag.
    pub fn fractions<const N: usize>(&self, tag: u16) -> Option<[f64; N]> {
        let entry = self.entry(tag).filter(|entry| entry.kind == 5 && entry.count >= N)?;
        let mut fractions = [0.0; N];
        for (n, fraction) in fractions.iter_mut().enumerate() {
            let at = entry.values.checked_add(8 * n)?;
            let (above, below) = (self.integer(at, 4)?, self.integer(at.checked_add(4)?, 4)?);
            *fraction = above as f64 / below as f64;
        }
        fractions.iter().all(|fraction| fraction.is_finite()).then_some(fractions)
    }

    /// Bytes of a tag of kind `UNDEFINED`.
    pub fn undefined(&self, tag: u16) -> Option<&[u8]> {
        let Entry { kind, count, values, .. } = self.entry(tag)?;
        self.bytes.get(values..values.checked_add(count)?).filter(|_| kind == 7)
    }

    /// A copy of the file with one 32-bit value for each of these tags; `None` if a tag is absent.
    pub fn with_values(&self, changes: &[(u16, u32)]) -> Option<Vec<u8>> {
        let mut bytes = self.bytes.to_vec();
        for &(tag, value) in changes {
            let Entry { at, .. } = self.entry(tag)?;
            let word = if self.big { 8 } else { 4 };
            // Field type LONG, one value, which stands at the start of its field in either byte order.
            for (at, size, value) in [(at + 2, 2, 4), (at + 4, word, 1), (at + 4 + word, 4, u64::from(value))] {
                self.write(&mut bytes, at, size, value)?;
            }
        }
        Some(bytes)
    }

    /// A copy of the file with `extra` added to each value of a tag of unsigned integers, and as many zeros at its end;
    /// `None` if the tag is absent or damaged, or a sum does not fit its field.
    pub fn with_added(&self, tag: u16, extra: u8) -> Option<Vec<u8>> {
        let Entry { kind, values, .. } = self.entry(tag)?;
        let size = value_bytes(kind)?;
        let mut bytes = self.bytes.to_vec();
        for (n, value) in self.integers(tag).into_iter().enumerate() {
            let sum = value.checked_add(extra.into()).filter(|sum| size == 8 || sum >> (8 * size) == 0)?;
            self.write(&mut bytes, values + n * size, size, sum)?;
        }
        bytes.resize(bytes.len() + usize::from(extra), 0);
        Some(bytes)
    }

    /// Writes an unsigned integer of `size` bytes at an offset of a copy of the file.
    fn write(&self, bytes: &mut [u8], at: usize, size: usize, value: u64) -> Option<()> {
        let mut written = value.to_le_bytes()[..size].to_vec();
        if !self.little {
            written.reverse();
        }
        bytes.get_mut(at..at.checked_add(size)?)?.copy_from_slice(&written);
        Some(())
    }
}

/// Size of a value of a TIFF field type.
fn value_bytes(kind: u16) -> Option<usize> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16..=18 => 8,
        _ => return None,
    })
}
