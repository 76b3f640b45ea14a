#![doc = include_str!("../README.md")]

pub mod batch;
pub mod config;
pub mod data;
mod error;

pub mod eval;
mod files;
pub mod generation;
pub mod loss;
pub mod model;
pub mod nn;
pub mod optim;
pub mod options;
pub mod patch_grid;
pub mod pipeline;
pub mod processor;
pub mod train;
pub mod weights;

pub use error::{Error, Result};
