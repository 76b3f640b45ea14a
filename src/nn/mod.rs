//! Differentiable layers, from fused operations up to one decoder layer.

mod attention;
mod checkpoint;
mod decoder_layer;
mod kv_cache;
mod linear;
mod logit_scale;
mod mask;
mod mlp;
mod norm;
pub mod ops;
mod patch_embedding;
mod rotary;

pub use attention::Attention;
pub use checkpoint::{CheckpointScope, checkpoint};
pub use decoder_layer::DecoderLayer;
pub use kv_cache::LayerCache;
pub use linear::Linear;
pub use logit_scale::LogitScale;
pub use mask::key_ranges;
pub use mlp::Mlp;
pub use norm::Norm;
pub use patch_embedding::PatchEmbedding;
pub use rotary::{RotaryAngles, RotaryEmbedding};

/// Standard deviation of freshly drawn weights, HF's `initializer_range`.
pub const INIT_STD: f64 = 0.02;
