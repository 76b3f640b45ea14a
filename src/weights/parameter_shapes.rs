//! The parameters that a model asks for, found out by building it without memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

/// Records the name and shape of everything that is built over its [`Self::var_builder`].
///
/// The tensors handed out are a single zero, broadcast: a 7B model takes no memory.
#[derive(Debug, Clone, Default)]
pub struct ParameterShapes {
    shapes: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
}

impl ParameterShapes {
    /// A builder whose every request is recorded here. A name may be asked for again with the same shape.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    /// The names and shapes recorded so far.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<usize>>> {
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimpleBackend for ParameterShapes {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let wanted = shape.dims().to_vec();
        let known = self.lock().entry(name.to_string()).or_insert_with(|| wanted.clone()).clone();
        if known != wanted {
            candle_core::bail!("parameter `{name}` is asked for as {wanted:?}, but was {known:?} before");
        }
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("parameter `{name}` is asked for without a shape, so its shape cannot be recorded")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_without_memory() {
        let recorded = ParameterShapes::default();
        let vb = recorded.var_builder();
        // 4 PiB, if it were real.
        let huge = vb.pp("model").get((1 << 25, 1 << 25), "weight").unwrap();
        assert_eq!(huge.dims(), [1 << 25, 1 << 25]);
        candle_nn::linear(3, 5, vb.pp("head")).unwrap();
        let shapes = recorded.shapes();
        assert_eq!(shapes.keys().collect::<Vec<_>>(), ["head.bias", "head.weight", "model.weight"]);
        assert_eq!(shapes["head.weight"], [5, 3]);
    }

    #[test]
    fn a_tied_name_must_keep_its_shape() {
        let recorded = ParameterShapes::default();
        let vb = recorded.var_builder();
        vb.get((2, 3), "w").unwrap();
        vb.get((2, 3), "w").unwrap();
        let message = vb.get((3, 2), "w").unwrap_err().to_string();
        assert!(message.contains("[3, 2]") && message.contains("[2, 3]"), "{message}");
    }
}
