//! Options, loading and output of the examples that generate text.

use std::fmt::Display;

use anyhow::Result;
use clap::Args;
use haplovl::config::GenerationConfig;
use haplovl::generation::Answer;
use haplovl::pipeline::LoadedModel;
use serde_json::{Value, json};

use crate::cli;
use crate::model::ModelOptions;
use crate::sampling::SamplingOptions;

/// Options of every example that generates text.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    pub model: ModelOptions,
    #[command(flatten)]
    pub sampling: SamplingOptions,
    /// Print one line of JSON: text, token counts, seconds to the first token, tokens per second
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// Loads the model, and prints its size and device on stderr.
    pub fn load(&self) -> Result<LoadedModel> {
        self.sampling.check()?;
        self.model.load()
    }

    /// The model's generation settings, changed by the options.
    pub fn generation(&self, model: &LoadedModel) -> Result<GenerationConfig> {
        self.sampling.generation(model.generation().clone())
    }
}

/// Prints an answer while it is generated; with `json` nothing is printed.
pub fn print_pieces<E: Display>(
    pieces: &mut impl Iterator<Item = std::result::Result<String, E>>,
    json: bool,
) -> Result<()> {
    let mut begun = false;
    for piece in pieces {
        let piece = piece.map_err(|e| anyhow::anyhow!("{e}"))?;
        // Leading white space is not part of the answer.
        let piece = if begun { piece.as_str() } else { piece.trim_start() };
        begun |= !piece.is_empty();
        if !json {
            cli::write(piece)?;
        }
    }
    if json { Ok(()) } else { cli::print("") }
}

/// Ends the output of an answer: with `json` one line with the answer and `about` on stdout, else the timings on
/// stderr.
pub fn print_facts(answer: &Answer, json: bool, about: Value) -> Result<()> {
    let times = &answer.timings;
    if json {
        let mut line = about;
        line["text"] = json!(answer.text());
        line["finish_reason"] = json!(answer.sequence.finish_reason.to_string());
        for (key, value) in json!(times).as_object().into_iter().flatten() {
            line[key] = value.clone();
        }
        return cli::print(line);
    }
    cli::note(format_args!(
        "{} + {} tokens, first after {:.2} s, then {:.1} tokens/s; ended by {}",
        times.prompt_tokens,
        times.new_tokens,
        times.seconds_to_first_token,
        times.tokens_per_second,
        answer.sequence.finish_reason
    ));
    Ok(())
}
