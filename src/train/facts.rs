//! Summary of a run to check before it starts.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::Var;

use super::adapted::Frozen;
use super::data_facts::DataFacts;
use super::recipe::Recipe;
use crate::Result;
use crate::batch::{IGNORE_INDEX, Sequence};
use crate::config::HaploVlConfig;
use crate::model::{ADAPTER_PREFIX, HaploVl};
use crate::processor::{EndOfTurn, Processor};
use crate::weights::Parameters;

/// Summary of a run to check before it starts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Facts {
    /// Parameters of each part of the model: all, and trained.
    pub parts: BTreeMap<String, (usize, usize)>,
    /// Summary of the pretrained weights that were copied.
    pub inheritance: Option<String>,
    /// Size of the vocabulary, tokens that were added to it, and the share of the words to learn that it lacks.
    pub vocabulary: String,
    /// Bytes of parameters, gradients, optimizer moments and EMA on each rank, about, without activations.
    pub static_bytes: usize,
    /// Training and validation data.
    pub data: DataFacts,
    /// What in the recipe may not be meant.
    pub warnings: Vec<String>,
    /// First training sample as the model sees it, with trained text in brackets.
    pub sample: String,
}

impl Facts {
    pub(super) fn new(
        parameters: &Parameters,
        trained: &BTreeMap<String, Var>,
        averaged: bool,
        ranks: usize,
        inheritance: Option<String>,
        vocabulary: String,
        sample: String,
    ) -> Self {
        let mut parts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (name, var) in parameters.iter() {
            let (all, learnt) = parts.entry(part_of(&name)).or_default();
            *all += var.elem_count();
            *learnt += if trained.contains_key(&name) { var.elem_count() } else { 0 };
        }
        let (all, learnt) = parts.values().fold((0, 0), |(a, t), (all, learnt)| (a + all, t + learnt));
        let static_bytes = static_bytes(all as f64, learnt as f64, averaged, ranks) as usize;
        let (data, warnings) = (DataFacts::default(), Vec::new());
        Self { parts, inheritance, vocabulary, static_bytes, data, warnings, sample }
    }

    /// The facts with those about the frozen weights below an adapter.
    pub(super) fn with_frozen(mut self, frozen: Option<&Frozen>, config: &HaploVlConfig) -> Result<Self> {
        let Some(frozen) = frozen else { return Ok(self) };
        for (name, shape) in HaploVl::parameter_shapes(config)? {
            self.parts.entry(part_of(&name)).or_default().0 += shape.iter().product::<usize>();
        }
        self.static_bytes += frozen.bytes as usize;
        Ok(self)
    }

    /// The facts with those about the data, and what in the recipe may not be meant.
    pub(super) fn with_data(
        self,
        data: DataFacts,
        recipe: &Recipe,
        config: &HaploVlConfig,
        processor: &Processor,
    ) -> Self {
        let turns = end_of_turn_warning(processor);
        Self { warnings: warnings(recipe, config, &data).into_iter().chain(turns).collect(), data, ..self }
    }
}

/// Part of the model that a parameter belongs to; an adapter is one part.
fn part_of(name: &str) -> String {
    match name.strip_prefix(ADAPTER_PREFIX) {
        Some(_) => "adapter".into(),
        None => name.split('.').take(2).collect::<Vec<_>>().join("."),
    }
}

/// What is to be known of a template that ends no turn.
fn end_of_turn_warning(processor: &Processor) -> Option<String> {
    match processor.end_of_turn() {
        EndOfTurn::Template(_) => None,
        EndOfTurn::Added(id) => {
            let token = processor.tokenizer().inner().id_to_token(id).unwrap_or_default();
            Some(format!(
                "the chat template ends no turn: {token:?} (`eos_token`) is put after each last answer and learned"
            ))
        }
        EndOfTurn::Missing => Some(
            "the chat template ends no turn and the tokenizer has no `eos_token`: answers will run to their length \
             limit; set `eos_token` in tokenizer_config.json"
                .into(),
        ),
    }
}

/// What in a recipe may not be meant, each as a line.
fn warnings(recipe: &Recipe, config: &HaploVlConfig, data: &DataFacts) -> Vec<String> {
    let (longest, context) = (recipe.data.max_length, config.max_position_embeddings);
    let beyond = (longest > context).then(|| {
        format!(
            "`data.max_length` is {longest}, but the model's context has {context} tokens: longer samples are too long"
        )
    });
    let (share, most) = (data.unusable_share(), recipe.data.max_bad_share);
    let unusable = (share > most).then(|| {
        format!(
            "about {:.1} % of the samples cannot be used, and the run stops above {:.1} % (`data.max_bad_share`): mend them, \
             or for long ones raise `data.max_length` or set `data.truncate_answers`",
            100.0 * share,
            100.0 * most
        )
    });
    recipe.notice().map(String::from).into_iter().chain(beyond).chain(unusable).collect()
}

/// Bytes of f32 parameters and, for the trained ones, of a gradient, and a rank's share of two moments and on request an EMA.
/// In floating point, since hostile configurations exceed integers.
pub(super) fn static_bytes(parameters: f64, trained: f64, averaged: bool, ranks: usize) -> f64 {
    4.0 * parameters + (4.0 + if averaged { 12.0 } else { 8.0 } / ranks as f64) * trained
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<32} {:>14} {:>14}", "part", "parameters", "trained")?;
        for (part, (all, trained)) in &self.parts {
            writeln!(f, "{part:<32} {all:>14} {trained:>14}")?;
        }
        let (all, trained) = self.parts.values().fold((0, 0), |(a, t), (all, trained)| (a + all, t + trained));
        writeln!(f, "{:<32} {all:>14} {trained:>14}", "total")?;
        let megabytes = self.static_bytes as f64 / 1e6;
        writeln!(f, "parameters, gradients and moments: {megabytes:.0} MB, without activations")?;
        match &self.inheritance {
            Some(inheritance) => writeln!(f, "{inheritance}")?,
            None => writeln!(f, "no `stage.init_from`: the model starts from random weights")?,
        }
        writeln!(f, "{}", self.vocabulary)?;
        writeln!(f, "{}", self.data)?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))?;
        write!(f, "first sample, trained text in brackets:\n{}", self.sample)
    }
}

/// Text of a sample, with labelled spans in brackets.
pub(super) fn describe(sequence: &Sequence, processor: &Processor) -> Result<String> {
    let labels = sequence.labels.clone().unwrap_or_else(|| vec![IGNORE_INDEX; sequence.len()]);
    let learnt = |i: &usize| labels[*i] != IGNORE_INDEX;
    let mut text = String::new();
    let positions: Vec<usize> = (0..sequence.len()).collect();
    for stretch in positions.chunk_by(|a, b| learnt(a) == learnt(b)) {
        let ids: Vec<u32> = stretch.iter().map(|&i| sequence.input_ids[i]).collect();
        let words = without_runs(&processor.tokenizer().decode(&ids, false)?);
        text.push_str(&if learnt(&stretch[0]) { format!("[{words}]") } else { words });
    }
    Ok(text)
}

/// Repeated words once, with their number: an image is hundreds of placeholders.
fn without_runs(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let run = |run: &[&str]| match run {
        [word] => (*word).to_string(),
        run => format!("{} x {}", run[0], run.len()),
    };
    words.chunk_by(|a, b| a == b).map(run).collect::<Vec<_>>().join(" ")
}
