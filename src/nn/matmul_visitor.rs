//! Visitor over the matmuls of a model, which quantises, loads and sets precisions.

use super::{Attention, Linear};
use crate::options::Precision;

/// Module whose matmuls have settings.
#[derive(Debug)]
#[non_exhaustive]
pub enum MatmulLayer<'a> {
    /// A linear layer, which can be quantised.
    Linear(&'a mut Linear),
    /// The matmuls of attention with keys and values, which have no weight.
    Attention(&'a mut Attention),
}

/// Visitor function, called with each module and its checkpoint name (of a linear layer: without `.weight`).
pub type MatmulVisitor<'f> = dyn FnMut(&str, MatmulLayer<'_>) + 'f;

impl MatmulLayer<'_> {
    /// Sets the precision of the module's matmuls on the CPU.
    pub fn set_precision(self, precision: Precision) {
        match self {
            Self::Linear(linear) => linear.set_precision(precision),
            Self::Attention(attention) => attention.set_precision(precision),
        }
    }
}
