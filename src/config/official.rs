//! Conversion between [`HaploVlConfig`] and the official `config.json` of released HaploVL checkpoints.
//!
//! Three objects hold the fields: `base_config` describes the post-decoder and the vision side, `pre_config` the
//! pre-decoder, and `post_config` is stored but never used. A missing field takes the default of the class that wrote
//! the file. Fields that this crate ignores are kept unchanged, so that official -> ours -> official is lossless.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{
    DecoderConfig, HaploVlConfig, ImageAspectRatio, ImageAttention, MlpKind, ModelType, OfficialExtra, Rope,
    TextEmbedding, VisionConfig, from_value,
};
use crate::{Error, Result};

impl HaploVlConfig {
    /// Reads the official form (which has `base_config`) or this crate's form.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is missing, misspelt, of the wrong type or contradictory.
    pub fn from_json(value: Value) -> Result<Self> {
        let config = match value {
            Value::Object(root) if root.contains_key("base_config") => from_official(root)?,
            value => {
                check_model_type(&value)?;
                from_value("config.json", "an official `base_config` or this crate's own form", &value)?
            }
        };
        config.validate()?;
        Ok(config)
    }

    /// Converts this configuration to the official form.
    ///
    /// # Errors
    /// [`Error::Config`] for what the official form cannot express: a projected text embedding, plain MLPs, missing
    /// biases, scaled or absent rotary positions.
    pub fn to_official(&self) -> Result<Value> {
        self.check_official()?;
        let extra = self.official_extra.clone().unwrap_or_default();
        // Fields of this configuration override kept fields of the file.
        let mut base = extra.base_config;
        base.extend(decoder_to_official(&self.post_decoder));
        base.extend(object(json!({
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "image_token_index": self.image_token_index,
            "video_token_index": self.video_token_index,
            "tie_word_embeddings": self.tie_word_embeddings,
            "patch_size": self.vision.patch_size,
            "default_image_size": self.vision.image_size,
            "image_aspect_ratio": self.vision.image_aspect_ratio,
            "image_grid_pinpoints": self.vision.image_grid_pinpoints,
            "image_newline": self.vision.image_newline,
        })));
        let mut pre = extra.pre_config;
        pre.extend(decoder_to_official(&self.pre_decoder));
        // What the file repeated must follow a new vocabulary.
        for (field, value) in repeated_fields(self) {
            pre.entry(field).and_modify(|repeated| *repeated = value);
        }
        let mut root = extra.root;
        root.insert("model_type".into(), json!("haplo"));
        root.insert("base_config".into(), Value::Object(base));
        root.insert("pre_config".into(), Value::Object(pre));
        root.insert("post_config".into(), extra.post_config);
        Ok(Value::Object(root))
    }

    /// Whether [`Self::to_official`] can express this configuration.
    pub fn is_official(&self) -> bool {
        self.check_official().is_ok()
    }

    fn check_official(&self) -> Result<()> {
        let cannot = |field: &str, what: &str| {
            Err(Error::config(field, format!("the official config.json cannot express {what}: keep this crate's form")))
        };
        if self.text_embedding == TextEmbedding::Projected {
            return cannot("text_embedding", "`projected`");
        }
        if self.image_attention == ImageAttention::Causal {
            return cannot("image_attention", "`causal`");
        }
        for (name, d) in [("pre_decoder", &self.pre_decoder), ("post_decoder", &self.post_decoder)] {
            if d.mlp == MlpKind::Plain {
                return cannot(&format!("{name}.mlp"), "`plain`");
            }
            if !(d.qkv_bias && d.output_bias && d.mlp_bias) {
                return cannot(&format!("{name}.*_bias"), "missing biases");
            }
            if d.rope == Rope::None {
                return cannot(&format!("{name}.rope"), "`none`");
            }
            if d.head_dim.is_some() || d.qk_norm {
                return cannot(&format!("{name}.head_dim"), "own head widths and norms of queries and keys");
            }
            if d.rope_scaling.is_some() {
                return cannot(&format!("{name}.rope_scaling"), "scaled rotary frequencies");
            }
        }
        Ok(())
    }
}

/// Rejects the configuration of another kind of model, which has none of the expected fields.
fn check_model_type(config: &Value) -> Result<()> {
    match config.get("model_type").and_then(Value::as_str) {
        None | Some("haplovl") => Ok(()),
        Some(other) => Err(Error::config(
            "model_type",
            format!(
                "is `{other:.40}`, expected `haplovl` or `haplo`: other models cannot be run, but a HaploVL can be trained \
                 from them (`init_from.llm`, `init_from.clip`)"
            ),
        )),
    }
}

fn from_official(root: Map<String, Value>) -> Result<HaploVlConfig> {
    let mut root = Fields { name: "", map: root };
    let mut base = Fields { name: "base_config", map: root.take_object("base_config")? };
    let mut pre = Fields { name: "pre_config", map: root.take_object("pre_config")? };
    match root.take::<String>("model_type")?.as_deref() {
        None | Some("haplo") => {}
        Some(other) => return Err(Error::config("model_type", format!("is `{other}`, expected `haplo`"))),
    }
    let post_config = root.map.remove("post_config").unwrap_or_else(|| json!({}));
    let post_decoder = decoder_from_official(&mut base)?;
    let pre_decoder = decoder_from_official(&mut pre)?;
    let image_size = base.or("default_image_size", 336)?;
    let config = HaploVlConfig {
        model_type: ModelType::Haplovl,
        vocab_size: base.or("vocab_size", 152_064)?,
        max_position_embeddings: base.or("max_position_embeddings", 32_768)?,
        image_token_index: base.or("image_token_index", 151_646)?,
        video_token_index: base.or("video_token_index", 151_647)?,
        text_embedding: TextEmbedding::Direct,
        tie_word_embeddings: base.or("tie_word_embeddings", false)?,
        image_attention: ImageAttention::Bidirectional,
        vision: VisionConfig {
            patch_size: base.or("patch_size", 14)?,
            image_size,
            image_aspect_ratio: base.or("image_aspect_ratio", ImageAspectRatio::AnyResMax(6))?,
            image_grid_pinpoints: match base.take("image_grid_pinpoints")? {
                Some(pinpoints) => pinpoints,
                None => VisionConfig::default_pinpoints(image_size.min(1 << 14)),
            },
            image_newline: base.or("image_newline", true)?,
        },
        pre_decoder,
        post_decoder,
        official_extra: Some(OfficialExtra { root: root.map, base_config: base.map, pre_config: pre.map, post_config }),
    };
    same_where_repeated(&config)?;
    Ok(config)
}

/// Fields of `base_config` that `pre_config` may repeat.
fn repeated_fields(config: &HaploVlConfig) -> [(&'static str, Value); 6] {
    [
        ("vocab_size", json!(config.vocab_size)),
        ("image_token_index", json!(config.image_token_index)),
        ("video_token_index", json!(config.video_token_index)),
        ("patch_size", json!(config.vision.patch_size)),
        ("default_image_size", json!(config.vision.image_size)),
        ("image_newline", json!(config.vision.image_newline)),
    ]
}

/// A different value where `pre_config` repeats a field is a contradiction.
fn same_where_repeated(config: &HaploVlConfig) -> Result<()> {
    let Some(extra) = &config.official_extra else { return Ok(()) };
    for (field, base) in repeated_fields(config) {
        if let Some(found) = extra.pre_config.get(field)
            && *found != base
        {
            return Err(Error::config(
                format!("pre_config.{field}"),
                format!(
                    "is {found}, but base_config.{field} is {base}: they must agree, or leave out the one in pre_config"
                ),
            ));
        }
    }
    Ok(())
}

fn decoder_from_official(fields: &mut Fields) -> Result<DecoderConfig> {
    use super::{Activation, NormKind};
    let scaling = fields.map.get("rope_scaling").filter(|scaling| !scaling.is_null());
    if let Some(scaling) = scaling.filter(|scaling| scaling["rope_type"] != "default") {
        return Err(Error::config(
            fields.path("rope_scaling"),
            format!(
                "is {scaling:.100}, which the released models do not have: write this crate's own form of config.json"
            ),
        ));
    }
    Ok(DecoderConfig {
        hidden_size: fields.or("hidden_size", 4096)?,
        intermediate_size: fields.or("intermediate_size", 22_016)?,
        num_hidden_layers: fields.or("num_hidden_layers", 32)?,
        num_attention_heads: fields.or("num_attention_heads", 32)?,
        num_key_value_heads: fields.or("num_key_value_heads", 32)?,
        hidden_act: fields.or("hidden_act", Activation::Silu)?,
        norm_mode: fields.or("norm_mode", NormKind::RmsNorm)?,
        norm_eps: fields.or("rms_norm_eps", 1e-6)?,
        mlp: MlpKind::Gated,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        rope: if fields.or("attention_rope", true)? { Rope::Own } else { Rope::Shared },
        rope_theta: fields.or("rope_theta", 10_000.0)?,
        rope_scaling: None,
        head_dim: None,
        qk_norm: false,
    })
}

fn decoder_to_official(d: &DecoderConfig) -> Map<String, Value> {
    object(json!({
        "hidden_size": d.hidden_size,
        "intermediate_size": d.intermediate_size,
        "num_hidden_layers": d.num_hidden_layers,
        "num_attention_heads": d.num_attention_heads,
        "num_key_value_heads": d.num_key_value_heads,
        "hidden_act": d.hidden_act,
        "norm_mode": d.norm_mode,
        "rms_norm_eps": d.norm_eps,
        "attention_rope": d.rope == Rope::Own,
        "rope_theta": d.rope_theta,
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// One object of the file, from which known fields are taken; the rest is kept.
pub(super) struct Fields {
    pub(super) name: &'static str,
    pub(super) map: Map<String, Value>,
}

impl Fields {
    pub(super) fn path(&self, field: &str) -> String {
        if self.name.is_empty() { field.into() } else { format!("{}.{field}", self.name) }
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>> {
        match self.map.remove(field) {
            None => Ok(None),
            Some(value) => {
                let shown = value.to_string();
                serde_json::from_value(value)
                    .map(Some)
                    .map_err(|e| Error::config(self.path(field), format!("is {shown:.100}: {e}")))
            }
        }
    }

    pub(super) fn or<T: DeserializeOwned>(&mut self, field: &str, default: T) -> Result<T> {
        Ok(self.take(field)?.unwrap_or(default))
    }

    fn take_object(&mut self, field: &str) -> Result<Map<String, Value>> {
        match self.map.remove(field) {
            Some(Value::Object(map)) => Ok(map),
            None => Err(Error::config(self.path(field), "is missing, expected an object")),
            Some(_) => Err(Error::config(self.path(field), "is not an object")),
        }
    }
}
