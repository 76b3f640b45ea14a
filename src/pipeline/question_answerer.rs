//! Visual question answering.

use std::sync::{Arc, Mutex, PoisonError};

use super::LoadedModel;
use crate::Result;
use crate::config::GenerationConfig;
use crate::generation::{Answer, CancelToken, Generation, GenerationSession, Generator, PrefixCache};
use crate::model::HaploVl;
use crate::processor::{Content, Conversation, Message};

/// A question answerer: answers questions about images and videos, each independent of the others;
/// [`Chat`](super::Chat) keeps a conversation instead.
///
/// The KV cache of the last question is kept: another question about the same images, compared pixel by pixel, does not
/// compute them again. Clones share the model and that cache.
#[derive(Clone)]
pub struct VisualQuestionAnswerer {
    model: LoadedModel,
    generator: Generator<HaploVl>,
    config: GenerationConfig,
    /// The cache of the last question; taken by an answer under way.
    cache: Arc<Mutex<PrefixCache>>,
}

impl VisualQuestionAnswerer {
    /// An answerer with the model's default generation settings.
    pub fn new(model: &LoadedModel) -> Self {
        let (generator, config) = (model.generator(), model.generation().clone());
        Self { model: model.clone(), generator, config, cache: Arc::default() }
    }

    /// The same answerer with other generation settings.
    #[must_use]
    pub fn with_generation(self, config: GenerationConfig) -> Self {
        Self { config, ..self }
    }

    /// The same answerer, whose answers end once `cancel` is cancelled.
    #[must_use]
    pub fn with_cancel(self, cancel: CancelToken) -> Self {
        Self { generator: self.generator.with_cancel(cancel), ..self }
    }

    /// The answer to one question about some images and videos, or about none.
    ///
    /// The question may contain one `<image>` per image at its position; otherwise the images come first.
    ///
    /// # Errors
    /// If the images or the question do not fit the model or each other, and the errors of [`Generator::generate`].
    pub fn ask(&self, images: impl IntoIterator<Item = Content>, question: &str) -> Result<Answer> {
        self.stream(images, question)?.finish_all()
    }

    /// The answer to one question, as a stream of text pieces.
    ///
    /// # Errors
    /// The errors of [`Self::ask`].
    pub fn stream(&self, images: impl IntoIterator<Item = Content>, question: &str) -> Result<AnswerStream> {
        let batch = self.model.batch(&[request(images, question)])?;
        let mut cache = std::mem::take(&mut *self.cache.lock().unwrap_or_else(PoisonError::into_inner));
        let session = cache.start(&self.generator, &batch, &self.config)?;
        let model = Arc::clone(self.generator.model());
        Ok(AnswerStream { model, session, cache, home: Arc::clone(&self.cache) })
    }

    /// The answers to several questions, each about its own images, computed as one batch.
    ///
    /// # Errors
    /// The errors of [`Self::ask`], and [`Error::Batch`](crate::Error::Batch) for no question at all.
    pub fn ask_all<P>(&self, questions: impl IntoIterator<Item = (P, String)>) -> Result<Generation>
    where
        P: IntoIterator<Item = Content>,
    {
        let requests = Vec::from_iter(questions.into_iter().map(|(images, question)| request(images, &question)));
        self.generator.generate(&self.model.batch(&requests)?, &self.config)
    }
}

/// A stream of one answer: an iterator of text pieces.
pub struct AnswerStream {
    model: Arc<HaploVl>,
    session: GenerationSession,
    cache: PrefixCache,
    /// The answerer's place for the cache, which is returned there at the end.
    home: Arc<Mutex<PrefixCache>>,
}

impl AnswerStream {
    /// The whole answer; generates what is missing.
    ///
    /// # Errors
    /// The errors of [`GenerationSession::step`].
    pub fn finish_all(mut self) -> Result<Answer> {
        self.by_ref().try_for_each(|piece| piece.map(drop))?;
        self.finish()
    }

    /// The answer generated so far, with token counts and times.
    ///
    /// # Errors
    /// The errors of the decoder.
    pub fn finish(mut self) -> Result<Answer> {
        self.session.answer()
    }
}

impl Iterator for AnswerStream {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.cache.next_piece(&self.model, &mut self.session)
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = std::mem::take(&mut self.cache);
    }
}

fn request(images: impl IntoIterator<Item = Content>, question: &str) -> Conversation {
    Message::user(images.into_iter().chain([question.into()])).into()
}
