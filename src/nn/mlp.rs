//! MLP of a decoder layer, gated or plain.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::ops;
use super::{Linear, MatmulLayer, MatmulVisitor};
use crate::Result;
use crate::config::{Activation, DecoderConfig, MlpKind};

/// MLP of two or three matrices with an activation function.
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
    /// If `vb` lacks a tensor, or a tensor has another shape.
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

    /// Visits the linear layers, `name` being this module's name in the checkpoint.
    pub fn visit_matmuls(&mut self, name: &str, visit: &mut MatmulVisitor<'_>) {
        let mut linear = |part: &str, linear| visit(&format!("{name}.{part}"), MatmulLayer::Linear(linear));
        match &mut self.matrices {
            Matrices::Gated { gate, up, down } => {
                linear("gate_proj", gate);
                linear("up_proj", up);
                linear("down_proj", down);
            }
            Matrices::Plain { fc1, fc2 } => {
                linear("fc1", fc1);
                linear("fc2", fc2);
            }
        }
    }

    /// Runs the MLP: (.., hidden_size) -> (.., hidden_size).
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
