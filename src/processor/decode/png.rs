//! PNG files: whether the compressed data can hold the image, and a missing end chunk.

use std::borrow::Cow;

use super::Checked;

const SIGNATURE: usize = 8;
/// A complete end chunk: length, name, checksum.
const END_CHUNK: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";
/// Maximum expansion factor of deflate.
const DEFLATE_RATIO: u64 = 1032;
/// Bytes of pixels allowed in addition, so that small files are left to the decoder.
const SLACK: u64 = 1 << 16;

/// Summary of a file's chunks.
#[derive(Default)]
struct Chunks {
    width: u64,
    height: u64,
    bits_per_pixel: u64,
    /// Total bytes of image data.
    data: u64,
    /// End offset of the last complete chunk.
    end: usize,
    /// Whether the end chunk exists.
    ended: bool,
}

/// Appends the end chunk if all other chunks are complete.
pub(super) fn complete(bytes: &[u8]) -> Cow<'_, [u8]> {
    let chunks = Chunks::walk(bytes);
    let left = bytes.len() - chunks.end;
    match chunks.ended || left >= END_CHUNK.len() {
        true => Cow::Borrowed(bytes),
        false => Cow::Owned([&bytes[..chunks.end], &END_CHUNK].concat()),
    }
}

/// Rejects a file whose compressed data cannot hold the image, before memory is allocated.
pub(super) fn check(bytes: &[u8]) -> Checked<()> {
    let chunks = Chunks::walk(bytes);
    let row = chunks.width.saturating_mul(chunks.bits_per_pixel).div_ceil(8).saturating_add(1);
    let needed = row.saturating_mul(chunks.height);
    if needed > chunks.data.saturating_mul(DEFLATE_RATIO).saturating_add(SLACK) {
        return Err(format!("its {} bytes of image data cannot hold {needed} bytes of pixels", chunks.data));
    }
    Ok(())
}

impl Chunks {
    /// Reads complete chunks up to the end chunk or the end of the file.
    fn walk(bytes: &[u8]) -> Self {
        let mut chunks = Self { end: SIGNATURE.min(bytes.len()), ..Self::default() };
        while !chunks.ended
            && let Some((length, after)) = bytes[chunks.end..].split_first_chunk::<4>()
        {
            let length = u32::from_be_bytes(*length) as usize;
            let (Some(kind), Some(end)) = (after.first_chunk::<4>(), length.checked_add(8)) else { break };
            let Some(content) = after.get(4..end - 4).filter(|_| after.len() >= end) else { break };
            chunks.note(kind, content);
            chunks.end += 4 + end;
        }
        chunks
    }

    fn note(&mut self, kind: &[u8; 4], content: &[u8]) {
        match (kind, content) {
            (b"IHDR", [w0, w1, w2, w3, h0, h1, h2, h3, depth, colour, ..]) => {
                self.width = u32::from_be_bytes([*w0, *w1, *w2, *w3]).into();
                self.height = u32::from_be_bytes([*h0, *h1, *h2, *h3]).into();
                let channels = [1, 0, 3, 1, 2, 0, 4].get(usize::from(*colour)).copied().unwrap_or(0);
                self.bits_per_pixel = u64::from(*depth) * channels;
            }
            (b"IDAT", _) => self.data += content.len() as u64,
            (b"IEND", _) => self.ended = true,
            _ => {}
        }
    }
}
