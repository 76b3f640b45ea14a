//! Initialisation of a HaploVL from a pre-trained CLIP or SigLIP and a pre-trained language model.
//!
//! A source is opened ([`LlmSource`], [`ClipSource`]), and its tensors are copied into the existing parameters of a
//! model ([`init_from_llm`], [`init_from_clip`]). Weights that cannot be converted without loss are an error, and the
//! [`InitReport`] accounts for every parameter and every tensor of the source.

mod check;
mod clip;
mod config_file;
mod llm;
mod llm_config;
mod pca;
mod report;
mod resample;
mod rows;
mod transfer;
mod vision_config;

pub use clip::{ClipSource, init_from_clip};
pub use llm::{LlmSource, TextInit, init_from_llm, init_text_embedding};
pub use llm_config::LlmConfig;
pub(crate) use llm_config::own_head_dim;
pub use pca::principal_components;
pub use report::InitReport;
pub use rows::{RowCounts, RowMap, RowSource};
pub use vision_config::{ClipConfig, VisionFamily};
