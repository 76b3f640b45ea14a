//! Initialisation of the post-decoder, the head and the text embedding from a language model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::check::Compatibility;
use super::config_file::read_config;
use super::pca::principal_components;
use super::transfer::Transfer;
use super::{InitReport, LlmConfig, RowMap};
use crate::config::{HaploVlConfig, Rope, TextEmbedding};
use crate::weights::source::{EMBEDDING, HEAD};
use crate::weights::{GgufFile, Parameters, TensorSource, open_decoder_weights, source_var_builder};
use crate::{Error, Result};

/// Initialisation of the projections from the LLM's embedding width down to the pre-decoder's width, and back up.
///
/// The paper and the released code do not describe it; the default is this crate's choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextInit {
    /// The [`principal_components`] of the LLM's embedding table, so that text embeddings are almost preserved from the
    /// first step.
    #[default]
    PrincipalComponents,
    /// Random values, as for any other new parameter.
    Random,
}

/// A language model as a source of weights.
#[derive(Clone)]
pub struct LlmSource {
    path: PathBuf,
    config: LlmConfig,
    tensors: Arc<dyn TensorSource>,
    /// Rows by token; by id if absent.
    rows: Option<Arc<RowMap>>,
}

impl LlmSource {
    /// Opens an HF folder (`config.json`, and weights in a format of [`open_weights`](crate::weights::open_weights)), a `.gguf` file, or a file of weights
    /// beside its `config.json`. The names of the tensors begin with `model.`; what larger models put before them is taken
    /// off. A model without a head is one whose head is tied to the embedding table, whatever its configuration says.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] or [`Error::Config`] naming the part that is missing, damaged or not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            let file = GgufFile::open(path)?;
            return Ok(Self { path: path.into(), config: file.llm_config()?, tensors: Arc::new(file), rows: None });
        }
        let mut config = LlmConfig::from_hf(&read_config(path)?)?;
        let tensors = open_decoder_weights(path)?;
        config.tie_word_embeddings |= !tensors.has_tensor(HEAD);
        Ok(Self { path: path.into(), config, tensors, rows: None })
    }

    /// A builder that returns the tensors of the model as constants, without gradients.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        source_var_builder(Arc::clone(&self.tensors), BTreeSet::new(), dtype, device)
    }

    /// The same source, whose embedding and head rows follow tokens as `rows` says instead of ids.
    #[must_use]
    pub fn with_rows(self, rows: RowMap) -> Self {
        Self { rows: Some(Arc::new(rows)), ..self }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration of the model.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// The tensors of the model, by HF name.
    pub fn tensors(&self) -> &dyn TensorSource {
        self.tensors.as_ref()
    }

    /// The embedding table for a vocabulary of `rows` entries, `[rows, hidden_size]`: rows follow tokens with
    /// [`Self::with_rows`], else ids, and entries that the model lacks are the mean of its rows or of their pieces.
    ///
    /// # Errors
    /// [`Error::Weights`] if the table is missing or has an unexpected shape, or, by id, more than `rows` rows.
    pub fn embedding(&self, rows: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let table = self.table(EMBEDDING, self.tensors.load_tensor(EMBEDDING, dtype, device)?)?;
        self.row_map(rows)?.apply(&table)
    }

    /// Rows of a vocabulary of `rows` entries.
    fn row_map(&self, rows: usize) -> Result<Arc<RowMap>> {
        let known = self.config.vocab_size;
        match &self.rows {
            Some(map) if map.old_rows() == known && map.new_rows() == rows => Ok(Arc::clone(map)),
            Some(map) => Err(Error::weights(format!(
                "{}: a row map of {} to {} rows was given, expected {known} to {rows}",
                self.path.display(),
                map.old_rows(),
                map.new_rows()
            ))),
            None if known <= rows => Ok(Arc::new(RowMap::by_id(known, rows))),
            None => Err(Error::weights(format!(
                "{}: the vocabulary has {known} entries, expected at most {rows}: raise vocab_size, or bring the \
                 model's tokenizer, by which rows are chosen",
                self.path.display()
            ))),
        }
    }

    fn table(&self, name: &str, table: Tensor) -> Result<Tensor> {
        let expected = [self.config.vocab_size, self.config.decoder.hidden_size];
        if table.dims() == expected {
            return Ok(table);
        }
        Err(Error::weights(format!(
            "{}: tensor `{name}` is {:?}, but the configuration says {expected:?}",
            self.path.display(),
            table.dims()
        )))
    }
}

/// Copies a language model into the post-decoder, final norm, head and text embedding of the model that `parameters`
/// belong to.
///
/// Rows of the vocabulary follow tokens with [`LlmSource::with_rows`], else ids. Entries that the LLM lacks are set to
/// the mean of its entries or of their pieces, so that they are neither likely nor unlikely. Biases that the LLM lacks become zero. The connector is set only with [`TextInit::PrincipalComponents`].
///
/// # Errors
/// [`Error::Weights`] listing every field of `config` that is incompatible with the LLM, or naming a missing tensor.
pub fn init_from_llm(
    source: &LlmSource,
    config: &HaploVlConfig,
    parameters: &Parameters,
    text: TextInit,
) -> Result<InitReport> {
    check(source, config)?;
    let mut transfer = Transfer::new(source.tensors(), parameters);
    let first = config.pre_decoder.num_hidden_layers;
    for layer in 0..config.post_decoder.num_hidden_layers {
        copy_layer(&mut transfer, config, layer, first + layer)?;
    }
    transfer.copy("model.norm.weight", "model.norm.weight")?;
    let rows = source.row_map(config.vocab_size)?;
    copy_text(&mut transfer, source, &rows, config, text)?;
    transfer.ignore_tied_head(source.config.tie_word_embeddings);
    Ok(InitReport { rows: vec![rows.counts()], ..transfer.finish() })
}

fn check(source: &LlmSource, config: &HaploVlConfig) -> Result<()> {
    let (ours, theirs) = (&config.post_decoder, &source.config);
    let mut checks = Compatibility::of("post_decoder", ours, &theirs.decoder);
    checks.equal("rope_theta", ours.rope_theta, theirs.decoder.rope_theta);
    checks.equal("rope_scaling", ours.rope_scaling, theirs.decoder.rope_scaling);
    if ours.rope == Rope::None {
        checks.problem("post_decoder.rope is none, but the LLM uses RoPE".into());
    }
    if source.rows.is_none() && config.vocab_size < theirs.vocab_size {
        checks.problem(format!("vocab_size is {}, not {} or more", config.vocab_size, theirs.vocab_size));
    }
    if config.tie_word_embeddings && !theirs.tie_word_embeddings {
        checks.problem("tie_word_embeddings is true, not false".into());
    }
    checks.finish(&source.path.display().to_string())
}

fn copy_layer(transfer: &mut Transfer<'_>, config: &HaploVlConfig, from: usize, to: usize) -> Result<()> {
    let decoder = &config.post_decoder;
    let layers = [
        ("input_layernorm", false),
        ("self_attn.q_proj", decoder.qkv_bias),
        ("self_attn.k_proj", decoder.qkv_bias),
        ("self_attn.v_proj", decoder.qkv_bias),
        ("self_attn.o_proj", decoder.output_bias),
        ("post_attention_layernorm", false),
        ("mlp.gate_proj", decoder.mlp_bias),
        ("mlp.up_proj", decoder.mlp_bias),
        ("mlp.down_proj", decoder.mlp_bias),
    ];
    for (name, biased) in layers {
        transfer.copy_layer(&format!("model.layers.{from}.{name}"), &format!("model.layers.{to}.{name}"), biased)?;
    }
    for name in ["self_attn.q_norm", "self_attn.k_norm"].into_iter().filter(|_| decoder.qk_norm) {
        transfer.copy_layer(&format!("model.layers.{from}.{name}"), &format!("model.layers.{to}.{name}"), false)?;
    }
    Ok(())
}

fn copy_text(
    transfer: &mut Transfer<'_>,
    source: &LlmSource,
    rows: &RowMap,
    config: &HaploVlConfig,
    text: TextInit,
) -> Result<()> {
    let table = source.table(EMBEDDING, transfer.take(EMBEDDING)?)?;
    if !config.tie_word_embeddings {
        let head = match source.config.tie_word_embeddings {
            true => table.clone(),
            false => source.table(HEAD, transfer.take(HEAD)?)?,
        };
        transfer.put(HEAD, &rows.apply(&head)?)?;
    }
    if let Some((down, narrow)) = copy_embedding(transfer, &table, rows, config, text)? {
        transfer.put("model.pre_connector.weight", &(down.t()? * root_mean_square(&narrow)?)?)?;
    }
    Ok(())
}

/// Sets the text embedding; returns the projection to the pre-decoder's width and the projected table, if they were
/// used.
fn copy_embedding(
    transfer: &mut Transfer<'_>,
    table: &Tensor,
    rows: &RowMap,
    config: &HaploVlConfig,
    text: TextInit,
) -> Result<Option<(Tensor, Tensor)>> {
    // A tied embedding table is also the head, so it has the LLM's width even without a projection.
    if config.text_embedding == TextEmbedding::Projected || config.tie_word_embeddings {
        transfer.put(EMBEDDING, &rows.apply(table)?)?;
    }
    if text == TextInit::Random {
        return Ok(None);
    }
    let down = principal_components(table, config.pre_decoder.hidden_size)?;
    let narrow = table.matmul(&down.t()?)?;
    match config.text_embedding {
        TextEmbedding::Direct => transfer.put(EMBEDDING, &rows.apply(&narrow)?)?,
        TextEmbedding::Projected => transfer.put("model.embed_proj.weight", &down)?,
    }
    Ok(Some((down, narrow)))
}

/// Copies only the embedding table of a language model, for stage 1, which has no post-decoder.
///
/// # Errors
/// [`Error::Weights`] if the vocabulary is too large or the table is missing.
pub fn init_text_embedding(
    source: &LlmSource,
    config: &HaploVlConfig,
    parameters: &Parameters,
    text: TextInit,
) -> Result<InitReport> {
    let mut transfer = Transfer::new(source.tensors(), parameters);
    let table = source.table(EMBEDDING, transfer.take(EMBEDDING)?)?;
    let rows = source.row_map(config.vocab_size)?;
    if let Some((down, narrow)) = copy_embedding(&mut transfer, &table, &rows, config, text)? {
        let up = (down.t()? * root_mean_square(&narrow)?)?;
        transfer.start_head("distillation.text.proj", &up)?;
    }
    Ok(InitReport { rows: vec![rows.counts()], ..transfer.finish() })
}

/// Root mean square of the projected embeddings. The pre-decoder first normalises its input to 1, so the connector,
/// which projects back up, multiplies by this scale: the LLM then receives vectors of the length it was trained on.
fn root_mean_square(narrow: &Tensor) -> Result<f64> {
    let rows = narrow.sqr()?.mean(1)?.to_dtype(DType::F64)?;
    Ok(rows.mean(0)?.sqrt()?.to_scalar::<f64>()?)
}
