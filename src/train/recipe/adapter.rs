//! LoRA adapters in recipes.

use serde::{Deserialize, Serialize};

use crate::config::{LoraConfig, ModuleNames};
use crate::options::Quantization;
use crate::{Error, Result};

/// LoRA adapter that is trained instead of the model's own parameters, which stay frozen.
///
/// The run's parameters are the adapter's matrices and the modules to save whole; checkpoints and the export hold
/// nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AdapterConfig {
    /// Rank of the matrices.
    #[serde(alias = "r")]
    pub rank: usize,
    /// Numerator of the scale; the rank if absent, which makes the scale 1.
    #[serde(default, alias = "lora_alpha", skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Whether the scale is `alpha / sqrt(rank)` (rank-stabilised) instead of `alpha / rank`.
    #[serde(default)]
    pub use_rslora: bool,
    /// Whether the norm of each row of an adapted weight is trained too (DoRA).
    #[serde(default)]
    pub use_dora: bool,
    /// Probability with which an element of an adapted layer's input is dropped.
    #[serde(default, alias = "lora_dropout")]
    pub dropout: f64,
    /// Linear layers with an adapter: a list of names or of ends of names after a dot, or a regular expression for whole
    /// names, or `all-linear` for all but the head.
    #[serde(default = "all_linear")]
    pub target_modules: Targets,
    /// Modules without an adapter although they are targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    /// Ends of the names of modules that are trained whole: `pre_connector`, `norm`, `image_newline`, `embed_tokens`.
    #[serde(default)]
    pub modules_to_save: Vec<String>,
    /// Block format of the frozen weight matrices, on the CPU: `q8_0`, `q6_k` or `q4_k`. If absent, the matrices stay as
    /// they are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<String>,
}

/// A list of names, or a pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Targets {
    /// A regular expression for whole names.
    Pattern(String),
    /// Names, or ends of names after a dot.
    List(Vec<String>),
}

fn all_linear() -> Targets {
    Targets::Pattern("all-linear".into())
}

impl Targets {
    fn names(&self) -> ModuleNames {
        match self {
            Self::Pattern(pattern) => ModuleNames::Pattern(pattern.clone()),
            Self::List(names) => ModuleNames::List(names.clone()),
        }
    }
}

impl AdapterConfig {
    /// An adapter of this rank on all linear layers but the head, with scale 1.
    pub fn new(rank: usize) -> Self {
        Self {
            rank,
            alpha: None,
            use_rslora: false,
            use_dora: false,
            dropout: 0.0,
            target_modules: all_linear(),
            exclude_modules: None,
            modules_to_save: Vec::new(),
            quantize: None,
        }
    }

    /// The configuration in PEFT's form.
    pub fn lora(&self, base_model: &str) -> LoraConfig {
        let alpha = self.alpha.unwrap_or(self.rank as f64);
        let mut lora = LoraConfig::new(self.rank, alpha, self.target_modules.names());
        (lora.use_rslora, lora.use_dora, lora.lora_dropout) = (self.use_rslora, self.use_dora, self.dropout);
        lora.exclude_modules = self.exclude_modules.as_ref().map(Targets::names);
        lora.modules_to_save = self.modules_to_save.clone();
        lora.base_model_name_or_path = base_model.into();
        lora
    }

    /// The block format of the frozen matrices.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown one.
    pub fn quantization(&self) -> Result<Option<Quantization>> {
        let kind = self.quantize.as_deref().map(str::parse::<Quantization>).transpose();
        kind.map_err(|e| Error::config("adapter.quantize", e.to_string()).caused_by(e))
    }

    /// Checks the ranges of the fields.
    pub(super) fn validate(&self) -> Result<()> {
        self.quantization()?;
        self.lora("").validate().map_err(in_recipe)
    }
}

/// An error of PEFT's configuration, with the name that the field has in a recipe.
pub(in crate::train) fn in_recipe(error: Error) -> Error {
    match error {
        Error::Config { field, message, source } => {
            let field = match field.as_str() {
                "r" => "rank",
                "lora_alpha" => "alpha",
                "lora_dropout" => "dropout",
                other => other,
            };
            Error::Config { field: format!("adapter.{field}"), message, source }
        }
        other => other,
    }
}
