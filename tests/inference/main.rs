//! Answers: pipelines, generation, attention maps, batch inference, the built-in model.

mod attention;
mod batch_inference;
mod builtin;
#[path = "../common/mod.rs"]
mod common;
mod convert;
mod generation;
mod generator;
mod pipeline;
