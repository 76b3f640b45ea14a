//! Weights: safetensors and GGUF files, parameter stores, initialisation from pretrained models, the Hugging Face hub.

mod atomic;
mod finite;
mod gguf;
mod hub;
mod init;
mod init_from;
mod model_folder;
mod parameter_shapes;
mod parameters;
mod safetensors;
mod save;
mod source;
mod validate;

pub use crate::files::check_new_folder;
pub(crate) use atomic::sync_folder;
pub use atomic::{write_atomically, write_bytes_atomically};
pub use gguf::{GgufFile, GgufValue, save_gguf};
#[cfg(feature = "hub")]
pub use hub::{DownloadProgress, Hub};
pub use hub::{download, resolve_model};
pub use init_from::{
    ClipConfig, ClipSource, InitReport, LlmConfig, LlmSource, TextInit, init_from_clip, init_from_llm,
    init_text_embedding, principal_components,
};
pub(crate) use model_folder::check_model_folder;
pub use parameter_shapes::ParameterShapes;
pub use parameters::Parameters;
pub use safetensors::SafetensorsFiles;
pub use save::{SaveOptions, save_safetensors, save_safetensors_file};
pub use source::{TensorSource, check_source, open_weights, source_var_builder};
pub use validate::check_tensors;
