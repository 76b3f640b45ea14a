//! Data sets, through the public API.
// Helpers outside of `#[test]` functions also fail a test by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod loader;
mod records;
mod shapes;
