//! TIFF files that lack the last bytes, the offset of the next image.

use std::borrow::Cow;

/// Pads a file with zeros if only the offset of the next image is truncated.
pub(super) fn complete(bytes: &[u8]) -> Cow<'_, [u8]> {
    match directory_end(bytes).and_then(|end| end.checked_sub(bytes.len())) {
        Some(missing @ 1..4) => Cow::Owned([bytes, &[0; 4][..missing]].concat()),
        _ => Cow::Borrowed(bytes),
    }
}

/// End offset of the first directory of a classic TIFF.
fn directory_end(bytes: &[u8]) -> Option<usize> {
    let little = bytes.starts_with(b"II");
    let at = bytes.get(4..8)?.first_chunk::<4>().copied()?;
    let at = if little { u32::from_le_bytes(at) } else { u32::from_be_bytes(at) } as usize;
    let entries = bytes.get(at..)?.first_chunk::<2>().copied()?;
    let entries = usize::from(if little { u16::from_le_bytes(entries) } else { u16::from_be_bytes(entries) });
    at.checked_add(2 + 12 * entries + 4)
}
