//! One visitor over the matmuls of a model: what quantises, loads and sets precisions goes through it.

use super::{Attention, Linear};
use crate::options::Precision;

/// A module whose matmuls have settings of their own.
#[derive(Debug)]
#[non_exhaustive]
pub enum MatmulLayer<'a> {
    /// A linear layer, which can be quantised.
    Linear(&'a mut Linear),
    /// The matmuls of an attention with keys and values, which have no weight.
    Attention(&'a mut Attention),
}

/// A function that is called with each module and its name in the checkpoint (of a linear layer: without `.weight`).
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
