//! Evaluation of a model during training.

use std::sync::Arc;

use candle_core::{DType, Device};

use crate::Result;
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::data::{IMAGE_MARKER, Record, SampleResult};
use crate::generation::Generator;
use crate::model::HaploVl;
use crate::processor::{Conversation, Processor, Role};
use crate::weights::Parameters;

/// Validation question with its reference answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EvalSample {
    /// Conversation up to the question, as the model sees it.
    pub prompt: Conversation,
    /// Text of the question.
    pub question: String,
    /// Reference answer.
    pub expected: String,
}

impl EvalSample {
    /// The first question of a conversation and its answer, if it has one.
    pub(super) fn of(processor: &Processor, sample: &Record) -> SampleResult<Option<Self>> {
        let Some(at) = sample.turns.iter().position(|turn| turn.role == Role::Assistant) else { return Ok(None) };
        let Some(asked) = at.checked_sub(1) else { return Ok(None) };
        let mut prompt = sample.clone();
        prompt.turns.truncate(at);
        Ok(Some(Self {
            question: sample.turns[asked].text.replace(IMAGE_MARKER, "").trim().to_string(),
            expected: sample.turns[at].text.clone(),
            prompt: prompt.conversation(processor)?,
        }))
    }
}

/// A run at the moment of an evaluation on its validation samples.
#[non_exhaustive]
pub struct Evaluation<'a> {
    /// Steps done.
    pub step: u64,
    /// Mean loss over the validation samples.
    pub loss: f64,
    /// Configuration of the model.
    pub config: &'a HaploVlConfig,
    /// All parameters, trained and frozen, or those of the adapter that is trained; with `optimizer.ema_decay`, their
    /// EMA. Models built over `var_builder_where(.., |_| false)` track no gradients.
    pub parameters: &'a Parameters,
    /// The model of a run that trains an adapter.
    pub(super) adapted: Option<&'a HaploVl>,
    /// Processor of the run.
    pub processor: &'a Arc<Processor>,
    /// Device of the parameters.
    pub device: &'a Device,
    /// Validation questions for [`Self::answer`]; empty for stages that train a part of the model only.
    pub eval_samples: &'a [EvalSample],
}

impl Evaluation<'_> {
    /// Greedy answers to [`Self::eval_samples`], of at most `max_new_tokens` tokens each.
    ///
    /// # Errors
    /// If the model cannot be built, or a prompt does not fit its context.
    pub fn answer(&self, max_new_tokens: usize) -> Result<Vec<String>> {
        if self.eval_samples.is_empty() {
            return Ok(Vec::new());
        }
        // Detached parameters share memory with the trained ones, and build no graph.
        let vb = || self.parameters.var_builder_where(0, DType::F32, self.device, |_| false);
        let held = |model: &HaploVl| model.clone().with_held_norms();
        let model = self.adapted.map_or_else(|| HaploVl::new(self.config, vb()), held)?;
        let processor = Arc::clone(self.processor);
        let generator = Generator::new(Arc::new(model), move |ids| processor.tokenizer().decode(ids, true));
        let generation = GenerationConfig {
            eos_token_id: self.processor.eos_ids(),
            max_new_tokens: Some(max_new_tokens),
            ..GenerationConfig::default()
        };
        let answer = |sample: &EvalSample| {
            let batch = self.processor.batch(std::slice::from_ref(&sample.prompt), self.device)?;
            let answer = generator.generate(&batch, &generation)?;
            Ok(answer.sequences.first().map_or_else(String::new, |sequence| sequence.text.trim().to_string()))
        };
        self.eval_samples.iter().map(answer).collect()
    }
}
