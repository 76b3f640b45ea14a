//! Prefill, decode, sample, stream: the loop around a model.

use std::sync::Arc;

use super::session::{Decode, Session};
use super::{Answer, CancelToken, CausalModel, Generation};
use crate::batch::MultimodalBatch;
use crate::config::GenerationConfig;
use crate::{Error, Result};

/// Continues batches of prompts with a model.
pub struct Generator<'a, M> {
    model: &'a M,
    decode: Decode<'a>,
    cancel: CancelToken,
}

impl<'a, M: CausalModel> Generator<'a, M> {
    /// A generator over `model`; `decode` turns ids into text and special tokens into nothing.
    pub fn new(model: &'a M, decode: impl Fn(&[u32]) -> Result<String> + 'a) -> Self {
        Self { model, decode: Arc::new(decode), cancel: CancelToken::default() }
    }

    /// The model.
    pub fn model(&self) -> &'a M {
        self.model
    }

    /// Generations end when `cancel` says so.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Answers every row of `batch`, which is padded on the left, together.
    ///
    /// # Errors
    /// As [`Session::new`] and [`Session::step`].
    pub fn generate(&self, batch: &MultimodalBatch, config: &GenerationConfig) -> Result<Generation> {
        self.generate_with(batch, config, |_, _| ())
    }

    /// As [`Self::generate`]; tells `on_text` each row and its new text as it comes.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn generate_with(
        &self,
        batch: &MultimodalBatch,
        config: &GenerationConfig,
        mut on_text: impl FnMut(usize, &str),
    ) -> Result<Generation> {
        let (mut session, mut cache) = self.start(batch, config)?;
        while session.step(self.model, &mut cache, &mut on_text)? {}
        session.finish()
    }

    /// Answers a batch of one as an iterator of text pieces, each of whole characters.
    ///
    /// # Errors
    /// As [`Session::new`], and [`Error::Batch`] for a batch of several.
    pub fn stream(&self, batch: &MultimodalBatch, config: &GenerationConfig) -> Result<TextIter<'a, M>> {
        if batch.batch_size() != 1 {
            return Err(Error::batch(format!("has {} rows, expected 1 to stream its text", batch.batch_size())));
        }
        let (session, cache) = self.start(batch, config)?;
        Ok(TextIter { model: self.model, cache, session })
    }

    /// A session that continues the text `cached`, which is in the caller's cache already.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(&self, batch: &MultimodalBatch, cached: &[u32], config: &GenerationConfig) -> Result<Session<'a>> {
        let session = Session::new(self.model.config(), batch.clone(), cached, config, &self.decode)?;
        Ok(session.with_cancel(self.cancel.clone()))
    }

    fn start(&self, batch: &MultimodalBatch, config: &GenerationConfig) -> Result<(Session<'a>, M::Cache)> {
        let session = self.session(batch, &[], config)?;
        let cache = self.model.cache(batch.batch_size(), session.new_positions())?;
        Ok((session, cache))
    }
}

/// An answer under way, as an iterator of text pieces.
pub struct TextIter<'a, M: CausalModel> {
    model: &'a M,
    cache: M::Cache,
    session: Session<'a>,
}

impl<M: CausalModel> TextIter<'_, M> {
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

impl<M: CausalModel> Iterator for TextIter<'_, M> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.session.next_piece(self.model, &mut self.cache)
    }
}
