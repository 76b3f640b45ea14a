//! Sampling: the choice of the next token from a row of logits.

use std::cmp::Ordering;
use std::collections::HashMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::GenerationConfig;
use crate::{Error, Result};

/// A token that may be sampled. `score` is its logit at first, and its unnormalised probability later.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    score: f32,
}

impl Candidate {
    /// Higher score first, then lower id, so that ties never depend on how a selection algorithm works.
    fn likelier_first(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.id.cmp(&other.id))
    }
}

/// A sampler for one sequence: greedy choice, or a draw from the filtered distribution.
///
/// Filters apply in the order of HF's logits processors: repetition penalty, temperature, top-k, top-p, min-p. OpenAI's
/// frequency and presence penalties follow the repetition penalty.
/// Buffers are reused, and the vocabulary is never sorted: top-k keeps a short list, top-p finds its cut by bisection.
#[derive(Debug, Clone)]
pub struct Sampler {
    greedy: bool,
    temperature: f32,
    top_k: usize,
    top_p: f64,
    min_p: f32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    banned: Vec<u32>,
    rng: ChaCha8Rng,
    position: usize,
    seen: SeenTokens,
    /// How often each token was sampled, if a penalty needs it.
    sampled: HashMap<u32, u32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for row `row` of a batch; each row draws from its own stream of the seed.
    ///
    /// # Errors
    /// [`Error::Config`] as in [`GenerationConfig::validate`].
    pub fn new(config: &GenerationConfig, row: u64) -> Result<Self> {
        config.validate()?;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(row);
        Ok(Self {
            greedy: config.is_greedy(),
            // A smaller temperature would overflow the division; this minimum is greedy in effect.
            temperature: config.temperature.unwrap_or(1.0).max(1e-30) as f32,
            top_k: config.top_k.unwrap_or(0),
            top_p: config.top_p.unwrap_or(1.0),
            min_p: config.min_p.unwrap_or(0.0) as f32,
            repetition_penalty: config.repetition_penalty.unwrap_or(1.0) as f32,
            frequency_penalty: config.frequency_penalty.unwrap_or(0.0) as f32,
            presence_penalty: config.presence_penalty.unwrap_or(0.0) as f32,
            banned: vec![],
            rng,
            position: 0,
            seen: SeenTokens::default(),
            sampled: HashMap::new(),
            candidates: vec![],
        })
    }

    /// Sets the stream of the seed that draws come from.
    pub(super) fn set_stream(&mut self, stream: u64) {
        self.rng.set_stream(stream);
    }

    /// The same sampler with banned ids, which it never picks.
    #[must_use]
    pub fn ban(mut self, ids: &[u32]) -> Self {
        self.banned.extend_from_slice(ids);
        self
    }

    /// Counts tokens of the text, such as the prompt, for the repetition penalty.
    pub fn observe(&mut self, ids: &[u32]) {
        self.position += ids.len();
        if self.repetition_penalty != 1.0 {
            ids.iter().for_each(|&id| self.seen.insert(id));
        }
    }

    /// Picks the next token from its logits, one for each token of the vocabulary, and counts it for all penalties.
    ///
    /// `logits` is overwritten. Of equal logits the lowest id counts as the likeliest.
    ///
    /// # Errors
    /// [`Error::Generation`] for logits that are NaN, infinite, or all minus infinity.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        self.penalise(logits);
        for &id in &self.banned {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let best = self.argmax(logits)?;
        let id = if self.greedy { best.id } else { self.draw(logits, best.score) };
        self.observe(&[id]);
        if (self.frequency_penalty, self.presence_penalty) != (0.0, 0.0) {
            *self.sampled.entry(id).or_default() += 1;
        }
        Ok(id)
    }

    fn penalise(&self, logits: &mut [f32]) {
        for &id in &self.seen.ids {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * self.repetition_penalty } else { *logit / self.repetition_penalty };
            }
        }
        for (&id, &count) in &self.sampled {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= count as f32 * self.frequency_penalty + self.presence_penalty;
            }
        }
    }

    fn argmax(&self, logits: &[f32]) -> Result<Candidate> {
        let mut best = Candidate { id: 0, score: f32::NEG_INFINITY };
        for (id, &score) in logits.iter().enumerate() {
            if score > best.score || score.is_nan() {
                best = Candidate { id: id as u32, score };
                if !score.is_finite() {
                    return Err(self.broken(&format!("the logit of token {id} is {score}")));
                }
            }
        }
        if best.score == f32::NEG_INFINITY {
            let what = format!("all {} logits are minus infinity or banned, so no token is possible", logits.len());
            return Err(self.broken(&what));
        }
        Ok(best)
    }

    fn broken(&self, what: &str) -> Error {
        Error::generation(format!(
            "at position {} {what}: check that the weights are complete and finite, and if they are f16 or bf16, load \
             them in f32",
            self.position
        ))
    }

    /// Draws from the filtered distribution; `max` is the largest logit.
    fn draw(&mut self, logits: &[f32], max: f32) -> u32 {
        collect_candidates(logits, self.top_k, &mut self.candidates);
        let temperature = self.temperature;
        self.candidates.iter_mut().for_each(|c| c.score = ((c.score - max) / temperature).exp());
        if self.top_p < 1.0 {
            let kept = nucleus(&mut self.candidates, self.top_p);
            self.candidates.truncate(kept);
        }
        // The likeliest candidate has the score exp(0) = 1.
        let least = self.min_p;
        self.candidates.retain(|c| c.score >= least);
        // The order that selections leave may differ between versions of the standard library.
        self.candidates.sort_unstable_by_key(|c| c.id);
        self.pick()
    }

    fn pick(&mut self) -> u32 {
        let mut left = self.rng.random::<f64>() * mass(&self.candidates);
        for candidate in &self.candidates {
            left -= f64::from(candidate.score);
            if left < 0.0 {
                return candidate.id;
            }
        }
        // Rounding may leave a remainder: the last token with a probability above 0 is picked then.
        self.candidates.iter().rev().find(|c| c.score > 0.0).map_or(0, |c| c.id)
    }
}

fn mass(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.score)).sum()
}

/// Fills `candidates` with the `top_k` likeliest tokens, or with all that are possible if it is 0.
///
/// The buffer is cut back to `top_k` whenever it reaches twice that size, and the lowest score kept becomes the
/// threshold for the tokens after it: most of the vocabulary is read once and never stored.
fn collect_candidates(logits: &[f32], top_k: usize, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    let most = if top_k == 0 { usize::MAX } else { top_k.saturating_mul(2).max(64) };
    let mut bar = f32::NEG_INFINITY;
    for (id, &score) in logits.iter().enumerate() {
        if score > bar {
            candidates.push(Candidate { id: id as u32, score });
            if candidates.len() >= most {
                bar = keep_likeliest(candidates, top_k);
            }
        }
    }
    if top_k != 0 {
        keep_likeliest(candidates, top_k);
    }
}

/// The `count` likeliest tokens with their logits, likeliest first.
pub(super) fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut candidates = Vec::new();
    if count > 0 {
        collect_candidates(logits, count, &mut candidates);
    }
    candidates.sort_unstable_by(Candidate::likelier_first);
    candidates.into_iter().map(|candidate| (candidate.id, candidate.score)).collect()
}

/// Keeps the `count` likeliest candidates and returns the lowest score among them.
fn keep_likeliest(candidates: &mut Vec<Candidate>, count: usize) -> f32 {
    if candidates.len() <= count {
        return f32::NEG_INFINITY;
    }
    let (_, least, _) = candidates.select_nth_unstable_by(count - 1, Candidate::likelier_first);
    let bar = least.score;
    candidates.truncate(count);
    bar
}

/// Moves the smallest set of likeliest candidates with the share `top_p` of the mass to the front, and returns its
/// size.
///
/// The size is found by binary search: each step partitions the open range at its middle, so that the work is halved
/// from step to step and the total is linear.
fn nucleus(candidates: &mut [Candidate], top_p: f64) -> usize {
    let target = top_p * mass(candidates);
    let (mut from, mut to, mut before) = (0, candidates.len(), 0.0);
    while to - from > 1 {
        let open = &mut candidates[from..to];
        let middle = open.len() / 2;
        open.select_nth_unstable_by(middle - 1, Candidate::likelier_first);
        let upper = mass(&open[..middle]);
        if before + upper >= target {
            to = from + middle;
        } else {
            from += middle;
            before += upper;
        }
    }
    to
}

/// A set of token ids, iterated in time proportional to its size.
#[derive(Debug, Clone, Default)]
struct SeenTokens {
    ids: Vec<u32>,
    bits: Vec<u64>,
}

impl SeenTokens {
    /// Inserts an id. Ids beyond any vocabulary are left out, so that none can make the set huge.
    fn insert(&mut self, id: u32) {
        let (word, bit) = (id as usize / 64, 1u64 << (id % 64));
        if id >= 1 << 24 {
            return;
        }
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.ids.push(id);
        }
    }
}
