//! Data sets, through the public API.
// Helpers outside of `#[test]` functions also fail a test by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod formats;
mod hostile;
mod large;
mod loader;
#[cfg(feature = "parquet")]
mod parquet_files;
mod records;
mod shapes;
mod sources;
