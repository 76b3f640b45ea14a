//! Images and videos whose content is part of a record: data URLs and base64.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::super::{BadSample, EmbeddedFile, SampleResult};

/// Base64 of the first bytes of JPEG, PNG, GIF, WebP and TIFF files.
const MAGICS: [&str; 6] = ["/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK"];
/// Shortest text that can be the base64 of an image; shorter ones may be file names.
const MIN_BASE64: usize = 64;
/// Shortest text that is taken for base64 whatever it starts with, if it is an image.
const LONG_BASE64: usize = 256;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Content of a data URL, or of base64 that starts like an image file; `None` for any other text.
pub(in crate::data) fn from_text(text: &str, field: &str) -> SampleResult<Option<EmbeddedFile>> {
    if let Some(url) = strip_prefix_ignore_case(text, "data:") {
        return data_url(url, field).map(Some);
    }
    if has_magic(text) {
        return from_base64(text, field).map(Some);
    }
    let file = (text.len() >= LONG_BASE64).then(|| from_base64(text, field).ok()).flatten();
    Ok(file.filter(|file| image::guess_format(&file.bytes).is_ok()))
}

/// Whether a text is a data URL of an image or video, or base64 that starts like an image file.
pub(crate) fn is_embedded(text: &str) -> bool {
    let is_url = ["data:image/", "data:video/"].iter().any(|start| strip_prefix_ignore_case(text, start).is_some());
    is_url || has_magic(text)
}

fn has_magic(text: &str) -> bool {
    text.len() >= MIN_BASE64 && MAGICS.iter().any(|magic| text.starts_with(magic))
}

/// Content of base64.
pub(super) fn from_base64(text: &str, field: &str) -> SampleResult<EmbeddedFile> {
    let standard = |byte: u8| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    };
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(standard).collect();
    let bytes = BASE64.decode(digits);
    let bytes = bytes.map_err(|e| BadSample::BrokenRecord(format!("field `{field}` is not valid base64 ({e})")))?;
    Ok(file(field, bytes))
}

/// A file of this content, named after its field.
pub(super) fn file(field: &str, bytes: Vec<u8>) -> EmbeddedFile {
    EmbeddedFile { name: format!("in field `{field}`"), bytes: bytes.into() }
}

/// Whether a file's content is a video container that cannot be decoded: MP4, WebM or Matroska, or AVI.
pub(super) fn is_video_container(bytes: &[u8]) -> bool {
    let at = |start: usize, magic: &[u8]| bytes.get(start..).is_some_and(|rest| rest.starts_with(magic));
    let still = [b"ftypavif".as_slice(), b"ftypheic", b"ftypmif1", b"ftypheix"].iter().any(|magic| at(4, magic));
    (at(4, b"ftyp") && !still) || at(0, b"\x1a\x45\xdf\xa3") || (at(0, b"RIFF") && at(8, b"AVI "))
}

/// Whether a content is that of an image file, by first bytes that no text begins with.
pub(in crate::data) fn is_image_content(bytes: &[u8]) -> bool {
    use image::ImageFormat::{Avif, Gif, Jpeg, Png, Tiff, WebP};
    matches!(image::guess_format(bytes), Ok(Avif | Gif | Jpeg | Png | Tiff | WebP))
}

fn data_url(url: &str, field: &str) -> SampleResult<EmbeddedFile> {
    let broken = |what: &str| BadSample::BrokenRecord(format!("field `{field}` is a data URL {what}"));
    let (head, payload) = url.split_once(',').ok_or_else(|| broken("without a comma before its data"))?;
    if !head.to_ascii_lowercase().ends_with(";base64") {
        return Err(broken("that is not in base64: expected `data:image/png;base64,..`"));
    }
    from_base64(payload, field)
}

fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let start = text.get(..prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}
