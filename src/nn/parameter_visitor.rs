//! Visitor over the parameters of a model, which attaches adapters and replaces tensors.

use candle_core::Tensor;

use super::{Linear, MatmulLayer, TokenTable};

/// Part of a model that holds parameters.
#[derive(Debug)]
#[non_exhaustive]
pub enum ParameterSlot<'a> {
    /// A linear layer.
    Linear(&'a mut Linear),
    /// The table of token embeddings.
    Table(&'a mut TokenTable),
    /// A tensor of another module, such as a norm.
    Tensor(&'a mut Tensor),
}

/// Visitor function, called with each slot and its checkpoint name (of a linear layer: without `.weight`).
pub type ParameterVisitor<'f> = dyn FnMut(&str, ParameterSlot<'_>) + 'f;

/// A visitor of matmuls that passes the linear layers on to `visit`.
pub fn linears_of<'f>(visit: &'f mut ParameterVisitor<'_>) -> impl FnMut(&str, MatmulLayer<'_>) + 'f {
    move |name, layer| {
        if let MatmulLayer::Linear(linear) = layer {
            visit(name, ParameterSlot::Linear(linear));
        }
    }
}
