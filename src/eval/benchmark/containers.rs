//! Files of questions: tables, lines, and JSON objects with lists or keys.

use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

use crate::data::JsonObjects;
use crate::{Error, Result, files};

/// Largest JSON file that is read as a whole; VQAv2's annotations for training have 370 MB.
const MAX_BYTES: u64 = 512 << 20;

/// The content of a file of questions.
pub(super) enum Container {
    /// Records that are read one at a time.
    Table(JsonObjects),
    /// Records of an object, with the key of each where they have one.
    Records(Vec<(Option<String>, Map<String, Value>)>),
    /// Right answers of VQA, or captions of COCO.
    Annotations(Annotations),
    /// Images with their captions and the split of each.
    Captioned(Vec<CaptionedImage>),
}

/// Right answers or captions beside the questions or images that they belong to.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Annotations {
    pub(super) annotations: Vec<Annotation>,
    #[serde(default)]
    pub(super) images: Vec<AnnotatedImage>,
}

/// The right answers of a question, or a caption of an image.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Annotation {
    #[serde(default)]
    pub(super) question_id: Value,
    #[serde(default)]
    pub(super) image_id: Value,
    #[serde(default)]
    pub(super) caption: Option<String>,
    #[serde(default)]
    pub(super) answer_type: Option<String>,
    #[serde(default)]
    pub(super) answers: Vec<AnnotatedAnswer>,
}

/// The answer of one annotator.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AnnotatedAnswer {
    pub(super) answer: String,
}

/// An image of COCO's list.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AnnotatedImage {
    pub(super) id: Value,
    /// Missing in files of captions alone.
    #[serde(default)]
    pub(super) file_name: Option<String>,
}

/// Karpathy's files of splits, of COCO or Flickr30k.
#[derive(Deserialize)]
struct Captioned {
    images: Vec<CaptionedImage>,
}

/// An image of Karpathy's files.
#[derive(Deserialize)]
pub(super) struct CaptionedImage {
    /// Missing in files of other data sets than COCO.
    #[serde(default)]
    pub(super) cocoid: Value,
    pub(super) filename: String,
    pub(super) split: String,
    pub(super) sentences: Vec<Sentence>,
}

/// A caption before it was split into words.
#[derive(Deserialize)]
pub(super) struct Sentence {
    pub(super) raw: String,
}

/// What tells the form of an object, whatever is in it.
#[derive(Default, Deserialize)]
struct Signs {
    annotations: Option<Vec<IgnoredAny>>,
    images: Option<IgnoredAny>,
    /// Name of the data set, in Karpathy's files.
    dataset: Option<IgnoredAny>,
}

/// Lists of records in an object.
#[derive(Deserialize)]
struct Lists {
    #[serde(default, alias = "data")]
    questions: Vec<Map<String, Value>>,
}

impl Container {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Format`] for a file of another form, and the errors of reading.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let error = match JsonObjects::open_table(path) {
            Ok(table) => return Ok(Self::Table(table)),
            Err(error) => error,
        };
        if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            return Err(error);
        }
        let broken = match parse::<Annotations>(path) {
            Ok(annotations) => return Ok(Self::Annotations(annotations)),
            Err(broken) => broken,
        };
        let keyless = |lists: Lists| lists.questions.into_iter().map(|record| (None, record)).collect::<Vec<_>>();
        if let Some(records) = parse::<Lists>(path).map(keyless).ok().filter(|records| !records.is_empty()) {
            return Ok(Self::Records(records));
        }
        let Signs { annotations, images, dataset } = parse(path).unwrap_or_default();
        if annotations.is_some() {
            // What is wrong within the list that makes it a file of annotations.
            return Err(broken);
        }
        if images.is_some() {
            match parse::<Captioned>(path) {
                Ok(Captioned { images }) => return Ok(Self::Captioned(images)),
                Err(broken) if dataset.is_some() => return Err(broken),
                Err(_) => {}
            }
        }
        let keyed: Map<String, Value> = parse(path)?;
        let record = |(key, value)| if let Value::Object(record) = value { Some((Some(key), record)) } else { None };
        let records = Vec::from_iter(keyed.into_iter().filter_map(record));
        if records.is_empty() { Err(error) } else { Ok(Self::Records(records)) }
    }
}

fn parse<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let file = files::open(path)?;
    let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
    if bytes > MAX_BYTES {
        let message = format!("has {bytes} bytes, expected at most {MAX_BYTES} of a JSON object: take a smaller split");
        return Err(Error::format(path, message));
    }
    serde_json::from_reader(BufReader::with_capacity(1 << 20, file))
        .map_err(|e| Error::format(path, format!("is not what was expected ({e}): download it again")).caused_by(e))
}
