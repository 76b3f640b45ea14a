//! TIFF files: completeness, and the kinds of pixels that the `image` crate does not convert.

mod directory;
mod special;

use std::borrow::Cow;

use directory::{Directory, tag};
pub(super) use special::SpecialTiff;

use super::convert::Alpha;
use super::{Checked, jpeg};

/// Bytes that the LZW decoder reads ahead.
const LZW_AHEAD: u8 = 8;

/// Pads a file with zeros if only the offset of the next image is truncated, and lengthens tiles for the LZW decoder.
pub(super) fn complete(bytes: &[u8]) -> Cow<'_, [u8]> {
    let directory = Directory::first(bytes);
    let end = directory.as_ref().and_then(Directory::end);
    match end.and_then(|end| end.checked_sub(bytes.len())) {
        Some(missing @ 1..4) => Cow::Owned([bytes, &[0; 4][..missing]].concat()),
        _ => directory.and_then(|directory| with_longer_lzw_tiles(&directory)).map_or(Cow::Borrowed(bytes), Cow::Owned),
    }
}

/// The file with longer tiles, if they are LZW data. The decoder fails where it has read all of a tile's bytes but not
/// returned all of its pixels, as happens when a tile is read by rows; bytes behind the end code are ignored.
fn with_longer_lzw_tiles(directory: &Directory<'_>) -> Option<Vec<u8>> {
    let is_lzw = directory.integer_of(tag::COMPRESSION) == Some(5);
    // A truncated file must stay one.
    let is_whole = || check(&directory.bytes).is_ok();
    (is_lzw && is_whole()).then(|| directory.with_added(tag::TILE_BYTES, LZW_AHEAD)).flatten()
}

/// Kind of a TIFF whose first image is not the one that is meant: a camera's raw file starts with a preview.
pub(super) fn unsupported(bytes: &[u8]) -> Option<&'static str> {
    let is_canon = bytes.get(8..12) == Some(b"CR\x02\0");
    let directory = Directory::first(bytes)?;
    let is_reduced = directory.integer_of(tag::NEW_SUBFILE_TYPE).is_some_and(|kind| kind & 1 != 0);
    (is_canon || is_reduced && directory.integer_of(tag::SUB_IFDS).is_some()).then_some("a camera's raw image")
}

/// How the alpha channel, if there is one, relates to the colours.
pub(super) fn alpha(bytes: &[u8]) -> Alpha {
    const ASSOCIATED: u64 = 1;
    let kind = Directory::first(bytes).and_then(|directory| directory.integer_of(tag::EXTRA_SAMPLES));
    if kind == Some(ASSOCIATED) { Alpha::Premultiplied } else { Alpha::Straight }
}

/// Rejects a TIFF whose strips or tiles are not entirely in the file, and one with a truncated JPEG in a strip: its
/// decoder would fill in the rest.
pub(super) fn check(bytes: &[u8]) -> Checked<()> {
    // The decoder reports a damaged directory.
    let Some(directory) = Directory::first(bytes) else { return Ok(()) };
    let is_jpeg = directory.integer_of(tag::COMPRESSION) == Some(7);
    let tables = directory.undefined(tag::JPEG_TABLES);
    let mut total = 0;
    for range in chunks(&directory) {
        let chunk = range.and_then(|(start, length)| bytes.get(start..start.checked_add(length)?));
        let chunk = chunk.ok_or_else(|| format!("a strip or tile ends after the file of {} bytes", bytes.len()))?;
        total += chunk.len();
        if total > bytes.len().saturating_mul(2) {
            return Err("its strips or tiles overlap".into());
        }
        if is_jpeg {
            check_jpeg(chunk, tables)?;
        }
    }
    Ok(())
}

/// Offset and length of every strip or tile; `None` for one that no file can hold.
fn chunks(directory: &Directory<'_>) -> impl Iterator<Item = Option<(usize, usize)>> {
    let values = |strips, tiles| match directory.integers(strips) {
        found if found.is_empty() => directory.integers(tiles),
        found => found,
    };
    let offsets = values(tag::STRIP_OFFSETS, tag::TILE_OFFSETS);
    let lengths = values(tag::STRIP_BYTES, tag::TILE_BYTES);
    offsets
        .into_iter()
        .zip(lengths)
        .map(|(offset, length)| Some((usize::try_from(offset).ok()?, usize::try_from(length).ok()?)))
}

/// Checks a strip that is a JPEG, whose tables may be common to all strips.
fn check_jpeg(strip: &[u8], tables: Option<&[u8]>) -> Checked<()> {
    const MARKER: usize = 2;
    match tables.and_then(|tables| tables.len().checked_sub(MARKER).map(|end| &tables[..end])) {
        Some(tables) => jpeg::check(&[tables, strip.get(MARKER..).unwrap_or_default()].concat()),
        None => jpeg::check(strip),
    }
}
