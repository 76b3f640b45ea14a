//! Talking about pictures, turn by turn.

use super::LoadedModel;
use crate::Result;
use crate::config::GenerationConfig;
use crate::generation::{Answer, CancelToken, Generator, PrefixCache, Session};
use crate::model::HaploVl;
use crate::processor::{Content, Conversation, Message};

/// A conversation with the model. A later turn computes only what is new.
pub struct Chat<'m> {
    model: &'m LoadedModel,
    generator: Generator<'m, HaploVl>,
    config: GenerationConfig,
    conversation: Conversation,
    cache: PrefixCache,
}

impl<'m> Chat<'m> {
    /// A chat with the model's own defaults of generation.
    pub fn new(model: &'m LoadedModel) -> Self {
        Self {
            model,
            generator: model.generator(),
            config: model.generation().clone(),
            conversation: Conversation::default(),
            cache: PrefixCache::default(),
        }
    }

    /// Starts with a conversation so far, such as a system message.
    #[must_use]
    pub fn with_conversation(self, conversation: Conversation) -> Self {
        Self { conversation, ..self }
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

    /// All that was said.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Says something to the model and returns its whole reply.
    ///
    /// # Errors
    /// As [`Self::say`], and those of [`Reply`].
    pub fn ask(&mut self, content: impl IntoIterator<Item = Content>) -> Result<Answer> {
        let mut reply = self.say(content)?;
        reply.by_ref().try_for_each(|piece| piece.map(drop))?;
        reply.finish()
    }

    /// Says something to the model, text with any pictures and videos, and returns its reply piece by piece.
    ///
    /// # Errors
    /// If the pictures or the text do not fit the model or each other; then nothing counts as said.
    pub fn say(&mut self, content: impl IntoIterator<Item = Content>) -> Result<Reply<'_, 'm>> {
        self.conversation.push(Message::user(content));
        match self.start() {
            Ok(session) => Ok(Reply { chat: self, session, text: Some(String::new()) }),
            Err(error) => {
                self.conversation.messages.pop();
                Err(error)
            }
        }
    }

    fn start(&mut self) -> Result<Session<'m>> {
        let batch = self.model.batch(std::slice::from_ref(&self.conversation))?;
        self.cache.start(&self.generator, &batch, &self.config)
    }
}

/// The model's reply, as an iterator of text pieces.
///
/// Dropping it ends the reply; what came until then is part of the conversation. After an error neither the reply nor
/// what it replies to is.
pub struct Reply<'c, 'm> {
    chat: &'c mut Chat<'m>,
    session: Session<'m>,
    /// What came until now; nothing after an error.
    text: Option<String>,
}

impl Reply<'_, '_> {
    /// The reply as far as it has come, with token counts and times.
    ///
    /// # Errors
    /// Those of the decoder.
    pub fn finish(mut self) -> Result<Answer> {
        let answer = self.session.answer()?;
        if let Some(text) = &mut self.text {
            text.clone_from(&answer.sequence.text);
        }
        Ok(answer)
    }
}

impl Iterator for Reply<'_, '_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.chat.cache.next_piece(self.chat.model.model(), &mut self.session)?;
        match (&piece, &mut self.text) {
            (Ok(new), Some(text)) => text.push_str(new),
            _ => self.text = None,
        }
        Some(piece)
    }
}

impl Drop for Reply<'_, '_> {
    fn drop(&mut self) {
        match self.text.take() {
            Some(text) => self.chat.conversation.push(Message::assistant(text)),
            None => drop(self.chat.conversation.messages.pop()),
        }
    }
}
