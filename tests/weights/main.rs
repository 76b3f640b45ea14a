//! Weights through the public API: files, parameter stores, initialisation from pretrained models.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bring;
mod files;
mod gguf;
mod hostile;
mod inherit;
