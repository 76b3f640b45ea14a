//! Export of the language half of a model as a GGUF file for llama.cpp.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};

use super::HaploVl;
use super::haplovl::EMBEDDING;
use crate::config::{Activation, DecoderConfig, HaploVlConfig, MlpKind, NormKind, Rope, RopeScaling};
use crate::nn::RotaryEmbedding;
use crate::options::Quantization;
use crate::processor::Processor;
use crate::weights::{
    EachPart, GgufTensor, StoredAs, TensorSource, WriteBytes, check_source, gguf_name, merge_rotary_pairs, save_gguf,
};
use crate::{Error, Result};

/// Writes the post-decoder and the head of a model as the GGUF file of a language model, which llama.cpp loads. Returns the
/// matrices that are not quantised, since their rows are not whole blocks.
///
/// This is the language model that the post-decoder started from, as training has changed it: images, the pre-decoder and
/// the connector, through which text passes too, have no counterpart in llama.cpp and are left out. `table` is the
/// embedding table (vocab_size, post-decoder width); the model's own if `None`. Without `kind`, tensors keep their stored
/// dtype.
///
/// # Errors
/// [`Error::Config`] for a post-decoder that no architecture of llama.cpp describes, [`Error::Tokenizer`] for a kind of
/// tokenizer that it lacks, [`Error::Weights`] if the tensors do not match the configuration, are quantised already, or an
/// embedding table of the post-decoder's width is missing, and [`Error::Io`].
pub fn save_llama_cpp(
    path: impl AsRef<Path>,
    config: &HaploVlConfig,
    source: &dyn TensorSource,
    table: Option<Tensor>,
    kind: Option<Quantization>,
    processor: &Processor,
) -> Result<Vec<String>> {
    let architecture = Architecture::of(&config.post_decoder)?;
    check_source(source, &HaploVl::parameter_shapes(config)?)?;
    let half = LanguageHalf::new(config, source, table, architecture)?;
    let mut keys = architecture.keys(config, kind);
    keys.extend(processor.tokenizer().gguf_metadata(config.vocab_size)?);
    keys.push(("tokenizer.chat_template".into(), Value::String(processor.template().source().into())));
    let divisors = RotaryEmbedding::divisors(&config.post_decoder);
    let (mut floats, mut tensors) = (Vec::new(), Vec::new());
    for (name, (_, shape)) in &half.tensors {
        source_is_float(source, half.hf_name(name)?)?;
        let stored = half.stored_as(name, shape, kind)?;
        if kind.is_some() && half.is_matrix(name, shape) && matches!(stored, StoredAs::Plain(_)) {
            floats.push(name.clone());
        }
        tensors.push(stored.tensor(&half, name, shape));
    }
    if matches!(config.post_decoder.rope_scaling, Some(RopeScaling::Llama3 { .. })) {
        tensors.push(rope_freqs(&divisors));
    }
    save_gguf(path.as_ref(), &keys, &tensors)?;
    Ok(floats)
}

fn source_is_float(source: &dyn TensorSource, name: &str) -> Result<()> {
    match source.quantization(name) {
        Some(found) => {
            let path = source.path().display();
            Err(Error::weights(format!("{path}: `{name}` is already {found}: start from the unquantised model")))
        }
        None if source.has_tensor(name) => source.check_finite(name),
        None => Ok(()),
    }
}

/// The tensor of what Llama 3.1's scaling divides frequencies by.
fn rope_freqs(divisors: &[f32]) -> GgufTensor<'_> {
    let bytes = move |write: &mut WriteBytes<'_>| {
        write(&divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect::<Vec<u8>>())
    };
    GgufTensor {
        name: "rope_freqs.weight".into(),
        shape: vec![divisors.len()],
        dtype: GgmlDType::F32,
        is_interleaved: false,
        parts: Box::new(bytes),
    }
}

/// An architecture of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    /// With any biases; adjacent rows of a head are rotated together.
    Llama,
    /// With biases of queries, keys and values only.
    Qwen2,
    /// With norms of queries and keys.
    Qwen3,
}

impl Architecture {
    fn of(decoder: &DecoderConfig) -> Result<Self> {
        let wrong = |field: &str, found: &dyn std::fmt::Debug, expected: &str| {
            let message = format!("is {found:?}, but llama.cpp's architectures need {expected}: it cannot be exported");
            Err(Error::config(format!("post_decoder.{field}"), message))
        };
        match decoder {
            DecoderConfig { norm_mode, .. } if *norm_mode != NormKind::RmsNorm => {
                wrong("norm_mode", norm_mode, "rmsnorm")
            }
            DecoderConfig { hidden_act, .. } if *hidden_act != Activation::Silu => {
                wrong("hidden_act", hidden_act, "silu")
            }
            DecoderConfig { mlp, .. } if *mlp != MlpKind::Gated => wrong("mlp", mlp, "a gated MLP"),
            DecoderConfig { rope, .. } if *rope != Rope::Own => wrong("rope", rope, "own rotary positions"),
            DecoderConfig { qk_norm: true, qkv_bias: false, output_bias: false, mlp_bias: false, .. } => {
                Ok(Self::Qwen3)
            }
            DecoderConfig { qk_norm: true, .. } => wrong("qk_norm", &true, "no biases beside it"),
            DecoderConfig { rope_scaling: Some(RopeScaling::Llama3 { .. }), .. } => Ok(Self::Llama),
            DecoderConfig { qkv_bias: true, output_bias: false, mlp_bias: false, .. } => Ok(Self::Qwen2),
            _ => Ok(Self::Llama),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Metadata of the model.
    fn keys(self, config: &HaploVlConfig, kind: Option<Quantization>) -> Vec<(String, Value)> {
        let decoder = &config.post_decoder;
        let number = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
        let mut keys = vec![
            ("vocab_size", number(config.vocab_size)),
            ("block_count", number(decoder.num_hidden_layers)),
            ("context_length", number(config.max_position_embeddings)),
            ("embedding_length", number(decoder.hidden_size)),
            ("feed_forward_length", number(decoder.intermediate_size)),
            ("attention.head_count", number(decoder.num_attention_heads)),
            ("attention.head_count_kv", number(decoder.num_key_value_heads)),
            ("attention.key_length", number(decoder.head_dim())),
            ("attention.value_length", number(decoder.head_dim())),
            ("attention.layer_norm_rms_epsilon", Value::F32(decoder.norm_eps as f32)),
            ("rope.dimension_count", number(decoder.head_dim())),
            ("rope.freq_base", Value::F32(decoder.rope_theta as f32)),
        ];
        if let Some(RopeScaling::Linear { factor }) = decoder.rope_scaling {
            keys.push(("rope.scaling.type", Value::String("linear".into())));
            keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
        }
        let own = keys.into_iter().map(|(key, value)| (format!("{}.{key}", self.name()), value));
        let mut general = vec![("general.architecture".to_string(), Value::String(self.name().into()))];
        general.push(("general.name".into(), Value::String("language half of a HaploVL".into())));
        general.extend(kind.map(|_| ("general.quantization_version".to_string(), Value::U32(2))));
        general.into_iter().chain(own).collect()
    }
}

/// The tensors of the language half under llama.cpp's names, with the rows in its order.
struct LanguageHalf<'a> {
    source: &'a dyn TensorSource,
    /// Embedding table that is not in the source.
    table: Option<Tensor>,
    /// HF name and shape by llama.cpp's name.
    tensors: BTreeMap<String, (String, Vec<usize>)>,
    /// Numbers of query and key heads, if their rows are to be permuted.
    permuted: Option<(usize, usize)>,
    is_tied: bool,
}

impl<'a> LanguageHalf<'a> {
    fn new(
        config: &HaploVlConfig,
        source: &'a dyn TensorSource,
        table: Option<Tensor>,
        architecture: Architecture,
    ) -> Result<Self> {
        let decoder = &config.post_decoder;
        let expected = [config.vocab_size, decoder.hidden_size];
        if table.is_none() && config.embedding_size() != decoder.hidden_size {
            return Err(Error::weights(format!(
                "the model's embedding table is {} wide, the language half {}: name the language model that it started from, \
                 whose table is taken",
                config.embedding_size(),
                decoder.hidden_size
            )));
        }
        if let Some(table) = table.as_ref().filter(|table| table.dims() != expected) {
            return Err(Error::weights(format!("the embedding table is {:?}, expected {expected:?}", table.dims())));
        }
        let mut shapes = HaploVl::parameter_shapes(config)?;
        shapes.insert(EMBEDDING.into(), expected.to_vec());
        let first = config.pre_decoder.num_hidden_layers;
        let named = shapes.into_iter().filter_map(|(hf, shape)| Some((gguf_name(&hf, first)?, (hf, shape))));
        let heads = (decoder.num_attention_heads, decoder.num_key_value_heads);
        Ok(Self {
            source,
            table,
            tensors: named.collect(),
            permuted: (architecture == Architecture::Llama).then_some(heads),
            is_tied: config.tie_word_embeddings,
        })
    }

    fn hf_name(&self, name: &str) -> Result<&str> {
        let found = self.tensors.get(name).map(|(hf, _)| hf.as_str());
        found.ok_or_else(|| Error::weights(format!("the language half has no tensor `{name}`")))
    }

    /// Whether a tensor is a matrix of a layer or the head.
    fn is_matrix(&self, name: &str, shape: &[usize]) -> bool {
        let is_table = name == "token_embd.weight";
        shape.len() == 2 && (!is_table || self.is_tied)
    }

    /// The form of a tensor: blocks of the kind for matrices of whole blocks. Vectors are f32, as llama.cpp has them.
    fn stored_as(&self, name: &str, shape: &[usize], kind: Option<Quantization>) -> Result<StoredAs> {
        let fits = |kind: &Quantization| {
            shape.last().is_some_and(|width| width.is_multiple_of(kind.ggml_dtype().block_size()))
        };
        match kind.filter(fits).filter(|_| self.is_matrix(name, shape)) {
            Some(kind) => Ok(StoredAs::Blocks(kind)),
            None if shape.len() == 1 => Ok(StoredAs::Plain(GgmlDType::F32)),
            None if kind.is_some() => Ok(StoredAs::Plain(GgmlDType::F16)),
            None => Ok(StoredAs::Plain(match self.source.stored_dtype(self.hf_name(name)?) {
                Some(DType::F16) => GgmlDType::F16,
                Some(DType::BF16) => GgmlDType::BF16,
                _ => GgmlDType::F32,
            })),
        }
    }

    /// Number of heads whose rows are permuted, of a tensor of HF's name.
    fn heads(&self, hf: &str) -> Option<usize> {
        let (queries, keys) = self.permuted?;
        [(".q_proj.", queries), (".k_proj.", keys)]
            .into_iter()
            .find(|(part, _)| hf.contains(part))
            .map(|(_, heads)| heads)
    }
}

impl TensorSource for LanguageHalf<'_> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, shape)| shape.as_slice())
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let hf = self.hf_name(name)?;
        match (&self.table, self.heads(hf)) {
            (Some(table), _) if hf == EMBEDDING => Ok(table.to_dtype(dtype)?.to_device(device)?),
            (_, Some(heads)) => merge_rotary_pairs(&self.source.load_tensor(hf, dtype, device)?, heads),
            _ => self.source.load_tensor(hf, dtype, device),
        }
    }

    fn for_each_part(&self, name: &str, dtype: DType, rows: usize, each: &mut EachPart<'_>) -> Result<()> {
        let hf = self.hf_name(name)?;
        if hf == EMBEDDING && self.table.is_some() || self.heads(hf).is_some() {
            return each(self.load_tensor(name, dtype, &Device::Cpu)?);
        }
        self.source.for_each_part(hf, dtype, rows, each)
    }
}
