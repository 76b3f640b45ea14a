//! The trainable parameters of a model, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::SafetensorsFiles;
use super::init::initial_tensor;
use super::validate::check_tensors;
use crate::memory;
use crate::{Error, Result};

type Vars = BTreeMap<String, Var>;

/// Named variables in sorted order. A clone is another handle to the same parameters.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    vars: Arc<RwLock<Vars>>,
}

impl Parameters {
    /// An empty store; building a model over [`Self::var_builder`] creates the parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// A builder that returns the variables of this store and creates missing ones.
    ///
    /// Initial values follow the layer's [`Init`] hint, from the random stream of (`seed`, name), independent of the
    /// order of creation and the device. The returned tensor is that of the variable, so the variable receives
    /// gradients.
    pub fn var_builder(&self, seed: u64, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.var_builder_where(seed, dtype, device, |_| true)
    }

    /// As [`Self::var_builder`], but parameters for whose name `trainable` is false are returned detached: no gradients
    /// are computed for them.
    pub fn var_builder_where(
        &self,
        seed: u64,
        dtype: DType,
        device: &Device,
        trainable: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> VarBuilder<'static> {
        let source = Source { parameters: self.clone(), seed, trainable: Box::new(trainable) };
        VarBuilder::from_backend(Box::new(source), dtype, device.clone())
    }

    /// The variable with this name.
    pub fn get(&self, name: &str) -> Option<Var> {
        self.read().get(name).cloned()
    }

    /// The variable with this name, or an error.
    pub(in crate::weights) fn require(&self, name: &str) -> Result<Var> {
        self.get(name).ok_or_else(|| Error::weights(format!("the model has no parameter `{name}`")))
    }

    /// Adds or replaces a variable and returns the previous one with this name. Models built before keep the previous
    /// variable.
    pub fn insert(&self, name: impl Into<String>, var: Var) -> Option<Var> {
        self.write().insert(name.into(), var)
    }

    /// Overwrites the values of an existing variable, converted to its dtype and device.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no parameter with this name or the shapes differ.
    pub fn set(&self, name: &str, values: &Tensor) -> Result<()> {
        let var = self.require(name)?;
        if var.dims() != values.dims() {
            return Err(Error::weights(format!(
                "parameter `{name}` is {:?}, but the values for it are {:?}",
                var.dims(),
                values.dims()
            )));
        }
        let values = values.detach().to_device(var.device())?.to_dtype(var.dtype())?;
        Ok(var.set(&values)?)
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.read().keys().cloned().collect()
    }

    /// A snapshot of all names and variables, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (String, Var)> {
        self.read().clone().into_iter()
    }

    /// The current values, detached from any graph; they share memory with the variables and change with them.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.read().iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect()
    }

    /// The names and shapes of all parameters.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.read().iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect()
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// Number of elements in all parameters together.
    pub fn num_elements(&self) -> usize {
        self.read().values().map(|var| var.elem_count()).sum()
    }

    /// Overwrites every parameter with the tensor of the same name in `files`, converted to the parameter's dtype.
    ///
    /// # Errors
    /// One [`Error::Weights`] listing every missing, unexpected and misshapen tensor, before anything is changed.
    pub fn load_from(&self, files: &SafetensorsFiles) -> Result<()> {
        check_tensors(&files.path().display().to_string(), &self.shapes(), &files.shapes())?;
        for (name, var) in self.iter() {
            var.set(&files.load(&name, var.dtype(), var.device())?)?;
        }
        Ok(())
    }

    // A panic while the lock is held cannot leave the map half-changed, so poison is ignored.
    fn read(&self) -> RwLockReadGuard<'_, Vars> {
        self.vars.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vars> {
        self.vars.write().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Source {
    parameters: Parameters,
    seed: u64,
    trainable: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl Source {
    fn tensor(&self, name: &str, var: &Var) -> Tensor {
        if (self.trainable)(name) { var.as_tensor().clone() } else { var.as_detached_tensor() }
    }
}

impl SimpleBackend for Source {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let var = match self.parameters.get(name) {
            Some(var) => var,
            None => {
                // Initialised without the lock, since it is slow and uses the thread pool; the first value inserted is
                // kept.
                check_memory(name, &shape, device)?;
                let var = Var::from_tensor(&initial_tensor(init, &shape, self.seed, name, dtype, device)?)?;
                self.parameters.write().entry(name.to_string()).or_insert(var).clone()
            }
        };
        check_request(name, &var, Some(&shape), dtype, device)?;
        Ok(self.tensor(name, &var))
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        match self.parameters.get(name) {
            Some(var) => {
                check_request(name, &var, None, dtype, device)?;
                Ok(self.tensor(name, &var))
            }
            None => candle_core::bail!("parameter `{name}` does not exist, and cannot be created without a shape"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.parameters.read().contains_key(name)
    }
}

/// Rejects a parameter that does not fit in memory before allocation: a failed allocation would end the process.
fn check_memory(name: &str, shape: &Shape, device: &Device) -> candle_core::Result<()> {
    // Initial values are f32, and the converted copy exists at the same time.
    let bytes = shape.dims().iter().try_fold(2 * size_of::<f32>(), |bytes, &d| bytes.checked_mul(d));
    let fits = bytes.is_some_and(|bytes| !device.is_cpu() || memory::can_allocate(bytes));
    if fits {
        return Ok(());
    }
    let error = Error::weights(format!(
        "there is not enough memory for parameter `{name}` of shape {:?}: make the model smaller",
        shape.dims()
    ));
    Err(candle_core::Error::wrap(error))
}

/// Checks that an existing variable has the requested shape, dtype and device: a converted copy would not be the
/// variable.
fn check_request(
    name: &str,
    var: &Var,
    shape: Option<&Shape>,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<()> {
    if let Some(shape) = shape.filter(|shape| *shape != var.shape()) {
        candle_core::bail!("parameter `{name}` is {:?}, but is requested as {:?}", var.dims(), shape.dims());
    }
    if var.dtype() != dtype || !var.device().same_device(device) {
        candle_core::bail!(
            "parameter `{name}` is {} on {:?}, but is requested as {} on {:?}: build with the same dtype and device",
            var.dtype().as_str(),
            var.device().location(),
            dtype.as_str(),
            device.location()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_nn::Module;

    use super::*;

    fn store() -> (Parameters, VarBuilder<'static>) {
        let parameters = Parameters::new();
        let vb = parameters.var_builder(7, DType::F32, &Device::Cpu);
        (parameters, vb)
    }

    fn values(parameters: &Parameters, name: &str) -> Vec<f32> {
        parameters.get(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn initial_values_do_not_depend_on_creation_order() {
        let ((one, a), (other, b)) = (store(), store());
        candle_nn::linear(4, 3, a.pp("x")).unwrap();
        candle_nn::linear(4, 3, a.pp("y")).unwrap();
        candle_nn::linear(4, 3, b.pp("y")).unwrap();
        candle_nn::linear(4, 3, b.pp("x")).unwrap();
        assert_eq!(one.names(), ["x.bias", "x.weight", "y.bias", "y.weight"]);
        for name in one.names() {
            assert_eq!(values(&one, &name), values(&other, &name), "{name}");
        }
        assert_ne!(values(&one, "x.weight"), values(&one, "y.weight"));
        assert_eq!((one.len(), one.num_elements()), (4, 30));
    }

    #[test]
    fn variables_receive_gradients() {
        let (parameters, vb) = store();
        let layer = candle_nn::linear(2, 1, vb.pp("l")).unwrap();
        let x = Tensor::new(&[[3f32, 5.0]], &Device::Cpu).unwrap();
        let grads = layer.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&parameters.get("l.weight").unwrap()).unwrap();
        assert_eq!(grad.to_vec2::<f32>().unwrap(), [[3.0, 5.0]]);
    }

    #[test]
    fn a_name_requested_twice_is_one_variable() {
        let (parameters, vb) = store();
        let (a, b) = (vb.get((2, 2), "w").unwrap(), vb.get((2, 2), "w").unwrap());
        assert_eq!(a.id(), b.id());
        assert_eq!(a.id(), parameters.get("w").unwrap().id());
        assert!(vb.get((4, 1), "w").unwrap_err().to_string().contains("[4, 1]"));
        let half = parameters.var_builder(7, DType::BF16, &Device::Cpu);
        assert!(half.get((2, 2), "w").unwrap_err().to_string().contains("bf16"));
    }

    #[test]
    fn parameters_that_do_not_fit_in_memory_are_rejected_by_name() {
        let (parameters, vb) = store();
        for shape in [vec![1 << 40, 1 << 40], vec![1 << 22, 1 << 24], vec![usize::MAX, 0x10, 3]] {
            let message = vb.get(shape.as_slice(), "huge").unwrap_err().to_string();
            assert!(message.contains("parameter `huge` of shape") && message.contains("memory"), "{message}");
        }
        assert!(parameters.is_empty());
    }

    #[test]
    fn set_converts_the_dtype_and_checks_the_shape() {
        let (parameters, vb) = store();
        let handed_out = vb.get(2, "w").unwrap();
        parameters.set("w", &Tensor::new(&[1.5f64, 2.5], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(handed_out.to_vec1::<f32>().unwrap(), [1.5, 2.5]);
        assert!(parameters.set("w", &Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap()).is_err());
        assert!(parameters.set("v", &handed_out).is_err());
    }
}
