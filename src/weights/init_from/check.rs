//! Compatibility of a decoder with the weights of another model.

use std::fmt::Debug;

use crate::config::{DecoderConfig, MlpKind};
use crate::{Error, Result};

/// Collector of the fields that make an initialisation impossible.
pub(super) struct Compatibility {
    decoder: &'static str,
    problems: Vec<String>,
}

impl Compatibility {
    /// Compares sizes and structure; `decoder` is the field of our decoder in messages, for example `post_decoder`.
    pub(super) fn of(decoder: &'static str, ours: &DecoderConfig, theirs: &DecoderConfig) -> Self {
        let mut checks = Self { decoder, problems: Vec::new() };
        checks.equal("hidden_size", ours.hidden_size, theirs.hidden_size);
        checks.equal("intermediate_size", ours.intermediate_size, theirs.intermediate_size);
        checks.equal("num_hidden_layers", ours.num_hidden_layers, theirs.num_hidden_layers);
        checks.equal("num_attention_heads", ours.num_attention_heads, theirs.num_attention_heads);
        checks.equal("num_key_value_heads", ours.num_key_value_heads, theirs.num_key_value_heads);
        checks.equal("head_dim", ours.head_dim(), theirs.head_dim());
        checks.equal("qk_norm", ours.qk_norm, theirs.qk_norm);
        checks.equal("hidden_act", ours.hidden_act, theirs.hidden_act);
        checks.equal("norm_mode", ours.norm_mode, theirs.norm_mode);
        checks.equal("norm_eps", ours.norm_eps, theirs.norm_eps);
        checks.has("qkv_bias", ours.qkv_bias, theirs.qkv_bias);
        checks.has("output_bias", ours.output_bias, theirs.output_bias);
        checks.has("mlp_bias", ours.mlp_bias, theirs.mlp_bias);
        match (ours.mlp, theirs.mlp) {
            (MlpKind::Plain, MlpKind::Gated) => checks.equal("mlp", ours.mlp, theirs.mlp),
            // A bias of one keeps the gate constant.
            (MlpKind::Gated, MlpKind::Plain) => checks.has("mlp_bias", ours.mlp_bias, true),
            _ => {}
        }
        checks
    }

    /// Records a problem unless the two values of the decoder's `field` are equal.
    pub(super) fn equal<T: PartialEq + Debug>(&mut self, field: &str, ours: T, theirs: T) {
        if ours != theirs {
            self.problems.push(format!("{}.{field} is {ours:?}, not {theirs:?}", self.decoder));
        }
    }

    /// Records a problem if the source has a parameter that the model lacks.
    fn has(&mut self, field: &str, ours: bool, theirs: bool) {
        if theirs && !ours {
            self.problems.push(format!("{}.{field} is false, not true", self.decoder));
        }
    }

    /// Records a problem with a message of its own.
    pub(super) fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Returns one error for all problems, if there are any.
    pub(super) fn finish(self, source: &str) -> Result<()> {
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(Error::weights(format!("cannot initialise from {source}: {}", self.problems.join("; "))))
    }
}
