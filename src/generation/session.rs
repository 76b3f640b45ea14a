//! Generation in steps: one prefill, then one token per row and step.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Tensor};

use super::output::Clock;
use super::sequence_state::SequenceState;
use super::{Answer, CancelToken, CausalModel, FinishReason, GeneratedSequence, Generation, Sampler, Timings};
use crate::batch::MultimodalBatch;
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::{Error, Result};

/// A decoder of token ids to text, which leaves out special tokens.
pub type Decode = Arc<dyn Fn(&[u32]) -> Result<String> + Send + Sync>;

/// The input of the model's next step.
enum Input {
    Prompt(Box<MultimodalBatch>),
    Tokens(Vec<u32>),
}

/// A generation in steps. It holds neither model nor cache, so that the cache can outlive it.
pub struct GenerationSession {
    input: Input,
    rows: Vec<SequenceState>,
    /// Index in `rows` of each row of the cache; finished sequences may have left it.
    cached_rows: Vec<usize>,
    cancel: CancelToken,
    clock: Clock,
    prompt_tokens: usize,
    cached_tokens: usize,
}

impl GenerationSession {
    /// A session that answers `batch`, whose rows are padded on the left.
    ///
    /// `cached` are the token ids that the cache already holds of a batch of one row; empty for an empty cache.
    ///
    /// # Errors
    /// [`Error::Config`] for an impossible `config`, [`Error::Prompt`] if the prompt leaves no room for an answer in
    /// the model's context, [`Error::Batch`] if several rows continue one cached text, or a row ends in padding.
    pub fn new(
        model: &HaploVlConfig,
        batch: MultimodalBatch,
        cached: &[u32],
        config: &GenerationConfig,
        decode: &Decode,
    ) -> Result<Self> {
        if !cached.is_empty() && batch.batch_size() != 1 {
            return Err(Error::batch(format!("has {} rows, expected 1 to continue a text", batch.batch_size())));
        }
        let budget = token_budget(model, cached.len() + batch.layout.seq_len, config)?;
        let pad = pad_token(model, config)?;
        let prompts = prompt_ids(&batch)?;
        let prompt_tokens = cached.len() + prompts.iter().map(Vec::len).sum::<usize>();
        let row = |(i, prompt): (usize, Vec<u32>)| {
            let mut sampler = Sampler::new(config, i as u64)?.ban(&[model.image_token_index, model.video_token_index]);
            sampler.observe(cached);
            sampler.observe(&prompt);
            Ok(SequenceState::new(sampler, config, budget, pad, decode.clone()))
        };
        Ok(Self {
            cached_rows: (0..prompts.len()).collect(),
            rows: prompts.into_iter().enumerate().map(row).collect::<Result<_>>()?,
            input: Input::Prompt(Box::new(batch)),
            cancel: CancelToken::default(),
            clock: Clock::start(),
            prompt_tokens,
            cached_tokens: cached.len(),
        })
    }

    /// The same session, which ends once `cancel` is cancelled.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// The same session with the random stream of each row. By default a row's stream is its number; a caller that
    /// numbers its requests gets texts that do not depend on how they are grouped in batches.
    #[must_use]
    pub fn with_streams(mut self, streams: impl IntoIterator<Item = u64>) -> Self {
        self.rows.iter_mut().zip(streams).for_each(|(row, stream)| row.sampler.set_stream(stream));
        self
    }

    /// Number of positions that the session may add to the cache.
    pub fn new_positions(&self) -> usize {
        let prompt = match &self.input {
            Input::Prompt(batch) => batch.layout.seq_len,
            Input::Tokens(_) => 0,
        };
        prompt + self.rows.iter().map(|row| row.budget - row.tokens.len()).max().unwrap_or(0)
    }

    /// Adds one token to every unfinished row, calls `on_text` with the row and its new text, and returns whether any
    /// row is still unfinished.
    ///
    /// # Errors
    /// The errors of the model and the decoder, and [`Error::Generation`] for logits that no token can be sampled from.
    pub fn step<M: CausalModel>(
        &mut self,
        model: &M,
        cache: &mut M::Cache,
        mut on_text: impl FnMut(usize, &str),
    ) -> Result<bool> {
        if self.cancel.is_cancelled() {
            self.finish_all(FinishReason::Cancelled, &mut on_text)?;
        }
        if self.is_finished() {
            return Ok(false);
        }
        let logits = self.next_logits(model, cache)?;
        let ids = self.sample(logits, &mut on_text)?;
        self.input = Input::Tokens(self.without_finished(ids, model, cache)?);
        self.clock.step(self.new_tokens());
        if self.is_finished() {
            let Timings { new_tokens, seconds, tokens_per_second, .. } = self.timings();
            tracing::debug!(new_tokens, seconds, tokens_per_second, "answer finished");
        }
        Ok(!self.is_finished())
    }

    /// The logits of every row after the input: a prefill of the prompt at first, then a decode step of one token a
    /// row.
    fn next_logits<M: CausalModel>(&self, model: &M, cache: &mut M::Cache) -> Result<Vec<Vec<f32>>> {
        let rows = self.cached_rows.len();
        match &self.input {
            Input::Prompt(batch) => {
                let tokens = self.prompt_tokens - self.cached_tokens;
                let _span = tracing::debug_span!("prefill", rows, tokens).entered();
                let start = Instant::now();
                let logits = logits_by_row(&model.prefill(batch, cache)?, rows)?;
                tracing::debug!(tokens, seconds = start.elapsed().as_secs_f64(), "prompt prefilled");
                Ok(logits)
            }
            Input::Tokens(ids) => {
                let _span = tracing::trace_span!("decode", rows).entered();
                logits_by_row(&model.decode(ids, cache)?, rows)
            }
        }
    }

    /// Samples a token for every row of the cache, and returns the ids to feed to the model next.
    fn sample(&mut self, mut logits: Vec<Vec<f32>>, on_text: &mut impl FnMut(usize, &str)) -> Result<Vec<u32>> {
        let mut next = Vec::with_capacity(self.cached_rows.len());
        for (&i, logits) in self.cached_rows.iter().zip(&mut logits) {
            let Some(row) = self.rows.get_mut(i) else { continue };
            let shown = row.text.len();
            next.push(row.step(logits)?);
            if let Some(new) = row.text.get(shown..).filter(|new| !new.is_empty()) {
                on_text(i, new);
            }
        }
        Ok(next)
    }

    /// Removes finished rows from the cache, if the model can and others remain, and returns the ids of the rows left.
    fn without_finished<M: CausalModel>(
        &mut self,
        mut ids: Vec<u32>,
        model: &M,
        cache: &mut M::Cache,
    ) -> Result<Vec<u32>> {
        if self.is_finished() {
            return Ok(ids);
        }
        for row in (0..ids.len()).rev() {
            let finished = self.rows.get(self.cached_rows[row]).is_some_and(|row| row.finish_reason.is_some());
            if !finished {
                continue;
            }
            if !model.swap_remove_row(cache, row)? {
                break;
            }
            self.cached_rows.swap_remove(row);
            ids.swap_remove(row);
        }
        Ok(ids)
    }

    /// Takes steps until the first row has new text, and returns the text; `None` at the end, and after an error.
    pub fn next_piece<M: CausalModel>(&mut self, model: &M, cache: &mut M::Cache) -> Option<Result<String>> {
        let mut text = String::new();
        while text.is_empty() && self.rows.first().is_some_and(|row| row.finish_reason.is_none()) {
            let append = |row, new: &str| {
                if row == 0 {
                    text.push_str(new)
                }
            };
            if let Err(error) = self.step(model, cache, append) {
                self.rows.iter_mut().for_each(|row| row.finish_reason = Some(FinishReason::Cancelled));
                return Some(Err(error));
            }
        }
        (!text.is_empty()).then_some(Ok(text))
    }

    /// The token ids generated so far for the first row.
    pub fn tokens(&self) -> &[u32] {
        self.rows.first().map_or(&[], |row| &row.tokens)
    }

    /// Whether every row is finished.
    pub fn is_finished(&self) -> bool {
        self.rows.iter().all(|row| row.finish_reason.is_some())
    }

    /// Ends every unfinished row as cancelled, and returns all sequences.
    ///
    /// # Errors
    /// The errors of the decoder.
    pub fn finish(&mut self) -> Result<Generation> {
        self.finish_all(FinishReason::Cancelled, &mut |_, _| ())?;
        let sequence = |row: &SequenceState| GeneratedSequence {
            text: row.text.clone(),
            tokens: row.tokens.clone(),
            finish_reason: row.finish_reason.clone().unwrap_or(FinishReason::Cancelled),
        };
        Ok(Generation { sequences: self.rows.iter().map(sequence).collect(), timings: self.timings() })
    }

    /// The same as [`Self::finish`] for the first row alone.
    ///
    /// # Errors
    /// The errors of [`Self::finish`].
    pub fn answer(&mut self) -> Result<Answer> {
        let Generation { sequences, timings } = self.finish()?;
        let sequence = sequences.into_iter().next().ok_or_else(|| Error::batch("has no rows"))?;
        Ok(Answer { sequence, timings })
    }

    fn timings(&self) -> Timings {
        self.clock.timings(self.prompt_tokens, self.cached_tokens, self.new_tokens())
    }

    fn new_tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens.len()).sum()
    }

    fn finish_all(&mut self, reason: FinishReason, on_text: &mut impl FnMut(usize, &str)) -> Result<()> {
        for (i, row) in self.rows.iter_mut().enumerate().filter(|(_, row)| row.finish_reason.is_none()) {
            let shown = row.text.len();
            row.finish(reason.clone())?;
            if let Some(new) = row.text.get(shown..).filter(|new| !new.is_empty()) {
                on_text(i, new);
            }
        }
        Ok(())
    }
}

/// Most tokens that may be generated after `used` positions.
pub(super) fn token_budget(model: &HaploVlConfig, used: usize, config: &GenerationConfig) -> Result<usize> {
    let room = model.max_position_embeddings.saturating_sub(used);
    if room == 0 {
        return Err(Error::prompt(format!(
            "is {used} tokens long (text and image patches together) and leaves no room for an answer in the model's \
             context of {}: shorten it, or use fewer or smaller images",
            model.max_position_embeddings
        )));
    }
    Ok(config.token_limit().min(room))
}

pub(super) fn pad_token(model: &HaploVlConfig, config: &GenerationConfig) -> Result<u32> {
    config.check_vocabulary(model.vocab_size)?;
    Ok(config.pad_token_id.or_else(|| config.eos_token_id.first().copied()).unwrap_or(0))
}

/// The token ids of each row without padding.
fn prompt_ids(batch: &MultimodalBatch) -> Result<Vec<Vec<u32>>> {
    let ids = batch.input_ids.to_vec2::<u32>()?;
    let row = |(ids, samples): (Vec<u32>, &Vec<crate::batch::Sample>)| match samples.as_slice() {
        [sample] if sample.range.end == ids.len() => Ok(ids.get(sample.range.clone()).unwrap_or_default().to_vec()),
        _ => Err(Error::batch(
            "has a row that is packed or padded on the right, expected one prompt a row, padded on the left",
        )),
    };
    ids.into_iter().zip(&batch.layout.rows).map(row).collect()
}

fn logits_by_row(logits: &Tensor, rows: usize) -> Result<Vec<Vec<f32>>> {
    let found = logits.to_dtype(DType::F32)?.to_vec2()?;
    if found.len() == rows {
        return Ok(found);
    }
    Err(Error::generation(format!("the model gave logits for {} rows, expected {rows}", found.len())))
}
