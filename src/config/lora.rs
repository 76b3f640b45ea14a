//! Configuration of a LoRA adapter, in the form of PEFT's `adapter_config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::validate::{at_least_one, at_most, positive};
use crate::{Error, Result, files};

/// Largest rank; no layer gains from more than its width.
const MAX_RANK: usize = 1 << 16;
/// Initialisations that leave the weights of the base model as they are.
const PLAIN_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];
/// Fields that describe where an adapter comes from or how it was initialised, and change nothing of what it computes.
const INFORMATION: [&str; 14] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Names of modules, as PEFT takes them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModuleNames {
    /// Each is the name of a module, or the end of one after a dot.
    List(Vec<String>),
    /// A regular expression for whole names; as targets, `all-linear` means every linear layer but the head.
    Pattern(String),
}

/// Biases that are trained with an adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoraBias {
    /// None.
    #[default]
    None,
    /// All biases of the model.
    All,
    /// Those of adapted layers.
    LoraOnly,
}

/// Configuration of a LoRA adapter; fields are called as in PEFT.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Whether the scale is `lora_alpha / sqrt(r)` (rank-stabilised) instead of `lora_alpha / r`.
    pub use_rslora: bool,
    /// Whether the norm of each row of an adapted weight is trained too (DoRA).
    pub use_dora: bool,
    /// Probability with which an element of an adapted layer's input is dropped in training.
    pub lora_dropout: f64,
    /// Modules that get an adapter.
    pub target_modules: ModuleNames,
    /// Modules that get none although they are targets.
    pub exclude_modules: Option<ModuleNames>,
    /// Ends of the names of modules that are trained and stored whole.
    pub modules_to_save: Vec<String>,
    /// Ranks of modules whose names end in a match of a regular expression; the first match counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Values of `lora_alpha`, as [`Self::rank_pattern`].
    pub alpha_pattern: Vec<(String, f64)>,
    /// Indices of layers that get an adapter; `None` for all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Regular expressions for the name before a layer's index; any name if empty.
    pub layers_pattern: Vec<String>,
    /// Biases that are trained too.
    pub bias: LoraBias,
    /// The model that the adapter was trained on; information only.
    pub base_model_name_or_path: String,
}

impl LoraConfig {
    /// File name of the configuration in an adapter's folder.
    pub const FILE: &str = "adapter_config.json";

    /// An adapter of these modules with PEFT's defaults elsewhere.
    pub fn new(r: usize, lora_alpha: f64, target_modules: ModuleNames) -> Self {
        Self {
            r,
            lora_alpha,
            use_rslora: false,
            use_dora: false,
            lora_dropout: 0.0,
            target_modules,
            exclude_modules: None,
            modules_to_save: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            bias: LoraBias::None,
            base_model_name_or_path: String::new(),
        }
    }

    /// Reads `adapter_config.json` from an adapter's folder.
    ///
    /// # Errors
    /// The errors of reading the file, and those of [`Self::from_json`], naming the file.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(Self::FILE);
        if !files::exists(&path)? {
            return Err(Error::format(&path, "does not exist: name the folder of an adapter in PEFT's form"));
        }
        Self::from_json(files::read_json(&path)?).map_err(|e| e.in_file(&path))
    }

    /// Reads the value of an `adapter_config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is missing, out of range, or not supported: `lora_bias`, for example, or an
    /// initialisation that changes the base model. Unknown fields are accepted if they are null, false or empty.
    pub fn from_json(value: Value) -> Result<Self> {
        let Value::Object(map) = value else { return Err(Error::config("adapter", "is no JSON object")) };
        let mut fields = Fields(map);
        fields.require("peft_type", |value| value == "LORA", "expected \"LORA\"")?;
        fields.require(
            "init_lora_weights",
            |value| value.is_boolean() || value.as_str().is_some_and(|name| PLAIN_INITS.contains(&name)),
            "which changes the base model: convert the adapter to plain LoRA (`save_pretrained` with \
             `path_initial_model_for_weight_conversion`)",
        )?;
        let config = Self {
            r: fields.take("r", 8, as_usize)?,
            lora_alpha: fields.take("lora_alpha", 8.0, Value::as_f64)?,
            use_rslora: fields.take("use_rslora", false, Value::as_bool)?,
            use_dora: fields.take("use_dora", false, Value::as_bool)?,
            lora_dropout: fields.take("lora_dropout", 0.0, Value::as_f64)?,
            target_modules: match fields.take("target_modules", None, |value| as_names(value).map(Some))? {
                Some(names) => names,
                None => return Err(Error::config("target_modules", "is missing: name the modules with an adapter")),
            },
            exclude_modules: fields.take("exclude_modules", None, |value| as_names(value).map(Some))?,
            modules_to_save: fields.take("modules_to_save", Vec::new(), as_texts)?,
            rank_pattern: fields.take("rank_pattern", Vec::new(), |value| as_pattern(value, as_usize))?,
            alpha_pattern: fields.take("alpha_pattern", Vec::new(), |value| as_pattern(value, Value::as_f64))?,
            layers_to_transform: fields.take("layers_to_transform", None, |value| as_indices(value).map(Some))?,
            layers_pattern: fields.take("layers_pattern", Vec::new(), as_texts)?,
            bias: fields.take("bias", LoraBias::None, as_bias)?,
            base_model_name_or_path: fields
                .take("base_model_name_or_path", String::new(), |value| value.as_str().map(String::from))?,
        };
        fields.refuse_others()?;
        config.validate()?;
        Ok(config)
    }

    /// Checks the ranges of all fields.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for rank in std::iter::once(self.r).chain(self.rank_pattern.iter().map(|(_, rank)| *rank)) {
            at_least_one("r", rank)?;
            at_most("r", rank, MAX_RANK)?;
        }
        let alphas = std::iter::once(self.lora_alpha).chain(self.alpha_pattern.iter().map(|(_, alpha)| *alpha));
        alphas.into_iter().try_for_each(|alpha| positive("lora_alpha", alpha))?;
        if !(0.0..1.0).contains(&self.lora_dropout) {
            let message = format!("is {:?}, expected at least 0 and below 1", self.lora_dropout);
            return Err(Error::config("lora_dropout", message));
        }
        let has_layers = self.layers_to_transform.is_some() || !self.layers_pattern.is_empty();
        if has_layers && matches!(self.target_modules, ModuleNames::Pattern(_)) {
            let message = "needs a list of `target_modules`, but they are a pattern: write the layers into the pattern";
            return Err(Error::config("layers_to_transform", message));
        }
        Ok(())
    }

    /// The value of an `adapter_config.json` that PEFT loads.
    pub fn to_json(&self) -> Value {
        let names = |names: &ModuleNames| match names {
            ModuleNames::List(list) => json!(list),
            ModuleNames::Pattern(pattern) => json!(pattern),
        };
        let mut value = json!({
            "alpha_pattern": Map::from_iter(self.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), json!(alpha)))),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": match self.bias {
                LoraBias::None => "none",
                LoraBias::All => "all",
                LoraBias::LoraOnly => "lora_only",
            },
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": (!self.layers_pattern.is_empty()).then_some(&self.layers_pattern),
            "layers_to_transform": self.layers_to_transform,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "modules_to_save": (!self.modules_to_save.is_empty()).then_some(&self.modules_to_save),
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": Map::from_iter(self.rank_pattern.iter().map(|(name, rank)| (name.clone(), json!(rank)))),
            "revision": null,
            "target_modules": names(&self.target_modules),
            "task_type": null,
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        });
        // Versions of PEFT before 0.14 do not know the field.
        if let Some(exclude) = &self.exclude_modules {
            value["exclude_modules"] = names(exclude);
        }
        value
    }
}

/// Fields of the file that are not read yet.
struct Fields(Map<String, Value>);

impl Fields {
    /// Takes a field; `default` if it is absent or null.
    fn take<T>(&mut self, field: &str, default: T, read: impl FnOnce(&Value) -> Option<T>) -> Result<T> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => read(&value).ok_or_else(|| {
                Error::config(field, format!("is {}, which is not what PEFT writes there", shown(&value)))
            }),
        }
    }

    /// Takes a field that may be absent, or must be `accepted`.
    fn require(&mut self, field: &str, accepted: impl FnOnce(&Value) -> bool, message: &str) -> Result<()> {
        match self.0.remove(field) {
            Some(value) if !value.is_null() && !accepted(&value) => {
                Err(Error::config(field, format!("is {}, {message}", shown(&value))))
            }
            _ => Ok(()),
        }
    }

    /// Rejects a field that is left and says something.
    fn refuse_others(self) -> Result<()> {
        let says = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(items) => !items.is_empty(),
            Value::String(text) => !text.is_empty(),
            Value::Bool(true) | Value::Number(_) => true,
        };
        match self.0.into_iter().find(|(field, value)| !INFORMATION.contains(&field.as_str()) && says(value)) {
            Some((field, value)) => {
                let message = format!("is {}, which is not supported: train the adapter without it", shown(&value));
                Err(Error::config(field, message))
            }
            None => Ok(()),
        }
    }
}

/// The start of a value, for messages.
fn shown(value: &Value) -> String {
    format!("{:.60}", value.to_string())
}

fn as_usize(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn as_texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        _ => value.as_array()?.iter().map(|text| text.as_str().map(String::from)).collect(),
    }
}

fn as_names(value: &Value) -> Option<ModuleNames> {
    match value {
        Value::String(pattern) => Some(ModuleNames::Pattern(pattern.clone())),
        _ => as_texts(value).map(ModuleNames::List),
    }
}

fn as_pattern<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    value.as_object()?.iter().map(|(name, value)| Some((name.clone(), read(value)?))).collect()
}

fn as_indices(value: &Value) -> Option<Vec<usize>> {
    match value {
        Value::Array(indices) => indices.iter().map(as_usize).collect(),
        _ => as_usize(value).map(|index| vec![index]),
    }
}

fn as_bias(value: &Value) -> Option<LoraBias> {
    match value.as_str()? {
        "none" => Some(LoraBias::None),
        "all" => Some(LoraBias::All),
        "lora_only" => Some(LoraBias::LoraOnly),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Value {
        json!({ "peft_type": "LORA", "target_modules": ["q_proj"] })
    }

    fn error(field: &str, value: Value) -> String {
        let mut json = minimal();
        json[field] = value;
        LoraConfig::from_json(json).unwrap_err().to_string()
    }

    #[test]
    fn the_written_form_is_read_again() {
        let mut config = LoraConfig::new(4, 8.5, ModuleNames::List(vec!["q_proj".into(), "v_proj".into()]));
        (config.use_rslora, config.lora_dropout, config.bias) = (true, 0.1, LoraBias::All);
        config.use_dora = true;
        config.rank_pattern = vec![("b.*".into(), 2), ("a".into(), 3)];
        config.alpha_pattern = vec![("a".into(), 1.5)];
        (config.layers_to_transform, config.layers_pattern) = (Some(vec![1, 2]), vec!["layers".into()]);
        config.modules_to_save = vec!["norm".into()];
        config.exclude_modules = Some(ModuleNames::Pattern(".*1.*".into()));
        assert_eq!(LoraConfig::from_json(config.to_json()).unwrap(), config);
        let plain = LoraConfig::from_json(minimal()).unwrap();
        assert_eq!(plain, LoraConfig::new(8, 8.0, ModuleNames::List(vec!["q_proj".into()])));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (field, value) in [
            ("use_dora", json!(1)),
            ("peft_type", json!("IA3")),
            ("init_lora_weights", json!("pissa")),
            ("fan_in_fan_out", json!(true)),
            ("layer_replication", json!([[0, 1]])),
            ("trainable_token_indices", json!([1])),
            ("lora_bias", json!(true)),
            ("bias", json!("some")),
            ("r", json!(0)),
            ("r", json!(1.5)),
            ("lora_dropout", json!(1.0)),
            ("lora_alpha", json!("8")),
            ("rank_pattern", json!({ "q": 0 })),
            ("anything", json!(3)),
        ] {
            let message = error(field, value);
            let named = if field == "rank_pattern" { "`r`".to_string() } else { format!("`{field}`") };
            assert!(message.contains(&named) && message.len() < 300, "{message}");
        }
        for (field, value) in [("use_dora", json!(false)), ("anything", json!({})), ("peft_version", json!("0.17"))] {
            let mut json = minimal();
            json[field] = value;
            LoraConfig::from_json(json).unwrap();
        }
        assert!(LoraConfig::from_json(json!({ "r": 2 })).unwrap_err().to_string().contains("target_modules"));
    }
}
