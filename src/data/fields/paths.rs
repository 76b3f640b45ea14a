//! Names of image and video files: which exist, which can be decoded, and which are inside the image folder.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::super::{BadSample, SampleResult};

/// Extensions of image files that can be decoded, in lower case.
const IMAGES: [&str; 11] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif", "jpe", "apng"];
/// Extensions of image files that cannot be decoded.
const UNREADABLE: [&str; 25] = [
    "heic", "heif", "avif", "jxl", "jp2", "j2k", "svg", "psd", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "ico",
    "tga", "ppm", "pgm", "pbm", "exr", "hdr", "qoi", "eps", "pdf",
];
/// Extensions of video files that cannot be decoded.
const VIDEOS: [&str; 15] =
    ["mp4", "mov", "avi", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv", "flv", "3gp", "ogv", "mts", "m2ts", "vob"];
/// Extensions of sound files.
const SOUNDS: [&str; 7] = ["wav", "mp3", "flac", "ogg", "m4a", "opus", "aac"];
/// Longest file name that is looked for.
const MAX_NAME_BYTES: usize = 4096;

/// Extension of a file name, in lower case; without the query of an address.
pub(in crate::data) fn extension(name: &str) -> String {
    let name = if is_address(name) { name.split(['?', '#']).next().unwrap_or(name) } else { name };
    Path::new(name.trim()).extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Whether a file name has the extension of an image that can be decoded.
pub(crate) fn has_image_name(name: &str) -> bool {
    IMAGES.contains(&extension(name).as_str())
}

/// Whether a file name has the extension of an image that cannot be decoded.
pub(in crate::data) fn is_unreadable_image(name: &str) -> bool {
    UNREADABLE.contains(&extension(name).as_str())
}

/// Whether a file name has the extension of a sound file.
pub(super) fn is_sound(name: &str) -> bool {
    SOUNDS.contains(&extension(name).as_str())
}

/// Problem of a name with the extension of a video that cannot be decoded.
pub(in crate::data) fn video_problem(name: &str) -> Option<String> {
    let extension = extension(name);
    VIDEOS.contains(&extension.as_str()).then(|| {
        format!(
            "is an .{extension} video, which cannot be decoded: extract its frames into a folder or convert it to GIF, and \
             name that"
        )
    })
}

/// Whether a text looks like the name of an image, video or sound file.
pub(super) fn names_media(text: &str) -> bool {
    let text = text.trim();
    text.len() <= MAX_NAME_BYTES && !text.contains('\n') && (has_image_name(text) || check_decodable(text).is_err())
}

/// Whether a name is an address, such as `https://..` or `s3://..`.
pub(crate) fn is_address(name: &str) -> bool {
    let scheme = name.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| scheme != "file" && scheme.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// Names of formats, to be said in messages: `avif` is AVIF.
pub(super) fn check_decodable(name: &str) -> Result<(), String> {
    if let Some(problem) = video_problem(name) {
        return Err(problem);
    }
    if is_sound(name) {
        return Err("is sound, which is not read: remove the record, or this field".into());
    }
    match is_unreadable_image(name) {
        true => {
            Err(format!("is {}, which cannot be decoded: convert it to PNG or JPEG", extension(name).to_uppercase()))
        }
        false => Ok(()),
    }
}

/// A name as it was before it was written into an address: `my%20cat.png` is `my cat.png`.
pub(super) fn percent_decoded(name: &str) -> String {
    let mut parts = name.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => bytes.extend(std::iter::once(byte).chain(part.bytes().skip(2))),
            None => bytes.extend(b"%".iter().copied().chain(part.bytes())),
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| name.to_string())
}

/// Path of an image or video, which must be inside `folder`: a downloaded record must not read other files. `..` is
/// resolved in the name itself; symbolic links in the folder were made by the user and are followed.
pub(crate) fn within(folder: &Path, name: &str) -> SampleResult<PathBuf> {
    let name = Path::new(name.strip_prefix("file://").unwrap_or(name));
    let outside = || BadSample::OutsideImage(name.to_path_buf());
    let relative = match name.is_absolute() || name.has_root() {
        true => relative_to(folder, name).ok_or_else(outside)?,
        false => name.to_path_buf(),
    };
    let mut inside = PathBuf::new();
    for component in relative.components() {
        match component {
            Component::Normal(part) => inside.push(part),
            Component::CurDir => {}
            Component::ParentDir if inside.pop() => {}
            _ => return Err(outside()),
        }
    }
    Ok(folder.join(inside))
}

/// An absolute name relative to `folder`, after canonicalisation of the folder.
fn relative_to(folder: &Path, name: &Path) -> Option<PathBuf> {
    let spellings = [Some(folder.to_path_buf()), std::path::absolute(folder).ok(), fs::canonicalize(folder).ok()];
    spellings.iter().flatten().find_map(|folder| name.strip_prefix(folder).ok()).map(Path::to_path_buf)
}
