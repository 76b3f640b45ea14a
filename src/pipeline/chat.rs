//! Chat: a conversation about images, turn by turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::LoadedModel;
use crate::config::GenerationConfig;
use crate::generation::{Answer, CancelToken, GenerationSession, Generator, PrefixCache};
use crate::model::HaploVl;
use crate::processor::{Content, Conversation, Message};
use crate::{Error, Result};

/// A conversation with the model. A later turn computes only its new tokens; the KV cache keeps the rest.
///
/// A chat owns its conversation and KV cache and shares the model: a server keeps one for each user.
pub struct Chat {
    model: LoadedModel,
    generator: Generator<HaploVl>,
    config: GenerationConfig,
    state: Arc<Mutex<ChatState>>,
}

/// The state that a chat shares with the reply under way.
#[derive(Default)]
struct ChatState {
    conversation: Conversation,
    /// The KV cache; empty while a reply under way holds it.
    cache: PrefixCache,
    is_replying: bool,
}

impl Chat {
    /// A chat with the model's default generation settings.
    pub fn new(model: &LoadedModel) -> Self {
        Self {
            model: model.clone(),
            generator: model.generator(),
            config: model.generation().clone(),
            state: Arc::default(),
        }
    }

    /// The same chat with an earlier conversation, such as a system message, instead of its conversation.
    #[must_use]
    pub fn with_conversation(self, conversation: Conversation) -> Self {
        let state = ChatState { conversation, ..ChatState::default() };
        Self { state: Arc::new(Mutex::new(state)), ..self }
    }

    /// The same chat with other generation settings.
    #[must_use]
    pub fn with_generation(self, config: GenerationConfig) -> Self {
        Self { config, ..self }
    }

    /// The same chat, whose replies end once `cancel` is cancelled.
    #[must_use]
    pub fn with_cancel(self, cancel: CancelToken) -> Self {
        Self { generator: self.generator.with_cancel(cancel), ..self }
    }

    /// All messages so far. The user's message of a reply under way is among them, the reply is not.
    pub fn conversation(&self) -> Conversation {
        lock(&self.state).conversation.clone()
    }

    /// The model's whole reply to a user message.
    ///
    /// # Errors
    /// The errors of [`Self::say`], and the errors of [`Reply`].
    pub fn ask(&mut self, content: impl IntoIterator<Item = Content>) -> Result<Answer> {
        let mut reply = self.say(content)?;
        reply.by_ref().try_for_each(|piece| piece.map(drop))?;
        reply.finish()
    }

    /// The model's reply to a user message of text, images and videos, as a stream of text pieces.
    ///
    /// The stream owns what it needs and may move to another thread; the next turn can start once the stream is at its
    /// end, finished or dropped.
    ///
    /// # Errors
    /// If the images or the text do not fit the model or each other, and [`Error::Generation`] while another reply of
    /// this chat is under way. The conversation then stays as it was.
    pub fn say(&mut self, content: impl IntoIterator<Item = Content>) -> Result<Reply> {
        let mut state = lock(&self.state);
        if state.is_replying {
            return Err(Error::generation(
                "a reply of this chat is still under way: read it to its end, finish it or drop it before the next \
                 turn",
            ));
        }
        state.conversation.push(Message::user(content));
        let started = self.start(&mut state);
        if started.is_err() {
            state.conversation.messages.pop();
        }
        let session = started?;
        state.is_replying = true;
        let cache = std::mem::take(&mut state.cache);
        Ok(Reply {
            model: Arc::clone(self.generator.model()),
            session,
            cache,
            text: String::new(),
            chat: Some(Arc::clone(&self.state)),
        })
    }

    fn start(&self, state: &mut ChatState) -> Result<GenerationSession> {
        let batch = self.model.batch(std::slice::from_ref(&state.conversation))?;
        state.cache.start(&self.generator, &batch, &self.config)
    }
}

/// A chat's state; a panic of another thread leaves a whole one behind.
fn lock(state: &Mutex<ChatState>) -> MutexGuard<'_, ChatState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream of the model's reply: an iterator of text pieces.
///
/// The reply becomes part of the conversation at its end. A reply that is dropped earlier ends there, and its text so
/// far becomes part of the conversation. After an error neither the reply nor the user's message is part of it.
pub struct Reply {
    model: Arc<HaploVl>,
    session: GenerationSession,
    cache: PrefixCache,
    text: String,
    /// The chat to return cache and text to; `None` once that is done.
    chat: Option<Arc<Mutex<ChatState>>>,
}

impl Reply {
    /// The reply generated so far, with token counts and times.
    ///
    /// # Errors
    /// The errors of the decoder.
    pub fn finish(mut self) -> Result<Answer> {
        let answer = self.session.answer();
        self.close(answer.as_ref().ok().map(|answer| answer.sequence.text.clone()));
        answer
    }

    /// Returns the cache to the chat and ends the turn with the assistant's message, or takes the user's message back.
    fn close(&mut self, message: Option<String>) {
        let Some(chat) = self.chat.take() else { return };
        let mut state = lock(&chat);
        state.cache = std::mem::take(&mut self.cache);
        state.is_replying = false;
        match message {
            Some(text) => state.conversation.push(Message::assistant(text)),
            None => drop(state.conversation.messages.pop()),
        }
    }
}

impl Iterator for Reply {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.cache.next_piece(&self.model, &mut self.session);
        match &piece {
            Some(Ok(new)) => self.text.push_str(new),
            Some(Err(_)) => self.close(None),
            None => {
                let text = std::mem::take(&mut self.text);
                self.close(Some(text));
            }
        }
        piece
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        self.close(Some(text));
    }
}
