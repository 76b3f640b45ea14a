//! Divergence between the predictions of two models.

use candle_core::{D, DType, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Divergence between the next-token distributions of two models, over all positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Divergence {
    /// Mean Kullback-Leibler divergence KL(reference || other), in nats.
    pub kl: f64,
    /// Share of positions where the most likely token is the same, 0 to 1.
    pub agreement: f64,
    /// Number of positions.
    pub positions: usize,
}

impl Divergence {
    /// The divergence between logits of the same shape (.., vocab).
    ///
    /// # Errors
    /// [`Error::Batch`] if the shapes differ.
    pub fn of(reference: &Tensor, other: &Tensor) -> Result<Self> {
        if reference.dims() != other.dims() || reference.rank() == 0 {
            let (a, b) = (reference.dims(), other.dims());
            return Err(Error::batch(format!("of logits {b:?} cannot be compared with logits {a:?}")));
        }
        let rows = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_to(D::Minus2);
        let (reference, other) = match reference.rank() {
            1 => (reference.unsqueeze(0)?, other.unsqueeze(0)?),
            _ => (rows(reference)?, rows(other)?),
        };
        let (log_p, log_q) = (log_softmax(&reference, D::Minus1)?, log_softmax(&other, D::Minus1)?);
        let kl = (log_p.exp()? * (&log_p - &log_q)?)?.sum(D::Minus1)?.to_dtype(DType::F64)?.mean_all()?;
        let same = reference.argmax(D::Minus1)?.eq(&other.argmax(D::Minus1)?)?;
        let agreement = same.to_dtype(DType::F64)?.mean_all()?;
        Ok(Self { kl: kl.to_scalar()?, agreement: agreement.to_scalar()?, positions: reference.dim(0)? })
    }

    /// Combined divergence, weighted by the numbers of positions.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        let positions = self.positions + other.positions;
        let mean = |a: f64, b: f64| (a * self.positions as f64 + b * other.positions as f64) / positions.max(1) as f64;
        Self { kl: mean(self.kl, other.kl), agreement: mean(self.agreement, other.agreement), positions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn divergence_matches_a_hand_computed_value_and_is_zero_with_itself() {
        let tensor = |rows: &[[f32; 2]; 2]| Tensor::new(rows, &Device::Cpu).unwrap();
        // p = (1/2, 1/2), q = (1/4, 3/4): ln(2)/2 + ln(2/3)/2.
        let (p, q) = (tensor(&[[0.0, 0.0], [3.0, 1.0]]), tensor(&[[0.0, 3f32.ln()], [3.0, 1.0]]));
        let found = Divergence::of(&p, &q).unwrap();
        assert!((found.kl - (2f64.ln() + (2.0 / 3.0f64).ln()) / 2.0 / 2.0).abs() < 1e-6, "{found:?}");
        assert_eq!((found.agreement, found.positions), (0.5, 2));
        let itself = Divergence::of(&p, &p).unwrap();
        assert_eq!((itself.kl, itself.agreement), (0.0, 1.0));
        let both = found.merged(itself);
        assert!((both.kl - found.kl / 2.0).abs() < 1e-12 && both.agreement == 0.75 && both.positions == 4);
        assert!(Divergence::of(&p, &q.get(0).unwrap()).is_err());
    }
}
