//! From images and text to batches.

#[path = "../common/mod.rs"]
mod common;
mod patch_grid;
mod processor;
mod tiff;
mod vocabularies;
