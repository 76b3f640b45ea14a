//! AdamW settings.

use serde::{Deserialize, Serialize};

use super::ParamGroup;
use crate::{Error, Result};

/// Settings of [`AdamW`](super::AdamW); the learning rate comes with each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay rate of the first moment, the EMA of gradients, in `0..1`.
    pub beta1: f64,
    /// Decay rate of the second moment, the EMA of squared gradients, in `0..1`.
    pub beta2: f64,
    /// Term added to the root of the second moment, above 0.
    pub eps: f64,
    /// Decoupled weight decay: a step subtracts this share of a parameter, times the learning rate.
    pub weight_decay: f64,
    /// Decay rate of an EMA of the parameters, in `0..1`, which is then evaluated and exported in their place. In the
    /// first steps the rate is at most `(1 + step) / (10 + step)`, so that the initial values lose their weight
    /// quickly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Settings that differ for some parameters, by name.
    pub groups: Vec<ParamGroup>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05, ema_decay: None, groups: vec![] }
    }
}

impl AdamWConfig {
    /// Checks the ranges of the fields; the groups are checked together with the parameters in
    /// [`AdamW::new`](super::AdamW::new).
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let fail = |field: &str, value: f64, expected: &str| {
            Err(Error::config(format!("optimizer.{field}"), format!("is {value:?}, expected {expected}")))
        };
        let ema = self.ema_decay.map(|value| ("ema_decay", value));
        for (field, value) in [("beta1", self.beta1), ("beta2", self.beta2)].into_iter().chain(ema) {
            if !(0.0..1.0).contains(&value) {
                return fail(field, value, "at least 0 and below 1");
            }
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return fail("eps", self.eps, "a finite number above 0");
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return fail("weight_decay", self.weight_decay, "a finite number of at least 0");
        }
        Ok(())
    }
}
