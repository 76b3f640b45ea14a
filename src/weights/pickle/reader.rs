//! Bytes of a pickle program, read in order.

/// Result of parsing, with a message that the path is added to.
pub(super) type Parsed<T> = Result<T, String>;

/// Longest module or class name in bytes.
const MAX_LINE: usize = 256;

/// Reader of a program from a position.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pub(super) position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    pub(super) fn take(&mut self, count: usize) -> Parsed<&'a [u8]> {
        let end = self.position.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.position..end));
        let taken =
            taken.ok_or_else(|| "the pickle ends too early: the file is damaged, download it again".to_string())?;
        self.position += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Parsed<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Bytes behind a length of `N` bytes.
    pub(super) fn sized<const N: usize>(&mut self) -> Parsed<&'a [u8]> {
        let mut length = [0; 8];
        length.iter_mut().zip(self.array::<N>()?).for_each(|(to, from)| *to = from);
        self.take(usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX))
    }

    /// Text up to the end of the line, which is skipped.
    pub(super) fn line(&mut self) -> Parsed<&'a str> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let end = rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n');
        let line = self.take(end.ok_or("has a name without an end: the file is damaged, download it again")?)?;
        self.position += 1;
        text(line)
    }
}

/// Bytes as text.
pub(super) fn text(bytes: &[u8]) -> Parsed<&str> {
    std::str::from_utf8(bytes).map_err(|_| "has text that is not UTF-8: the file is damaged".to_string())
}
