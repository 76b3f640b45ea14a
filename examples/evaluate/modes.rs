//! What a command line asks for, and which of its options have an effect there.

use anyhow::{Result, bail};

const MODEL: &[&str] = &["model", "device", "dtype", "quantize", "cache", "adapter"];
const SAMPLING: &[&str] = &[
    "max-new-tokens",
    "temperature",
    "top-p",
    "top-k",
    "min-p",
    "repetition-penalty",
    "frequency-penalty",
    "presence-penalty",
    "stop",
    "seed",
];
const WORLD: &[&str] = &["scenes", "side"];
const FILES: &[&str] = &["data", "images"];
const SCORED: &[&str] = &["benchmark", "limit", "out", "sheet", "report", "seed", "show", "json"];

/// What is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Compare,
    Questions,
    Scenes,
    /// A model on a benchmark.
    Benchmark(&'static str),
    /// Predictions of a benchmark.
    Score(&'static str),
}

impl Mode {
    /// Refuses options without an effect: a user who gives one means something by it.
    ///
    /// # Errors
    /// If one of the options, which are long names, has none.
    pub fn check(self, given: &[String]) -> Result<()> {
        let allowed = self.options();
        let without = given.iter().find(|name| !allowed.iter().any(|group| group.contains(&name.as_str())));
        let Some(name) = without else { return Ok(()) };
        let mode = match self {
            Self::Compare => "with --compare".into(),
            Self::Questions => "with --questions".into(),
            Self::Scenes => "without --benchmark or --questions".into(),
            Self::Benchmark(benchmark) => format!("with --benchmark {benchmark}"),
            Self::Score(_) => "with --score, which asks no model".into(),
        };
        bail!("--{name} has no effect {mode}: leave it out")
    }

    fn options(self) -> Vec<&'static [&'static str]> {
        let source = |benchmark| if benchmark == "shapes" { WORLD } else { FILES };
        match self {
            Self::Compare => vec![&["compare", "seed", "json"]],
            Self::Questions => vec![&["questions", "images", "predictions", "batch", "show", "json"], MODEL, SAMPLING],
            Self::Scenes => vec![WORLD, &["batch", "show", "json"], MODEL, SAMPLING],
            Self::Benchmark(benchmark) => {
                let asked = &["resume", "choice", "instruction", "predictions", "batch"];
                vec![source(benchmark), SCORED, asked, MODEL, SAMPLING]
            }
            Self::Score(benchmark) => vec![source(benchmark), SCORED, &["score", "partial", "instruction"]],
        }
    }
}
