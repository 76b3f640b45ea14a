//! Conversations: messages of text, images and videos.

use std::sync::Arc;

use image::RgbImage;

/// Author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The system prompt's author.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Returns the role's name in chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Part of a message; cheap to clone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Content {
    /// An image.
    Image(Arc<RgbImage>),
    /// The frames of a video.
    Video(Arc<[RgbImage]>),
    /// Text, never read as control tokens.
    Text(String),
}

impl Content {
    /// The text, of a part that is text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Image(_) | Self::Video(_) => None,
        }
    }
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

/// Message of a conversation.
///
/// Images come first, then videos, then text, in whatever order the parts are given, as in the training data. To place
/// images within the text, write `<image>` at each position, once per image of the message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Author of the message.
    pub role: Role,
    /// Parts of the message.
    pub content: Vec<Content>,
}

impl Message {
    /// A system message.
    pub fn system(text: impl Into<String>) -> Self {
        Self { role: Role::System, content: vec![Content::Text(text.into())] }
    }

    /// A user message.
    pub fn user(content: impl IntoIterator<Item = Content>) -> Self {
        Self { role: Role::User, content: content.into_iter().collect() }
    }

    /// An assistant message.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: vec![Content::Text(text.into())] }
    }

    /// The texts of the message, in order.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.content.iter().filter_map(Content::text)
    }

    /// The images of the message, in order.
    pub fn images(&self) -> impl Iterator<Item = &RgbImage> {
        self.content.iter().filter_map(|content| match content {
            Content::Image(image) => Some(image.as_ref()),
            _ => None,
        })
    }

    /// The videos of the message, in order.
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
    /// A conversation of one question about images.
    pub fn ask(images: impl IntoIterator<Item = RgbImage>, question: impl Into<String>) -> Self {
        let images = images.into_iter().map(Content::from);
        Message::user(images.chain([Content::Text(question.into())])).into()
    }

    /// The same conversation without system messages, whose texts come before that of the next user message, apart by an
    /// empty line; a system message that no user message follows becomes one.
    pub(super) fn with_system_in_user_messages(&self) -> Self {
        let (mut messages, mut waiting) = (Vec::with_capacity(self.messages.len()), String::new());
        for message in &self.messages {
            match message.role {
                Role::System => message.texts().for_each(|text| waiting = waiting.clone() + text + "\n\n"),
                Role::User if !waiting.is_empty() => {
                    let mut message = message.clone();
                    let place = message.content.iter().position(|part| part.text().is_some());
                    message.content.insert(place.unwrap_or(message.content.len()), std::mem::take(&mut waiting).into());
                    messages.push(message);
                }
                Role::User | Role::Assistant => messages.push(message.clone()),
            }
        }
        if !waiting.is_empty() {
            messages.push(Message::user([waiting.trim_end().into()]));
        }
        Self { messages }
    }

    /// Appends a message.
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
