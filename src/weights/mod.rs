//! Weights: safetensors, PyTorch and GGUF files, parameter stores, initialisation from pretrained models, the Hugging Face hub.

mod atomic;
#[cfg(feature = "builtin")]
pub(crate) mod builtin;
mod finite;
mod gguf;
mod hub;
mod init;
mod init_from;
mod known_buffers;
mod model_folder;
mod model_source;
mod overlay;
mod parameter_shapes;
mod parameters;
mod pickle;
mod random_weights;
mod raw_tensor;
mod renamed;
mod safetensors;
mod save;
mod shard_index;
mod siglip;
mod source;
mod validate;

pub use crate::files::check_new_folder;
pub(crate) use atomic::sync_folder;
pub use atomic::{write_atomically, write_bytes_atomically};
pub use gguf::{GgufFile, GgufValue};
pub(crate) use gguf::{GgufTensor, StoredAs, WriteBytes, gguf_name, merge_rotary_pairs, save_gguf};
pub use hub::download;
#[cfg(feature = "hub")]
pub use hub::{DownloadProgress, Hub};
pub(crate) use init::name_hash;
pub use init_from::{
    ClipConfig, ClipSource, InitReport, LlmConfig, LlmSource, RowCounts, RowMap, RowSource, TextInit, VisionFamily,
    init_from_clip, init_from_llm, init_text_embedding, principal_components,
};
pub(crate) use known_buffers::is_known_buffer;
pub(crate) use model_folder::{check_model_folder, folder_of};
#[cfg(not(feature = "builtin"))]
pub(crate) use model_source::no_builtin;
pub use model_source::{ModelSource, ResolvedModel};
pub(crate) use overlay::OverlaySource;
pub use parameter_shapes::ParameterShapes;
pub use parameters::Parameters;
pub use pickle::PickleFiles;
pub use random_weights::RandomWeights;
pub use safetensors::SafetensorsFiles;
pub(crate) use save::save_safetensors_file_keeping;
pub use save::{SaveOptions, save_safetensors, save_safetensors_file, save_source};
pub(crate) use siglip::PixelNorm;
pub use source::{EachPart, TensorSource, check_source, open_weights, source_var_builder};
pub(crate) use source::{for_each_unpadded, load_unpadded, open_decoder_weights};
pub use validate::check_tensors;
