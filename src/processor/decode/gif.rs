//! Whether a GIF file is whole: every block, up to the trailer.

use super::Checked;

/// Refuses a GIF that ends before its trailer, holds a block of an unknown kind, or no image. What follows the trailer is
/// ignored.
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
            // Padding between blocks, which every reader passes over.
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

    /// The size of the screen, and the palette of all images.
    fn screen(&mut self) -> Checked<()> {
        let flags = self.take(7)?[4];
        self.palette(flags)
    }

    /// Three bytes for each colour, if the flags say that there is a palette.
    fn palette(&mut self, flags: u8) -> Checked<()> {
        if flags & 0x80 != 0 {
            self.take(3 << ((flags & 7) + 1))?;
        }
        Ok(())
    }

    fn image(&mut self) -> Checked<()> {
        let flags = self.take(9)?[8];
        self.palette(flags)?;
        // The width of the first codes.
        self.take(1)?;
        self.sub_blocks()
    }

    /// Blocks of up to 255 bytes, up to an empty one.
    fn sub_blocks(&mut self) -> Checked<()> {
        loop {
            match self.take(1)?[0] {
                0 => return Ok(()),
                length => self.take(usize::from(length))?,
            };
        }
    }
}
