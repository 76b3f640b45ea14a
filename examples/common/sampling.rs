//! Sampling options of the examples.

use anyhow::Result;
use clap::Args;
use haplovl::config::{GenerationConfig, GenerationOverrides};
use serde_json::{Map, Value};

use crate::cli;

/// Options of sampling and of the end of answers, named as in HF's generation settings. Each replaces the model's own
/// setting.
#[derive(Debug, Args)]
pub struct SamplingOptions {
    /// Largest number of tokens of an answer
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_new_tokens: Option<usize>,
    /// Sample at this temperature: below 1 more predictable, above 1 more varied; 0 takes the most likely token each
    /// time [default: the model's own]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Sample only among the most likely tokens whose total probability is X (top-p)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Sample only among the N most likely tokens (top-k); 0: all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Sample only among tokens with at least X times the probability of the most likely one (min-p)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Divide the scores of tokens that occur already by X: above 1 avoids repetition
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f64>,
    /// Lower the scores of tokens by X for each time that the answer has them already, as OpenAI's API does
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f64>,
    /// Lower the scores of tokens that the answer has already by X, as OpenAI's API does
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f64>,
    /// End an answer before this text; may be given several times
    #[arg(long = "stop", value_name = "TEXT")]
    stop_strings: Vec<String>,
    /// Seed of sampling, and of a scene that is drawn
    #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true)]
    pub seed: u64,
}

impl SamplingOptions {
    /// Checks the options without a model, so that invalid ones are reported before weights are loaded.
    pub fn check(&self) -> Result<()> {
        self.changed(GenerationConfig::default()).map(drop)
    }

    /// The model's `own` settings, changed by the options. Settings without effect are named on stderr.
    pub fn generation(&self, own: GenerationConfig) -> Result<GenerationConfig> {
        for setting in &own.unsupported {
            cli::note(format_args!(
                "note: the model's generation setting {setting} is not supported and has no effect"
            ));
        }
        self.changed(own)
    }

    /// The options that are given, by name; seed and temperature only where tokens may be sampled: by the options, or by the
    /// model's own settings if these count.
    #[allow(dead_code, reason = "each example compiles this module and uses a part of it")]
    pub fn settings(&self, own_count: bool) -> Result<Map<String, Value>> {
        let is_sampled = own_count || self.changed(GenerationConfig::default())?.do_sample;
        let stops = &self.stop_strings;
        let settings = [
            ("max_new_tokens", self.max_new_tokens.map(Value::from)),
            ("temperature", self.temperature.filter(|_| is_sampled).map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("top_k", self.top_k.map(Value::from)),
            ("min_p", self.min_p.map(Value::from)),
            ("repetition_penalty", self.repetition_penalty.map(Value::from)),
            ("frequency_penalty", self.frequency_penalty.map(Value::from)),
            ("presence_penalty", self.presence_penalty.map(Value::from)),
            ("stop_strings", (!stops.is_empty()).then(|| Value::from(stops.as_slice()))),
            ("seed", is_sampled.then(|| Value::from(self.seed))),
        ];
        Ok(settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
    }

    fn changed(&self, own: GenerationConfig) -> Result<GenerationConfig> {
        let overrides = GenerationOverrides {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            seed: Some(self.seed),
            stop_strings: self.stop_strings.clone(),
        };
        Ok(overrides.apply(own)?)
    }
}
