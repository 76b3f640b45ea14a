//! The generation loop around a model: prefill, decode, sample, stream.

use std::sync::Arc;

use super::session::{Decode, GenerationSession};
use super::{Answer, CancelToken, CausalModel, Generation};
use crate::batch::MultimodalBatch;
use crate::config::GenerationConfig;
use crate::{Error, Result};

/// A generator of text over a shared model. Clones share the model and the [`CancelToken`].
pub struct Generator<M> {
    model: Arc<M>,
    decode: Decode,
    cancel: CancelToken,
}

impl<M> Clone for Generator<M> {
    fn clone(&self) -> Self {
        Self { model: Arc::clone(&self.model), decode: Arc::clone(&self.decode), cancel: self.cancel.clone() }
    }
}

impl<M: CausalModel> Generator<M> {
    /// A generator over `model`; `decode` turns token ids into text and leaves out special tokens.
    pub fn new(model: Arc<M>, decode: impl Fn(&[u32]) -> Result<String> + Send + Sync + 'static) -> Self {
        Self { model, decode: Arc::new(decode), cancel: CancelToken::default() }
    }

    /// The model.
    pub fn model(&self) -> &Arc<M> {
        &self.model
    }

    /// The same generator, whose generations end once `cancel` is cancelled.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// The answers to all rows of `batch`, which is padded on the left, computed together.
    ///
    /// # Errors
    /// The errors of [`GenerationSession::new`] and [`GenerationSession::step`].
    pub fn generate(&self, batch: &MultimodalBatch, config: &GenerationConfig) -> Result<Generation> {
        self.generate_with(batch, config, |_, _| ())
    }

    /// The same as [`Self::generate`]; calls `on_text` with the row and its new text after each token.
    ///
    /// # Errors
    /// The errors of [`Self::generate`].
    pub fn generate_with(
        &self,
        batch: &MultimodalBatch,
        config: &GenerationConfig,
        mut on_text: impl FnMut(usize, &str),
    ) -> Result<Generation> {
        let (mut session, mut cache) = self.start(batch, config)?;
        while session.step(&*self.model, &mut cache, &mut on_text)? {}
        session.finish()
    }

    /// The answer to a batch of one row, as an iterator of text pieces, each of whole characters.
    ///
    /// # Errors
    /// The errors of [`GenerationSession::new`], and [`Error::Batch`] for a batch of several.
    pub fn stream(&self, batch: &MultimodalBatch, config: &GenerationConfig) -> Result<TextIter<M>> {
        if batch.batch_size() != 1 {
            return Err(Error::batch(format!("has {} rows, expected 1 to stream its text", batch.batch_size())));
        }
        let (session, cache) = self.start(batch, config)?;
        Ok(TextIter { model: Arc::clone(&self.model), cache, session })
    }

    /// A session that continues the token ids `cached`, which the caller's cache already holds.
    ///
    /// # Errors
    /// The errors of [`GenerationSession::new`].
    pub fn session(
        &self,
        batch: &MultimodalBatch,
        cached: &[u32],
        config: &GenerationConfig,
    ) -> Result<GenerationSession> {
        let session = GenerationSession::new(self.model.config(), batch.clone(), cached, config, &self.decode)?;
        Ok(session.with_cancel(self.cancel.clone()))
    }

    fn start(&self, batch: &MultimodalBatch, config: &GenerationConfig) -> Result<(GenerationSession, M::Cache)> {
        let session = self.session(batch, &[], config)?;
        let cache = self.model.cache(batch.batch_size(), session.new_positions())?;
        Ok((session, cache))
    }
}

/// A stream of one answer: an iterator of text pieces that owns its cache and shares the model.
pub struct TextIter<M: CausalModel> {
    model: Arc<M>,
    cache: M::Cache,
    session: GenerationSession,
}

impl<M: CausalModel> TextIter<M> {
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

impl<M: CausalModel> Iterator for TextIter<M> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.session.next_piece(&*self.model, &mut self.cache)
    }
}
