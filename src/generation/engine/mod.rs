//! Serving: many requests answered at the same time, each as if it were alone.

mod served_model;

pub use served_model::ServedModel;
