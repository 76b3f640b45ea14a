//! Record of a data set: a conversation whose images and videos are not decoded yet.

use super::{BadSample, ImageSource, SampleResult, VideoSource};
use crate::processor::{Content, Conversation, Message, Processor, Role};

/// Marker in the text of a turn at the position of an image.
pub const IMAGE_MARKER: &str = "<image>";
/// Marker in the text of a turn at the position of a video.
pub const VIDEO_MARKER: &str = "<video>";

/// Turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Role of the speaker: `human` (user) or `gpt` (assistant, whose tokens are labels) in LLaVA files.
    pub role: Role,
    /// Text, with an [`IMAGE_MARKER`] for each image and a [`VIDEO_MARKER`] for each video. In an assistant's text,
    /// these words have no meaning.
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

    /// Number of times that `marker` stands for an image or video of this turn.
    pub(super) fn markers(&self, marker: &str) -> usize {
        if self.role == Role::Assistant { 0 } else { self.text.matches(marker).count() }
    }
}

/// One sample: images and videos, and the turns of a conversation about them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Id in the data set, for logs; may be empty.
    pub id: String,
    /// Images in the order of their markers; empty for text-only samples.
    pub images: Vec<ImageSource>,
    /// Videos in the order of their markers.
    pub videos: Vec<VideoSource>,
    /// Turns in order.
    pub turns: Vec<Turn>,
}

impl Record {
    /// A record to train on, with a turn of the assistant and one marker for each image. If there are images but no
    /// markers, the markers are inserted before the user's first turn.
    ///
    /// # Errors
    /// [`BadSample::NoTurns`] and [`BadSample::ImageMarkers`].
    pub fn new(id: String, images: Vec<ImageSource>, turns: Vec<Turn>) -> SampleResult<Self> {
        Self::with_videos(id, images, Vec::new(), turns)
    }

    /// As [`Self::new`], for a record that may have videos too, with one [`VIDEO_MARKER`] for each or none.
    ///
    /// # Errors
    /// As [`Self::new`], and [`BadSample::VideoMarkers`].
    pub fn with_videos(
        id: String,
        images: Vec<ImageSource>,
        videos: Vec<VideoSource>,
        mut turns: Vec<Turn>,
    ) -> SampleResult<Self> {
        if !turns.iter().any(|turn| turn.role == Role::Assistant && !turn.text.trim().is_empty()) {
            return Err(BadSample::NoTurns);
        }
        // The template puts images before videos.
        let shown = place(&mut turns, VIDEO_MARKER, videos.len());
        let markers = place(&mut turns, IMAGE_MARKER, images.len());
        if markers != images.len() {
            return Err(BadSample::ImageMarkers { markers, images: images.len() });
        }
        if shown != videos.len() {
            return Err(BadSample::VideoMarkers { markers: shown, videos: videos.len() });
        }
        Ok(Self { id, images, videos, turns })
    }

    /// Decodes the images and the sampled frames of the videos, and returns the conversation for `processor`. Every turn
    /// gets as many images as it has markers. Markers before the text of a turn are removed, since the chat template
    /// puts images there, so that training and inference see the same tokens.
    ///
    /// # Errors
    /// [`BadSample::Failed`] for an image or video that cannot be read.
    pub fn conversation(&self, processor: &Processor) -> SampleResult<Conversation> {
        let (mut images, mut videos) = (self.images.iter(), self.videos.iter());
        let message = |turn: &Turn| {
            if turn.role == Role::Assistant {
                return Ok(Message::assistant(turn.text.trim_start()));
            }
            let mut content = Vec::new();
            for image in images.by_ref().take(turn.markers(IMAGE_MARKER)) {
                content.push(Content::Image(image.read(processor.decoder())?));
            }
            for video in videos.by_ref().take(turn.markers(VIDEO_MARKER)) {
                content.push(video.read(processor)?.into());
            }
            content.push(Content::Text(with_placeholders(without_leading_markers(&turn.text), processor)));
            Ok(Message { role: turn.role, content })
        };
        self.turns.iter().map(message).collect()
    }
}

/// Number of markers after inserting `count` markers before the user's first turn, if there are none yet.
fn place(turns: &mut [Turn], marker: &str, count: usize) -> usize {
    let written = turns.iter().map(|turn| turn.markers(marker)).sum();
    if written > 0 {
        return written;
    }
    let Some(first) = turns.iter_mut().find(|turn| turn.role == Role::User) else { return 0 };
    first.text.insert_str(0, &format!("{marker}\n").repeat(count));
    count
}

fn without_leading_markers(text: &str) -> &str {
    let mut rest = text.trim_start();
    while let Some(behind) = rest.strip_prefix(IMAGE_MARKER).or_else(|| rest.strip_prefix(VIDEO_MARKER)) {
        rest = behind.trim_start();
    }
    if rest.contains(IMAGE_MARKER) || rest.contains(VIDEO_MARKER) { text } else { rest }
}

/// The text with the placeholder tokens of the processor in place of the markers.
fn with_placeholders(text: &str, processor: &Processor) -> String {
    let tokens = &processor.settings().tokens;
    text.replace(IMAGE_MARKER, &tokens.image_token).replace(VIDEO_MARKER, &tokens.video_token)
}

#[cfg(test)]
mod tests {
    use super::without_leading_markers;

    #[test]
    fn leading_markers_are_removed_and_others_kept() {
        assert_eq!(without_leading_markers("<image>\nwhat?"), "what?");
        assert_eq!(without_leading_markers("<image> <image>\nwhat?"), "what?");
        assert_eq!(without_leading_markers("<image>\n<video>\nwhat?"), "what?");
        assert_eq!(without_leading_markers("first <image> then"), "first <image> then");
        assert_eq!(without_leading_markers("what?"), "what?");
    }
}
