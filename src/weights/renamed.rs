//! Tensors of one half of a larger model, under the names of a model alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{EachPart, TensorSource};
use crate::nn::MappedRows;
use crate::nn::ops::QuantizedWeight;
use crate::options::Quantization;
use crate::{Error, Result};

/// Names of one kind of model.
pub(super) struct Naming {
    /// End of the name of a tensor that the model has exactly once.
    anchor: &'static str,
    /// What stands before it in a model alone.
    prefix: &'static str,
    /// Name of a tensor outside the prefix, recognised by its end.
    outside: Option<&'static str>,
}

/// A language model of the Llama family. LLaVA, Qwen-VL and others put `language_model.` and the like before its names.
pub(super) const LANGUAGE: Naming =
    Naming { anchor: "embed_tokens.weight", prefix: "model.", outside: Some("lm_head.weight") };

/// A CLIP or SigLIP vision transformer.
pub(super) const VISION: Naming =
    Naming { anchor: "embeddings.patch_embedding.weight", prefix: "vision_model.", outside: None };

impl Naming {
    /// `source` under the names of a model alone; unchanged if it has those already, or none of them.
    ///
    /// # Errors
    /// [`Error::Format`] if the source holds several such models.
    pub(super) fn apply(&self, source: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        let names = source.tensor_names();
        let prefixes: Vec<&str> = names.iter().filter_map(|name| before(name, self.anchor)).collect();
        let found = match prefixes.as_slice() {
            _ if prefixes.contains(&self.prefix) => return Ok(source),
            [] => return Ok(source),
            [found] => *found,
            several => {
                let several = several.join("`, `");
                let message = format!("holds several models, with names behind `{several}`: save one of them alone");
                return Err(Error::format(source.path(), message));
            }
        };
        let mut stored = BTreeMap::new();
        for name in &names {
            let new = self.new_name(name, found);
            if stored.insert(new.clone(), name.clone()).is_some() {
                return Err(Error::format(source.path(), format!("holds two tensors that are `{new}` of the model")));
            }
        }
        let renaming = format!("`{found}*` as `{}*`", self.prefix);
        tracing::info!(path = %source.path().display(), from = found, to = self.prefix, "tensors renamed");
        Ok(Arc::new(RenamedTensors { source, stored, renaming }))
    }

    fn new_name(&self, name: &str, found: &str) -> String {
        match (self.outside.filter(|end| before(name, end).is_some()), name.strip_prefix(found)) {
            (Some(outside), _) => outside.to_string(),
            (None, Some(rest)) => format!("{}{rest}", self.prefix),
            (None, None) => name.to_string(),
        }
    }
}

/// What stands before `end` in `name`, with its last dot.
fn before<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    name.strip_suffix(end).filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
}

/// A source with other names.
struct RenamedTensors {
    source: Arc<dyn TensorSource>,
    /// Stored names by new name.
    stored: BTreeMap<String, String>,
    renaming: String,
}

impl RenamedTensors {
    /// The stored name; a name that is not there is looked up, and not found, as it is.
    fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        self.stored.get(name).map_or(name, String::as_str)
    }
}

impl TensorSource for RenamedTensors {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.stored.keys().cloned().collect()
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.source.tensor_shape(self.stored.get(name)?)
    }

    fn load_tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.source.load_tensor(self.stored(name), dtype, device)
    }

    fn for_each_part(&self, name: &str, dtype: DType, rows: usize, each: &mut EachPart<'_>) -> Result<()> {
        self.source.for_each_part(self.stored(name), dtype, rows, each)
    }

    fn mapped_rows(&self, name: &str) -> Option<MappedRows> {
        self.source.mapped_rows(self.stored(name))
    }

    fn quantization(&self, name: &str) -> Option<Quantization> {
        self.source.quantization(self.stored(name))
    }

    fn load_quantized(&self, name: &str, in_size: usize) -> Result<Option<QuantizedWeight>> {
        self.source.load_quantized(self.stored(name), in_size)
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.source.stored_dtype(self.stored(name))
    }

    fn check_finite(&self, name: &str) -> Result<()> {
        self.source.check_finite(self.stored(name))
    }

    fn renaming(&self) -> Option<&str> {
        Some(&self.renaming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Names(Vec<&'static str>);

    impl TensorSource for Names {
        fn path(&self) -> &Path {
            Path::new("x")
        }
        fn tensor_names(&self) -> Vec<String> {
            self.0.iter().map(ToString::to_string).collect()
        }
        fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
            self.0.contains(&name).then_some(&[])
        }
        fn load_tensor(&self, _: &str, _: DType, _: &Device) -> Result<Tensor> {
            Err(Error::weights("none"))
        }
    }

    fn renamed(naming: &Naming, names: &[&'static str]) -> Vec<String> {
        naming.apply(Arc::new(Names(names.to_vec()))).unwrap().tensor_names()
    }

    #[test]
    fn prefixes_of_larger_models_are_taken_off() {
        for (embedding, norm, head) in [
            ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
            (
                "language_model.model.embed_tokens.weight",
                "language_model.model.norm.weight",
                "language_model.lm_head.weight",
            ),
            ("model.language_model.embed_tokens.weight", "model.language_model.norm.weight", "lm_head.weight"),
            ("model.model.embed_tokens.weight", "model.model.norm.weight", "model.lm_head.weight"),
            ("embed_tokens.weight", "norm.weight", "lm_head.weight"),
        ] {
            let names = renamed(&LANGUAGE, &[embedding, norm, head, "visual.blocks.0.weight"]);
            for name in ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"] {
                assert!(names.contains(&name.to_string()), "{embedding}: {names:?}");
            }
        }
        let patch = "vision_tower.vision_model.embeddings.patch_embedding.weight";
        let names = renamed(&VISION, &[patch, "vision_tower.vision_model.post_layernorm.weight", "language_model.x"]);
        assert_eq!(
            names,
            [
                "language_model.x",
                "vision_model.embeddings.patch_embedding.weight",
                "vision_model.post_layernorm.weight"
            ]
        );
    }

    #[test]
    fn two_models_in_one_are_refused() {
        let names = Names(vec!["a.embed_tokens.weight", "b.embed_tokens.weight"]);
        let error = LANGUAGE.apply(Arc::new(names)).err().unwrap().to_string();
        assert!(error.contains("`a.`, `b.`"), "{error}");
        let names = Names(vec!["a.embed_tokens.weight", "model.norm.weight", "a.norm.weight"]);
        assert!(LANGUAGE.apply(Arc::new(names)).is_err());
    }
}
