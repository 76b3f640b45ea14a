//! Named tensors through the public API: files, stores, inheritance.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod files;
mod gguf;
mod hostile;
mod inherit;
