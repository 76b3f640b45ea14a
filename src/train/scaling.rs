//! What a run would hold and send on several ranks, computed from a recipe without building its model.

use std::collections::BTreeMap;
use std::fmt;

use super::buckets::BUCKET;
use super::export::{clip_of, llm_of};
use super::parameter_groups::trained_names;
use super::recipe::{Recipe, Stage, in_recipe};
use super::reduction::IN_FLIGHT;
use super::{Contrastive, FloatType};
use crate::config::{DecoderConfig, HaploVlConfig, MlpKind};
use crate::model::{Adapter, DistillationHeads, HaploVl, LanguageModel, PreDecoderModel};
use crate::optim::Shards;
use crate::options::Quantization;
use crate::weights::ParameterShapes;
use crate::{Error, Result};

/// Bytes of an f32.
const F32: f64 = 4.0;
/// Bytes of a frozen weight below an adapter that is not quantised: bf16, as models are published.
const FROZEN: f64 = 2.0;

/// Memory and messages of a run on several ranks, for the rank that holds most.
///
/// Samples are taken to be as long as `data.max_length` allows, and the vocabulary to be that of the configuration. Activations
/// are what the backward pass needs, about; logits are computed in chunks and not counted.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Scaling {
    /// Number of ranks.
    pub ranks: usize,
    /// Micro-batches of each rank in a step.
    pub micro_batches: usize,
    /// Rows of a micro-batch.
    pub rows: usize,
    /// Tokens of a row.
    pub tokens: usize,
    /// Number of parameters, frozen ones included.
    pub parameters: f64,
    /// Number of trained parameters.
    pub trained: f64,
    /// Number of trained parameters that each rank owns.
    pub owned: Vec<usize>,
    /// Bytes of all parameters, which each rank holds.
    pub parameter_bytes: f64,
    /// Whether an EMA of the parameters is kept.
    pub is_averaged: bool,
    /// Whether the recipe recomputes activations.
    pub is_checkpointed: bool,
    /// Bytes of the activations of a micro-batch, kept and recomputed.
    pub activations: [f64; 2],
    /// Bytes of the attention scores of a micro-batch where attention is dense, as on a GPU, kept and recomputed.
    pub scores: [f64; 2],
    /// Floating-point operations of a rank in a step.
    pub flops: f64,
    /// Memory of a device in bytes, to compare with.
    pub device_memory: Option<f64>,
    /// Bytes that a rank sends in a second, at best.
    pub bandwidth: Option<f64>,
    /// Floating-point operations that a device does in a second.
    pub flops_per_second: f64,
}

impl Recipe {
    /// What a run of this recipe would hold and send on each of `ranks` ranks. Neither models nor data are opened.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field if the recipe is invalid, and errors of its model configuration.
    pub fn scaling(&self, ranks: usize) -> Result<Scaling> {
        self.validate()?;
        if ranks == 0 {
            return Err(Error::config("world", "is 0, expected at least 1 rank"));
        }
        let config = self.model_config().map_err(|e| self.in_field("config", e))?;
        let Shapes { all, trained, parameter_bytes } = shapes_of(self, &config)?;
        let size = |shape: &Vec<usize>| shape.iter().map(|side| *side as f64).product::<f64>();
        let owners = trained.iter().map(|(name, shape)| (name.clone(), size(shape) as usize));
        let shards = Shards::new(owners, ranks);
        let work = Work::new(self, &config, &trained);
        Ok(Scaling {
            ranks,
            micro_batches: self.update.gradient_accumulation_steps,
            rows: self.update.batch_size,
            tokens: work.tokens,
            parameters: all.values().map(size).sum(),
            trained: trained.values().map(size).sum(),
            owned: shards.elements().to_vec(),
            parameter_bytes,
            is_averaged: self.optimizer.ema_decay.is_some(),
            is_checkpointed: self.update.gradient_checkpointing,
            activations: work.activations(),
            scores: work.scores(),
            flops: work.flops(matrices(&all), matrices(&trained)),
            device_memory: None,
            bandwidth: None,
            flops_per_second: Scaling::FLOPS,
        })
    }
}

/// Parameters of a run.
struct Shapes {
    all: BTreeMap<String, Vec<usize>>,
    trained: BTreeMap<String, Vec<usize>>,
    parameter_bytes: f64,
}

/// The parameters of a recipe, found without its sources.
fn shapes_of(recipe: &Recipe, config: &HaploVlConfig) -> Result<Shapes> {
    let mut all = stage_shapes(&recipe.stage, config)?;
    let mut bytes = F32 * elements(&all);
    let mut candidates = all.clone();
    candidates.retain(|name, _| recipe.stage.trains(name));
    if let Some(adapter) = &recipe.adapter {
        bytes = frozen_bytes(config, &all, adapter.quantization()?)?;
        candidates = Adapter::shapes(&adapter.lora(""), config).map_err(in_recipe)?;
        bytes += F32 * elements(&candidates);
        all.extend(candidates.clone());
    }
    let names = trained_names(recipe, config, &candidates.keys().cloned().collect::<Vec<_>>())?;
    candidates.retain(|name, _| names.contains(name));
    Ok(Shapes { all, trained: candidates, parameter_bytes: bytes })
}

/// Parameters of the model of a stage. A teacher of stage 1 is taken to be as wide as the student.
fn stage_shapes(stage: &Stage, config: &HaploVlConfig) -> Result<BTreeMap<String, Vec<usize>>> {
    let recorded = ParameterShapes::default();
    let vb = recorded.var_builder();
    match stage {
        Stage::Vision { projection_dim } => {
            Contrastive::new(&clip_of(config), &llm_of(config), *projection_dim, vb).map(drop)
        }
        Stage::Language => LanguageModel::new(&llm_of(config), vb).map(drop),
        Stage::Distill { .. } => {
            let (width, words) = (config.pre_decoder.hidden_size, config.post_decoder.hidden_size);
            DistillationHeads::new(width, width, words, vb.clone())?;
            PreDecoderModel::new(config, vb).map(drop)
        }
        Stage::Align { .. } | Stage::Tune { .. } => HaploVl::new(config, vb).map(drop),
    }?;
    Ok(recorded.shapes())
}

fn elements(shapes: &BTreeMap<String, Vec<usize>>) -> f64 {
    shapes.values().map(|shape| shape.iter().map(|side| *side as f64).product::<f64>()).sum()
}

/// Elements of the weights that are multiplied with every token: those with two sides, without tables of embeddings.
fn matrices(shapes: &BTreeMap<String, Vec<usize>>) -> f64 {
    let is_matrix = |(name, shape): &(&String, &Vec<usize>)| shape.len() == 2 && !name.contains("embed");
    shapes.iter().filter(is_matrix).map(|(_, shape)| shape.iter().map(|side| *side as f64).product::<f64>()).sum()
}

/// Bytes of the frozen weights below an adapter.
fn frozen_bytes(
    config: &HaploVlConfig,
    shapes: &BTreeMap<String, Vec<usize>>,
    quantization: Option<Quantization>,
) -> Result<f64> {
    let Some(block) = quantization.map(Quantization::ggml_dtype) else { return Ok(FROZEN * elements(shapes)) };
    let matrices = HaploVl::matrices(config)?;
    let is_quantized = |name: &String| matrices.contains(name);
    let (blocks, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        shapes.clone().into_iter().partition(|(name, _)| is_quantized(name));
    let bytes_per_weight = block.type_size() as f64 / block.block_size() as f64;
    Ok(bytes_per_weight * elements(&blocks) + FROZEN * elements(&others))
}

/// Activations and operations of a micro-batch.
struct Work<'a> {
    decoders: Vec<&'a DecoderConfig>,
    rows: f64,
    tokens: usize,
    micro_batches: f64,
    /// Bytes of an activation.
    width: f64,
    is_checkpointed: bool,
    /// Results of layers that DoRA keeps before it scales them: of all layers, and of the one that has most.
    scaled: [f64; 2],
}

impl<'a> Work<'a> {
    fn new(recipe: &Recipe, config: &'a HaploVlConfig, trained: &BTreeMap<String, Vec<usize>>) -> Self {
        let decoders = match recipe.stage {
            Stage::Distill { .. } => vec![&config.pre_decoder],
            Stage::Language => vec![&config.post_decoder],
            _ => vec![&config.pre_decoder, &config.post_decoder],
        };
        Self {
            decoders,
            rows: recipe.update.batch_size as f64,
            tokens: recipe.data.max_length.min(config.max_position_embeddings),
            micro_batches: recipe.update.gradient_accumulation_steps as f64,
            width: if recipe.update.compute_dtype == FloatType::F32 { F32 } else { 2.0 },
            is_checkpointed: recipe.update.gradient_checkpointing,
            scaled: scaled_results(trained),
        }
    }

    /// Sum over all layers, and the largest layer.
    fn layers(&self, of: impl Fn(&DecoderConfig) -> f64) -> (f64, f64) {
        let sum = self.decoders.iter().map(|decoder| decoder.num_hidden_layers as f64 * of(decoder)).sum();
        (sum, self.decoders.iter().map(|decoder| of(decoder)).fold(0.0, f64::max))
    }

    /// Bytes that are kept for the backward pass: in every layer, or at its input and in one layer.
    fn activations(&self) -> [f64; 2] {
        let scale = self.rows * self.tokens as f64 * self.width;
        let (kept, largest) = self.layers(|decoder| {
            let (query, key) = widths(decoder);
            let mlp = if decoder.mlp == MlpKind::Plain { 2 } else { 3 } * decoder.intermediate_size;
            (4 * decoder.hidden_size + 2 * query + 2 * key + mlp) as f64
        });
        let (inputs, _) = self.layers(|decoder| decoder.hidden_size as f64);
        let [scaled, scaled_of_layer] = self.scaled;
        [scale * (kept + scaled), scale * (inputs + largest + scaled_of_layer)]
    }

    /// Bytes of scores and probabilities: in every layer, or in one.
    fn scores(&self) -> [f64; 2] {
        let square = self.rows * (self.tokens as f64).powi(2) * self.width;
        let (all, largest) = self.layers(|decoder| 2.0 * decoder.num_attention_heads as f64);
        [square * all, square * largest]
    }

    /// Operations of a step: two for each weight and token in the forward pass, as many for the gradient of the input, for
    /// that of a trained weight, and for recomputing; and those of attention.
    fn flops(&self, all: f64, trained: f64) -> f64 {
        let passes = if self.is_checkpointed { 3.0 } else { 2.0 };
        let (attention, _) = self.layers(|decoder| 4.0 * self.tokens as f64 * widths(decoder).0 as f64);
        let per_token = 2.0 * (passes * all + trained) + (passes + 1.0) * attention;
        self.micro_batches * self.rows * self.tokens as f64 * per_token
    }
}

/// Numbers of outputs that have a magnitude: of all layers, and of the one with most of them.
fn scaled_results(trained: &BTreeMap<String, Vec<usize>>) -> [f64; 2] {
    let mut by_layer = BTreeMap::<&str, f64>::new();
    for (name, shape) in trained.iter().filter(|(name, _)| name.ends_with("lora_magnitude_vector")) {
        let layer = name.split_once(".layers.").and_then(|(_, rest)| rest.split('.').next()).unwrap_or_default();
        *by_layer.entry(layer).or_default() += shape.iter().product::<usize>() as f64;
    }
    [by_layer.values().sum(), by_layer.values().copied().fold(0.0, f64::max)]
}

/// Widths of all queries and of all keys.
fn widths(decoder: &DecoderConfig) -> (usize, usize) {
    (decoder.num_attention_heads * decoder.head_dim(), decoder.num_key_value_heads * decoder.head_dim())
}

impl Scaling {
    /// Operations in a second if nothing else is said: what a GPU with a peak of 312 TFLOP/s in bf16 reaches in training.
    pub const FLOPS: f64 = 120e12;

    /// Parameters that the fullest rank owns.
    fn largest_share(&self) -> f64 {
        self.owned.iter().copied().max().unwrap_or_default() as f64
    }

    /// What the fullest rank holds, by name, without activations.
    pub fn static_bytes(&self) -> Vec<(String, f64)> {
        let share = self.largest_share();
        let mut lines = vec![(format!("all {:.0} parameters", self.parameters), self.parameter_bytes)];
        let whole = F32 * self.trained;
        if self.ranks == 1 {
            lines.push(("gradients".into(), whole));
        } else if self.micro_batches == 1 {
            lines.push(("sums of the gradients of its share".into(), F32 * share));
        } else {
            lines.push(("gradients of earlier micro-batches".into(), whole));
            lines.push(("sums of the gradients of its share".into(), F32 * share));
        }
        lines.push((format!("moments of its {share:.0} parameters"), 2.0 * F32 * share));
        if self.is_averaged {
            lines.push(("EMA of its share".into(), F32 * share));
        }
        if self.ranks > 1 {
            // Each bucket as it was sent, and its share from all ranks.
            lines.push(("messages under way".into(), 2.0 * F32 * (IN_FLIGHT * BUCKET) as f64));
        }
        lines
    }

    /// Bytes that the fullest rank holds, with the activations of a micro-batch kept or recomputed.
    pub fn total_bytes(&self, is_recomputed: bool) -> f64 {
        let at = usize::from(is_recomputed);
        let fixed: f64 = self.static_bytes().iter().map(|(_, bytes)| bytes).sum();
        fixed + self.activations[at] + self.scores[at]
    }

    /// Bytes of gradients and of parameters that the fullest rank sends in a step.
    pub fn sent_bytes(&self) -> (f64, f64) {
        if self.ranks == 1 {
            return (0.0, 0.0);
        }
        let least = self.owned.iter().copied().min().unwrap_or_default() as f64;
        let others = (self.ranks - 1) as f64;
        (F32 * (self.trained - least), F32 * self.largest_share() * others)
    }

    fn write_memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, bytes: f64| {
            writeln!(f, "{name:<52} {bytes:>16.0} bytes {:>9.2} GB", bytes / 1e9)
        };
        let of = if self.ranks == 1 { "one process".into() } else { format!("the fullest of {} ranks", self.ranks) };
        writeln!(f, "{of} holds")?;
        self.static_bytes().iter().try_for_each(|(name, bytes)| line(f, &format!("  {name}"), *bytes))?;
        writeln!(f, "  and for {} rows of {} tokens", self.rows, self.tokens)?;
        for (at, how) in [(0, "kept"), (1, "recomputed")] {
            line(f, &format!("  activations, {how}"), self.activations[at])?;
            line(f, &format!("  attention scores on a GPU, {how}"), self.scores[at])?;
        }
        for (is_recomputed, how) in [(false, "kept"), (true, "recomputed")] {
            let chosen = if is_recomputed == self.is_checkpointed { ", as the recipe says" } else { "" };
            line(f, &format!("in all, activations {how}{chosen}"), self.total_bytes(is_recomputed))?;
        }
        Ok(())
    }

    fn write_fit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(memory) = self.device_memory else { return Ok(()) };
        let total = self.total_bytes(self.is_checkpointed);
        let verdict = if total <= memory { "fits in" } else { "does not fit in" };
        writeln!(f, "{:.1} GB {verdict} {:.1} GB", total / 1e9, memory / 1e9)?;
        // What grows with the model, for each parameter.
        let grows: f64 = self.static_bytes().iter().filter(|(name, _)| name != "messages under way").map(|l| l.1).sum();
        let most = (memory - (total - grows)).max(0.0) / (grows / self.parameters);
        writeln!(
            f,
            "a model of up to {:.2} B parameters would fit, with these activations; beyond, parameters would have to be \
             sharded, which this crate does not do",
            most / 1e9
        )
    }

    fn write_messages(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (gradients, parameters) = self.sent_bytes();
        write!(
            f,
            "a rank sends at most {gradients:.0} bytes of gradients and {parameters:.0} bytes of parameters a step, and \
             receives as many"
        )?;
        let Some(bandwidth) = self.bandwidth else { return Ok(()) };
        let seconds = self.flops / self.flops_per_second;
        let [hidden, open] = [gradients, parameters].map(|bytes| bytes / bandwidth);
        let share = |communication: f64| 100.0 * communication / (seconds + communication);
        // Of the last micro-batch, the backward pass is about two thirds.
        let beside = 2.0 / 3.0 * seconds / self.micro_batches as f64;
        let left = (hidden - beside).max(0.0) + open;
        write!(
            f,
            "\na step computes {:.3e} operations on each rank, {seconds:.2} s at {:.0} TFLOP/s; at {:.1} GB/s gradients take \
             {hidden:.2} s, of which {:.2} s beside the backward pass, and parameters {open:.2} s: {:.1} % of the step, \
             {:.1} % if nothing went beside",
            self.flops,
            self.flops_per_second / 1e12,
            bandwidth / 1e9,
            hidden.min(beside),
            share(left),
            share(hidden + open)
        )
    }
}

impl fmt::Display for Scaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.ranks * self.micro_batches * self.rows;
        writeln!(
            f,
            "{rows} rows a step: {} ranks with {} micro-batches of {} rows",
            self.ranks, self.micro_batches, self.rows
        )?;
        self.write_memory(f)?;
        self.write_fit(f)?;
        self.write_messages(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(settings: &[&str]) -> Recipe {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/haplovl-7b/tune.toml");
        Recipe::read(path, &settings.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn memory_of_a_rank_falls_with_their_number() {
        let micro = "update.gradient_accumulation_steps=1";
        let [one, eight, many] = [1, 8, 32].map(|ranks| recipe(&[micro]).scaling(ranks).unwrap());
        assert!(one.parameters > 6.5e9 && one.parameters == one.trained, "{}", one.parameters);
        let fixed = |scaling: &Scaling| scaling.static_bytes().iter().map(|(_, bytes)| bytes).sum::<f64>();
        assert_eq!(fixed(&one), 16.0 * one.parameters);
        // Parameters on all ranks, gradients and moments of a share.
        let expected = 4.0 * one.parameters + 12.0 * eight.largest_share();
        assert_eq!(fixed(&eight), expected + 2.0 * 4.0 * (IN_FLIGHT * BUCKET) as f64);
        assert!(fixed(&many) < fixed(&eight) && fixed(&eight) < 0.5 * fixed(&one));
        assert!(eight.activations[1] < 0.2 * eight.activations[0]);
        assert_eq!(one.sent_bytes(), (0.0, 0.0));
        let (gradients, parameters) = eight.sent_bytes();
        assert!((0.85..0.9).contains(&(gradients / (4.0 * one.parameters))), "{gradients}");
        assert!((0.85..1.0).contains(&(parameters / (4.0 * one.parameters))), "{parameters}");
    }

    #[test]
    fn the_report_says_whether_it_fits_and_what_communication_costs() {
        let mut scaling = recipe(&["update.gradient_accumulation_steps=4"]).scaling(8).unwrap();
        (scaling.device_memory, scaling.bandwidth) = (Some(80e9), Some(25e9));
        let text = scaling.to_string();
        for part in
            ["128 rows a step", "gradients of earlier micro-batches", "80.0 GB", "% of the step", "B parameters"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn adapters_send_little_and_every_stage_is_known() {
        let adapted = recipe(&["adapter.rank=16", "adapter.quantize=q4_k"]).scaling(4).unwrap();
        assert!(adapted.trained < 0.02 * adapted.parameters && adapted.parameter_bytes < adapted.parameters);
        let scaled = recipe(&["adapter.rank=16", "adapter.quantize=q4_k", "adapter.use_dora=true"]).scaling(4).unwrap();
        let more = |at: usize| scaled.activations[at] / adapted.activations[at];
        assert!((1.2..2.0).contains(&more(0)) && (1.0..more(0)).contains(&more(1)), "{} {}", more(0), more(1));
        for stage in ["vision", "language"] {
            let settings = match stage {
                "vision" => r#"stage={ kind = "vision", projection_dim = 8 }"#,
                _ => r#"stage={ kind = "language" }"#,
            };
            let plain = ["update.gradient_checkpointing=false", "update.compute_dtype=f32", "data.layout=in_order"];
            let found = recipe(&[&[settings][..], &plain[..]].concat()).scaling(2).unwrap();
            assert!(found.trained > 0.0, "{stage}");
        }
        assert!(recipe(&[]).scaling(0).unwrap_err().to_string().contains("world"));
    }
}
