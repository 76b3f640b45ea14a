//! Optimizer state of one parameter, and the arithmetic of its update.

use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;

use super::groups::Settings;
use super::{AdamWConfig, Gradients};
use crate::nn::ops::vectorised;
use crate::nn::tensor_data::{CHUNK, is_host_f32, with_slice, with_slice_mut};
use crate::{Error, Result};

/// Parameter with its settings and moments.
#[derive(Debug)]
pub(super) struct ParamState {
    pub name: String,
    pub var: Var,
    pub settings: Settings,
    pub m: Tensor,
    pub v: Tensor,
    /// EMA of the parameter, if enabled.
    pub average: Option<Tensor>,
}

impl ParamState {
    /// A parameter with zero moments; its optional EMA starts with the value of the parameter.
    pub fn new(name: &str, var: &Var, settings: Settings, averaged: bool) -> Result<Self> {
        if var.dtype() != DType::F32 || !var.is_contiguous() {
            return Err(Error::training(format!(
                "parameter `{name}` is {:?}, expected contiguous F32: keep master weights in f32 and cast them in the \
                 forward pass",
                var.dtype()
            )));
        }
        let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device());
        let average = averaged.then(|| var.as_detached_tensor().copy()).transpose()?;
        Ok(Self { name: name.into(), var: var.clone(), settings, m: zeros()?, v: zeros()?, average })
    }

    /// State tensors of the parameter, by name.
    pub fn state(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let parts = [("m", Some(&self.m)), ("v", Some(&self.v)), ("ema", self.average.as_ref())];
        parts.into_iter().filter_map(|(part, tensor)| Some((format!("{part}.{}", self.name), tensor?)))
    }

    /// Mutable state tensors, to load them; see [`Self::state`].
    pub fn state_mut(&mut self) -> impl Iterator<Item = (String, &mut Tensor)> {
        let parts = [("m", Some(&mut self.m)), ("v", Some(&mut self.v)), ("ema", self.average.as_mut())];
        parts.into_iter().filter_map(|(part, tensor)| Some((format!("{part}.{}", self.name), tensor?)))
    }

    /// Gradient of this parameter.
    ///
    /// # Errors
    /// [`Error::Training`] if the gradient is missing or has another shape.
    pub fn gradient<'a>(&self, gradients: &'a Gradients) -> Result<&'a Tensor> {
        let gradient = gradients.get(&self.name).ok_or_else(|| {
            Error::training(format!(
                "parameter `{}` received no gradient: the loss does not depend on it, or an operation cut the graph; \
                 freeze it (`lr_scale = 0`) or fix the forward pass",
                self.name
            ))
        })?;
        if gradient.shape() != self.var.shape() {
            return Err(Error::training(format!(
                "the gradient of `{}` has shape {:?}, expected {:?}",
                self.name,
                gradient.dims(),
                self.var.dims()
            )));
        }
        Ok(gradient)
    }

    /// One step, in place.
    pub fn update(&mut self, gradient: &Tensor, c: &Coefficients) -> Result<()> {
        if !(is_host_f32(&self.var) && is_host_f32(gradient)) {
            return self.update_as_tensors(gradient, c);
        }
        with_slice(gradient, |gradient| {
            with_slice_mut(&self.m, |m| {
                with_slice_mut(&self.v, |v| with_slice_mut(&self.var, |theta| c.update(theta, m, v, gradient)))
            })
        })????;
        Ok(())
    }

    /// Updates the EMA with the decay rate `decay`.
    pub fn update_average(&mut self, decay: f64) -> Result<()> {
        let Some(average) = &mut self.average else { return Ok(()) };
        if is_host_f32(&self.var) {
            return Ok(with_slice(&self.var, |theta| {
                with_slice_mut(average, |average| approach(average, theta, (1.0 - decay) as f32))
            })??);
        }
        *average = ((&*average * decay)? + (self.var.as_detached_tensor() * (1.0 - decay))?)?;
        Ok(())
    }

    /// Swaps parameter and EMA.
    pub fn swap_average(&mut self) -> Result<()> {
        let Some(average) = &mut self.average else { return Ok(()) };
        let theta = self.var.as_detached_tensor().copy()?;
        self.var.set(average)?;
        *average = theta;
        Ok(())
    }

    fn update_as_tensors(&mut self, gradient: &Tensor, c: &Coefficients) -> Result<()> {
        let gradient = (gradient.detach().to_dtype(DType::F32)? * c.grad_scale)?;
        self.m = ((&self.m * c.beta1)? + (&gradient * (1.0 - c.beta1))?)?;
        self.v = ((&self.v * c.beta2)? + (gradient.sqr()? * (1.0 - c.beta2))?)?;
        let denominator = ((self.v.sqrt()? * c.root_correction)? + c.eps)?;
        let theta = self.var.as_detached_tensor();
        let change = ((&theta * c.decay)? + ((&self.m / denominator)? * c.step_size)?)?;
        Ok(self.var.set(&(theta - change)?)?)
    }
}

/// `average += rate * (theta - average)`.
fn approach(average: &mut [f32], theta: &[f32], rate: f32) {
    average.par_chunks_mut(CHUNK).zip(theta.par_chunks(CHUNK)).for_each(|(average, theta)| {
        vectorised(
            #[inline(always)]
            || average.iter_mut().zip(theta).for_each(|(average, theta)| *average += rate * (theta - *average)),
        );
    });
}

/// Coefficients of one step of one parameter:
/// `theta -= decay * theta + step_size * m / (root_correction * sqrt(v) + eps)`.
pub(super) struct Coefficients {
    grad_scale: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    /// Learning rate times weight decay.
    decay: f64,
    /// Learning rate over `1 - beta1^step`, the bias correction of `m`.
    step_size: f64,
    /// `1 / sqrt(1 - beta2^step)`, the bias correction of `sqrt(v)`.
    root_correction: f64,
}

impl Coefficients {
    /// `step` counts from 1.
    pub fn new(config: &AdamWConfig, settings: Settings, step: u64, learning_rate: f64, grad_scale: f64) -> Self {
        let learning_rate = learning_rate * settings.lr_scale;
        Self {
            grad_scale,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            decay: learning_rate * settings.weight_decay,
            step_size: learning_rate / (1.0 - config.beta1.powf(step as f64)),
            root_correction: 1.0 / (1.0 - config.beta2.powf(step as f64)).sqrt(),
        }
    }

    /// One fused pass over equally long slices.
    fn update(&self, theta: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
        let [grad_scale, eps, decay] = [self.grad_scale, self.eps, self.decay].map(|x| x as f32);
        let [beta1, rest1] = [self.beta1, 1.0 - self.beta1].map(|x| x as f32);
        let [beta2, rest2] = [self.beta2, 1.0 - self.beta2].map(|x| x as f32);
        let [step_size, root_correction] = [self.step_size, self.root_correction].map(|x| x as f32);
        let chunks = theta.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
        chunks.zip(gradient.par_chunks(CHUNK)).for_each(|(((theta, m), v), gradient)| {
            vectorised(
                #[inline(always)]
                || {
                    for (((theta, m), v), gradient) in theta.iter_mut().zip(m).zip(v).zip(gradient) {
                        let g = gradient * grad_scale;
                        *m = beta1 * *m + rest1 * g;
                        *v = beta2 * *v + rest2 * g * g;
                        *theta -= decay * *theta + step_size * *m / (v.sqrt() * root_correction + eps);
                    }
                },
            );
        });
    }
}
