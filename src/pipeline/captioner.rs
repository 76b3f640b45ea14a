//! Describing pictures.

use super::LoadedModel;
use crate::Result;
use crate::config::GenerationConfig;
use crate::generation::{Answer, CancelToken, Generation, Generator, TextIter};
use crate::model::HaploVl;
use crate::processor::{Content, Conversation, Message};

/// Describes pictures and videos.
pub struct Captioner<'m> {
    model: &'m LoadedModel,
    generator: Generator<'m, HaploVl>,
    config: GenerationConfig,
    prompt: String,
}

impl<'m> Captioner<'m> {
    /// What is asked if nothing else is.
    pub const DEFAULT_PROMPT: &'static str = "Describe the image.";

    /// A captioner with the model's own defaults of generation.
    pub fn new(model: &'m LoadedModel) -> Self {
        let config = model.generation().clone();
        Self { model, generator: model.generator(), config, prompt: Self::DEFAULT_PROMPT.into() }
    }

    /// Asks for the description in other words.
    #[must_use]
    pub fn with_prompt(self, prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..self }
    }

    /// Generates in another way.
    #[must_use]
    pub fn with_generation(self, config: GenerationConfig) -> Self {
        Self { config, ..self }
    }

    /// Stops when `cancel` says so.
    #[must_use]
    pub fn with_cancel(self, cancel: CancelToken) -> Self {
        Self { generator: self.generator.with_cancel(cancel), ..self }
    }

    /// Describes one picture or video.
    ///
    /// # Errors
    /// If the picture or the prompt does not fit the model, and as [`Generator::generate`].
    pub fn caption(&self, picture: impl Into<Content>) -> Result<Answer> {
        self.stream(picture)?.finish_all()
    }

    /// As [`Self::caption`], piece by piece.
    ///
    /// # Errors
    /// As [`Self::caption`].
    pub fn stream(&self, picture: impl Into<Content>) -> Result<TextIter<'m, HaploVl>> {
        self.generator.stream(&self.model.batch(&[self.request(picture.into())])?, &self.config)
    }

    /// Describes several pictures or videos together, each for itself.
    ///
    /// # Errors
    /// As [`Self::caption`], and [`Error::Batch`](crate::Error::Batch) for no picture at all.
    pub fn caption_all(&self, pictures: impl IntoIterator<Item = Content>) -> Result<Generation> {
        let requests = Vec::from_iter(pictures.into_iter().map(|picture| self.request(picture)));
        self.generator.generate(&self.model.batch(&requests)?, &self.config)
    }

    fn request(&self, picture: Content) -> Conversation {
        Message::user([picture, self.prompt.as_str().into()]).into()
    }
}
