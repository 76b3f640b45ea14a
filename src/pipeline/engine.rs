//! An engine that answers many requests at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LoadedModel;
use crate::batch::{BatchSpec, MultimodalBatch, PaddingSide};
use crate::generation::{
    AdapterSet, CancelToken, EngineConfig, Event, Handle, Metrics, Request, Scheduler, SubmitError,
};
use crate::processor::{Conversation, Message};
use crate::{Error, Result};

/// The prompt of a request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Prompt {
    /// A conversation that awaits the model's answer, written by the chat template.
    Conversation(Conversation),
    /// A text to continue, without the chat template and never read as control tokens.
    Text(String),
}

impl Prompt {
    fn batch(self, model: &LoadedModel) -> Result<MultimodalBatch> {
        match self {
            Self::Conversation(conversation) => model.batch(&[conversation]),
            Self::Text(text) => {
                let (model, sequence) = (model.model(), model.processor().text_sequence(&text)?);
                MultimodalBatch::new(&[sequence], BatchSpec::new(model.config()), PaddingSide::Left, model.device())
            }
        }
    }
}

impl From<Conversation> for Prompt {
    fn from(conversation: Conversation) -> Self {
        Self::Conversation(conversation)
    }
}

impl From<Message> for Prompt {
    fn from(message: Message) -> Self {
        Self::Conversation(message.into())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// An engine that answers many requests at once, on a thread of its own.
///
/// Requests join and leave the running batch between tokens, and prompts are prefilled in slices between decode steps.
/// The same request gives the same tokens alone and in any company; with quantised weights on CPUs without AVX2, as long
/// as `max_batch` is at most 8. Keys and values of prompts are kept for later prompts with the same beginning, images
/// compared by their pixels.
///
/// An engine is shared by reference or in an [`Arc`](std::sync::Arc); dropping it cancels all requests.
///
#[cfg_attr(feature = "builtin", doc = "```")]
#[cfg_attr(not(feature = "builtin"), doc = "```no_run")]
/// use haplovl::data::shapes::{ShapesConfig, Split};
/// use haplovl::pipeline::{Engine, EngineConfig, Event, Request};
/// use haplovl::prelude::*;
///
/// # fn main() -> haplovl::Result<()> {
/// let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default())?;
/// let generation = model.generation().clone();
/// let engine = Engine::new(model, EngineConfig::default())?;
///
/// let scene = Split::Test.scene(4, &ShapesConfig::default()).render(64);
/// let ask = |question: &str| {
///     let question = Conversation::ask([scene.clone()], question);
///     engine.submit(Request::new(question, generation.clone()))
/// };
/// // Both run at once; the image is prefilled once.
/// let (count, caption) = (ask("how many objects are there?")?, ask("describe the image.")?);
/// for event in caption {
///     if let Event::Text { text, .. } = event {
///         print!("{text}");
///     }
/// }
/// assert_eq!(count.answer()?.text(), "four");
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    model: LoadedModel,
    adapters: Vec<(String, LoadedModel)>,
    scheduler: Scheduler,
}

impl Engine {
    /// An engine over a model.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for an invalid field of `config`, and [`Error::Generation`](crate::Error::Generation) if no thread can be started.
    pub fn new(model: LoadedModel, config: EngineConfig) -> Result<Self> {
        Self::with_adapters(model, Vec::<(String, PathBuf)>::new(), config)
    }

    /// An engine over a model and adapters of it, each under a name that requests [choose](Request::with_adapter) and in a
    /// folder in PEFT's form. All share the model's weights.
    ///
    /// # Errors
    /// The errors of [`Self::new`] and [`LoadedModel::with_adapter`], and [`Error::Config`](crate::Error::Config) for two
    /// adapters of one name.
    pub fn with_adapters(
        model: LoadedModel,
        adapters: impl IntoIterator<Item = (impl Into<String>, impl AsRef<Path>)>,
        config: EngineConfig,
    ) -> Result<Self> {
        let (mut set, mut named) = (AdapterSet::new(model.shared_model()), Vec::new());
        for (name, folder) in adapters {
            let (name, adapted) = (name.into(), model.clone().with_adapter(folder)?);
            if adapted.model().config().vocab_size != model.model().config().vocab_size {
                let message = format!("`{name:.80}` has a vocabulary of its own: attach it to the model instead");
                return Err(Error::config("adapter", message));
            }
            set = set.with(name.clone(), adapted.shared_model())?;
            named.push((name, adapted));
        }
        let scheduler = Scheduler::start(Arc::new(set), model.decoder(), config)?;
        Ok(Self { model, adapters: named, scheduler })
    }

    /// The model.
    pub fn model(&self) -> &LoadedModel {
        &self.model
    }

    /// The names of the adapters, each with a handle on the model with it.
    pub fn adapters(&self) -> &[(String, LoadedModel)] {
        &self.adapters
    }

    /// Preprocesses a request on this thread, and queues it.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`], and the reasons why this request or any other can never run.
    pub fn submit(&self, request: Request<impl Into<Prompt>>) -> Result<Handle, SubmitError> {
        self.scheduler.submit(request, |prompt| prompt.into().batch(&self.model))
    }

    /// Queues `choices` answers to one request, all or none, which is preprocessed once. Their random streams count on from
    /// the request's.
    ///
    /// # Errors
    /// The errors of [`Self::submit`], and [`SubmitError::Invalid`] for more choices than the engine has places.
    pub fn submit_choices(
        &self,
        request: Request<impl Into<Prompt>>,
        choices: usize,
    ) -> Result<Vec<Handle>, SubmitError> {
        self.scheduler.submit_choices(request, choices, |prompt| prompt.into().batch(&self.model))
    }

    /// The same as [`Self::submit`], with `sink` called for each event on a thread of its own; a `sink` that returns
    /// false or panics cancels the request.
    ///
    /// # Errors
    /// The errors of [`Self::submit`], and [`SubmitError::Invalid`] if no thread can be started.
    pub fn submit_with(
        &self,
        request: Request<impl Into<Prompt>>,
        sink: impl FnMut(Event) -> bool + Send + 'static,
    ) -> Result<CancelToken, SubmitError> {
        Ok(self.submit(request)?.forward(sink)?)
    }

    /// Runs a job on the engine's thread between two decode steps, so that it does not compete with them, and returns
    /// its result.
    ///
    /// # Errors
    /// [`Error::Generation`](crate::Error::Generation) if the job panics, or the engine is shut down.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce(&LoadedModel) -> T + Send + 'static) -> Result<T> {
        let model = self.model.clone();
        self.scheduler.run(move || job(&model))
    }

    /// Counters, gauges and histograms at this moment.
    pub fn metrics(&self) -> Metrics {
        self.scheduler.metrics()
    }

    /// Accepts no more requests, and returns when those under way have ended.
    pub fn shutdown(&self) {
        self.scheduler.shutdown();
    }
}
