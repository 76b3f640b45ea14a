//! HaploVL and its parts: embeddings, pre-decoder, connector, post-decoder, language head; the teachers of stage 1.

mod adapter;
mod cache;
mod chunk_prefill;
mod clip_vision;
mod distillation_heads;
mod embeddings;
mod haplovl;
mod language_model;
mod llama_cpp;
mod merge_visuals;
mod post_decoder;
mod pre_decoder;
mod pre_decoder_model;
mod pretrained;
mod sequence_cache;
mod stack;
mod teacher;

pub(crate) use adapter::ADAPTER_PREFIX;
pub use adapter::{Adapter, MergedSource};
pub use cache::Cache;
pub use chunk_prefill::ChunkPrefill;
pub use clip_vision::ClipVision;
pub use distillation_heads::DistillationHeads;
pub use embeddings::MultimodalEmbeddings;
pub use haplovl::{HaploVl, HiddenStates};
pub use language_model::LanguageModel;
pub use llama_cpp::save_llama_cpp;
pub use merge_visuals::patches_in_order;
pub use post_decoder::{LanguageHead, PostDecoder};
pub use pre_decoder::{Connector, PreDecoder, PreDecoderOutput};
pub use pre_decoder_model::PreDecoderModel;
pub(crate) use pretrained::save_companions;
pub use pretrained::{save_pretrained, save_pretrained_from, save_quantized};
pub use sequence_cache::{KvChunk, SequenceCache};
pub use stack::{DecoderStack, Pass, PassCaches};
pub use teacher::{ClipTeacher, VisionTeacher};
