//! What the examples that answer share: options, loading with facts on stderr, and output.

mod cli;
mod model;
mod words;

use std::fmt::Display;
use std::io::Write;

use anyhow::Result;
use clap::Args;
use haplovl::config::GenerationConfig;
use haplovl::generation::Answer;
use haplovl::pipeline::LoadedModel;
use serde_json::{Value, json};

pub use cli::main;
pub use words::{tell_unknown, text};

use model::ModelOptions;

/// Options of every example that answers.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Draw at random: below 1 bolder, above 1 more varied; 0 takes the likeliest token each time [default: the
    /// model's own]
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Draw among the likeliest tokens only, those that together have this probability
    #[arg(long, value_name = "X")]
    top_p: Option<f64>,
    /// Seed of the draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Print one line of JSON: text, token counts, seconds to the first token, tokens per second
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// Loads the model, and tells on stderr what it is.
    pub fn load(&self) -> Result<LoadedModel> {
        // What cannot be generated with is told before gigabytes are read.
        self.changed(GenerationConfig::default())?;
        self.model.load()
    }

    /// The model's own way of generating, changed by what was asked for.
    pub fn generation(&self, model: &LoadedModel) -> Result<GenerationConfig> {
        self.changed(model.generation().clone())
    }

    fn changed(&self, mut own: GenerationConfig) -> Result<GenerationConfig> {
        // What was asked for would have no effect behind these.
        if self.temperature.is_some_and(|temperature| temperature > 0.0) || self.top_p.is_some() {
            own.top_k = own.top_k.filter(|k| *k != 1);
            own.temperature = own.temperature.filter(|temperature| *temperature > 0.0);
        }
        let config = GenerationConfig {
            do_sample: own.do_sample || self.temperature.is_some() || self.top_p.is_some(),
            temperature: self.temperature.or(own.temperature),
            top_p: self.top_p.or(own.top_p),
            max_new_tokens: self.max_new_tokens.or(own.max_new_tokens),
            seed: self.seed,
            ..own
        };
        config.validate()?;
        Ok(config)
    }
}

/// Prints an answer while it comes; with `json` nothing is printed.
pub fn print_pieces<E: Display>(
    pieces: &mut impl Iterator<Item = std::result::Result<String, E>>,
    json: bool,
) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let mut begun = false;
    for piece in pieces {
        let piece = piece.map_err(|e| anyhow::anyhow!("{e}"))?;
        // White space that a model puts before its answer is no part of it.
        let piece = if begun { piece.as_str() } else { piece.trim_start() };
        begun |= !piece.is_empty();
        if !json {
            write!(out, "{piece}")?;
            out.flush()?;
        }
    }
    if !json {
        writeln!(out)?;
    }
    Ok(())
}

/// Ends the output of an answer: with `json` a line of it and of `about` on stdout, else the times on stderr.
pub fn print_facts(answer: &Answer, json: bool, about: Value) -> Result<()> {
    let times = &answer.timings;
    if json {
        let mut line = about;
        line["text"] = json!(answer.text());
        line["finish_reason"] = json!(answer.sequence.finish_reason.to_string());
        for (key, value) in json!(times).as_object().into_iter().flatten() {
            line[key] = value.clone();
        }
        writeln!(std::io::stdout().lock(), "{line}")?;
    } else {
        eprintln!(
            "{} + {} tokens, first after {:.2} s, then {:.1} tokens/s; ended by {}",
            times.prompt_tokens,
            times.new_tokens,
            times.seconds_to_first_token,
            times.tokens_per_second,
            answer.sequence.finish_reason
        );
    }
    Ok(())
}
