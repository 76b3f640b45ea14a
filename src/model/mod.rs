//! Embeddings, pre-decoder, post-decoder and the whole HaploVL.

mod cache;
mod distillation_heads;
mod embeddings;
mod haplovl;
mod packing;
mod post_decoder;
mod pre_decoder;
mod pre_decoder_model;
mod stack;

pub use cache::Cache;
pub use distillation_heads::DistillationHeads;
pub use embeddings::MultimodalEmbeddings;
pub use haplovl::{HaploVl, HiddenStates};
pub use post_decoder::{LanguageHead, PostDecoder};
pub use pre_decoder::{Connector, PreDecoder, PreDecoderOutput};
pub use pre_decoder_model::PreDecoderModel;
pub use stack::{DecoderStack, Pass};
