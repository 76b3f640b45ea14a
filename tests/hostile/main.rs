//! Inputs that try to exhaust memory, stack or time, or that contradict themselves.

#[path = "../common/mod.rs"]
mod common;
mod configs;
mod files;
mod images;
mod templates;
mod tokenizers;
