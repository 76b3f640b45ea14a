//! A conversation about pictures: what every data set of samples yields.

use std::path::PathBuf;
use std::sync::Arc;

use image::RgbImage;

use super::{BadSample, SampleResult};

/// Stands in a turn's text where a picture belongs.
pub const IMAGE_MARKER: &str = "<image>";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions before everything.
    System,
    /// Who asks; `human` in LLaVA's files.
    User,
    /// Who answers, and whose words are learnt; `gpt` in LLaVA's files.
    Assistant,
}

/// What one side says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What, with an [`IMAGE_MARKER`] for each picture.
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

/// Where a picture is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// In a file, yet to be decoded.
    File(PathBuf),
    /// In memory.
    Pixels(Arc<RgbImage>),
}

/// One sample: pictures, and turns that speak of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The data set's own name for it, for logs; may be empty.
    pub id: String,
    /// Pictures in the order of their markers; none for text only.
    pub images: Vec<ImageSource>,
    /// Turns in order.
    pub turns: Vec<Turn>,
}

impl Conversation {
    /// A conversation that can be learnt from: with a turn of the assistant, and one marker for each picture. If there
    /// are pictures and no marker at all, the markers are put before the user's first turn.
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
}
