//! Model options of the examples, and loading of the model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use haplovl::model::HaploVl;
use haplovl::options::{DeviceChoice, DtypeChoice, KvCacheDtype, Quantization};
use haplovl::pipeline::{LoadOptions, LoadedModel, ModelSource};
use serde_json::{Map, Value};

use crate::{cli, download};

/// Options for the model without adapter, its device and its dtypes.
#[derive(Debug, Args)]
pub struct BaseOptions {
    /// `builtin`, a folder, or a hub id such as ORGANISATION/NAME or ORGANISATION/NAME@REVISION
    #[arg(long, default_value = "builtin", value_name = "MODEL")]
    model: ModelSource,
    /// Device: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Dtype of activations and weights: auto (bf16 on a GPU, f32 on the CPU), f32, f16 or bf16
    #[arg(long, default_value = "auto")]
    dtype: DtypeChoice,
    /// Quantise the weights, on the CPU: q8_0, q6_k or q4_k
    #[arg(long, value_name = "TYPE")]
    quantize: Option<Quantization>,
    /// Dtype of the KV cache: auto (half with quantised weights, else full), full (as activations) or half (16 bits)
    #[arg(long, default_value = "auto", value_name = "TYPE")]
    cache: KvCacheDtype,
}

/// Options for the model, its adapter, its device and its dtypes.
#[derive(Debug, Args)]
#[allow(dead_code, reason = "each example compiles this module and uses a part of it")]
pub struct ModelOptions {
    #[command(flatten)]
    base: BaseOptions,
    /// Folder of a LoRA or DoRA adapter in PEFT's form: adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

#[allow(dead_code, reason = "each example compiles this module and uses a part of it")]
impl ModelOptions {
    /// Where the model comes from.
    pub fn source(&self) -> &ModelSource {
        self.base.source()
    }

    /// Where the adapter is.
    pub fn adapter(&self) -> Option<&Path> {
        self.adapter.as_deref()
    }

    /// The options that answers depend on beside the model and its adapter, without those that are left at their defaults.
    pub fn settings(&self) -> Map<String, Value> {
        let BaseOptions { device, dtype, quantize, cache, .. } = &self.base;
        let name = |choice: String| Value::from(choice.to_lowercase());
        let settings = [
            ("device", (*device != DeviceChoice::default()).then(|| name(format!("{device:?}")))),
            ("dtype", (*dtype != DtypeChoice::default()).then(|| name(format!("{dtype:?}")))),
            ("quantize", quantize.map(|quantize| name(quantize.to_string()))),
            ("cache", (*cache != KvCacheDtype::default()).then(|| name(format!("{cache:?}")))),
        ];
        settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// Loads the model with its adapter, and prints its size and device on stderr.
    pub fn load(&self) -> Result<LoadedModel> {
        let loaded = self.base.load()?;
        Ok(match &self.adapter {
            Some(folder) => loaded.with_adapter(folder)?,
            None => loaded,
        })
    }
}

impl BaseOptions {
    /// Where the model comes from.
    #[allow(dead_code, reason = "each example compiles this module and uses a part of it")]
    pub fn source(&self) -> &ModelSource {
        &self.model
    }

    /// Loads the model, and prints its size and device on stderr.
    pub fn load(&self) -> Result<LoadedModel> {
        let start = Instant::now();
        let Self { device, dtype, quantize, cache, .. } = *self;
        let options = LoadOptions::default().with_device(device).with_dtype(dtype);
        let options = options.with_quantization(quantize).with_kv_cache_dtype(cache);
        cli::note(format_args!("loading {} ...", self.model));
        // Opened before a download of gigabytes: a device that is missing now will be missing after it.
        device.open()?;
        let loaded = match &self.model {
            ModelSource::Builtin => LoadedModel::load(&self.model, options)?,
            source => LoadedModel::from_folder(download::model(source)?.path(), options)?,
        };
        let config = loaded.model().config();
        let parameters: usize = HaploVl::parameter_shapes(config)?.values().map(|s| s.iter().product::<usize>()).sum();
        cli::note(format_args!(
            "{:.2} M parameters, {} + {} layers, context {}, on {:?}, loaded in {:.1} s",
            parameters as f64 / 1e6,
            config.pre_decoder.num_hidden_layers,
            config.post_decoder.num_hidden_layers,
            config.max_position_embeddings,
            loaded.model().device().location(),
            start.elapsed().as_secs_f64()
        ));
        Ok(loaded)
    }
}
