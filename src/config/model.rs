//! Configuration of a whole HaploVL, in this crate's form.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::validate::{at_least_one, at_most};
use super::{Activation, DecoderConfig, ImageAspectRatio, MlpKind, NormKind, Rope, VisionConfig};
use crate::{Error, Result};

/// Form of the text embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextEmbedding {
    /// A table as wide as the pre-decoder, as in the released `Pro` model.
    Direct,
    /// The LLM's table followed by a linear map to the pre-decoder's width, as in the paper.
    Projected,
}

/// Attention mask among the tokens of one image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageAttention {
    /// Bidirectional: every patch attends to the whole image, as in the paper.
    #[default]
    Bidirectional,
    /// Causal: a patch attends to earlier patches only, the default of the authors' inference code.
    Causal,
}

/// Configuration of a whole HaploVL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaploVlConfig {
    /// Model type, always `haplovl`: distinguishes this form from the official one, which has `haplo`.
    pub model_type: ModelType,
    /// Number of entries of the text embedding and of the language head.
    pub vocab_size: usize,
    /// Context length in tokens (text and patches together).
    pub max_position_embeddings: usize,
    /// Placeholder token id of one image patch or newline in a prompt.
    pub image_token_index: u32,
    /// Placeholder token id of one video patch or newline in a prompt.
    pub video_token_index: u32,
    /// Form of the text embedding.
    pub text_embedding: TextEmbedding,
    /// Whether the language head shares the text embedding table.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Attention mask among the tokens of one image.
    #[serde(default)]
    pub image_attention: ImageAttention,
    /// Tiles and patches of images.
    pub vision: VisionConfig,
    /// Pre-decoder, which fuses pixels and text.
    pub pre_decoder: DecoderConfig,
    /// Post-decoder, which holds the language model.
    pub post_decoder: DecoderConfig,
    /// Fields of an official `config.json` that this crate ignores, kept to be written back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub official_extra: Option<OfficialExtra>,
}

/// Fields of an official `config.json` that this crate ignores, by the object that holds them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfficialExtra {
    /// Fields at the root: `torch_dtype`, `architectures`, and so on.
    pub root: Map<String, Value>,
    /// Fields of `base_config`.
    pub base_config: Map<String, Value>,
    /// Fields of `pre_config`.
    pub pre_config: Map<String, Value>,
    /// `post_config`, unchanged.
    pub post_config: Value,
}

/// Model type of this crate's configuration form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelType {
    /// The only model type.
    Haplovl,
}

impl HaploVlConfig {
    /// The configuration of this name: `haplovl_7b_pro`, `haplovl_8b`, `haplovl_7b` or `tiny`.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "haplovl_7b_pro" => Some(Self::haplovl_7b_pro()),
            "haplovl_8b" => Some(Self::haplovl_8b()),
            "haplovl_7b" => Some(Self::haplovl_7b()),
            "tiny" => Some(Self::tiny()),
            _ => None,
        }
    }

    /// The released 7B `Pro` model: a gated pre-decoder of CLIP-ViT-L's size before Qwen2.5-7B.
    pub fn haplovl_7b_pro() -> Self {
        let mut config = Self {
            text_embedding: TextEmbedding::Direct,
            pre_decoder: DecoderConfig { mlp: MlpKind::Gated, ..clip_vit_large() },
            post_decoder: DecoderConfig { output_bias: true, mlp_bias: true, ..qwen2_7b() },
            ..Self::paper(152_064, 32_768, qwen2_7b())
        };
        config.image_token_index = 151_646;
        config.video_token_index = 151_647;
        config
    }

    /// The paper's 8B model: CLIP-ViT-L before Llama-3-8B, both in their original form.
    pub fn haplovl_8b() -> Self {
        let llama = DecoderConfig {
            intermediate_size: 14_336,
            num_key_value_heads: 8,
            rope_theta: 500_000.0,
            ..llama(4096, 32, 32)
        };
        // Llama 3 has 128,256 entries; the two placeholder tokens are appended, rounded up to 64.
        let mut config = Self::paper(128_320, 8192, llama);
        config.image_token_index = 128_256;
        config.video_token_index = 128_257;
        config
    }

    /// The paper's 7B model: CLIP-ViT-L before Vicuna-7B, both in their original form.
    pub fn haplovl_7b() -> Self {
        let vicuna = DecoderConfig { norm_eps: 1e-5, ..llama(4096, 32, 32) };
        // Vicuna has 32,000 entries; the two placeholder tokens are appended, rounded up to 64.
        let mut config = Self::paper(32_064, 4096, vicuna);
        config.image_token_index = 32_000;
        config.video_token_index = 32_001;
        config
    }

    /// A model of a few thousand parameters for tests: 14-pixel patches, 28-pixel tiles, two layers per decoder.
    pub fn tiny() -> Self {
        let decoder = |hidden_size, heads, kv_heads| DecoderConfig {
            hidden_size,
            intermediate_size: 2 * hidden_size,
            num_hidden_layers: 2,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            rope_theta: 10_000.0,
            ..llama(hidden_size, 2, heads)
        };
        Self {
            model_type: ModelType::Haplovl,
            vocab_size: 96,
            max_position_embeddings: 256,
            image_token_index: 94,
            video_token_index: 95,
            text_embedding: TextEmbedding::Direct,
            tie_word_embeddings: false,
            image_attention: ImageAttention::Bidirectional,
            vision: VisionConfig {
                patch_size: 14,
                image_size: 28,
                image_aspect_ratio: ImageAspectRatio::AnyResMax(6),
                image_grid_pinpoints: VisionConfig::default_pinpoints(28),
                image_newline: true,
            },
            pre_decoder: DecoderConfig {
                norm_mode: NormKind::LayerNorm,
                hidden_act: Activation::QuickGelu,
                norm_eps: 1e-5,
                qkv_bias: true,
                output_bias: true,
                mlp_bias: true,
                ..decoder(16, 2, 2)
            },
            post_decoder: DecoderConfig { qkv_bias: true, output_bias: true, mlp_bias: true, ..decoder(24, 4, 2) },
            official_extra: None,
        }
    }

    /// The common part of the paper's models, with the given post-decoder.
    fn paper(vocab_size: usize, max_position_embeddings: usize, llm: DecoderConfig) -> Self {
        Self {
            model_type: ModelType::Haplovl,
            vocab_size,
            max_position_embeddings,
            image_token_index: 0,
            video_token_index: 0,
            text_embedding: TextEmbedding::Projected,
            tie_word_embeddings: false,
            image_attention: ImageAttention::Bidirectional,
            vision: VisionConfig {
                patch_size: 14,
                image_size: 336,
                image_aspect_ratio: ImageAspectRatio::AnyResMax(6),
                image_grid_pinpoints: VisionConfig::default_pinpoints(336),
                image_newline: true,
            },
            pre_decoder: clip_vit_large(),
            post_decoder: llm,
            official_extra: None,
        }
    }

    /// Checks every field and that fields agree with each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid field.
    pub fn validate(&self) -> Result<()> {
        at_least_one("vocab_size", self.vocab_size)?;
        at_most("vocab_size", self.vocab_size, 1 << 24)?;
        at_least_one("max_position_embeddings", self.max_position_embeddings)?;
        at_most("max_position_embeddings", self.max_position_embeddings, 1 << 24)?;
        for (field, id) in
            [("image_token_index", self.image_token_index), ("video_token_index", self.video_token_index)]
        {
            if id as usize >= self.vocab_size {
                return Err(Error::config(field, format!("is {id}, outside the vocabulary of {}", self.vocab_size)));
            }
        }
        if self.image_token_index == self.video_token_index {
            return Err(Error::config(
                "video_token_index",
                format!("is {}, the same as image_token_index: give each its own token", self.video_token_index),
            ));
        }
        self.vision.validate()?;
        self.pre_decoder.validate("pre_decoder")?;
        self.post_decoder.validate("post_decoder")?;
        self.validate_together()
    }

    fn validate_together(&self) -> Result<()> {
        let (pre, post) = (&self.pre_decoder, &self.post_decoder);
        if pre.rope == Rope::Shared && pre.head_dim() != post.head_dim() {
            return Err(Error::config(
                "pre_decoder.rope",
                format!(
                    "is shared with the post-decoder (attention_rope false), but the heads are {} and {} wide: \
                     use equal head widths, or own positions (attention_rope true)",
                    pre.head_dim(),
                    post.head_dim()
                ),
            ));
        }
        if self.tie_word_embeddings
            && self.text_embedding == TextEmbedding::Direct
            && pre.hidden_size != post.hidden_size
        {
            return Err(Error::config(
                "tie_word_embeddings",
                format!(
                    "is true, but the table is {} wide and the head {}: untie them, or use text_embedding `projected`",
                    pre.hidden_size, post.hidden_size
                ),
            ));
        }
        // A larger number of parameters is certainly a mistake (and would overflow).
        let layers = |d: &DecoderConfig| {
            (d.num_hidden_layers * d.hidden_size).saturating_mul(4 * d.attention_size() + 3 * d.intermediate_size)
        };
        let tables = self.vocab_size * (pre.hidden_size + 2 * post.hidden_size)
            + self.vision.patches_per_tile() * pre.hidden_size;
        let total = layers(pre).saturating_add(layers(post)).saturating_add(tables);
        at_most("(number of parameters)", total, 1 << 42)
    }

    /// Width of the text embedding table.
    pub fn embedding_size(&self) -> usize {
        match self.text_embedding {
            TextEmbedding::Direct => self.pre_decoder.hidden_size,
            TextEmbedding::Projected => self.post_decoder.hidden_size,
        }
    }
}

/// CLIP-ViT-L/14-336 as a pre-decoder.
fn clip_vit_large() -> DecoderConfig {
    DecoderConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        num_key_value_heads: 16,
        hidden_act: Activation::QuickGelu,
        norm_mode: NormKind::LayerNorm,
        norm_eps: 1e-5,
        mlp: MlpKind::Plain,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        rope: Rope::Own,
        rope_theta: 10_000.0,
        rope_scaling: None,
        head_dim: None,
        qk_norm: false,
    }
}

/// A model of the Llama family: no biases, RMSNorm, gated SiLU.
fn llama(hidden_size: usize, layers: usize, heads: usize) -> DecoderConfig {
    DecoderConfig {
        hidden_size,
        intermediate_size: 11_008,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        hidden_act: Activation::Silu,
        norm_mode: NormKind::RmsNorm,
        norm_eps: 1e-5,
        mlp: MlpKind::Gated,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        rope: Rope::Own,
        rope_theta: 10_000.0,
        rope_scaling: None,
        head_dim: None,
        qk_norm: false,
    }
}

/// Qwen2.5-7B, which has biases on q, k and v only.
fn qwen2_7b() -> DecoderConfig {
    DecoderConfig {
        intermediate_size: 18_944,
        num_key_value_heads: 4,
        norm_eps: 1e-6,
        qkv_bias: true,
        rope_theta: 1_000_000.0,
        rope: Rope::Shared,
        ..llama(3584, 28, 28)
    }
}
