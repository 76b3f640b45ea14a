//! The names, shapes and initial distributions of a model's parameters, recorded by building the model without allocating
//! memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

/// Recorder of the names and shapes of all parameters that are requested from its [`Self::var_builder`].
///
/// The tensors are a single zero, broadcast, so a 7B model takes no memory.
#[derive(Debug, Clone, Default)]
pub struct ParameterShapes {
    recorded: Arc<Mutex<Recorded>>,
}

/// Shapes and initial distributions by name.
type Recorded = BTreeMap<String, (Vec<usize>, Init)>;

impl ParameterShapes {
    /// A builder whose requests are all recorded here. A name may be requested again with the same shape.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    /// The names and shapes recorded so far.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.lock().iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect()
    }

    /// The parameters recorded so far, with the distribution of their initial values.
    pub(super) fn inits(&self) -> BTreeMap<String, (Vec<usize>, Init)> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimpleBackend for ParameterShapes {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let wanted = shape.dims().to_vec();
        let (known, _) = self.lock().entry(name.to_string()).or_insert_with(|| (wanted.clone(), init)).clone();
        if known != wanted {
            candle_core::bail!("parameter `{name}` is requested as {wanted:?}, but was requested as {known:?} before");
        }
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("parameter `{name}` is requested without a shape, so its shape cannot be recorded")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_recorded_without_allocation() {
        let recorded = ParameterShapes::default();
        let vb = recorded.var_builder();
        // The tensor would take 4 PiB if it were allocated.
        let huge = vb.pp("model").get((1 << 25, 1 << 25), "weight").unwrap();
        assert_eq!(huge.dims(), [1 << 25, 1 << 25]);
        candle_nn::linear(3, 5, vb.pp("head")).unwrap();
        let shapes = recorded.shapes();
        assert_eq!(shapes.keys().collect::<Vec<_>>(), ["head.bias", "head.weight", "model.weight"]);
        assert_eq!(shapes["head.weight"], [5, 3]);
    }

    #[test]
    fn a_repeated_name_must_have_the_same_shape() {
        let recorded = ParameterShapes::default();
        let vb = recorded.var_builder();
        vb.get((2, 3), "w").unwrap();
        vb.get((2, 3), "w").unwrap();
        let message = vb.get((3, 2), "w").unwrap_err().to_string();
        assert!(message.contains("[3, 2]") && message.contains("[2, 3]"), "{message}");
    }
}
