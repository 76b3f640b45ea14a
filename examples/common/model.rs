//! Which model an example uses, and where.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use haplovl::model::HaploVl;
use haplovl::options::Quantization;
use haplovl::options::{DeviceChoice, DtypeChoice, KvCacheDtype};
use haplovl::pipeline::{LoadOptions, LoadedModel, ModelSource};

/// Which model, and where it is computed.
#[derive(Debug, Args)]
pub struct ModelOptions {
    /// `builtin`, a folder, or a hub id such as ORGANISATION/NAME or ORGANISATION/NAME@REVISION
    #[arg(long, default_value = "builtin", value_name = "MODEL")]
    model: ModelSource,
    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Number type: auto (bf16 on a GPU, f32 on the CPU), f32, f16 or bf16
    #[arg(long, default_value = "auto")]
    dtype: DtypeChoice,
    /// Keep the weights in blocks of few bits, on the CPU: q8_0, q6_k or q4_k
    #[arg(long, value_name = "TYPE")]
    quantize: Option<Quantization>,
    /// Number type of the keys and values of what was read: auto (half beside few bits), full or half
    #[arg(long, default_value = "auto", value_name = "TYPE")]
    cache: KvCacheDtype,
}

impl ModelOptions {
    /// Loads the model, and tells on stderr what it is.
    pub fn load(&self) -> Result<LoadedModel> {
        let start = Instant::now();
        let Self { device, dtype, quantize, cache, .. } = *self;
        let options = LoadOptions::default().with_device(device).with_dtype(dtype);
        let options = options.with_quantization(quantize).with_kv_cache_dtype(cache);
        eprintln!("loading {} ...", self.model);
        let loaded = LoadedModel::load(&self.model, options)?;
        let config = loaded.model().config();
        let parameters: usize = HaploVl::parameter_shapes(config)?.values().map(|s| s.iter().product::<usize>()).sum();
        eprintln!(
            "{:.2} M parameters, {} + {} layers, context {}, on {:?}, loaded in {:.1} s",
            parameters as f64 / 1e6,
            config.pre_decoder.num_hidden_layers,
            config.post_decoder.num_hidden_layers,
            config.max_position_embeddings,
            loaded.model().device().location(),
            start.elapsed().as_secs_f64()
        );
        Ok(loaded)
    }
}
