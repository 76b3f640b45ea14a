//! The serving engine: exactness in any company, sharing of prefixes, memory, queue, cancellation, errors.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[cfg(feature = "builtin")]
mod builtin;
mod company;
mod constraint;
mod lifecycle;
mod memory;
mod mock;
mod output;
