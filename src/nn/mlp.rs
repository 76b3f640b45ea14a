//! The MLP of a decoder layer, gated or plain.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::ops;
use super::{EachMatrix, Linear};
use crate::Result;
use crate::config::{Activation, DecoderConfig, MlpKind};
use crate::options::Precision;

/// Two or three matrices around a non-linearity.
#[derive(Debug, Clone)]
pub struct Mlp {
    act: Activation,
    matrices: Matrices,
}

#[derive(Debug, Clone)]
enum Matrices {
    Gated { gate: Linear, up: Linear, down: Linear },
    Plain { fc1: Linear, fc2: Linear },
}

impl Mlp {
    /// Reads `gate_proj`, `up_proj`, `down_proj`, or `fc1`, `fc2`.
    ///
    /// # Errors
    /// If the store has no such tensors, or of another shape.
    pub fn new(config: &DecoderConfig, vb: VarBuilder) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let wide = |name: &str| Linear::new(hidden, inner, config.mlp_bias, vb.pp(name));
        let narrow = |name: &str| Linear::new(inner, hidden, config.mlp_bias, vb.pp(name));
        let matrices = match config.mlp {
            MlpKind::Gated => {
                Matrices::Gated { gate: wide("gate_proj")?, up: wide("up_proj")?, down: narrow("down_proj")? }
            }
            MlpKind::Plain => Matrices::Plain { fc1: wide("fc1")?, fc2: narrow("fc2")? },
        };
        Ok(Self { act: config.hidden_act, matrices })
    }

    /// Sets how exact products are, on the CPU.
    pub fn set_precision(&mut self, precision: Precision) {
        let set = |linear: &mut Linear| linear.set_precision(precision);
        match &mut self.matrices {
            Matrices::Gated { gate, up, down } => [gate, up, down].into_iter().for_each(set),
            Matrices::Plain { fc1, fc2 } => [fc1, fc2].into_iter().for_each(set),
        }
    }

    /// Calls `f` with every matrix.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn each_matrix(&mut self, name: &str, f: &mut EachMatrix<'_>) -> Result<()> {
        let mut call = |part: &str, linear: &mut Linear| f(&format!("{name}.{part}"), linear);
        match &mut self.matrices {
            Matrices::Gated { gate, up, down } => {
                call("gate_proj", gate)?;
                call("up_proj", up)?;
                call("down_proj", down)
            }
            Matrices::Plain { fc1, fc2 } => {
                call("fc1", fc1)?;
                call("fc2", fc2)
            }
        }
    }

    /// (.., hidden_size) -> (.., hidden_size).
    ///
    /// # Errors
    /// If `x` is not `hidden_size` wide.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.matrices {
            Matrices::Gated { gate, up, down } => {
                down.forward(&ops::gated_activation(&gate.forward(x)?, &up.forward(x)?, self.act)?)
            }
            Matrices::Plain { fc1, fc2 } => fc2.forward(&ops::activation(&fc1.forward(x)?, self.act)?),
        }
    }
}
