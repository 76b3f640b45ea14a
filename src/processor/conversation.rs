//! What is said: messages of text, pictures and videos.

use std::sync::Arc;

use image::RgbImage;

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The operator, who sets the tone.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One piece of a message; cheap to clone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Content {
    /// A picture.
    Image(Arc<RgbImage>),
    /// The frames of a video.
    Video(Arc<[RgbImage]>),
    /// Text. It never counts as control tokens, whatever it holds.
    Text(String),
}

impl From<RgbImage> for Content {
    fn from(image: RgbImage) -> Self {
        Self::Image(image.into())
    }
}

impl From<Vec<RgbImage>> for Content {
    fn from(frames: Vec<RgbImage>) -> Self {
        Self::Video(frames.into())
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// What one side says at once.
///
/// Pictures come before videos and videos before text, in whatever order they are given, as the model was trained. A
/// user who wants pictures amid the text writes `<image>` where each belongs, once for every picture of the message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: Vec<Content>,
}

impl Message {
    /// A message of the operator.
    pub fn system(text: impl Into<String>) -> Self {
        Self { role: Role::System, content: vec![Content::Text(text.into())] }
    }

    /// A message of the one who asks.
    pub fn user(content: impl IntoIterator<Item = Content>) -> Self {
        Self { role: Role::User, content: content.into_iter().collect() }
    }

    /// A message of the model.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: vec![Content::Text(text.into())] }
    }

    /// Its texts, in order.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.content.iter().filter_map(|content| match content {
            Content::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Its pictures, in order.
    pub fn images(&self) -> impl Iterator<Item = &RgbImage> {
        self.content.iter().filter_map(|content| match content {
            Content::Image(image) => Some(image.as_ref()),
            _ => None,
        })
    }

    /// Its videos, in order.
    pub fn videos(&self) -> impl Iterator<Item = &[RgbImage]> {
        self.content.iter().filter_map(|content| match content {
            Content::Video(frames) => Some(frames.as_ref()),
            _ => None,
        })
    }
}

/// Messages in order.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// One question about pictures.
    pub fn ask(images: impl IntoIterator<Item = RgbImage>, question: impl Into<String>) -> Self {
        let images = images.into_iter().map(Content::from);
        Message::user(images.chain([Content::Text(question.into())])).into()
    }

    /// Adds a message at the end.
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }
}

impl From<Message> for Conversation {
    fn from(message: Message) -> Self {
        Self { messages: vec![message] }
    }
}

impl FromIterator<Message> for Conversation {
    fn from_iter<I: IntoIterator<Item = Message>>(messages: I) -> Self {
        Self { messages: messages.into_iter().collect() }
    }
}
