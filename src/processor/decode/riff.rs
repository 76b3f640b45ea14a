//! Completeness check of WebP files: the RIFF size, and every chunk.

use super::Checked;

/// Length of an animation frame's header, before its chunks.
const FRAME_HEADER: usize = 16;

/// Rejects a WebP whose size, or a chunk's size, exceeds the file, and one without image data. Bytes after the RIFF
/// data are ignored.
pub(super) fn check(bytes: &[u8]) -> Checked<()> {
    let size = bytes.get(4..8).and_then(|size| size.first_chunk::<4>()).ok_or("it ends within its header")?;
    let end = (u32::from_le_bytes(*size) as usize).saturating_add(8);
    let Some(chunks) = bytes.get(12..end) else {
        return Err(format!("it is {} bytes long, but its header says {end}", bytes.len()));
    };
    match walk(chunks)? {
        0 => Err("it has no image data".into()),
        _ => Ok(()),
    }
}

/// Skips over chunks and returns how many of them hold an image.
fn walk(mut rest: &[u8]) -> Checked<usize> {
    let mut images = 0;
    while let Some((kind, after)) = rest.split_first_chunk::<4>() {
        let (size, data) = after.split_first_chunk::<4>().ok_or("it ends within a chunk's header")?;
        let size = u32::from_le_bytes(*size) as usize;
        let name = || kind.escape_ascii();
        let content = data
            .get(..size)
            .ok_or_else(|| format!("its chunk {} is {size} bytes long, {} are left", name(), data.len()))?;
        match kind {
            b"VP8 " | b"VP8L" => images += 1,
            b"ANMF" => {
                let inner = content.get(FRAME_HEADER..).ok_or("an animation frame ends within its header")?;
                if walk(inner)? == 0 {
                    return Err("an animation frame has no image data".into());
                }
                images += 1;
            }
            _ => {}
        }
        // Chunks begin at even offsets; the last one may lack its padding byte.
        rest = data.get(size.saturating_add(size % 2)..).unwrap_or_default();
    }
    Ok(images)
}
