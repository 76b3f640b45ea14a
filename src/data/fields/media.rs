//! Images and videos of a record's fields.

use std::path::{Path, PathBuf};

use super::super::{BadSample, ImageSource, SampleResult, VideoSource};
use super::columns::Columns;
use super::names::{self, Field};
use super::paths::{check_decodable, has_image_name, is_address, percent_decoded, within};
use super::value::{Row, Value, list_in};
use super::{brief, embedded, extension};

/// Names under which an object holds the content of an image or video.
const CONTENT: &[&str] = &["bytes", "base64", "data", "b64"];
/// Names under which an object holds the name or address of an image or video.
const NAME: &[&str] = &[
    "path",
    "file_name",
    "filename",
    "file",
    "image",
    "image_url",
    "url",
    "video",
    "video_url",
    "source",
    "src",
    "uri",
];

/// Reader of images and videos that are named relative to a folder.
#[derive(Debug, Clone)]
pub(super) struct MediaReader {
    folder: PathBuf,
}

impl MediaReader {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Images of a record's own fields.
    pub fn images_of(&self, row: &Row, columns: &Columns) -> SampleResult<Vec<ImageSource>> {
        match chosen(row, columns.image.as_deref(), names::IMAGE, "image")? {
            Some(field) => self.images(field.value, field.name),
            None if columns.image.is_some() => Ok(Vec::new()),
            None => self.numbered_images(row),
        }
    }

    /// Images of the fields `image_1`, `image_2` and so on.
    fn numbered_images(&self, row: &Row) -> SampleResult<Vec<ImageSource>> {
        let mut fields: Vec<_> =
            row.iter().filter_map(|(name, value)| Some((names::image_number(name)?, name, value))).collect();
        fields.sort_by_key(|(number, ..)| *number);
        let images: SampleResult<Vec<_>> = fields.iter().map(|(_, name, value)| self.images(value, name)).collect();
        Ok(images?.concat())
    }

    /// Videos of a record's own fields.
    pub fn videos_of(&self, row: &Row, columns: &Columns) -> SampleResult<Vec<VideoSource>> {
        let field = chosen(row, columns.video.as_deref(), names::VIDEO, "video")?;
        field.map_or(Ok(Vec::new()), |field| self.videos(field.value, field.name))
    }

    /// Images that a value holds or names.
    pub fn images(&self, value: &Value, field: &str) -> SampleResult<Vec<ImageSource>> {
        match value {
            value if !value.is_set() => Ok(Vec::new()),
            Value::Text(text) => self.images_named(text.trim(), field),
            Value::Bytes(bytes) => Ok(vec![ImageSource::Bytes(embedded::file(field, bytes.clone()))]),
            Value::List(values) => {
                let images = values.iter().map(|value| self.images(value, field)).collect::<SampleResult<Vec<_>>>()?;
                Ok(images.concat())
            }
            Value::Object(fields) => match content_of(fields, field)? {
                Held::Content(file) => Ok(vec![ImageSource::Bytes(file)]),
                Held::Name(value) => self.images(value, field),
            },
            other => Err(unexpected(other, field, "an image")),
        }
    }

    fn images_named(&self, text: &str, field: &str) -> SampleResult<Vec<ImageSource>> {
        if let Some(file) = embedded::from_text(text, field)? {
            return Ok(vec![ImageSource::Bytes(file)]);
        }
        if let Some(list) = list_in(text).map_err(|e| e.about(&format!("field `{field}`")))? {
            return self.images(&list, field);
        }
        let path = self.path(text, field)?;
        if path.is_file() { Ok(vec![ImageSource::File(path)]) } else { Err(BadSample::MissingImage(path)) }
    }

    /// Videos that a value holds or names. A list of images is the frames of one video.
    pub fn videos(&self, value: &Value, field: &str) -> SampleResult<Vec<VideoSource>> {
        match value {
            value if !value.is_set() => Ok(Vec::new()),
            Value::Text(text) => self.videos_named(text.trim(), field),
            Value::Bytes(bytes) => Ok(vec![video_file(field, embedded::file(field, bytes.clone()))?]),
            Value::List(values) if values.iter().all(is_frame) => {
                Ok(vec![VideoSource::Frames(self.images(value, field)?)])
            }
            Value::List(values) => {
                let videos = values.iter().map(|value| self.videos(value, field)).collect::<SampleResult<Vec<_>>>()?;
                Ok(videos.concat())
            }
            Value::Object(fields) => match content_of(fields, field)? {
                Held::Content(file) => Ok(vec![video_file(field, file)?]),
                Held::Name(value) => self.videos(value, field),
            },
            other => Err(unexpected(other, field, "a video")),
        }
    }

    fn videos_named(&self, text: &str, field: &str) -> SampleResult<Vec<VideoSource>> {
        if let Some(file) = embedded::from_text(text, field)? {
            return Ok(vec![video_file(field, file)?]);
        }
        if let Some(list) = list_in(text).map_err(|e| e.about(&format!("field `{field}`")))? {
            return self.videos(&list, field);
        }
        let path = self.path(text, field)?;
        if path.is_file() || path.is_dir() {
            Ok(vec![VideoSource::Path(path)])
        } else {
            Err(BadSample::MissingVideo(path))
        }
    }

    /// Path of a name, which may be decodable and inside the folder.
    fn path(&self, name: &str, field: &str) -> SampleResult<PathBuf> {
        let problem = match is_address(name) {
            true => Err("is an address, which is not fetched: download it, and name the file".to_string()),
            false => check_decodable(name),
        };
        problem
            .map_err(|problem| BadSample::BrokenRecord(format!("field `{field}`: \"{}\" {problem}", brief(name))))?;
        let path = within(&self.folder, name)?;
        if path.exists() {
            return Ok(path);
        }
        // A name that was written on Windows, or into an address.
        let windows = within(&self.folder, &name.replace('\\', "/"))?;
        let decoded = within(&self.folder, &percent_decoded(name)).ok();
        Ok(decoded.filter(|path| path.exists()).unwrap_or(windows))
    }
}

/// The field of a named column, or the one that is set of those with common names.
fn chosen<'r>(row: &'r Row, column: Option<&str>, names: &[&str], kind: &str) -> SampleResult<Option<Field<'r>>> {
    if let Some(column) = column {
        return Ok(names::column(row, column));
    }
    let mut fields = names::set(row, names);
    let fetched = |field: &Field<'_>| !matches!(field.value, Value::Text(text) if is_address(text));
    if fields.iter().any(fetched) {
        // The address that an image was downloaded from.
        fields.retain(fetched);
    }
    names::one(&fields, kind)
}

/// What an object holds.
enum Held<'r> {
    Content(super::super::EmbeddedFile),
    Name(&'r Value),
}

/// Content or name in an object such as `{"bytes", "path"}`.
fn content_of<'r>(fields: &'r Row, field: &str) -> SampleResult<Held<'r>> {
    let name = || names::set(fields, NAME).into_iter().next();
    match names::set(fields, CONTENT).first().map(|content| content.value) {
        Some(Value::Bytes(bytes)) => {
            let mut file = embedded::file(field, bytes.clone());
            if let Some(path) = name().and_then(|name| name.value.to_text()) {
                file.name = format!("{} {}", brief(&path), file.name);
            }
            Ok(Held::Content(file))
        }
        Some(Value::Text(text)) => match embedded::from_text(text.trim(), field)? {
            Some(file) => Ok(Held::Content(file)),
            None => Ok(Held::Content(embedded::from_base64(text, field)?)),
        },
        Some(other) => Err(unexpected(other, field, "base64")),
        None => match name() {
            Some(name) => Ok(Held::Name(name.value)),
            None => {
                let keys: Vec<_> = fields.iter().map(|(key, _)| key.as_str()).collect();
                let keys = brief(&keys.join(", "));
                Err(BadSample::BrokenRecord(format!("field `{field}` has the keys {keys}: expected `path` or `bytes`")))
            }
        },
    }
}

/// Whether a value in a list of a video field is a frame rather than a video.
fn is_frame(value: &Value) -> bool {
    match value {
        Value::Text(name) => has_image_name(name) && !["gif", "apng"].contains(&extension(name).as_str()),
        Value::Bytes(bytes) => !bytes.starts_with(b"GIF8") && !embedded::is_video_container(bytes),
        Value::Object(fields) => {
            let held = names::set(fields, CONTENT).into_iter().chain(names::set(fields, NAME)).next();
            held.is_some_and(|held| is_frame(held.value))
        }
        _ => false,
    }
}

fn video_file(field: &str, file: super::super::EmbeddedFile) -> SampleResult<VideoSource> {
    if embedded::is_video_container(&file.bytes) {
        return Err(BadSample::BrokenRecord(format!(
            "field `{field}` is an MP4, WebM or AVI video, which cannot be decoded: extract its frames as images"
        )));
    }
    Ok(VideoSource::Bytes(file))
}

fn unexpected(value: &Value, field: &str, expected: &str) -> BadSample {
    BadSample::BrokenRecord(format!("field `{field}` is {}, expected the name or content of {expected}", value.shown()))
}
