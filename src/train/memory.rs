//! Memory of a run, estimated before anything large is allocated: an allocation that fails ends the process.

use candle_core::Device;

use super::dataset::samples_in_memory;
use super::facts::static_bytes;
use super::recipe::{DataConfig, Recipe, UpdateConfig};
use crate::batch::Sequence;
use crate::config::{DecoderConfig, HaploVlConfig};
use crate::data::Dataset;
use crate::memory::available_bytes;
use crate::{Error, Result};

/// Minimum memory of a run in bytes. Counts are floating-point, since hostile settings exceed integers.
pub(super) struct MemoryNeeds {
    /// Activations of one sample, which the model's configuration decides.
    sample_activations: f64,
    /// Prepared samples, validation samples and batches, by the field that decides their number.
    data: Vec<(&'static str, f64)>,
    averaged: bool,
    ranks: usize,
}

impl MemoryNeeds {
    /// Needs of one of `ranks` ranks for the data, for samples like `first`.
    pub fn new(recipe: &Recipe, config: &HaploVlConfig, first: &Sequence, ranks: usize) -> Self {
        let UpdateConfig { batch_size, gradient_accumulation_steps, parallel_micro_batches, .. } = recipe.update;
        let sample = sample_bytes(first);
        let rows = batch_size as f64;
        let sample_activations = activation_bytes(recipe, config, first);
        let activations = (rows * parallel_micro_batches as f64 - 1.0) * sample_activations;
        let data = vec![
            ("update.batch_size", samples_in_memory(recipe) as f64 * sample + activations),
            ("update.gradient_accumulation_steps", rows * gradient_accumulation_steps as f64 / ranks as f64 * sample),
            ("data.max_eval_samples", eval_samples(&recipe.data) * sample),
        ];
        Self { sample_activations, data, averaged: recipe.optimizer.ema_decay.is_some(), ranks }
    }

    /// Rejects data that does not fit in memory.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that decides most of it.
    pub fn check_data(&self, device: &Device) -> Result<()> {
        self.check(0.0, device)
    }

    /// Rejects a model that does not fit in memory together with the data, given the numbers of all parameters and of
    /// those that are trained.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that decides most of it.
    pub fn check_model(&self, parameters: f64, trained: f64, device: &Device) -> Result<()> {
        self.check(static_bytes(parameters, trained, self.averaged, self.ranks), device)
    }

    fn check(&self, model: f64, device: &Device) -> Result<()> {
        if !device.is_cpu() {
            return Ok(());
        }
        let mut needs = vec![("config", model + self.sample_activations)];
        needs.extend(&self.data);
        check(&needs, available_bytes())
    }
}

/// Compares the sum of `needs`, by field, with the available bytes, if those are known.
fn check(needs: &[(&str, f64)], available: Option<f64>) -> Result<()> {
    let sum: f64 = needs.iter().map(|(_, bytes)| bytes).sum();
    let Some(available) = available.filter(|available| sum > *available) else { return Ok(()) };
    // A field that is too much alone is at fault, whatever the later ones make of it.
    let alone = needs.iter().find(|(_, bytes)| *bytes > available);
    let Some((field, bytes)) = alone.or(needs.iter().max_by(|a, b| a.1.total_cmp(&b.1))) else { return Ok(()) };
    let what = match *field {
        "config" => "parameters, gradients, optimizer moments and activations of one sample",
        _ => "samples and activations",
    };
    let [sum, bytes, available] = [sum, *bytes, available].map(|bytes| bytes / 1e9);
    Err(Error::config(
        *field,
        format!(
            "makes {what} of {bytes:.1} GB; the run needs at least {sum:.1} GB, and {available:.1} GB of memory are \
             available: choose smaller sizes"
        ),
    ))
}

/// Number of validation samples, as far as it is known before files are opened.
fn eval_samples(data: &DataConfig) -> f64 {
    match &data.validation {
        Some(super::DataSource::Shapes(dataset)) => data.max_eval_samples.min(dataset.len()) as f64,
        // The number of samples in files is not known before they are indexed.
        Some(super::DataSource::Files(_)) | None => 0.0,
    }
}

fn sample_bytes(sample: &Sequence) -> f64 {
    let pixels: usize = sample.visuals.iter().map(|visual| visual.pixel_values().elem_count()).sum();
    4.0 * (2 * sample.len() + pixels) as f64
}

/// Bytes of the activations that the backward pass needs, at least, for one row like `sample`.
fn activation_bytes(recipe: &Recipe, config: &HaploVlConfig, sample: &Sequence) -> f64 {
    let layer = |decoder: &DecoderConfig| (4 * decoder.hidden_size + decoder.intermediate_size) as f64;
    let layers = |decoder: &DecoderConfig| match recipe.update.gradient_checkpointing {
        true => (decoder.num_hidden_layers * decoder.hidden_size) as f64,
        false => decoder.num_hidden_layers as f64 * layer(decoder),
    };
    let decoders = match recipe.stage {
        super::Stage::Distill { .. } => layers(&config.pre_decoder),
        super::Stage::Language => layers(&config.post_decoder),
        _ => layers(&config.pre_decoder) + layers(&config.post_decoder),
    };
    4.0 * sample.len() as f64 * decoders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_with_the_largest_share_is_named() {
        let needs = [("update.batch_size", 3e9), ("config", 2e9)];
        assert!(check(&needs, Some(5e9)).is_ok() && check(&needs, None).is_ok());
        let error = check(&needs, Some(4e9)).unwrap_err().to_string();
        assert!(error.contains("`update.batch_size`") && error.contains("5.0 GB"), "{error}");
    }
}
