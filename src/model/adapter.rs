//! LoRA adapters of a whole model, in PEFT's files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::HaploVl;
use super::haplovl::{EMBEDDING, HEAD};
use crate::config::{HaploVlConfig, LoraConfig, LoraTargets, ModuleNames};
use crate::nn::{Linear, Lora, ParameterSlot, TokenTable};
use crate::weights::{
    EachPart, ParameterShapes, SaveOptions, TensorSource, check_tensors, name_hash, open_weights,
    save_safetensors_file_keeping, write_bytes_atomically,
};
use crate::{Error, Result};

/// What PEFT puts before the names of the base model's modules.
pub(crate) const ADAPTER_PREFIX: &str = "base_model.model.";
/// What PEFT puts after the name of an adapted layer, before its own parameters.
const BASE_LAYER: &str = ".base_layer";
/// File name of an adapter's weights as `torch.save` writes them, which is looked for second, as PEFT does.
const PICKLED_WEIGHTS: &str = "adapter_model.bin";
/// Names of the two matrices of an adapted layer, after the layer's name.
const MATRICES: [&str; 2] = ["lora_A.weight", "lora_B.weight"];
/// Name of the norms of the rows of a layer adapted by DoRA, after the layer's name.
const MAGNITUDE: &str = "lora_magnitude_vector";

/// A LoRA or DoRA adapter: its configuration, two matrices and perhaps a magnitude for each adapted layer, and parameters
/// that it replaces.
///
/// Clones share the tensors.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: LoraConfig,
    targets: LoraTargets,
    /// The model that it belongs to, with the vocabulary of the adapter.
    model: HaploVlConfig,
    /// By PEFT's name without its prefix; names of replaced parameters are those of the model.
    tensors: BTreeMap<String, Tensor>,
    /// Whether the tensors will not change, as those of a file.
    is_fixed: bool,
}

impl Adapter {
    /// File name of the weights in an adapter's folder.
    pub const WEIGHTS: &str = "adapter_model.safetensors";

    /// An adapter of a model from PEFT's named tensors.
    ///
    /// # Errors
    /// The errors of [`LoraConfig::targets`], and one [`Error::Weights`] that lists missing, unexpected and misshapen
    /// tensors.
    pub fn new(config: LoraConfig, model: &HaploVlConfig, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let parts = Parts::of(model)?;
        let targets = parts.targets(&config)?;
        let found = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        parts.check("the adapter", (&targets, config.use_dora), &found)?;
        let tensors = tensors.into_iter().map(|(name, tensor)| (own_name(&name), tensor)).collect();
        let names = || ModuleNames::List(targets.linears.keys().cloned().collect());
        // As PEFT does: a list means the same modules to every version.
        let target_modules = if config.is_all_linear() { names() } else { config.target_modules.clone() };
        let config = LoraConfig { target_modules, ..config };
        Ok(Self { config, targets, model: model.clone(), tensors, is_fixed: false })
    }

    /// Reads `adapter_config.json` and `adapter_model.safetensors` (or `.bin`) of a folder, in f32 on the CPU.
    ///
    /// # Errors
    /// The errors of [`LoraConfig::from_folder`], of opening the weights, and those of [`Self::new`], naming the file.
    pub fn open(folder: impl AsRef<Path>, model: &HaploVlConfig) -> Result<Self> {
        let folder = folder.as_ref();
        let config = LoraConfig::from_folder(folder)?;
        let source = open_weights(weights_path(folder)?)?;
        let parts = Parts::of(model)?;
        let targets = parts.targets(&config).map_err(|e| e.in_file(folder.join(LoraConfig::FILE)))?;
        for unmatched in &targets.unmatched {
            tracing::warn!(folder = %folder.display(), unmatched, "part of the adapter's configuration matches nothing");
        }
        let names = source.tensor_names();
        let shape = |name: &String| Some((name.clone(), source.tensor_shape(name)?.to_vec()));
        let found = names.iter().filter_map(shape).collect();
        parts.check(&source.path().display().to_string(), (&targets, config.use_dora), &found)?;
        names.iter().try_for_each(|name| source.check_finite(name))?;
        let load = |name: &String| Ok((own_name(name), source.load_tensor(name, DType::F32, &Device::Cpu)?));
        let tensors = names.iter().map(load).collect::<Result<_>>()?;
        Ok(Self { config, targets, model: model.clone(), tensors, is_fixed: true })
    }

    /// Writes the two files of an adapter, which PEFT loads, into `folder`, which is created. Magnitudes of DoRA keep their
    /// dtype.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, folder: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let path = folder.join(LoraConfig::FILE);
        let json = serde_json::to_vec_pretty(&self.config.to_json());
        let json = json.map_err(|e| Error::format(&path, format!("cannot be written as JSON: {e}")).caused_by(e))?;
        write_bytes_atomically(path, &json)?;
        let tensors = self.tensors.iter().map(|(name, tensor)| (self.peft_name(name), tensor.detach())).collect();
        // Magnitudes stay in f32: rounded, each would scale its whole row.
        let kept = |name: &str| name.ends_with(MAGNITUDE);
        save_safetensors_file_keeping(folder.join(Self::WEIGHTS), &tensors, options, kept)
    }

    /// The configuration.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The tensors by PEFT's names.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.tensors.iter().map(|(name, tensor)| (self.peft_name(name), tensor.clone())).collect()
    }

    /// Names and shapes of the tensors that an adapter of this configuration has, by PEFT's names.
    ///
    /// # Errors
    /// The errors of [`LoraConfig::targets`].
    pub fn shapes(config: &LoraConfig, model: &HaploVlConfig) -> Result<BTreeMap<String, Vec<usize>>> {
        let parts = Parts::of(model)?;
        let targets = parts.targets(config)?;
        Ok(parts.expected(&targets, config.use_dora))
    }

    /// The name of the model's parameter that an adapter's tensor of PEFT's name replaces; `None` for a LoRA matrix and a
    /// magnitude.
    pub fn replaced_parameter(name: &str) -> Option<String> {
        let own = own_name(name);
        (!MATRICES.iter().chain([&MAGNITUDE]).any(|part| own.ends_with(part))).then_some(own)
    }

    fn peft_name(&self, name: &str) -> String {
        peft_name(&self.targets, name)
    }

    /// The adapter of a linear layer, if it has one.
    fn lora(&self, name: &str, device: &Device) -> Result<Option<Lora>> {
        let Some(target) = self.targets.linears.get(name) else { return Ok(None) };
        let part = |part: &str| {
            let tensor = self.tensors.get(&format!("{name}.{part}"));
            let missing = || Error::weights(format!("the adapter has no `{name}.{part}`"));
            Ok::<_, Error>(tensor.ok_or_else(missing)?.to_device(device)?)
        };
        let [a, b] = MATRICES.map(part);
        let mut lora = Lora::new(a?, b?, target.scale)?;
        if self.config.use_dora {
            lora = lora.with_magnitude(part(MAGNITUDE)?)?;
        }
        Ok(Some(lora.with_dropout(self.config.lora_dropout, name_hash(name))))
    }

    /// Attaches or replaces what belongs to a slot.
    fn apply(&self, name: &str, slot: ParameterSlot<'_>, device: &Device) -> Result<()> {
        match slot {
            ParameterSlot::Linear(linear) => self.apply_to_linear(name, linear, device),
            // The table is cast row by row; a trained one must stay the variable.
            ParameterSlot::Table(table) => {
                if let Some(new) = self.tensors.get(name) {
                    *table = TokenTable::Tensor(new.to_device(device)?);
                }
                Ok(())
            }
            ParameterSlot::Tensor(tensor) => {
                if let Some(new) = self.tensors.get(name) {
                    *tensor = new.to_device(device)?.to_dtype(tensor.dtype())?;
                }
                Ok(())
            }
        }
    }

    fn apply_to_linear(&self, name: &str, linear: &mut Linear, device: &Device) -> Result<()> {
        if let Some(weight) = self.tensors.get(&format!("{name}.weight")) {
            linear.set_weight(weight.to_device(device)?)?;
        }
        if let Some(bias) = self.tensors.get(&format!("{name}.bias")) {
            linear.set_bias(bias.to_device(device)?)?;
        }
        let lora = self.lora(name, device)?;
        // Rounding to f16 is far below the error of quantised weights; float weights stay exact.
        let fixed = |lora: Lora| if self.is_fixed { lora.fixed(linear.quantized_weight().is_some()) } else { Ok(lora) };
        linear.set_lora(lora.map(fixed).transpose()?)
    }
}

impl HaploVl {
    /// Computes the norms that DoRA adapters need now, once for all passes until the adapter changes.
    ///
    /// # Errors
    /// Errors of candle only.
    pub(crate) fn with_held_norms(mut self) -> Result<Self> {
        self.try_for_each_adaptable(|_, linear| linear.hold_norms()).map(|()| self)
    }

    /// Norms of the rows of all weights that a DoRA adapter scales, by PEFT's name of their magnitudes: where these start.
    ///
    /// # Errors
    /// Errors of candle only.
    pub(crate) fn adapted_norms(&mut self) -> Result<BTreeMap<String, Tensor>> {
        let mut norms = BTreeMap::new();
        self.try_for_each_adaptable(|name, linear| {
            if let Some(lora) = linear.lora().filter(|lora| lora.magnitude().is_some()) {
                norms.insert(format!("{ADAPTER_PREFIX}{name}.{MAGNITUDE}"), linear.adapted_norms(lora)?);
            }
            Ok(())
        })?;
        Ok(norms)
    }

    /// Calls `f` with every linear layer that can have an adapter and its name, until `f` fails: unlike
    /// [`Self::try_for_each_linear`] also with those of embeddings and connector.
    fn try_for_each_adaptable(&mut self, mut f: impl FnMut(&str, &mut Linear) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        self.visit_parameters(&mut |name, slot| {
            if let (true, ParameterSlot::Linear(linear)) = (result.is_ok(), slot) {
                result = f(name, linear);
            }
        });
        result
    }

    /// Attaches an adapter, unmerged: the weights of the base model are shared with its other clones.
    ///
    /// # Errors
    /// [`Error::Weights`] if the model has an adapter already, or the adapter is one of another model.
    pub fn with_adapter(mut self, adapter: &Adapter) -> Result<Self> {
        let device = self.device().clone();
        self.take_vocabulary(adapter, &device)?;
        let mut result = Ok(());
        self.visit_parameters(&mut |name, slot| {
            if result.is_ok() {
                result = match slot {
                    ParameterSlot::Linear(linear) if linear.lora().is_some() => {
                        let message = "the model has an adapter already: attach the new one to the model without it";
                        Err(Error::weights(message))
                    }
                    slot => adapter.apply(name, slot, &device),
                };
            }
        });
        result.map(|()| self)
    }

    /// Replaces the tables of tokens, which may have other rows than the model.
    fn take_vocabulary(&mut self, adapter: &Adapter, device: &Device) -> Result<()> {
        let tables = [EMBEDDING.to_string(), format!("{HEAD}.weight")].map(|name| adapter.tensors.get(&name));
        let [table, head] = tables;
        let (tied, ours, theirs) =
            (self.config().tie_word_embeddings, self.config().vocab_size, adapter.model.vocab_size);
        if ours != theirs && (table.is_none() || !tied && head.is_none()) {
            return Err(Error::weights(format!(
                "the adapter is for a vocabulary of {theirs} tokens but holds no tables for them, the model has {ours}"
            )));
        }
        if let Some(table) = table {
            self.set_table(&TokenTable::Tensor(table.to_device(device)?));
        }
        if let Some(head) = head {
            self.set_head(&head.to_device(device)?);
        }
        self.set_vocabulary(&adapter.model);
        Ok(())
    }
}

/// Path of an adapter's weights.
fn weights_path(folder: &Path) -> Result<PathBuf> {
    let names = [Adapter::WEIGHTS, PICKLED_WEIGHTS];
    let mut paths = names.iter().map(|name| folder.join(name));
    let missing = || {
        let [first, second] = names;
        Error::format(folder, format!("holds no weights of an adapter: expected {first} or {second}"))
    };
    paths.find(|path| path.is_file()).ok_or_else(missing)
}

/// PEFT's name of a LoRA matrix, a magnitude or a replaced parameter.
fn peft_name(targets: &LoraTargets, name: &str) -> String {
    match name.rsplit_once('.') {
        Some((module, part)) if part != MAGNITUDE && targets.linears.contains_key(module) => {
            format!("{ADAPTER_PREFIX}{module}{BASE_LAYER}.{part}")
        }
        _ => format!("{ADAPTER_PREFIX}{name}"),
    }
}

/// A tensor's name without what PEFT adds to the names of the model.
fn own_name(name: &str) -> String {
    name.strip_prefix(ADAPTER_PREFIX).unwrap_or(name).replace(&format!("{BASE_LAYER}."), ".")
}

/// Linear layers and parameters of a model.
struct Parts {
    /// Numbers of outputs and inputs.
    linears: BTreeMap<String, (usize, usize)>,
    parameters: BTreeMap<String, Vec<usize>>,
}

impl Parts {
    fn of(model: &HaploVlConfig) -> Result<Self> {
        let shapes = ParameterShapes::default();
        let (mut linears, mut result) = (BTreeMap::new(), Ok(()));
        HaploVl::new(model, shapes.var_builder())?.visit_parameters(&mut |name, slot| {
            if let ParameterSlot::Linear(linear) = slot {
                match linear.dims2() {
                    Ok(dims) => drop(linears.insert(name.to_string(), dims)),
                    Err(e) => result = Err(e),
                }
            }
        });
        result.map(|()| Self { linears, parameters: shapes.shapes() })
    }

    fn targets(&self, config: &LoraConfig) -> Result<LoraTargets> {
        let (linears, parameters): (BTreeSet<_>, BTreeSet<_>) =
            (self.linears.keys().cloned().collect(), self.parameters.keys().cloned().collect());
        config.targets(&linears, &parameters)
    }

    /// Names and shapes of an adapter's tensors, by PEFT's names.
    fn expected(&self, targets: &LoraTargets, use_dora: bool) -> BTreeMap<String, Vec<usize>> {
        let mut expected = BTreeMap::new();
        for (name, target) in &targets.linears {
            let Some(&(outputs, inputs)) = self.linears.get(name) else { continue };
            let [a, b] = MATRICES.map(|matrix| format!("{ADAPTER_PREFIX}{name}.{matrix}"));
            expected.insert(a, vec![target.rank, inputs]);
            expected.insert(b, vec![outputs, target.rank]);
            if use_dora {
                expected.insert(format!("{ADAPTER_PREFIX}{name}.{MAGNITUDE}"), vec![outputs]);
            }
        }
        let saved = targets.saved.iter().filter_map(|name| Some((name, self.parameters.get(name)?)));
        expected.extend(saved.map(|(name, shape)| (peft_name(targets, name), shape.clone())));
        expected
    }

    /// Checks the tensors of an adapter. Parameters of the model beside those to be saved are accepted, as PEFT does: it
    /// stores embeddings on its own account.
    fn check(
        &self,
        source: &str,
        (targets, use_dora): (&LoraTargets, bool),
        found: &BTreeMap<String, Vec<usize>>,
    ) -> Result<()> {
        let mut expected: BTreeMap<_, _> =
            self.expected(targets, use_dora).into_iter().map(|(name, shape)| (own_name(&name), shape)).collect();
        let mut own = BTreeMap::new();
        for (name, shape) in found {
            if !name.starts_with(ADAPTER_PREFIX) {
                let message = format!(
                    "{source}: `{name:.80}` is no tensor of an adapter, whose names begin with `{ADAPTER_PREFIX}`"
                );
                return Err(Error::weights(message));
            }
            if own.insert(own_name(name), shape.clone()).is_some() {
                return Err(Error::weights(format!("{source}: holds two tensors that are `{:.80}`", own_name(name))));
            }
        }
        let found = own;
        let others = found.keys().filter_map(|name| Some((name.clone(), self.parameters.get(name)?.clone())));
        expected.extend(others);
        check_tensors(source, &expected, &found)
    }
}

/// A model's weights with an adapter merged into them, each computed when it is loaded.
pub struct MergedSource {
    base: Arc<dyn TensorSource>,
    adapter: Adapter,
    /// Shapes of merged weights, which are not padded as those of a quantised base may be.
    shapes: BTreeMap<String, Vec<usize>>,
}

impl MergedSource {
    /// The weights of `base` with `adapter`.
    ///
    /// # Errors
    /// [`Error::Weights`] for an adapter of a head that `base` does not have, since it is tied to the embedding table.
    pub fn new(base: Arc<dyn TensorSource>, adapter: Adapter) -> Result<Self> {
        let mut shapes = BTreeMap::new();
        for name in adapter.targets.linears.keys() {
            let weight = format!("{name}.weight");
            if !base.has_tensor(&weight) {
                return Err(Error::weights(format!(
                    "{}: there is no `{weight}` to merge the adapter into; a head tied to the embedding table cannot be \
                     merged: use the adapter unmerged",
                    base.path().display()
                )));
            }
            let dims = adapter.lora(name, &Device::Cpu)?.map(|lora| lora.dims2()).transpose()?;
            shapes.extend(dims.map(|(outputs, inputs)| (weight, vec![outputs, inputs])));
        }
        shapes.extend(adapter.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())));
        Ok(Self { base, adapter, shapes })
    }

    fn is_changed(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }
}

impl TensorSource for MergedSource {
    fn path(&self) -> &Path {
        self.base.path()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.base.tensor_names()
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.base.stored_dtype(name)
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.base.tensor_shape(name).map(|shape| self.shapes.get(name).map_or(shape, Vec::as_slice))
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        if !self.is_changed(name) {
            return self.base.load_tensor(name, dtype, device);
        }
        let weight = match self.adapter.tensors.get(name) {
            Some(tensor) => tensor.to_device(device)?,
            None => self.base.load_tensor(name, DType::F32, device)?,
        };
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let merged = match self.adapter.lora(module, device)? {
            Some(lora) => lora.merged_rows(&weight.narrow(1, 0, lora.dims2()?.1)?, 0)?,
            None => weight,
        };
        Ok(merged.to_dtype(dtype)?)
    }

    fn for_each_part(&self, name: &str, dtype: DType, rows: usize, each: &mut EachPart<'_>) -> Result<()> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let lora = self.adapter.lora(module, &Device::Cpu)?.filter(|_| !self.adapter.tensors.contains_key(name));
        let Some(lora) = lora else {
            return match self.is_changed(name) {
                true => each(self.load_tensor(name, dtype, &Device::Cpu)?),
                false => self.base.for_each_part(name, dtype, rows, each),
            };
        };
        let (mut first, width) = (0, lora.dims2()?.1);
        self.base.for_each_part(name, DType::F32, rows, &mut |part| {
            let merged = lora.merged_rows(&part.narrow(1, 0, width)?, first)?;
            first += part.dim(0)?;
            each(merged.to_dtype(dtype)?)
        })
    }

    fn mapped_rows(&self, name: &str) -> Option<crate::nn::MappedRows> {
        if self.is_changed(name) { None } else { self.base.mapped_rows(name) }
    }

    fn quantization(&self, name: &str) -> Option<crate::options::Quantization> {
        if self.is_changed(name) { None } else { self.base.quantization(name) }
    }

    fn load_quantized(&self, name: &str, in_size: usize) -> Result<Option<crate::nn::ops::QuantizedWeight>> {
        if self.is_changed(name) { Ok(None) } else { self.base.load_quantized(name, in_size) }
    }

    fn check_finite(&self, name: &str) -> Result<()> {
        self.base.check_finite(name)
    }

    fn renaming(&self) -> Option<&str> {
        self.base.renaming()
    }
}
