//! Stack of decoder layers, and the inputs that all layers share in one forward pass.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::Result;
use crate::config::DecoderConfig;
use crate::nn::ops::{KeyRanges, last_positions};
use crate::nn::{
    Activations, DecoderLayer, KvStore, LayerCache, MatmulVisitor, ParameterVisitor, RotaryAngles, SequenceLayer,
    checkpoint,
};

/// Inputs that all layers of one decoder share in one forward pass.
#[derive(Debug)]
pub struct Pass<'a> {
    /// Range of keys that each query attends to.
    pub ranges: &'a KeyRanges,
    /// Rotary angles of the positions; `None` if the decoder has no rotary positions.
    pub angles: Option<RotaryAngles>,
    /// Where the layers keep their keys and values.
    pub caches: PassCaches<'a>,
    /// Layers whose attention weights are returned, counted from 0 in this decoder.
    pub attention_layers: &'a [usize],
    /// Number of last positions to return; `None` returns all. The last layer computes only these positions.
    pub last: Option<usize>,
    /// Whether layers keep, release or recompute their activations in training. With KV caches they are kept.
    pub activations: Activations,
}

impl<'a> Pass<'a> {
    /// Creates a pass over all positions, without KV caches and without attention weights.
    pub fn new(ranges: &'a KeyRanges, angles: Option<RotaryAngles>) -> Self {
        Self {
            ranges,
            angles,
            caches: PassCaches::None,
            attention_layers: &[],
            last: None,
            activations: Activations::Kept,
        }
    }
}

/// Where the layers of a decoder keep their keys and values in one pass.
#[derive(Debug)]
pub enum PassCaches<'a> {
    /// Nowhere.
    None,
    /// In one cache for each layer.
    Layers(&'a mut [LayerCache]),
    /// For each row, in the layers of its own sequence.
    Sequences(Vec<&'a mut [SequenceLayer]>),
}

impl PassCaches<'_> {
    /// The store of one layer.
    fn layer(&mut self, i: usize) -> KvStore<'_> {
        match self {
            Self::None => KvStore::None,
            Self::Layers(layers) => layers.get_mut(i).map_or(KvStore::None, KvStore::Cache),
            Self::Sequences(rows) => {
                KvStore::Sequences(rows.iter_mut().filter_map(|layers| layers.get_mut(i)).collect())
            }
        }
    }
}

/// Layers of one decoder.
#[derive(Debug, Clone)]
pub struct DecoderStack {
    layers: Vec<DecoderLayer>,
    /// Index of the first layer in the checkpoint.
    first: usize,
}

impl DecoderStack {
    /// Reads `config.num_hidden_layers` layers from `vb`, where the first layer has index `first`.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(config: &DecoderConfig, first: usize, vb: VarBuilder) -> Result<Self> {
        let layer = |i: usize| DecoderLayer::new(config, vb.pp(first + i));
        Ok(Self { layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?, first })
    }

    /// Returns the layers, first to last.
    pub fn layers(&self) -> &[DecoderLayer] {
        &self.layers
    }

    /// Visits the matmuls of the layers.
    pub fn visit_matmuls(&mut self, visit: &mut MatmulVisitor<'_>) {
        for (layer, i) in self.layers.iter_mut().zip(self.first..) {
            layer.visit_matmuls(&format!("model.layers.{i}"), visit);
        }
    }

    /// Visits the parameters of the layers.
    pub fn visit_parameters(&mut self, visit: &mut ParameterVisitor<'_>) {
        for (layer, i) in self.layers.iter_mut().zip(self.first..) {
            layer.visit_parameters(&format!("model.layers.{i}"), visit);
        }
    }

    /// Runs all layers. Returns the hidden states, and the attention weights (batch, heads, seq, seq) of
    /// [`Pass::attention_layers`], in the order of the layers.
    ///
    /// # Shapes
    /// `x` (batch, seq, hidden_size) -> the same, or only the last positions if [`Pass::last`] is set.
    ///
    /// # Errors
    /// If shapes do not match, or a KV cache is full.
    pub fn forward(&self, x: &Tensor, pass: &mut Pass) -> Result<(Tensor, Vec<Tensor>)> {
        let mut x = x.clone();
        let mut weights = Vec::new();
        let last = pass.last.map(|count| pass.ranges.last(count));
        for (i, layer) in self.layers.iter().enumerate() {
            if pass.attention_layers.contains(&i) {
                weights.push(layer.attention_weights(&x, pass.angles.as_ref(), pass.ranges)?);
            }
            let ranges = last.as_ref().filter(|_| i + 1 == self.layers.len()).unwrap_or(pass.ranges);
            x = match pass.caches.layer(i) {
                KvStore::None => {
                    let (layer, angles, ranges) = (layer.clone(), pass.angles.clone(), ranges.clone());
                    checkpoint(pass.activations, &x, move |x| {
                        layer.forward(x, angles.as_ref(), &ranges, KvStore::None)
                    })?
                }
                store => layer.forward(&x, pass.angles.as_ref(), ranges, store)?,
            };
        }
        // Without layers, no layer has dropped the other positions.
        let x = pass.last.map(|count| last_positions(&x, count)).transpose()?.unwrap_or(x);
        Ok((x, weights))
    }
}
