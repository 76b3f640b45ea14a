//! AdamW over named parameters, in place.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Gradients;
use super::groups::{self, ParamGroup, Settings};
use super::slices::{CHUNK, is_host_f32, with_slice, with_slice_mut};
use crate::{Error, Result};

/// Name of the step counter in [`AdamW::state`].
const STEP: &str = "step";

/// Settings of [`AdamW`]; the learning rate comes with each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the running mean of gradients, in `0..1`.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients, in `0..1`.
    pub beta2: f64,
    /// Added to the root of the second moment, above 0.
    pub eps: f64,
    /// Decoupled weight decay: a step takes away this share of a parameter, times the learning rate.
    pub weight_decay: f64,
    /// Exceptions by parameter name.
    pub groups: Vec<ParamGroup>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05, groups: vec![] }
    }
}

impl AdamWConfig {
    /// Checks the ranges of the fields; those of the groups are checked where they meet the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let fail = |field: &str, value: f64, expected: &str| {
            Err(Error::config(format!("optimizer.{field}"), format!("is {value}, expected {expected}")))
        };
        for (field, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
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

/// AdamW: Adam with bias correction and decoupled weight decay, as of Loshchilov and Hutter and as PyTorch has it.
///
/// Parameters and moments are f32. On the CPU one pass over each parameter updates everything in place without any
/// temporary; elsewhere the same formula runs as tensor operations.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    step: u64,
}

/// One parameter with its settings and moments.
#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    settings: Settings,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    /// An optimizer of `params` at step 0, its moments zero. A group with `lr_scale = 0` takes parameters out.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting out of range or a group that matches no parameter, and [`Error::Training`]
    /// for a parameter that is not f32 or listed under two names.
    pub fn new(params: &BTreeMap<String, Var>, config: AdamWConfig) -> Result<Self> {
        config.validate()?;
        let settings = groups::resolve(&config.groups, config.weight_decay, params.keys())?;
        let trained = params.iter().zip(settings).filter(|(_, settings)| settings.lr_scale > 0.0);
        let slots =
            trained.map(|((name, var), settings)| Slot::new(name, var, settings)).collect::<Result<Vec<_>>>()?;
        refuse_aliases(&slots)?;
        Ok(Self { config, slots, step: 0 })
    }

    /// Number of steps taken so far, including those before a resume.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Names of the parameters that are updated, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().map(|slot| slot.name.as_str())
    }

    /// One step against `gradients * grad_scale`.
    ///
    /// `grad_scale` holds whatever the gradients must still be multiplied with, such as 1 / label tokens and
    /// [`super::clip_scale`], so that neither costs a pass of its own.
    ///
    /// # Errors
    /// [`Error::Training`] if a trained parameter has no gradient or one of another shape, or a factor is not
    /// finite; nothing is changed then.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64, grad_scale: f64) -> Result<()> {
        for (what, value) in [("learning rate", learning_rate), ("gradient scale", grad_scale)] {
            if !value.is_finite() {
                return Err(Error::Training(format!("the {what} of step {} is {value}", self.step)));
            }
        }
        let gradients = self.slots.iter().map(|slot| slot.gradient(gradients)).collect::<Result<Vec<_>>>()?;
        self.step += 1;
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            slot.update(
                gradient,
                &Coefficients::new(&self.config, slot.settings, self.step, learning_rate, grad_scale),
            )?;
        }
        Ok(())
    }

    /// Everything a resumed optimizer needs: `m.NAME` and `v.NAME` for each parameter, and `step`.
    ///
    /// The moments are not copied: write them out before the next step changes them.
    ///
    /// # Errors
    /// From candle only.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::from([(STEP.to_string(), Tensor::new(self.step as i64, &Device::Cpu)?)]);
        for slot in &self.slots {
            state.insert(format!("m.{}", slot.name), slot.m.clone());
            state.insert(format!("v.{}", slot.name), slot.v.clone());
        }
        Ok(state)
    }

    /// Takes over what [`Self::state`] gave, to the bit.
    ///
    /// # Errors
    /// [`Error::Weights`] listing every missing, unexpected or misshapen entry; nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let faults = self.state_faults(state);
        if !faults.is_empty() {
            return Err(Error::Weights(format!(
                "the optimizer's state is not of these parameters ({}): resume with the recipe it was saved by",
                faults.join("; ")
            )));
        }
        let take = |name: String, device: &Device| -> Result<Option<Tensor>> {
            // A copy, because the steps to come write in place.
            Ok(state.get(&name).map(|saved| saved.to_device(device)?.copy()).transpose()?)
        };
        for slot in &mut self.slots {
            let device = slot.var.device().clone();
            if let (Some(m), Some(v)) =
                (take(format!("m.{}", slot.name), &device)?, take(format!("v.{}", slot.name), &device)?)
            {
                (slot.m, slot.v) = (m, v);
            }
        }
        if let Some(step) = state.get(STEP) {
            self.step = step.to_scalar::<i64>()? as u64;
        }
        Ok(())
    }

    fn state_faults(&self, state: &BTreeMap<String, Tensor>) -> Vec<String> {
        let mut expected = BTreeMap::from([(STEP.to_string(), (DType::I64, [].as_slice()))]);
        for slot in &self.slots {
            for prefix in ["m", "v"] {
                expected.insert(format!("{prefix}.{}", slot.name), (DType::F32, slot.var.dims()));
            }
        }
        let unexpected = state.keys().filter(|name| !expected.contains_key(*name));
        let mut faults: Vec<String> = unexpected.map(|name| format!("`{name}` is not expected")).collect();
        for (name, (dtype, dims)) in &expected {
            match state.get(name) {
                None => faults.push(format!("`{name}` is missing")),
                Some(found) if found.dtype() != *dtype || found.dims() != *dims => faults.push(format!(
                    "`{name}` is {:?} {:?}, expected {dtype:?} {dims:?}",
                    found.dtype(),
                    found.dims()
                )),
                Some(_) => {}
            }
        }
        faults
    }
}

/// Two names for one variable would move it twice a step.
fn refuse_aliases(slots: &[Slot]) -> Result<()> {
    let mut seen = HashMap::new();
    for slot in slots {
        if let Some(first) = seen.insert(slot.var.id(), &slot.name) {
            return Err(Error::Training(format!(
                "`{first}` and `{}` are the same variable: list tied parameters once",
                slot.name
            )));
        }
    }
    Ok(())
}

impl Slot {
    fn new(name: &str, var: &Var, settings: Settings) -> Result<Self> {
        if var.dtype() != DType::F32 || !var.is_contiguous() {
            return Err(Error::Training(format!(
                "parameter `{name}` is {:?}, expected contiguous F32: keep master weights in f32 and cast them in the \
                 forward pass",
                var.dtype()
            )));
        }
        let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device());
        Ok(Self { name: name.into(), var: var.clone(), settings, m: zeros()?, v: zeros()? })
    }

    fn gradient<'a>(&self, gradients: &'a Gradients) -> Result<&'a Tensor> {
        let gradient = gradients.get(&self.name).ok_or_else(|| {
            Error::Training(format!(
                "parameter `{}` received no gradient: the loss does not depend on it, or an operation cut the graph; \
                 freeze it (`lr_scale = 0`) or repair the forward pass",
                self.name
            ))
        })?;
        if gradient.shape() != self.var.shape() {
            return Err(Error::Training(format!(
                "the gradient of `{}` has shape {:?}, expected {:?}",
                self.name,
                gradient.dims(),
                self.var.dims()
            )));
        }
        Ok(gradient)
    }

    fn update(&mut self, gradient: &Tensor, c: &Coefficients) -> Result<()> {
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

/// The numbers of one step of one parameter:
/// `theta -= decay * theta + step_size * m / (root_correction * sqrt(v) + eps)`.
struct Coefficients {
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
    fn new(config: &AdamWConfig, settings: Settings, step: u64, learning_rate: f64, grad_scale: f64) -> Self {
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
            for (((theta, m), v), gradient) in theta.iter_mut().zip(m).zip(v).zip(gradient) {
                let g = gradient * grad_scale;
                *m = beta1 * *m + rest1 * g;
                *v = beta2 * *v + rest2 * g * g;
                *theta -= decay * *theta + step_size * *m / (v.sqrt() * root_correction + eps);
            }
        });
    }
}
