//! The initial values of a model as a source of weights.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;

use super::init::{initial_tensor, initial_values};
use super::source::{EachPart, row_parts};
use super::{ParameterShapes, TensorSource};
use crate::{Error, Result};

/// The values with which a model is created from a seed, drawn when they are read: a checkpoint of any size takes no memory.
///
/// The values are those of [`Parameters::var_builder`](super::Parameters::var_builder) with the same seed, to the bit.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    parameters: BTreeMap<String, (Vec<usize>, Init)>,
    seed: u64,
    dtype: DType,
}

impl RandomWeights {
    /// The parameters that were recorded while a model was built, in `dtype` as the dtype they are stored in.
    pub fn new(recorded: &ParameterShapes, seed: u64, dtype: DType) -> Self {
        Self { parameters: recorded.inits(), seed, dtype }
    }

    fn entry(&self, name: &str) -> Result<&(Vec<usize>, Init)> {
        self.parameters.get(name).ok_or_else(|| Error::weights(format!("the model has no parameter `{name}`")))
    }
}

impl TensorSource for RandomWeights {
    fn path(&self) -> &Path {
        Path::new("random weights")
    }

    fn tensor_names(&self) -> Vec<String> {
        self.parameters.keys().cloned().collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.parameters.get(name).map(|(shape, _)| shape.as_slice())
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let (shape, init) = self.entry(name)?;
        Ok(initial_tensor(*init, &Shape::from(shape.as_slice()), self.seed, name, dtype, device)?)
    }

    fn for_each_part(&self, name: &str, dtype: DType, rows: usize, each: &mut EachPart<'_>) -> Result<()> {
        let (shape, init) = self.entry(name)?;
        let whole = Shape::from(shape.as_slice());
        let row = shape.iter().skip(1).product::<usize>();
        row_parts(shape, rows).try_for_each(|(rows, part)| {
            let elements = rows.start * row..rows.end * row;
            each(initial_values(*init, &whole, elements, (self.seed, name), dtype)?.reshape(part)?)
        })
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.parameters.get(name).map(|_| self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Parameters;

    fn model(vb: candle_nn::VarBuilder<'_>) {
        candle_nn::linear(5, 37, vb.pp("layer")).unwrap();
        vb.get_with_hints((), "scale", Init::Const(2.0)).unwrap();
    }

    #[test]
    fn values_are_those_of_a_new_model_whole_and_in_parts() {
        let (recorded, parameters) = (ParameterShapes::default(), Parameters::new());
        model(recorded.var_builder());
        model(parameters.var_builder(9, DType::F32, &Device::Cpu));
        let source = RandomWeights::new(&recorded, 9, DType::BF16);
        assert_eq!(source.tensor_names(), parameters.names());
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (name, var) in parameters.iter() {
            assert_eq!(source.stored_dtype(&name), Some(DType::BF16));
            assert_eq!(source.tensor_shape(&name), Some(var.dims()));
            assert_eq!(values(&source.load_tensor(&name, DType::F32, &Device::Cpu).unwrap()), values(&var));
            let mut parts = Vec::new();
            let mut collect = |part: Tensor| {
                parts.extend(values(&part));
                Ok(())
            };
            source.for_each_part(&name, DType::F32, 16, &mut collect).unwrap();
            assert_eq!(parts, values(&var), "{name}");
        }
        assert!(source.load_tensor("other", DType::F32, &Device::Cpu).is_err());
    }
}
