//! Differentiable layers, from fused operations up to one decoder layer.

mod activation_checkpoint;
mod attention;
mod decoder_layer;
mod grad_collector;
mod image_mask;
mod kernels;
mod kv_cache;
mod linear;
mod logit_scale;
mod lora;
mod matmul_visitor;
mod mlp;
mod norm;
pub mod ops;
mod parameter_visitor;
mod patch_embedding;
pub(crate) mod precomputed_result;
mod rotary;
mod sequence_layer;
mod tape;
pub(crate) mod tensor_data;
mod thread_local_scope;
mod token_table;

pub use activation_checkpoint::{Activations, checkpoint};
pub use attention::Attention;
pub use decoder_layer::DecoderLayer;
pub(crate) use grad_collector::deliver;
pub use grad_collector::{OnGradient, gradients_as_found, gradients_of};
pub use image_mask::key_ranges;
pub(crate) use kernels::dispatch::GEMV_MAX_ROWS;
pub(crate) use kernels::interleaved;
pub use kv_cache::LayerCache;
pub use linear::Linear;
pub use logit_scale::LogitScale;
pub use lora::Lora;
pub use matmul_visitor::{MatmulLayer, MatmulVisitor};
pub use mlp::Mlp;
pub use norm::Norm;
pub use ops::{KeyRanges, KvSegment};
pub(crate) use parameter_visitor::linears_of;
pub use parameter_visitor::{ParameterSlot, ParameterVisitor};
pub use patch_embedding::PatchEmbedding;
pub(crate) use patch_embedding::cut_patches;
pub use rotary::{RotaryAngles, RotaryEmbedding};
pub use sequence_layer::{HeldKv, KvStore, SequenceLayer};
pub use token_table::{MappedRows, TokenTable};

/// Initialisation of weights with `fan_in` inputs, and of embeddings of this width: normal with a standard deviation of
/// `1 / sqrt(fan_in)`.
///
/// At the widths of large models this is close to the usual 0.02. A fixed 0.02 would scale the output of a layer of a
/// hundred inputs by a fifth, and a gated MLP, which multiplies two of these outputs, would hardly begin to learn.
pub(crate) fn init(fan_in: usize) -> candle_nn::Init {
    candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 / (fan_in.max(1) as f64).sqrt() }
}
