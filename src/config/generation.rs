//! Generation settings: the fields of HF's `generation_config.json`, plus a seed.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::validate::at_most;
use crate::{Error, Result, files};

/// Generation settings: sampling and stop conditions.
///
/// HF's `generation_config.json` is read; `null` equals absent, except for `max_new_tokens`, where `null` removes the
/// default limit. Fields that change texts in HF and have no counterpart here are listed in [`Self::unsupported`], other
/// unknown fields are ignored. The default is greedy decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// End-of-sequence ids; one id or a list in the file.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub eos_token_id: Vec<u32>,
    /// Beginning-of-sequence id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// Id fed to finished rows of a batch; an end-of-sequence id if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_token_id: Option<u32>,
    /// Whether tokens are sampled from the distribution. If false, decoding is greedy, and of temperature, filters and
    /// penalties only the penalties have an effect.
    #[serde(deserialize_with = "null_as_default")]
    pub do_sample: bool,
    /// Divisor of the logits: values below 1 sharpen the distribution, values above 1 flatten it. 0 is greedy; absent
    /// is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Number of likeliest tokens to keep (top-k). Absent or 0: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Probability mass of the smallest set of likeliest tokens to keep (top-p). Absent or 1: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Minimum probability of a token relative to the likeliest one (min-p). Absent or 0: all tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Penalty on tokens that occur in the text already: their positive logits are divided by it, their negative logits
    /// multiplied. Absent or 1: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// Penalty on generated tokens that grows with their number: their logits are lowered by it once for each time that
    /// the answer has them already, as OpenAI's API does. The prompt does not count. Absent or 0: none; below 0:
    /// repetition is encouraged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// Penalty on generated tokens: the logits of all that the answer has already are lowered by it once, as OpenAI's API
    /// does. The prompt does not count. Absent or 0: none; below 0: repetition is encouraged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Maximum number of tokens to generate. `None`: the rest of the model's context, at most [`Self::MAX_NEW_TOKENS`].
    pub max_new_tokens: Option<usize>,
    /// Seed of sampling: equal seeds give equal texts.
    pub seed: u64,
    /// Strings that end an answer and are left out of it.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub stop_strings: Vec<String>,
    /// Settings of the file that would change texts but are not supported, such as `num_beams = 4`; set by
    /// [`Self::from_file`]. They have no effect.
    #[serde(skip)]
    pub unsupported: Vec<String>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            eos_token_id: vec![],
            bos_token_id: None,
            pad_token_id: None,
            do_sample: false,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            frequency_penalty: None,
            presence_penalty: None,
            max_new_tokens: Some(512),
            seed: 0,
            stop_strings: vec![],
            unsupported: vec![],
        }
    }
}

/// Fields of HF's generation settings that change texts and are not supported, with the value that has no effect;
/// `null`, `false` and an empty list have none in any field.
const UNSUPPORTED: [(&str, f64); 24] = [
    ("bad_words_ids", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("constraints", 0.0),
    ("diversity_penalty", 0.0),
    ("dola_layers", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("force_words_ids", 0.0),
    ("forced_bos_token_id", -1.0),
    ("forced_decoder_ids", 0.0),
    ("forced_eos_token_id", -1.0),
    ("guidance_scale", 1.0),
    ("max_time", 0.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("num_beams", 1.0),
    ("penalty_alpha", 0.0),
    ("sequence_bias", 0.0),
    ("suppress_tokens", 0.0),
    ("typical_p", 1.0),
];

/// Longest value that is shown of a field, in characters.
const MAX_SHOWN_CHARS: usize = 40;

/// The settings of a file that would change texts but are not supported.
fn unsupported(file: &Value) -> Vec<String> {
    let set = |(field, neutral): &(&str, f64)| {
        let value = file.get(field)?;
        let has_effect = match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            value => value.as_f64() != Some(*neutral),
        };
        let shown: String = value.to_string().chars().take(MAX_SHOWN_CHARS).collect();
        has_effect.then(|| format!("{field} = {shown}"))
    };
    UNSUPPORTED.iter().filter_map(set).collect()
}

impl GenerationConfig {
    /// Largest `max_new_tokens`, and the limit if none is set, so that an answer ends in bounded time whatever context
    /// a configuration claims.
    pub const MAX_NEW_TOKENS: usize = 1 << 16;

    /// Number of tokens to generate if the context has room for them.
    pub fn token_limit(&self) -> usize {
        self.max_new_tokens.unwrap_or(Self::MAX_NEW_TOKENS)
    }

    /// Checks that all ids are below `vocab_size`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field of an id outside the vocabulary.
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<()> {
        let ends = self.eos_token_id.iter().map(|id| ("eos_token_id", id));
        let others = [("pad_token_id", &self.pad_token_id), ("bos_token_id", &self.bos_token_id)];
        let others = others.into_iter().filter_map(|(field, id)| Some((field, id.as_ref()?)));
        match ends.chain(others).find(|&(_, &id)| id as usize >= vocab_size) {
            Some((field, id)) => {
                Err(Error::config(field, format!("is {id}, outside the model's vocabulary of {vocab_size}")))
            }
            None => Ok(()),
        }
    }

    /// Reads and checks a `generation_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is not valid, and [`Error::Config`] as in
    /// [`Self::validate`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut config: Self = files::read_json(path)?;
        config.validate().map_err(|e| e.in_file(path))?;
        config.unsupported = unsupported(&files::read_json(path)?);
        if !config.unsupported.is_empty() {
            tracing::warn!(file = %path.display(), settings = ?config.unsupported, "generation settings without effect");
        }
        Ok(config)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid field.
    pub fn validate(&self) -> Result<()> {
        in_range("temperature", self.temperature, 0.0, 1e4)?;
        in_range("top_p", self.top_p, f64::MIN_POSITIVE, 1.0)?;
        in_range("min_p", self.min_p, 0.0, 1.0)?;
        in_range("repetition_penalty", self.repetition_penalty, 1e-4, 1e4)?;
        in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        if self.max_new_tokens == Some(0) {
            return Err(Error::config("max_new_tokens", "is 0, expected at least 1, or none for as many as fit"));
        }
        at_most("max_new_tokens", self.token_limit(), Self::MAX_NEW_TOKENS)?;
        at_most("eos_token_id (how many)", self.eos_token_id.len(), 256)?;
        at_most("stop_strings (how many)", self.stop_strings.len(), 64)?;
        for (i, stop) in self.stop_strings.iter().enumerate() {
            let field = format!("stop_strings[{i}]");
            if stop.is_empty() {
                return Err(Error::config(field, "is empty, which would end every answer at once: remove it"));
            }
            at_most(&format!("{field} (length in bytes)"), stop.len(), 1024)?;
        }
        Ok(())
    }

    /// Whether decoding is greedy.
    pub fn is_greedy(&self) -> bool {
        !self.do_sample || self.temperature == Some(0.0) || self.top_k == Some(1)
    }
}

/// Checks an optional number: absent, or from `least` to `most`; NaN is an error.
fn in_range(field: &str, value: Option<f64>, least: f64, most: f64) -> Result<()> {
    match value {
        Some(v) if !(least..=most).contains(&v) => {
            let from = if least == f64::MIN_POSITIVE { "above 0".into() } else { format!("from {least}") };
            Err(Error::config(field, format!("is {v}, expected a number {from} to {most}, or nothing")))
        }
        _ => Ok(()),
    }
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected one token id or text, or a list of these")]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => vec![],
        Some(OneOrMany::One(value)) => vec![value],
        Some(OneOrMany::Many(values)) => values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> GenerationConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn reads_a_published_file() {
        // The generation_config.json of Qwen2.5-7B-Instruct, which has fields that this crate ignores.
        let config = parse(
            r#"{"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": true,
                "eos_token_id": [151645, 151643], "repetition_penalty": 1.05, "temperature": 0.7,
                "top_p": 0.8, "top_k": 20, "transformers_version": "4.37.0"}"#,
        );
        assert_eq!(config.eos_token_id, [151_645, 151_643]);
        assert_eq!((config.temperature, config.top_p, config.top_k), (Some(0.7), Some(0.8), Some(20)));
        assert_eq!(config.pad_token_id, Some(151_643));
        assert!(!config.is_greedy());
        config.validate().unwrap();
    }

    #[test]
    fn one_end_id_nulls_and_nothing_at_all() {
        assert_eq!(parse(r#"{"eos_token_id": 2}"#).eos_token_id, [2]);
        assert_eq!(parse(r#"{"stop_strings": "USER:"}"#).stop_strings, ["USER:"]);
        let nulls = r#"{"eos_token_id": null, "do_sample": null, "temperature": null, "stop_strings": null}"#;
        assert_eq!(parse(nulls), GenerationConfig::default());
        assert_eq!(parse("{}"), GenerationConfig::default());
        assert!(GenerationConfig::default().is_greedy());
    }

    #[test]
    fn what_was_written_reads_back() {
        let config = GenerationConfig {
            eos_token_id: vec![1, 2],
            do_sample: true,
            temperature: Some(0.5),
            max_new_tokens: None,
            stop_strings: vec!["\n\n".into()],
            ..Default::default()
        };
        assert_eq!(parse(&serde_json::to_string(&config).unwrap()), config);
    }

    #[test]
    fn each_impossible_field_is_named() {
        type Spoil = fn(&mut GenerationConfig);
        let cases: [(&str, Spoil); 12] = [
            ("temperature", |c| c.temperature = Some(-0.1)),
            ("temperature", |c| c.temperature = Some(f64::NAN)),
            ("top_p", |c| c.top_p = Some(0.0)),
            ("top_p", |c| c.top_p = Some(1.1)),
            ("min_p", |c| c.min_p = Some(1.5)),
            ("repetition_penalty", |c| c.repetition_penalty = Some(0.0)),
            ("repetition_penalty", |c| c.repetition_penalty = Some(f64::INFINITY)),
            ("frequency_penalty", |c| c.frequency_penalty = Some(2.1)),
            ("presence_penalty", |c| c.presence_penalty = Some(f64::NAN)),
            ("max_new_tokens", |c| c.max_new_tokens = Some(0)),
            ("max_new_tokens", |c| c.max_new_tokens = Some(1 << 24)),
            ("stop_strings[0]", |c| c.stop_strings = vec![String::new()]),
        ];
        for (field, spoil) in cases {
            let mut config = GenerationConfig::default();
            spoil(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(&format!("`{field}`")), "{field}: {message}");
        }
    }

    #[test]
    fn ids_outside_of_the_vocabulary_are_named() {
        let message = |json: &str| parse(json).check_vocabulary(96).unwrap_err().to_string();
        for field in ["eos_token_id", "pad_token_id", "bos_token_id"] {
            let expected = format!("`{field}`: is 999, outside the model's vocabulary of 96");
            assert!(message(&format!(r#"{{"{field}": 999}}"#)).contains(&expected), "{field}");
        }
        assert!(message(r#"{"eos_token_id": [1, 96]}"#).contains("`eos_token_id`: is 96"));
        parse(r#"{"eos_token_id": [1, 95], "pad_token_id": 0}"#).check_vocabulary(96).unwrap();
    }

    #[test]
    fn answers_without_a_limit_end() {
        assert_eq!(parse(r#"{"max_new_tokens": null}"#).token_limit(), GenerationConfig::MAX_NEW_TOKENS);
        assert_eq!(parse(r#"{"max_new_tokens": 7}"#).token_limit(), 7);
    }

    #[test]
    fn settings_that_would_change_texts_and_are_not_supported_are_named() {
        let found = |json: &str| unsupported(&serde_json::from_str(json).unwrap());
        let neutral = r#"{"num_beams": 1, "typical_p": 1.0, "min_length": 0, "bad_words_ids": null, "max_time": null,
            "suppress_tokens": [], "guidance_scale": 1, "transformers_version": "4.37.0", "num_beam_groups": 1}"#;
        assert!(found(neutral).is_empty());
        let set = r#"{"num_beams": 4, "no_repeat_ngram_size": 3, "suppress_tokens": [1, 2], "top_p": 0.8}"#;
        assert_eq!(found(set), ["no_repeat_ngram_size = 3", "num_beams = 4", "suppress_tokens = [1,2]"]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation_config.json");
        std::fs::write(&path, format!(r#"{{"min_new_tokens": "{}"}}"#, "9".repeat(4000))).unwrap();
        let named = GenerationConfig::from_file(&path).unwrap().unsupported;
        assert!(named.len() == 1 && named[0].len() < 80, "{named:?}");
    }

    #[test]
    fn a_file_of_another_kind_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation_config.json");
        assert!(matches!(GenerationConfig::from_file(&path), Err(Error::Io { .. })));
        std::fs::write(&path, r#"{"eos_token_id": "end"}"#).unwrap();
        let message = GenerationConfig::from_file(&path).unwrap_err().to_string();
        assert!(message.contains("generation_config.json") && message.contains("token id"), "{message}");
    }
}
