//! Completeness check of GIF files: every block, up to the trailer.

use super::Checked;

/// Rejects a GIF that ends before its trailer, has a block of an unknown kind, or has no image. Bytes after the trailer
/// are ignored.
pub(super) fn check(bytes: &[u8]) -> Checked<()> {
    let mut blocks = Blocks { bytes, at: 6 };
    blocks.screen()?;
    let mut images = 0;
    loop {
        match blocks.take(1)?[0] {
            0x3B if images == 0 => return Err("it has no image".into()),
            0x3B => return Ok(()),
            0x2C => {
                blocks.image()?;
                images += 1;
            }
            0x21 => {
                blocks.take(1)?;
                blocks.sub_blocks()?;
            }
            // Padding between blocks, which every reader skips.
            0x00 => {}
            other => return Err(format!("it has a block of the unknown kind {other:#04x} before byte {}", blocks.at)),
        }
    }
}

struct Blocks<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Blocks<'a> {
    fn take(&mut self, count: usize) -> Checked<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count);
        let taken = taken.ok_or_else(|| format!("it ends at byte {}, before its trailer", self.bytes.len()))?;
        self.at += count;
        Ok(taken)
    }

    /// Reads the screen size and the global palette.
    fn screen(&mut self) -> Checked<()> {
        let flags = self.take(7)?[4];
        self.palette(flags)
    }

    /// Skips a palette, three bytes per colour, if the flags announce one.
    fn palette(&mut self, flags: u8) -> Checked<()> {
        if flags & 0x80 != 0 {
            self.take(3 << ((flags & 7) + 1))?;
        }
        Ok(())
    }

    fn image(&mut self) -> Checked<()> {
        let flags = self.take(9)?[8];
        self.palette(flags)?;
        // The initial code width.
        self.take(1)?;
        self.sub_blocks()
    }

    /// Skips sub-blocks of up to 255 bytes, up to an empty one.
    fn sub_blocks(&mut self) -> Checked<()> {
        loop {
            match self.take(1)?[0] {
                0 => return Ok(()),
                length => self.take(usize::from(length))?,
            };
        }
    }
}
