//! Images and videos of a record, decoded on demand.

use std::path::PathBuf;
use std::sync::Arc;

use image::RgbImage;
use rayon::prelude::*;

use super::{SampleResult, fields};
use crate::processor::{ImageDecoder, Processor};
use crate::{Error, Result};

/// Source of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageSource {
    /// A file that is not decoded yet.
    File(PathBuf),
    /// Content of an image file, not decoded yet.
    Bytes(EmbeddedFile),
    /// Pixels in memory.
    Pixels(Arc<RgbImage>),
}

/// Content of a file that is part of a record, such as an image in a Parquet file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmbeddedFile {
    /// Name for messages: the field of the record, or the file name beside the content.
    pub name: String,
    /// Content.
    pub bytes: Arc<[u8]>,
}

impl EmbeddedFile {
    /// The content of a data URL, or of base64 that starts like an image file; `field` names it in messages.
    ///
    /// # Errors
    /// [`Error::Data`] if the text is neither, or its base64 is broken.
    pub fn from_text(text: &str, field: &str) -> Result<Self> {
        let neither = || Error::data(format!("field `{field}` is no data URL: expected `data:image/png;base64,..`"));
        fields::embedded_file(text, field)?.ok_or_else(neither)
    }
}

/// Source of a video.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VideoSource {
    /// An animated GIF, WebP or PNG file, or a folder of frames in natural order of their names.
    Path(PathBuf),
    /// Content of an animated GIF, WebP or PNG file.
    Bytes(EmbeddedFile),
    /// Frames in order.
    Frames(Vec<ImageSource>),
}

impl ImageSource {
    /// The pixels.
    pub(crate) fn read(&self, decoder: &ImageDecoder) -> SampleResult<Arc<RgbImage>> {
        Ok(match self {
            Self::File(path) => Arc::new(decoder.open(path)?),
            Self::Bytes(file) => Arc::new(decoder.decode(&file.bytes, &file.name)?),
            Self::Pixels(pixels) => Arc::clone(pixels),
        })
    }
}

impl VideoSource {
    /// The frames that the video processor samples.
    pub(super) fn read(&self, processor: &Processor) -> SampleResult<Vec<RgbImage>> {
        let (videos, decoder) = (processor.videos(), processor.decoder());
        match self {
            Self::Path(path) => Ok(videos.load(path, decoder)?),
            Self::Bytes(file) => Ok(videos.decode(&file.bytes, &file.name, decoder)?),
            Self::Frames(frames) => {
                let frame = |n: usize| Ok(Arc::unwrap_or_clone(frames[n].read(decoder)?));
                videos.sample(frames.len()).into_par_iter().map(frame).collect()
            }
        }
    }
}
