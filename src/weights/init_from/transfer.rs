//! Transfer of tensors from a source into parameters, with a report.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};

use super::InitReport;
use crate::Result;
use crate::weights::known_buffers::is_known_buffer;
use crate::weights::source::HEAD;
use crate::weights::{Parameters, TensorSource};

pub(super) struct Transfer<'a> {
    source: &'a dyn TensorSource,
    parameters: &'a Parameters,
    used: BTreeSet<String>,
    copied: BTreeSet<String>,
    constant: BTreeSet<String>,
    /// Whether the source's head is its embedding table.
    has_tied_head: bool,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(source: &'a dyn TensorSource, parameters: &'a Parameters) -> Self {
        let (used, copied, constant) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { source, parameters, used, copied, constant, has_tied_head: false }
    }

    /// Loads a tensor of the source for computation, as f32 on the CPU.
    pub(super) fn take(&mut self, from: &str) -> Result<Tensor> {
        let tensor = self.source.load_tensor(from, DType::F32, &Device::Cpu)?;
        self.used.insert(from.to_string());
        Ok(tensor)
    }

    /// Sets a parameter to values computed from the source.
    pub(super) fn put(&mut self, to: &str, values: &Tensor) -> Result<()> {
        self.parameters.set(to, values)?;
        self.copied.insert(to.to_string());
        Ok(())
    }

    pub(super) fn copy(&mut self, from: &str, to: &str) -> Result<()> {
        let var = self.parameters.require(to)?;
        let values = self.source.load_tensor(from, var.dtype(), var.device())?;
        self.used.insert(from.to_string());
        self.put(to, &values)
    }

    /// Copies `from.weight`, and `from.bias` if `biased`; a bias that the source lacks becomes zero.
    pub(super) fn copy_layer(&mut self, from: &str, to: &str, biased: bool) -> Result<()> {
        self.copy(&format!("{from}.weight"), &format!("{to}.weight"))?;
        let (from, to) = (format!("{from}.bias"), format!("{to}.bias"));
        match (biased, self.source.has_tensor(&from)) {
            (false, _) => Ok(()),
            (true, true) => self.copy(&from, &to),
            (true, false) => self.fill(&to, 0.0),
        }
    }

    /// Sets all elements of a parameter to `value`.
    pub(super) fn fill(&mut self, to: &str, value: f64) -> Result<()> {
        let var = self.parameters.require(to)?;
        self.parameters.set(to, &Tensor::full(value, var.shape(), &Device::Cpu)?)?;
        self.constant.insert(to.to_string());
        Ok(())
    }

    /// Starts a head of stage 1, `name.{weight,bias}`, with this matrix, if the model has such a head of its shape.
    pub(super) fn start_head(&mut self, name: &str, matrix: &Tensor) -> Result<()> {
        let weight = format!("{name}.weight");
        match self.parameters.get(&weight) {
            Some(head) if head.dims() == matrix.dims() => {
                self.put(&weight, matrix)?;
                self.fill(&format!("{name}.bias"), 0.0)
            }
            _ => Ok(()),
        }
    }

    /// Whether a stored head is a copy of the embedding table, which is not needed.
    pub(super) fn ignore_tied_head(&mut self, has_tied_head: bool) {
        self.has_tied_head = has_tied_head;
    }

    pub(super) fn finish(self) -> InitReport {
        let known = |name: &String| is_known_buffer(name) || self.has_tied_head && name == HEAD;
        let unused = self.source.tensor_names().into_iter().filter(|name| !self.used.contains(name));
        let (ignored, unused) = unused.partition(known);
        let touched = |name: &String| self.copied.contains(name) || self.constant.contains(name);
        InitReport {
            fresh: self.parameters.names().into_iter().filter(|name| !touched(name)).collect(),
            unused,
            ignored,
            renamed: self.source.renaming().map(String::from).into_iter().collect(),
            copied: self.copied.into_iter().collect(),
            zero_filled: self.constant.into_iter().collect(),
            rows: Vec::new(),
        }
    }
}
