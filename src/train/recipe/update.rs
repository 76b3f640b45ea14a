//! Optimizer steps: their number, size and dtype.

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::config::validate::{at_least_one, at_most, positive};
use crate::options::Precision;
use crate::{Error, Result};

/// Most rows or micro-batches; larger numbers are typing errors.
const MAX_COUNT: usize = 1 << 16;
/// Most epochs.
const MAX_EPOCHS: f64 = 1e6;
/// Most threads of parallel micro-batches.
const MAX_THREADS: usize = 1 << 10;

/// Floating-point dtype.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FloatType {
    /// 32-bit float.
    #[default]
    #[serde(alias = "float32")]
    F32,
    /// 16-bit float, for exports only: gradients overflow in f16.
    #[serde(alias = "float16")]
    F16,
    /// bfloat16, for exports and for computing over f32 parameters. On a CPU only matmuls are computed in bf16, which
    /// takes AVX512-BF16.
    #[serde(alias = "bfloat16")]
    Bf16,
}

impl FloatType {
    pub(in crate::train) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Dtype of activations on a device, and precision of matmuls there.
    pub(in crate::train) fn on(self, device: &Device) -> (DType, Precision) {
        match self {
            Self::Bf16 if device.is_cpu() => (DType::F32, Precision::Bf16),
            _ => (self.dtype(), Precision::Full),
        }
    }
}

/// Optimizer steps: their number, size and dtype.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct UpdateConfig {
    /// Number of optimizer steps; either this or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the training samples, also a fraction of one; either this or `steps`. [`Run::new`] computes the
    /// steps: as many as it takes to see every sample at least this often.
    ///
    /// [`Run::new`]: crate::train::Run::new
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Rows of a micro-batch, which takes one forward and backward pass.
    #[serde(alias = "rows")]
    pub batch_size: usize,
    /// Micro-batches whose gradients are summed for one step.
    #[serde(default = "one", alias = "accumulation")]
    pub gradient_accumulation_steps: usize,
    /// Micro-batches that are computed at the same time, each on one thread: fastest for small models on a CPU, where
    /// the environment should then hold `CANDLE_NUM_THREADS=1` (see [`Run::train`](crate::train::Run::train)).
    #[serde(default = "one", alias = "parallel")]
    pub parallel_micro_batches: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Global gradient norm above which gradients are scaled down to this norm.
    #[serde(default = "max_grad_norm")]
    pub max_grad_norm: f64,
    /// Whether activations are recomputed in the backward pass instead of kept.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Dtype of the forward and backward pass; parameters are f32.
    #[serde(default, alias = "compute")]
    pub compute_dtype: FloatType,
}

fn one() -> usize {
    1
}

fn max_grad_norm() -> f64 {
    1.0
}

impl UpdateConfig {
    /// `steps` steps of one micro-batch of `batch_size` rows each, with defaults elsewhere.
    pub fn new(steps: u64, batch_size: usize, learning_rate: f64) -> Self {
        Self {
            steps: Some(steps),
            epochs: None,
            batch_size,
            gradient_accumulation_steps: one(),
            parallel_micro_batches: one(),
            learning_rate,
            max_grad_norm: max_grad_norm(),
            gradient_checkpointing: false,
            compute_dtype: FloatType::default(),
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.check_length()?;
        for (field, value, most) in [
            ("update.batch_size", self.batch_size, MAX_COUNT),
            ("update.gradient_accumulation_steps", self.gradient_accumulation_steps, MAX_COUNT),
            ("update.parallel_micro_batches", self.parallel_micro_batches, MAX_THREADS),
        ] {
            at_least_one(field, value)?;
            at_most(field, value, most)?;
        }
        positive("update.learning_rate", self.learning_rate)?;
        positive("update.max_grad_norm", self.max_grad_norm)?;
        if self.compute_dtype == FloatType::F16 {
            return Err(Error::config("update.compute_dtype", "is f16, in which gradients overflow: use bf16 or f32"));
        }
        if self.parallel_micro_batches > self.gradient_accumulation_steps {
            let (found, most) = (self.parallel_micro_batches, self.gradient_accumulation_steps);
            let message = format!(
                "is {found}, but a step has only {most} micro-batches: set `update.gradient_accumulation_steps` to at least {found}"
            );
            return Err(Error::config("update.parallel_micro_batches", message));
        }
        Ok(())
    }

    /// Checks that exactly one of `steps` and `epochs` is set, and its range.
    fn check_length(&self) -> Result<()> {
        match (self.steps, self.epochs) {
            (Some(steps), None) => at_least_one("update.steps", usize::try_from(steps).unwrap_or(usize::MAX)),
            (None, Some(epochs)) if epochs > 0.0 && epochs <= MAX_EPOCHS => Ok(()),
            (None, Some(epochs)) => {
                let message = format!("is {epochs:?}, expected above 0 and at most {MAX_EPOCHS}");
                Err(Error::config("update.epochs", message))
            }
            (Some(steps), Some(epochs)) => {
                let message = format!("is {steps}, but `update.epochs` is {epochs:?}: set one of them, not both");
                Err(Error::config("update.steps", message))
            }
            (None, None) => Err(Error::config("update.steps", "is missing: set `update.steps` or `update.epochs`")),
        }
    }

    pub(super) fn check_device(&self, device: &Device) -> Result<()> {
        if device.is_cpu() && self.compute_dtype != FloatType::F32 && !Precision::has_fast_bf16() {
            let message = "is bf16, for which this CPU has no instructions (AVX512-BF16): set it to f32, or use a GPU";
            return Err(Error::config("update.compute_dtype", message));
        }
        Ok(())
    }
}
