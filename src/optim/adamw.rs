//! AdamW over named parameters, in place.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, Var};

use super::param_state::{Coefficients, ParamState};
use super::{AdamWConfig, Gradients, groups};
use crate::nn::ops::on_pool;
use crate::{Error, Result};

/// AdamW: Adam with bias correction and decoupled weight decay (Loshchilov and Hutter), with the formula of PyTorch.
///
/// Parameters and moments are f32. On the CPU one fused pass over each parameter updates it in place without temporary
/// tensors; on other devices the same formula runs as tensor operations.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<ParamState>,
    step: u64,
}

impl AdamW {
    /// Name of the step counter in [`Self::state`].
    pub(crate) const STEP: &str = "step";

    /// An optimizer of `params` at step 0 with zero moments. Parameters of a group with `lr_scale = 0` are frozen.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting out of range or a group that matches no parameter, and [`Error::Training`]
    /// for a parameter that is not f32 or listed under two names.
    pub fn new(params: &BTreeMap<String, Var>, config: AdamWConfig) -> Result<Self> {
        Self::sharded(params, config, |_| true)
    }

    /// As [`Self::new`], for one of several ranks: it keeps state of, and updates, the parameters that it `owns` alone.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn sharded(params: &BTreeMap<String, Var>, config: AdamWConfig, owns: impl Fn(&str) -> bool) -> Result<Self> {
        config.validate()?;
        let settings = groups::resolve(&config.groups, config.weight_decay, params.keys())?;
        let trained = params.iter().zip(settings);
        let trained = trained.filter(|((name, _), settings)| settings.lr_scale > 0.0 && owns(name));
        let averaged = config.ema_decay.is_some();
        let slots = trained.map(|((name, var), settings)| ParamState::new(name, var, settings, averaged));
        let slots = slots.collect::<Result<Vec<_>>>()?;
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

    /// One optimizer step with the gradients `gradients * grad_scale`.
    ///
    /// `grad_scale` is the product of all factors on the gradients, for example 1 / label tokens and
    /// [`super::clip_scale`], which saves a separate pass for each factor.
    ///
    /// # Errors
    /// [`Error::Training`] if a trained parameter has no gradient or a gradient of another shape, or a factor is not
    /// finite; nothing is changed then.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64, grad_scale: f64) -> Result<()> {
        for (what, value) in [("learning rate", learning_rate), ("gradient scale", grad_scale)] {
            if !value.is_finite() {
                return Err(Error::training(format!("the {what} of step {} is {value}", self.step)));
            }
        }
        let gradients = self.own_gradients(gradients)?;
        self.step += 1;
        let device = self.slots.first().map_or(Device::Cpu, |slot| slot.var.device().clone());
        on_pool(&device, || {
            for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
                let coefficients = Coefficients::new(&self.config, slot.settings, self.step, learning_rate, grad_scale);
                slot.update(gradient, &coefficients)?;
                if let Some(decay) = self.config.ema_decay {
                    let steps = self.step as f64;
                    slot.update_average(decay.min((1.0 + steps) / (10.0 + steps)))?;
                }
            }
            Ok(())
        })
    }

    /// The gradients of all updated parameters, in their order.
    fn own_gradients<'a>(&self, gradients: &'a Gradients) -> Result<Vec<&'a Tensor>> {
        self.slots.iter().map(|slot| slot.gradient(gradients)).collect()
    }

    /// Checks that every parameter that is updated has a gradient of its shape.
    ///
    /// # Errors
    /// [`Error::Training`] naming the parameter.
    pub fn check_gradients(&self, gradients: &Gradients) -> Result<()> {
        self.own_gradients(gradients).map(drop)
    }

    /// Bytes of moments and averages.
    pub fn state_bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.slots.iter().flat_map(ParamState::state).map(|(_, tensor)| bytes(tensor)).sum()
    }

    /// Names of the entries of [`Self::state`].
    pub fn state_names(&self) -> impl Iterator<Item = String> {
        let entries = self.slots.iter().flat_map(ParamState::state).map(|(name, _)| name);
        std::iter::once(Self::STEP.to_string()).chain(entries)
    }

    /// Whether an EMA of the parameters is kept.
    pub fn is_averaging(&self) -> bool {
        self.config.ema_decay.is_some()
    }

    /// Swaps the parameters and their EMA; a second call swaps them back. Without
    /// [`AdamWConfig::ema_decay`] nothing happens.
    ///
    /// # Errors
    /// [`Error::Candle`] for a failed tensor operation.
    pub fn swap_averages(&mut self) -> Result<()> {
        self.slots.iter_mut().try_for_each(ParamState::swap_average)
    }

    /// State of the optimizer, for resuming: `m.NAME` and `v.NAME` for each parameter, `ema.NAME` if an EMA is kept,
    /// and `step`.
    ///
    /// The tensors share memory with the optimizer: save them before the next step changes them.
    ///
    /// # Errors
    /// [`Error::Candle`] for a failed tensor operation.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::from([(Self::STEP.to_string(), Tensor::new(self.step as i64, &Device::Cpu)?)]);
        for slot in &self.slots {
            state.extend(slot.state().map(|(key, tensor)| (key, tensor.clone())));
        }
        Ok(state)
    }

    /// Loads a state from [`Self::state`], bit for bit.
    ///
    /// # Errors
    /// [`Error::Weights`] listing every missing, unexpected or misshapen entry; nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let faults = self.state_faults(state);
        if !faults.is_empty() {
            return Err(Error::weights(format!(
                "the optimizer state does not match the parameters ({}): resume with the recipe that it was saved with",
                faults.join("; ")
            )));
        }
        for slot in &mut self.slots {
            for (name, value) in slot.state_mut() {
                if let Some(saved) = state.get(&name) {
                    // A copy, because later steps write in place.
                    *value = saved.to_device(value.device())?.copy()?;
                }
            }
        }
        if let Some(step) = state.get(Self::STEP) {
            self.step = step.to_scalar::<i64>()?.unsigned_abs();
        }
        Ok(())
    }

    fn state_faults(&self, state: &BTreeMap<String, Tensor>) -> Vec<String> {
        let mut expected = BTreeMap::from([(Self::STEP.to_string(), (DType::I64, [].as_slice()))]);
        for slot in &self.slots {
            expected.extend(slot.state().map(|(key, tensor)| (key, (DType::F32, tensor.dims()))));
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

/// Rejects a variable with two names, which would be updated twice per step.
fn refuse_aliases(slots: &[ParamState]) -> Result<()> {
    let mut seen = HashMap::new();
    for slot in slots {
        if let Some(first) = seen.insert(slot.var.id(), &slot.name) {
            return Err(Error::training(format!(
                "`{first}` and `{}` are the same variable: list tied parameters once",
                slot.name
            )));
        }
    }
    Ok(())
}
