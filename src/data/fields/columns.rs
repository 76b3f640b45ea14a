//! Names of a source's columns that differ from the common ones.

use serde::{Deserialize, Serialize};

/// Names of the fields to read of each record. A field without a name here is looked for under its common names, see
/// [`open`](crate::data::open); a field with a name is read under this name only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Columns {
    /// Id of the record, for logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Image or images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Video or videos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video: Option<String>,
    /// Caption or plain text, to be learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Question of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// Answer to the question, to be learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Turns of a conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversations: Option<String>,
}

impl Columns {
    /// Whether no column is named.
    pub fn is_empty(&self) -> bool {
        self.named().next().is_none()
    }

    /// Each named field and its column.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let Self { id, image, video, text, question, answer, conversations } = self;
        let fields = [
            ("id", id),
            ("image", image),
            ("video", video),
            ("text", text),
            ("question", question),
            ("answer", answer),
            ("conversations", conversations),
        ];
        fields.into_iter().filter_map(|(field, column)| Some((field, column.as_deref()?)))
    }

    /// Whether a column with text is named; then texts are read from named columns only.
    pub(super) fn names_text(&self) -> bool {
        self.text.is_some() || self.answer.is_some() || self.conversations.is_some()
    }

    /// Whether a column with images or videos is named; then they are read from named columns only.
    pub(super) fn names_media(&self) -> bool {
        self.image.is_some() || self.video.is_some()
    }
}
