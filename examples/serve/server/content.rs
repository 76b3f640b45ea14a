//! Messages and content parts of requests as the library has them.

use haplovl::data::EmbeddedFile;
use haplovl::processor::{Content, Conversation, Message, Role};

use super::app::App;
use super::error::ApiError;
use super::protocol::{ChatMessage, ChatRole, Part, PartKind, Parts};

/// Reads content parts; images are decoded as long as all of a request stay within the server's limit of pixels.
pub struct ContentReader<'a> {
    app: &'a App,
    pixels_left: u64,
}

impl<'a> ContentReader<'a> {
    pub fn new(app: &'a App) -> Self {
        Self { app, pixels_left: app.settings.max_pixels }
    }

    /// The conversation of a request's messages.
    pub fn conversation(mut self, messages: Vec<ChatMessage>) -> Result<Conversation, ApiError> {
        if messages.is_empty() {
            return Err(ApiError::invalid("messages", "`messages` is empty, expected at least one message"));
        }
        let messages = messages.into_iter().enumerate();
        messages.map(|(n, message)| self.message(&format!("messages[{n}]"), message)).collect()
    }

    fn message(&mut self, place: &str, message: ChatMessage) -> Result<Message, ApiError> {
        let place = format!("{place}.content");
        let Some(Parts(parts)) = message.content else {
            return Err(ApiError::invalid(&place, format!("`{place}` is missing, expected a text or content parts")));
        };
        let role = match message.role {
            ChatRole::System => Role::System,
            ChatRole::User => Role::User,
            ChatRole::Assistant => Role::Assistant,
        };
        let mut content = Vec::with_capacity(parts.len().min(64));
        for (n, part) in parts.into_iter().enumerate() {
            let place = format!("{place}[{n}]");
            if part.kind == PartKind::ImageUrl && role != Role::User {
                let message =
                    format!("`{place}` is an image in a message of `{}`: put images into user messages", role.name());
                return Err(ApiError::invalid(place, message));
            }
            content.push(self.part(&place, part)?);
        }
        Ok(Message { role, content })
    }

    /// A content part; `place` is its path in the body.
    pub fn part(&mut self, place: &str, part: Part) -> Result<Content, ApiError> {
        let Part { kind, text, image_url } = part;
        let missing = |field: &str| {
            let expected = format!("`{place}` needs the field `{field}`, and no other beside `type`");
            ApiError::invalid(format!("{place}.{field}"), expected)
        };
        match (kind, text, image_url) {
            (PartKind::Text, Some(text), None) => Ok(text.into()),
            (PartKind::Text, ..) => Err(missing("text")),
            (PartKind::ImageUrl, None, Some(image)) => self.image(&format!("{place}.image_url.url"), &image.url),
            (PartKind::ImageUrl, ..) => Err(missing("image_url")),
        }
    }

    fn image(&mut self, place: &str, url: &str) -> Result<Content, ApiError> {
        if !url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:")) {
            let fetches = if self.app.fetcher.is_some() { "only images by http and https" } else { "nothing" };
            let message = format!(
                "`{place}` is no data URL, and this server fetches {fetches}: send `data:image/png;base64,..` with the \
                 image's content"
            );
            return Err(ApiError::invalid(place, message));
        }
        let named = |e: haplovl::Error| ApiError::invalid(place, e.to_string());
        let file = EmbeddedFile::from_text(url, place).map_err(named)?;
        let image = self.app.decoder(self.pixels_left).decode(&file.bytes, &file.name).map_err(named)?;
        self.pixels_left -= u64::from(image.width()) * u64::from(image.height());
        Ok(image.into())
    }
}
