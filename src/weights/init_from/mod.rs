//! Starting a HaploVL from a pre-trained CLIP and a pre-trained language model.
//!
//! A source is opened ([`LlmSource`], [`ClipSource`]), and its values are copied into the existing parameters of a model
//! ([`inherit_llm`], [`inherit_clip`]). What cannot be taken over without loss is an error, and the [`InheritReport`]
//! accounts for every parameter and every tensor of the source.

mod check;
mod clip;
mod config_file;
mod llm;
mod llm_config;
mod pca;
mod report;
mod resample;
mod transfer;

pub use clip::{ClipConfig, ClipSource, inherit_clip};
pub use llm::{LlmSource, TextInit, inherit_llm, inherit_text_embedding};
pub use llm_config::LlmConfig;
pub use pca::principal_components;
pub use report::InheritReport;
