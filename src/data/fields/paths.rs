//! Names of image and video files: which exist, which can be decoded, and which are inside the image folder.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::super::{BadSample, SampleResult};

/// Extensions of image files that can be decoded, in lower case.
const IMAGES: [&str; 11] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif", "jpe", "apng"];
/// Extensions of image files that cannot be decoded.
const UNREADABLE: [&str; 12] = ["heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "dng", "cr2", "nef", "ico", "tga"];
/// Extensions of video files that cannot be decoded.
const VIDEOS: [&str; 15] =
    ["mp4", "mov", "avi", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv", "flv", "3gp", "ogv", "mts", "m2ts", "vob"];
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

/// Problem of a name with the extension of a video that cannot be decoded.
pub(in crate::data) fn video_problem(name: &str) -> Option<String> {
    let extension = extension(name);
    VIDEOS.contains(&extension.as_str()).then(|| {
        format!(
            "is an .{extension} video, which cannot be decoded: extract its frames as images into a folder, or convert \
             it to an animated GIF, and name that as the video"
        )
    })
}

/// Whether a text looks like the name of an image or video file.
pub(super) fn names_media(text: &str) -> bool {
    let text = text.trim();
    text.len() <= MAX_NAME_BYTES
        && !text.contains('\n')
        && (has_image_name(text) || is_unreadable_image(text) || video_problem(text).is_some())
}

/// Whether a name is an address, such as `https://..` or `s3://..`.
pub(super) fn is_address(name: &str) -> bool {
    let scheme = name.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| scheme != "file" && scheme.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// Names of formats, to be said in messages: `avif` is AVIF.
pub(super) fn check_decodable(name: &str) -> Result<(), String> {
    if let Some(problem) = video_problem(name) {
        return Err(problem);
    }
    match is_unreadable_image(name) {
        true => {
            Err(format!("is {}, which cannot be decoded: convert it to PNG or JPEG", extension(name).to_uppercase()))
        }
        false => Ok(()),
    }
}

/// Path of an image or video, which must be inside `folder`: a downloaded record must not read other files. `..` is
/// resolved in the name itself; symbolic links in the folder were made by the user and are followed.
pub(super) fn within(folder: &Path, name: &str) -> SampleResult<PathBuf> {
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
