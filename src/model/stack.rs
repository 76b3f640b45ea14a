//! Layers one behind the other, and what they share in one forward pass.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::Result;
use crate::config::DecoderConfig;
use crate::nn::ops::{KeyRanges, last_positions};
use crate::nn::{Activations, DecoderLayer, LayerCache, MatmulVisitor, RotaryAngles, checkpoint};

/// What all layers of one decoder share in one forward pass.
#[derive(Debug)]
pub struct Pass<'a> {
    /// Keys that each query sees.
    pub ranges: &'a KeyRanges,
    /// Rotary angles of the positions; `None` without rotary positions.
    pub angles: Option<RotaryAngles>,
    /// One cache a layer, or `None` to compute everything anew.
    pub caches: Option<&'a mut [LayerCache]>,
    /// Layers (counted from 0 in this decoder) whose attention weights are wanted.
    pub attention_layers: &'a [usize],
    /// How many of the last positions are wanted, if not all: the last layer computes no other.
    pub last: Option<usize>,
    /// What becomes of each layer's activations in training. With caches, they are kept.
    pub activations: Activations,
}

impl<'a> Pass<'a> {
    /// A pass without cache and without recorded weights.
    pub fn new(ranges: &'a KeyRanges, angles: Option<RotaryAngles>) -> Self {
        Self { ranges, angles, caches: None, attention_layers: &[], last: None, activations: Activations::Kept }
    }
}

/// The layers of one decoder.
#[derive(Debug, Clone)]
pub struct DecoderStack {
    layers: Vec<DecoderLayer>,
    /// Number of the first layer in the checkpoint.
    first: usize,
}

impl DecoderStack {
    /// Reads `config.num_hidden_layers` layers, numbered from `first` on under `vb`.
    ///
    /// # Errors
    /// If the store lacks a tensor, or one has another shape.
    pub fn new(config: &DecoderConfig, first: usize, vb: VarBuilder) -> Result<Self> {
        let layer = |i: usize| DecoderLayer::new(config, vb.pp(first + i));
        Ok(Self { layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?, first })
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[DecoderLayer] {
        &self.layers
    }

    /// Visits the matmuls of the layers.
    pub fn visit_matmuls(&mut self, visit: &mut MatmulVisitor<'_>) {
        for (layer, i) in self.layers.iter_mut().zip(self.first..) {
            layer.visit_matmuls(&format!("model.layers.{i}"), visit);
        }
    }

    /// (batch, seq, hidden_size) -> the same, or the last positions of it, and the attention weights that were asked for, in the
    /// order of layers.
    ///
    /// # Errors
    /// If shapes do not fit, or a cache is full.
    pub fn forward(&self, x: &Tensor, pass: &mut Pass) -> Result<(Tensor, Vec<Tensor>)> {
        let mut x = x.clone();
        let mut weights = Vec::new();
        let last = pass.last.map(|count| pass.ranges.last(count));
        for (i, layer) in self.layers.iter().enumerate() {
            if pass.attention_layers.contains(&i) {
                weights.push(layer.attention_weights(&x, pass.angles.as_ref(), pass.ranges)?);
            }
            let ranges = last.as_ref().filter(|_| i + 1 == self.layers.len()).unwrap_or(pass.ranges);
            let cache = pass.caches.as_mut().and_then(|caches| caches.get_mut(i));
            x = match cache {
                Some(cache) => layer.forward(&x, pass.angles.as_ref(), ranges, Some(cache))?,
                None => {
                    let (layer, angles, ranges) = (layer.clone(), pass.angles.clone(), ranges.clone());
                    checkpoint(pass.activations, &x, move |x| layer.forward(x, angles.as_ref(), &ranges, None))?
                }
            };
        }
        // Where there are no layers, nothing was left out yet.
        let x = pass.last.map(|count| last_positions(&x, count)).transpose()?.unwrap_or(x);
        Ok((x, weights))
    }
}
