//! TIFF files whose last bytes, which say that no further image follows, are missing.

use std::borrow::Cow;

/// The file as the decoder takes it: filled up with zeros where only the offset of the next image is cut.
pub(super) fn complete(bytes: &[u8]) -> Cow<'_, [u8]> {
    match directory_end(bytes).and_then(|end| end.checked_sub(bytes.len())) {
        Some(missing @ 1..4) => Cow::Owned([bytes, &[0; 4][..missing]].concat()),
        _ => Cow::Borrowed(bytes),
    }
}

/// Where the first directory of a classic TIFF ends.
fn directory_end(bytes: &[u8]) -> Option<usize> {
    let little = bytes.starts_with(b"II");
    let at = bytes.get(4..8)?.first_chunk::<4>().copied()?;
    let at = if little { u32::from_le_bytes(at) } else { u32::from_be_bytes(at) } as usize;
    let entries = bytes.get(at..)?.first_chunk::<2>().copied()?;
    let entries = usize::from(if little { u16::from_le_bytes(entries) } else { u16::from_be_bytes(entries) });
    at.checked_add(2 + 12 * entries + 4)
}
