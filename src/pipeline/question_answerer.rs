//! Answering questions about pictures.

use std::sync::{Mutex, PoisonError};

use super::LoadedModel;
use crate::Result;
use crate::config::GenerationConfig;
use crate::generation::{Answer, CancelToken, Generation, Generator, PrefixCache, Session};
use crate::model::HaploVl;
use crate::processor::{Content, Conversation, Message};

/// Answers questions about pictures and videos, each on its own; [`Chat`](super::Chat) remembers.
///
/// What was computed for the pictures of the last question is kept: another question about the same pictures, compared
/// pixel by pixel, is answered without looking at them again.
pub struct VisualQuestionAnswerer<'m> {
    model: &'m LoadedModel,
    generator: Generator<'m, HaploVl>,
    config: GenerationConfig,
    /// Of the last question; an answer under way has taken it.
    cache: Mutex<PrefixCache>,
}

impl<'m> VisualQuestionAnswerer<'m> {
    /// An answerer with the model's own defaults of generation.
    pub fn new(model: &'m LoadedModel) -> Self {
        Self { model, generator: model.generator(), config: model.generation().clone(), cache: Mutex::default() }
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
    pub fn stream(&self, pictures: impl IntoIterator<Item = Content>, question: &str) -> Result<AnswerStream<'_, 'm>> {
        let batch = self.model.batch(&[request(pictures, question)])?;
        let mut cache = std::mem::take(&mut *self.cache.lock().unwrap_or_else(PoisonError::into_inner));
        let session = cache.start(&self.generator, &batch, &self.config)?;
        Ok(AnswerStream { answerer: self, session, cache })
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

/// An answer under way, as an iterator of text pieces.
pub struct AnswerStream<'a, 'm> {
    answerer: &'a VisualQuestionAnswerer<'m>,
    session: Session<'m>,
    cache: PrefixCache,
}

impl AnswerStream<'_, '_> {
    /// The whole answer, without its pieces.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn finish_all(mut self) -> Result<Answer> {
        self.by_ref().try_for_each(|piece| piece.map(drop))?;
        self.finish()
    }

    /// The answer as far as it has come, with token counts and times.
    ///
    /// # Errors
    /// Those of the decoder.
    pub fn finish(mut self) -> Result<Answer> {
        self.session.answer()
    }
}

impl Iterator for AnswerStream<'_, '_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.cache.next_piece(self.answerer.model.model(), &mut self.session)
    }
}

impl Drop for AnswerStream<'_, '_> {
    fn drop(&mut self) {
        *self.answerer.cache.lock().unwrap_or_else(PoisonError::into_inner) = std::mem::take(&mut self.cache);
    }
}

fn request(pictures: impl IntoIterator<Item = Content>, question: &str) -> Conversation {
    Message::user(pictures.into_iter().chain([question.into()])).into()
}
