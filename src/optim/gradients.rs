//! Gradients by parameter name, detached from the graph.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor, TensorId, Var};
use rayon::prelude::*;

use crate::nn::ops::on_pool;
use crate::nn::tensor_data::{CHUNK, is_host_f32, with_slice, with_slice_mut};
use crate::nn::{gradients_as_found, gradients_of};
use crate::{Error, Result};

/// Gradients by parameter name, iterated in sorted order of names.
#[derive(Debug, Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// The gradients of `loss` with respect to `params`, by [`gradients_of`].
    ///
    /// Parameters that the loss does not depend on have no entry; [`super::AdamW::step`] rejects that.
    ///
    /// # Errors
    /// [`Error::Candle`] for a failed tensor operation.
    pub fn of(loss: Tensor, params: &BTreeMap<String, Var>) -> Result<Self> {
        let mut found = gradients_of(loss, params.values())?;
        let mut gradients = Self::default();
        for (name, var) in params {
            if let Some(gradient) = found.remove(&var.id()) {
                gradients.0.insert(name.clone(), gradient.contiguous()?);
            }
        }
        Ok(gradients)
    }

    /// Hands the gradients of `loss` to `taker` as soon as the backward pass has found them, as
    /// [`gradients_as_found`] does, with the name of the parameter.
    ///
    /// # Errors
    /// [`Error::Candle`] for a failed tensor operation, and errors of `taker`.
    pub fn as_found(
        loss: Tensor,
        params: &BTreeMap<String, Var>,
        mut taker: impl FnMut(&str, Tensor) -> Result<()> + 'static,
    ) -> Result<()> {
        let names: HashMap<TensorId, String> = params.iter().map(|(name, var)| (var.id(), name.clone())).collect();
        let taker = move |id, gradient: Tensor| {
            let name = names.get(&id).map_or("", String::as_str);
            taker(name, gradient.contiguous()?).map_err(candle_core::Error::wrap)
        };
        Ok(gradients_as_found(loss, params.values(), Box::new(taker))?)
    }

    /// Inserts a copy of a gradient, replacing an earlier gradient of the same name.
    ///
    /// # Errors
    /// [`Error::Candle`] for a failed tensor operation.
    pub fn insert(&mut self, name: String, gradient: &Tensor) -> Result<()> {
        self.0.insert(name, gradient.detach().contiguous()?.copy()?);
        Ok(())
    }

    /// Inserts zeros for parameters without a gradient for whose name `may_lack` is true: parts of a model that a step
    /// did not use, such as the patch projection if no sample held an image.
    ///
    /// # Errors
    /// [`Error::Candle`] for a failed tensor operation.
    pub fn fill_missing(&mut self, params: &BTreeMap<String, Var>, may_lack: impl Fn(&str) -> bool) -> Result<()> {
        for (name, var) in params {
            if !self.0.contains_key(name) && may_lack(name) {
                self.0.insert(name.clone(), var.zeros_like()?.detach());
            }
        }
        Ok(())
    }

    /// Adds the gradients of another micro-batch, in place where they are f32 on the CPU.
    ///
    /// # Errors
    /// [`Error::Training`] if two gradients of the same name differ in shape.
    pub fn accumulate(&mut self, other: Self) -> Result<()> {
        on_pool(&other.device(), || other.0.into_iter().try_for_each(|(name, gradient)| self.add(name, gradient)))
    }

    /// Adds the gradient of one parameter, in place where it is f32 on the CPU.
    ///
    /// # Errors
    /// As [`Self::accumulate`].
    pub(crate) fn add(&mut self, name: String, gradient: Tensor) -> Result<()> {
        match self.0.get_mut(&name) {
            Some(sum) if sum.shape() != gradient.shape() => {
                return Err(Error::training(format!(
                    "gradients of `{name}` have shapes {:?} and {:?}: accumulate only gradients of one model",
                    sum.dims(),
                    gradient.dims()
                )));
            }
            Some(sum) if is_host_f32(sum) && is_host_f32(&gradient) => add_in_place(sum, &gradient)?,
            Some(sum) => *sum = (&*sum + gradient)?.detach(),
            None => drop(self.0.insert(name, gradient)),
        }
        Ok(())
    }

    /// Takes a gradient out.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.0.remove(name)
    }

    /// Device of the gradients; the CPU if there are none.
    pub(super) fn device(&self) -> Device {
        self.0.values().next().map_or(Device::Cpu, |gradient| gradient.device().clone())
    }

    /// The gradient of a parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Names and gradients, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.0.iter()
    }

    /// Number of gradients.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no gradients.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn add_in_place(sum: &Tensor, gradient: &Tensor) -> Result<()> {
    let add = |(sum, gradient): (&mut [f32], &[f32])| sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g);
    with_slice(gradient, |gradient| {
        with_slice_mut(sum, |sum| sum.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).for_each(add))
    })??;
    Ok(())
}
