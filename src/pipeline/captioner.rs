//! Captioning: descriptions of images and videos.

use super::LoadedModel;
use crate::Result;
use crate::config::GenerationConfig;
use crate::generation::{Answer, CancelToken, Generation, Generator, TextIter};
use crate::model::HaploVl;
use crate::processor::{Content, Conversation, Message};

/// A captioner: describes images and videos. Clones share the model.
#[derive(Clone)]
pub struct Captioner {
    model: LoadedModel,
    generator: Generator<HaploVl>,
    config: GenerationConfig,
    prompt: String,
}

impl Captioner {
    /// The default prompt.
    pub const DEFAULT_PROMPT: &'static str = "Describe the image.";

    /// A captioner with the model's default generation settings.
    pub fn new(model: &LoadedModel) -> Self {
        let (generator, config) = (model.generator(), model.generation().clone());
        Self { model: model.clone(), generator, config, prompt: Self::DEFAULT_PROMPT.into() }
    }

    /// The same captioner with another prompt.
    #[must_use]
    pub fn with_prompt(self, prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..self }
    }

    /// The same captioner with other generation settings.
    #[must_use]
    pub fn with_generation(self, config: GenerationConfig) -> Self {
        Self { config, ..self }
    }

    /// The same captioner, whose captions end once `cancel` is cancelled.
    #[must_use]
    pub fn with_cancel(self, cancel: CancelToken) -> Self {
        Self { generator: self.generator.with_cancel(cancel), ..self }
    }

    /// The caption of one image or video.
    ///
    /// # Errors
    /// If the image or the prompt does not fit the model, and the errors of [`Generator::generate`].
    pub fn caption(&self, image: impl Into<Content>) -> Result<Answer> {
        self.stream(image)?.finish_all()
    }

    /// The caption of one image or video, as a stream of text pieces.
    ///
    /// # Errors
    /// The errors of [`Self::caption`].
    pub fn stream(&self, image: impl Into<Content>) -> Result<TextIter<HaploVl>> {
        self.generator.stream(&self.model.batch(&[self.request(image.into())])?, &self.config)
    }

    /// The captions of several images or videos, computed as one batch.
    ///
    /// # Errors
    /// The errors of [`Self::caption`], and [`Error::Batch`](crate::Error::Batch) for no image at all.
    pub fn caption_all(&self, images: impl IntoIterator<Item = Content>) -> Result<Generation> {
        let requests = Vec::from_iter(images.into_iter().map(|image| self.request(image)));
        self.generator.generate(&self.model.batch(&requests)?, &self.config)
    }

    fn request(&self, image: Content) -> Conversation {
        Message::user([image, self.prompt.as_str().into()]).into()
    }
}
