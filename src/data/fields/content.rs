//! Content of a message: text, or parts of text, images and videos.

use super::super::{BadSample, IMAGE_MARKER, ImageSource, SampleResult, VIDEO_MARKER, VideoSource};
use super::media::MediaReader;
use super::names;
use super::paths::has_image_name;
use super::value::{Row, Value};

/// Names of a part's text.
const TEXT: &[&str] = &["text", "content", "value"];
/// Names of a part's image, without the fields that only say its type.
const IMAGE: &[&str] = &["image", "image_url", "path", "url", "file", "file_name", "bytes", "base64", "data", "source"];
const VIDEO: &[&str] = &["video", "video_url", "path", "url", "file", "file_name", "bytes", "data"];

/// Text of a message with its markers, and the images and videos that its parts bring.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub text: String,
    /// One for each image part; `None` for a part that stands for an image of the record's own fields.
    pub images: Vec<Option<ImageSource>>,
    pub videos: Vec<Option<VideoSource>>,
}

impl Content {
    /// The content of a message.
    pub fn new(value: &Value, media: &MediaReader) -> SampleResult<Self> {
        let mut content = Self::default();
        match value {
            Value::List(parts) => {
                let written = |marker| parts.iter().filter_map(text_of).map(|text| text.matches(marker).count()).sum();
                let (images, videos): (usize, usize) = (written(IMAGE_MARKER), written(VIDEO_MARKER));
                parts.iter().try_for_each(|part| content.add(part, media, images == 0, videos == 0))?;
            }
            Value::Object(_) => content.add(value, media, true, true)?,
            Value::Null => {}
            other => content.text = plain(other)?,
        }
        Ok(content)
    }

    /// The content with the images that its text names, `<img>cat.png</img>` in files of Qwen-VL, in place of the tags.
    pub fn with_tagged_images(mut self, media: &MediaReader) -> SampleResult<Self> {
        if !self.images.is_empty() || self.text.contains(IMAGE_MARKER) {
            return Ok(self);
        }
        let (mut rest, mut text) = (self.text.as_str(), String::new());
        while let Some((before, name, after)) = tagged_image(rest) {
            self.images.extend(media.images(&Value::Text(name.to_string()), "<img>")?.into_iter().map(Some));
            text.extend([before, IMAGE_MARKER]);
            rest = after;
        }
        text += rest;
        self.text = text;
        Ok(self)
    }

    /// Adds a part. Text that has markers of its own says where images stand; other image parts mark their place.
    fn add(&mut self, part: &Value, media: &MediaReader, mark_images: bool, mark_videos: bool) -> SampleResult<()> {
        let Value::Object(fields) = part else {
            self.text += &plain(part)?;
            return Ok(());
        };
        match kind(fields)?.as_str() {
            "image" => {
                let before = self.images.len();
                add_media(&mut self.images, fields, IMAGE, |value, name| media.images(value, name))?;
                self.text += &IMAGE_MARKER.repeat(if mark_images { self.images.len() - before } else { 0 });
            }
            "video" => {
                let before = self.videos.len();
                add_media(&mut self.videos, fields, VIDEO, |value, name| media.videos(value, name))?;
                self.text += &VIDEO_MARKER.repeat(if mark_videos { self.videos.len() - before } else { 0 });
            }
            _ => self.text += text_of(part).unwrap_or_default(),
        }
        Ok(())
    }
}

/// Adds what a part names, or a place for a medium of the record.
fn add_media<T>(
    all: &mut Vec<Option<T>>,
    fields: &Row,
    names: &[&str],
    read: impl Fn(&Value, &str) -> SampleResult<Vec<T>>,
) -> SampleResult<()> {
    // A part may have fields for every type, of which the others are null.
    match names::set(fields, names).first() {
        Some(field) => all.extend(read(field.value, field.name)?.into_iter().map(Some)),
        None => all.push(None),
    }
    Ok(())
}

/// `text`, `image` or `video`, from the part's `type` or else from what it has.
fn kind(fields: &Row) -> SampleResult<String> {
    let named = names::set(fields, &["type"]).first().and_then(|field| field.value.to_text());
    let kind = named.map(|kind| kind.trim().to_lowercase());
    let has = |names: &[&str]| !names::set(fields, names).is_empty();
    Ok(match kind.as_deref() {
        Some("text" | "input_text" | "output_text") => "text",
        Some("image" | "image_url" | "input_image" | "img" | "image_path") => "image",
        Some("video" | "video_url" | "input_video") => "video",
        Some(other) => {
            let other = super::brief(other);
            let message = format!("a message has a part of type `{other}`: expected text, image or video");
            return Err(BadSample::BrokenRecord(message));
        }
        None if has(&["image", "image_url"]) => "image",
        None if has(&["video", "video_url"]) => "video",
        None if has(TEXT) => "text",
        None => {
            return Err(BadSample::BrokenRecord("a message has a part without `type`, text, image or video".into()));
        }
    }
    .to_string())
}

/// Text before the first `<img>` tag that names an image, the name, and text after the closing tag.
fn tagged_image(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once("<img>")?;
    let (name, after) = rest.split_once("</img>")?;
    has_image_name(name).then_some((before, name, after))
}

/// Text of a part.
fn text_of(part: &Value) -> Option<&str> {
    match part {
        Value::Text(text) => Some(text),
        Value::Object(fields) => match names::set(fields, TEXT).first()?.value {
            Value::Text(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn plain(value: &Value) -> SampleResult<String> {
    value.to_text().ok_or_else(|| {
        let message = format!("a message is {}, expected text or a list of parts", value.shown());
        BadSample::BrokenRecord(message)
    })
}
