//! Record of a data set: a conversation whose images are not loaded yet.

use std::path::PathBuf;
use std::sync::Arc;

use image::RgbImage;

use super::{BadSample, SampleResult};
use crate::processor::{Content, Conversation, ImageDecoder, Message, Role};

/// Marker in the text of a turn at the position of an image.
pub const IMAGE_MARKER: &str = "<image>";

/// Turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Role of the speaker: `human` (user) or `gpt` (assistant, whose tokens are labels) in LLaVA files.
    pub role: Role,
    /// Text, with an [`IMAGE_MARKER`] for each image.
    pub text: String,
}

impl Turn {
    /// A turn of the user.
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: Role::User, text: text.into() }
    }

    /// A turn of the assistant.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: Role::Assistant, text: text.into() }
    }
}

/// Source of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A file that is not decoded yet.
    File(PathBuf),
    /// Pixels in memory.
    Pixels(Arc<RgbImage>),
}

/// One sample: images, and the turns of a conversation about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Id in the data set, for logs; may be empty.
    pub id: String,
    /// Images in the order of their markers; empty for text-only samples.
    pub images: Vec<ImageSource>,
    /// Turns in order.
    pub turns: Vec<Turn>,
}

impl Record {
    /// A record to train on, with a turn of the assistant and one marker for each image. If there are images but no
    /// markers, the markers are inserted before the user's first turn.
    ///
    /// # Errors
    /// [`BadSample::NoTurns`] and [`BadSample::ImageMarkers`].
    pub fn new(id: String, images: Vec<ImageSource>, mut turns: Vec<Turn>) -> SampleResult<Self> {
        if !turns.iter().any(|turn| turn.role == Role::Assistant && !turn.text.trim().is_empty()) {
            return Err(BadSample::NoTurns);
        }
        let count = |turns: &[Turn]| turns.iter().map(|turn| turn.text.matches(IMAGE_MARKER).count()).sum::<usize>();
        if count(&turns) == 0
            && let Some(first) = turns.iter_mut().find(|turn| turn.role == Role::User)
        {
            let markers = format!("{IMAGE_MARKER}\n").repeat(images.len());
            first.text.insert_str(0, &markers);
        }
        let markers = count(&turns);
        if markers != images.len() {
            return Err(BadSample::ImageMarkers { markers, images: images.len() });
        }
        Ok(Self { id, images, turns })
    }

    /// Reads the images and returns the conversation for a [`Processor`](crate::processor::Processor). Every turn gets
    /// as many images as it has markers. Markers before the text of a turn are removed, since the chat template puts
    /// images there, so that training and inference see the same tokens.
    ///
    /// # Errors
    /// [`BadSample::Failed`] for an image that cannot be read.
    pub fn conversation(&self, decoder: &ImageDecoder) -> SampleResult<Conversation> {
        let mut images = self.images.iter();
        let message = |turn: &Turn| {
            let markers = turn.text.matches(IMAGE_MARKER).count();
            let images = images.by_ref().take(markers).map(|image| image.read(decoder));
            let mut content = images.collect::<SampleResult<Vec<_>>>()?;
            content.push(Content::Text(without_leading_markers(&turn.text).to_string()));
            Ok(Message { role: turn.role, content })
        };
        self.turns.iter().map(message).collect()
    }
}

fn without_leading_markers(text: &str) -> &str {
    let mut rest = text.trim_start();
    while let Some(behind) = rest.strip_prefix(IMAGE_MARKER) {
        rest = behind.trim_start();
    }
    if rest.contains(IMAGE_MARKER) { text } else { rest }
}

impl ImageSource {
    fn read(&self, decoder: &ImageDecoder) -> SampleResult<Content> {
        Ok(Content::Image(match self {
            Self::File(path) => Arc::new(decoder.open(path)?),
            Self::Pixels(picture) => Arc::clone(picture),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::without_leading_markers;

    #[test]
    fn leading_markers_are_removed_and_others_kept() {
        assert_eq!(without_leading_markers("<image>\nwhat?"), "what?");
        assert_eq!(without_leading_markers("<image> <image>\nwhat?"), "what?");
        assert_eq!(without_leading_markers("first <image> then"), "first <image> then");
        assert_eq!(without_leading_markers("what?"), "what?");
    }
}
