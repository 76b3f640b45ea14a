//! Bit reader of a scan's entropy-coded data, up to the next marker.

use super::super::Checked;

/// Bit reader, most significant bit first, that stops at a marker.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Offset of the first byte that is not in the buffer.
    at: usize,
    /// Buffered bits, in the lowest positions.
    buffer: u64,
    /// Number of buffered bits.
    count: u32,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, buffer: 0, count: 0 }
    }

    /// Offset of the first byte after the buffered data; a marker is never buffered.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Fills the buffer with data bytes; `FF` is data only in the pair `FF 00`.
    fn fill(&mut self) {
        while self.count <= 48 {
            let step = match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(0xFF), Some(0x00)) => 2,
                (Some(0xFF), _) | (None, _) => return,
                _ => 1,
            };
            self.buffer = self.buffer << 8 | u64::from(self.bytes[self.at]);
            (self.at, self.count) = (self.at + step, self.count + 8);
        }
    }

    /// The next 16 bits, padded with zeros at the end of the data.
    pub(super) fn peek(&mut self) -> u16 {
        if self.count < 16 {
            self.fill();
        }
        match self.count.checked_sub(16) {
            Some(behind) => (self.buffer >> behind) as u16,
            None => (self.buffer << (16 - self.count)) as u16,
        }
    }

    /// Reads up to 16 bits.
    pub(super) fn take(&mut self, bits: u32) -> Checked<u32> {
        let value = u32::from(self.peek()) >> (16 - bits);
        self.skip(bits)?;
        Ok(value)
    }

    /// Skips up to 48 bits.
    pub(super) fn skip(&mut self, bits: u32) -> Checked<()> {
        if self.count < bits {
            self.fill();
        }
        match self.count.checked_sub(bits) {
            Some(left) => self.count = left,
            None => return Err(format!("the image data ends at byte {}, before the image does", self.at)),
        }
        Ok(())
    }

    /// Continues after the next restart marker, whatever precedes it.
    pub(super) fn restart(&mut self) -> Checked<()> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let marker = rest.windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0xFF));
        match marker {
            Some(n) if matches!(rest[n + 1], 0xD0..=0xD7) => *self = Self::new(self.bytes, self.at + n + 2),
            _ => return Err(format!("the image data ends after byte {}, before the image does", self.at)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuffed_bytes_are_data_and_markers_end_it() {
        let mut reader = BitReader::new(&[0xA5, 0xFF, 0x00, 0x3C, 0xFF, 0xD0, 0x80, 0xFF, 0xD9], 0);
        assert_eq!(reader.take(4).unwrap(), 0xA);
        assert_eq!(reader.peek(), 0x5FF3);
        assert_eq!(reader.take(12).unwrap(), 0x5FF);
        assert!(reader.take(9).unwrap_err().contains("ends at byte 4"));
        assert_eq!(reader.take(8).unwrap(), 0x3C);
        reader.restart().unwrap();
        assert_eq!(reader.take(1).unwrap(), 1);
        assert!(reader.restart().is_err());
        assert_eq!(reader.position(), 7);
    }
}
