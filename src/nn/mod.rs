//! Differentiable layers, from fused operations up to one decoder layer.

pub mod ops;
