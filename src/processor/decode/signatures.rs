//! Names of files that are no readable images, by their first bytes.

use image::ImageFormat;

/// First bytes of files that people take for images, at an offset, and what they are.
const SIGNATURES: [(usize, &[u8], &str); 30] = [
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"gimp xcf", "a GIMP document"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw image"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"version https://git-lfs", "a pointer of Git LFS instead of the image"),
    (0, b"II\xbc\x01", "a JPEG XR image"),
    (128, b"DICM", "a DICOM image"),
    (0, b"icns", "an icon of macOS"),
    (0, b"IIU\0", "a camera's raw image"),
    (0, b"IIRO", "a camera's raw image"),
    (0, b"\0\0\x01\xba", "an MPEG video"),
    (0, b"FLV\x01", "a Flash video"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (8, b"AVI ", "an AVI video"),
];

/// Brands of ISO media files (`ftyp` boxes), and what they are.
const BRANDS: [(&[u8], &str); 6] = [
    (b"avif", "an AVIF image"),
    (b"avis", "an AVIF image"),
    (b"mif1", "a HEIC image"),
    (b"msf1", "a HEIC image"),
    (b"he", "a HEIC image"),
    (b"crx", "a camera's raw image"),
];

/// Problem with a file that is no readable image, and the remedy. `format` is what the `image` crate takes it for.
pub(super) fn problem(bytes: &[u8], format: Option<ImageFormat>) -> String {
    let known = kind(bytes).map(String::from).or_else(|| format.map(|format| format!("{format:?}")));
    match known {
        Some(kind) if kind.contains("Git LFS") => format!("is {kind}: fetch it with `git lfs pull`"),
        Some(kind) if kind.contains("instead") => format!("is {kind} (a failed download?): download it again"),
        Some(kind) if kind.contains("archive") => format!("is {kind}, not an image: unpack it"),
        Some(kind) if kind.contains("video") => format!("is {kind}, not an image: extract frames as PNG or JPEG"),
        Some(kind) => format!("is {kind}, which is not supported: convert it to PNG or JPEG"),
        None => "is not a PNG, JPEG, WebP, GIF, BMP or TIFF image: convert it to one of these".into(),
    }
}

fn kind(bytes: &[u8]) -> Option<&'static str> {
    let starts = |at: usize, signature: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(signature));
    if starts(4, b"ftyp") {
        // The brand proper may be the general one, with the kind among the compatible brands.
        let compatible = bytes.get(16..bytes.len().min(64)).unwrap_or_default();
        if compatible.chunks(4).any(|brand| brand == b"avif") {
            return Some("an AVIF image");
        }
        let brand = BRANDS.iter().find(|(brand, _)| starts(8, brand));
        return Some(brand.map_or("a video (MP4 or QuickTime)", |(_, kind)| kind));
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let markup = |name: &[u8]| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    if markup(b"<svg") || markup(b"<?xml") || markup(b"<!--") {
        return Some("an SVG drawing or another XML file");
    }
    if markup(b"<!doctype") || markup(b"<html") {
        return Some("a web page instead of an image");
    }
    if markup(b"{") || markup(b"[") {
        return Some("JSON text instead of an image");
    }
    SIGNATURES.iter().find(|(at, signature, _)| starts(*at, signature)).map(|(_, _, kind)| *kind)
}
