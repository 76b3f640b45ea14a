//! Configuration of preprocessing: `preprocessor_config.json` (for images, and again under `video_processor/` for
//! videos) and `processor_config.json`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::VisionConfig;
use super::official::Fields;
use super::validate::{at_least_one, at_most, positive};
use crate::{Error, Result};

/// Mean of each colour channel in CLIP's training images.
pub(crate) const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each colour channel in CLIP's training images.
pub(crate) const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Resampling filter for resizing, with Pillow's numbering and names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resample {
    /// Lanczos: a sinc windowed to three lobes.
    Lanczos = 1,
    /// Bilinear: a triangle.
    Bilinear = 2,
    /// Bicubic: Keys' cubic with a = -0.5, the filter of the released models.
    #[default]
    Bicubic = 3,
    /// Box: the mean of all covered pixels.
    Box = 4,
    /// Hamming: a raised cosine.
    Hamming = 5,
}

impl Resample {
    const ALL: [(Self, &str); 5] = [
        (Self::Lanczos, "lanczos"),
        (Self::Bilinear, "bilinear"),
        (Self::Bicubic, "bicubic"),
        (Self::Box, "box"),
        (Self::Hamming, "hamming"),
    ];
}

impl Serialize for Resample {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_u8(*self as u8)
    }
}

impl<'de> Deserialize<'de> for Resample {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let found = Value::deserialize(d)?;
        let named = |&&(filter, name): &&(Self, &str)| found == json!(filter as u8) || found == json!(name);
        Self::ALL.iter().find(named).map(|&(filter, _)| filter).ok_or_else(|| {
            serde::de::Error::custom("expected 1 `lanczos`, 2 `bilinear`, 3 `bicubic`, 4 `box` or 5 `hamming`")
        })
    }
}

/// Configuration of image or video preprocessing (`preprocessor_config.json`).
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessorConfig {
    /// Side of the square tiles, in pixels.
    pub size: usize,
    /// Pinpoints: image sizes `[height, width]` in whole tiles; `None` for videos, whose frames are one tile each.
    pub image_grid_pinpoints: Option<Vec<[usize; 2]>>,
    /// Resampling filter.
    pub resample: Resample,
    /// Whether 8-bit values are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// Factor of 8-bit values, usually 1/255.
    pub rescale_factor: f64,
    /// Whether `image_mean` is subtracted and the result divided by `image_std`.
    pub do_normalize: bool,
    /// Mean of red, green and blue, after rescaling.
    pub image_mean: [f64; 3],
    /// Standard deviation of red, green and blue, after rescaling.
    pub image_std: [f64; 3],
    /// Fields that this crate ignores, kept to be written back.
    pub extra: Map<String, Value>,
}

impl PreprocessorConfig {
    /// Image preprocessing of the released models, with the tile size of `vision`.
    pub fn image(vision: &VisionConfig) -> Self {
        Self { image_grid_pinpoints: Some(vision.image_grid_pinpoints.clone()), ..Self::video(vision) }
    }

    /// Video preprocessing of the released models, with the tile size of `vision`.
    pub fn video(vision: &VisionConfig) -> Self {
        Self {
            size: vision.image_size,
            image_grid_pinpoints: None,
            resample: Resample::Bicubic,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: CLIP_MEAN,
            image_std: CLIP_STD,
            extra: Map::new(),
        }
    }

    /// Reads the content of the file; a missing field takes the value of the released models.
    ///
    /// # Errors
    /// [`Error::Config`] naming the invalid field.
    pub fn from_json(value: Value, vision: &VisionConfig) -> Result<Self> {
        let default = Self::video(vision);
        let mut fields = Fields { name: "preprocessor_config", map: root_object("preprocessor_config", value)? };
        for step in ["do_convert_rgb", "do_resize", "do_pad"] {
            if fields.map.get(step) == Some(&Value::Bool(false)) {
                return Err(Error::config(
                    fields.path(step),
                    "is false, but making tiles needs this step: set it to true",
                ));
            }
        }
        let config = Self {
            size: fields.take::<SquareSize>("size")?.map_or(default.size, |size| size.0),
            image_grid_pinpoints: fields.take("image_grid_pinpoints")?,
            resample: fields.or("resample", default.resample)?,
            do_rescale: fields.or("do_rescale", default.do_rescale)?,
            rescale_factor: fields.or("rescale_factor", default.rescale_factor)?,
            do_normalize: fields.or("do_normalize", default.do_normalize)?,
            image_mean: fields.or("image_mean", default.image_mean)?,
            image_std: fields.or("image_std", default.image_std)?,
            extra: fields.map,
        };
        config.validate(vision)?;
        Ok(config)
    }

    /// Converts to the content of the file, as HF image processors read it.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        for step in ["do_convert_rgb", "do_resize", "do_pad"] {
            map.insert(step.into(), json!(true));
        }
        map.insert("size".into(), json!({ "height": self.size, "width": self.size }));
        if let Some(pinpoints) = &self.image_grid_pinpoints {
            map.insert("image_grid_pinpoints".into(), json!(pinpoints));
        }
        map.insert("resample".into(), json!(self.resample));
        map.insert("do_rescale".into(), json!(self.do_rescale));
        map.insert("rescale_factor".into(), json!(self.rescale_factor));
        map.insert("do_normalize".into(), json!(self.do_normalize));
        map.insert("image_mean".into(), json!(self.image_mean));
        map.insert("image_std".into(), json!(self.image_std));
        map.extend(self.extra.clone());
        Value::Object(map)
    }

    /// Checks every field, and that the tile size is the model's.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid field.
    pub fn validate(&self, vision: &VisionConfig) -> Result<()> {
        let field = |f: &str| format!("preprocessor_config.{f}");
        at_least_one(&field("size"), self.size)?;
        at_most(&field("size"), self.size, 1 << 14)?;
        if self.size != vision.image_size {
            return Err(Error::config(
                field("size"),
                format!(
                    "is {}, but the model's tiles (config.json) are {}: make them equal",
                    self.size, vision.image_size
                ),
            ));
        }
        positive(&field("rescale_factor"), self.rescale_factor)?;
        for (mean, std) in self.image_mean.into_iter().zip(self.image_std) {
            positive(&field("image_std"), std)?;
            if !mean.is_finite() {
                return Err(Error::config(field("image_mean"), format!("holds {mean}, expected finite numbers")));
            }
        }
        Ok(())
    }

    /// Checks that the pinpoints are those of the model, which counts an image's tokens by its pinpoints.
    ///
    /// # Errors
    /// [`Error::Config`] if the file has other pinpoints.
    pub fn validate_pinpoints(&self, vision: &VisionConfig) -> Result<()> {
        let Some(pinpoints) = &self.image_grid_pinpoints else { return Ok(()) };
        let sorted = |pinpoints: &[[usize; 2]]| {
            let mut sorted = pinpoints.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            sorted
        };
        if sorted(pinpoints) == sorted(&vision.image_grid_pinpoints) {
            return Ok(());
        }
        let message = "differs from `image_grid_pinpoints` of config.json: make them equal, or leave this one out";
        Err(Error::config("preprocessor_config.image_grid_pinpoints", message))
    }
}

/// `size` in any form that HF writes: a number, or an object with one or two sides.
struct SquareSize(usize);

impl<'de> Deserialize<'de> for SquareSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let found = Value::deserialize(d)?;
        let side = |value: &Value| value.as_u64().and_then(|side| usize::try_from(side).ok());
        let sides: Option<Vec<usize>> = match &found {
            Value::Object(map) => map.values().map(side).collect(),
            Value::Array(list) => list.iter().map(side).collect(),
            number => side(number).map(|side| vec![side]),
        };
        match sides.as_deref() {
            Some(&[first, ref rest @ ..]) if rest.iter().all(|&side| side == first) => Ok(Self(first)),
            _ => Err(serde::de::Error::custom("expected a number, or equal `height` and `width`")),
        }
    }
}

/// Placeholder tokens (`processor_config.json`).
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorConfig {
    /// Placeholder token of an image in a prompt.
    pub image_token: String,
    /// Placeholder token of a video in a prompt.
    pub video_token: String,
    /// Number of patches of one tile.
    pub num_image_tokens: usize,
    /// Fields that this crate ignores, kept to be written back.
    pub extra: Map<String, Value>,
}

impl ProcessorConfig {
    /// The placeholders of the released models, with the patches per tile of `vision`.
    pub fn new(vision: &VisionConfig) -> Self {
        let class = Map::from_iter([("processor_class".to_owned(), json!("HaploProcessor"))]);
        Self {
            image_token: "<image>".into(),
            video_token: "<video>".into(),
            num_image_tokens: vision.patches_per_tile(),
            extra: class,
        }
    }

    /// Reads the content of the file; a missing field takes the value of the released models.
    ///
    /// # Errors
    /// [`Error::Config`] naming the invalid field.
    pub fn from_json(value: Value, vision: &VisionConfig) -> Result<Self> {
        let default = Self::new(vision);
        let mut fields = Fields { name: "processor_config", map: root_object("processor_config", value)? };
        let config = Self {
            image_token: fields.or("image_token", default.image_token)?,
            video_token: fields.or("video_token", default.video_token)?,
            num_image_tokens: fields.or("num_image_tokens", default.num_image_tokens)?,
            extra: fields.map,
        };
        config.validate()?;
        Ok(config)
    }

    /// Converts to the content of the file.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("image_token".into(), json!(self.image_token));
        map.insert("video_token".into(), json!(self.video_token));
        map.insert("num_image_tokens".into(), json!(self.num_image_tokens));
        map.extend(self.extra.clone());
        Value::Object(map)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid field.
    pub fn validate(&self) -> Result<()> {
        for (field, token) in [("image_token", &self.image_token), ("video_token", &self.video_token)] {
            if token.is_empty() {
                return Err(Error::config(format!("processor_config.{field}"), "is empty, expected a token"));
            }
        }
        if self.image_token == self.video_token {
            return Err(Error::config(
                "processor_config.video_token",
                format!("is `{}`, the same as image_token: give each its own token", self.video_token),
            ));
        }
        Ok(())
    }
}

/// Fields of a file; HF writes unset fields as null.
fn root_object(name: &str, value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map.into_iter().filter(|(_, value)| !value.is_null()).collect()),
        _ => Err(Error::config(name, "is not a JSON object")),
    }
}
