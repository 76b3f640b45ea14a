//! Answering questions about pictures.

use super::LoadedModel;
use crate::Result;
use crate::config::GenerationConfig;
use crate::generation::{Answer, CancelToken, Generation, Generator, TextIter};
use crate::model::HaploVl;
use crate::processor::{Content, Conversation, Message};

/// Answers questions about pictures and videos, each on its own; [`Chat`](super::Chat) remembers.
pub struct VisualQuestionAnswerer<'m> {
    model: &'m LoadedModel,
    generator: Generator<'m, HaploVl>,
    config: GenerationConfig,
}

impl<'m> VisualQuestionAnswerer<'m> {
    /// An answerer with the model's own defaults of generation.
    pub fn new(model: &'m LoadedModel) -> Self {
        Self { model, generator: model.generator(), config: model.generation().clone() }
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

    /// Answers one question about some pictures and videos, or about none.
    ///
    /// The question may say `<image>` where each picture belongs; otherwise they come first.
    ///
    /// # Errors
    /// If the pictures or the question do not fit the model or each other, and as [`Generator::generate`].
    pub fn ask(&self, pictures: impl IntoIterator<Item = Content>, question: &str) -> Result<Answer> {
        self.stream(pictures, question)?.finish_all()
    }

    /// As [`Self::ask`], piece by piece.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn stream(&self, pictures: impl IntoIterator<Item = Content>, question: &str) -> Result<TextIter<'m, HaploVl>> {
        self.generator.stream(&self.model.batch(&[request(pictures, question)])?, &self.config)
    }

    /// Answers several questions together, each about pictures of its own: faster than one after the other.
    ///
    /// # Errors
    /// As [`Self::ask`], and [`Error::Batch`](crate::Error::Batch) for no question at all.
    pub fn ask_all<P>(&self, questions: impl IntoIterator<Item = (P, String)>) -> Result<Generation>
    where
        P: IntoIterator<Item = Content>,
    {
        let requests = Vec::from_iter(questions.into_iter().map(|(pictures, question)| request(pictures, &question)));
        self.generator.generate(&self.model.batch(&requests)?, &self.config)
    }
}

fn request(pictures: impl IntoIterator<Item = Content>, question: &str) -> Conversation {
    Message::user(pictures.into_iter().chain([question.into()])).into()
}
