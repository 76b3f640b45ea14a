//! Model options of the examples, and loading of the model.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
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

    /// The options that answers depend on, without those that are left at their defaults, and checksums of the weights in
    /// folders, which tell a model that was trained again.
    pub fn settings(&self) -> Map<String, Value> {
        let BaseOptions { model, dtype, quantize, cache, .. } = &self.base;
        let folder = if let ModelSource::Path(folder) = model { checksum(folder) } else { None };
        let adapter = self.adapter.as_ref();
        let settings = [
            ("weights", folder.map(Value::from)),
            ("adapter", adapter.map(|adapter| adapter.to_string_lossy().into())),
            ("adapter_weights", adapter.and_then(|adapter| checksum(adapter)).map(Value::from)),
            ("dtype", (*dtype != DtypeChoice::default()).then(|| format!("{dtype:?}").to_lowercase().into())),
            ("quantize", quantize.map(|quantize| quantize.to_string().into())),
            ("cache", (*cache != KvCacheDtype::default()).then(|| format!("{cache:?}").to_lowercase().into())),
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

/// A checksum of the lengths of the files of weights in a folder, or of one such file, and of parts of them.
fn checksum(path: &Path) -> Option<String> {
    const PART: u64 = 1 << 16;
    let is_weights = |path: &PathBuf| {
        let ends = ["safetensors", "bin", "gguf", "pt", "pth"];
        path.is_file() && path.extension().is_some_and(|extension| ends.iter().any(|end| extension == *end))
    };
    let mut files = match path.is_dir() {
        true => path.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_weights).collect(),
        false => Vec::from_iter(path.is_file().then(|| path.to_path_buf())),
    };
    files.sort();
    let mut sum = crc32fast::Hasher::new();
    for file in &files {
        let mut file = File::open(file).ok()?;
        let length = file.metadata().ok()?.len();
        sum.update(&length.to_le_bytes());
        for start in [0, length / 2, length.saturating_sub(PART)] {
            let mut part = Vec::new();
            file.seek(SeekFrom::Start(start)).ok()?;
            (&mut file).take(PART).read_to_end(&mut part).ok()?;
            sum.update(&part);
        }
    }
    (!files.is_empty()).then(|| format!("{:08x}", sum.finalize()))
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
