//! Training and validation samples, and their grouping into batches.

use serde::{Deserialize, Serialize};

use super::stage::not_empty;
use crate::config::validate::{at_least_one, at_most};
use crate::data::shapes::ShapesDataset;
use crate::data::{FilesSource, check_weight, is_address};
use crate::{Error, Result};

/// Most worker threads; larger numbers are typing errors.
const MAX_WORKERS: usize = 1 << 10;

/// Source of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum DataSource {
    /// Generated images.
    Shapes(ShapesDataset),
    /// Records in files or folders, in any format that [`open`](crate::data::open) reads.
    Files(FilesSource),
}

/// Source of training samples, and how often they come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrainSource {
    /// The source.
    #[serde(flatten)]
    pub source: DataSource,
    /// Times that each sample comes per epoch, above 0; with 2.5, half of the samples come twice and the others three
    /// times, see [`Portion::weight`](crate::data::Portion::weight).
    #[serde(default = "weight", skip_serializing_if = "is_weight")]
    pub weight: f64,
}

fn weight() -> f64 {
    1.0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_weight(found: &f64) -> bool {
    *found == weight()
}

impl TrainSource {
    /// A source whose samples come `weight` times per epoch.
    pub fn new(source: DataSource, weight: f64) -> Self {
        Self { source, weight }
    }
}

impl From<DataSource> for TrainSource {
    fn from(source: DataSource) -> Self {
        Self::new(source, weight())
    }
}

/// Samples and their grouping into batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DataConfig {
    /// Training sources, concatenated; their samples are shuffled together.
    pub train: Vec<TrainSource>,
    /// Validation source, which the model never trains on.
    #[serde(default)]
    pub validation: Option<DataSource>,
    /// Number of validation samples, taken from the start of the source; those that cannot be used are skipped and
    /// named. All are held in memory.
    #[serde(default = "max_eval_samples", alias = "validation_samples")]
    pub max_eval_samples: usize,
    /// Grouping of samples into rows: `in_order`, `by_length` or `packed`.
    #[serde(default)]
    pub layout: DataLayout,
    /// Longest row in tokens; a longer sample is skipped and counted as bad, unless `truncate_answers` is set.
    pub max_length: usize,
    /// Whether a longer sample loses the end of its last answer instead of being skipped. The image and the question
    /// are never cut, and no end of turn is learnt after a cut; a sample that is still too long is skipped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncate_answers: bool,
    /// Threads that prepare samples ahead of time.
    #[serde(default = "num_workers", alias = "workers")]
    pub num_workers: usize,
    /// Share of bad samples above which the run stops, at least 0 and below 1; each counts once, see
    /// [`LoaderConfig::max_bad_share`](crate::data::LoaderConfig::max_bad_share).
    #[serde(default = "max_bad_share")]
    pub max_bad_share: f64,
    /// Share of the words to learn that the vocabulary may lack, from 0 to 1; above it the run is refused.
    #[serde(default = "max_unknown_share")]
    pub max_unknown_share: f64,
}

fn max_eval_samples() -> usize {
    256
}

fn num_workers() -> usize {
    1
}

fn max_bad_share() -> f64 {
    0.01
}

fn max_unknown_share() -> f64 {
    0.05
}

/// Grouping of samples into rows of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DataLayout {
    /// One sample per row, in shuffled order.
    #[default]
    InOrder,
    /// One sample per row, samples of similar length together.
    ByLength,
    /// Several samples per row, up to `max_length` tokens.
    Packed,
}

impl DataConfig {
    /// Training on `train`, with rows of at most `max_length` tokens and defaults elsewhere.
    pub fn new(train: Vec<DataSource>, max_length: usize) -> Self {
        Self {
            train: train.into_iter().map(TrainSource::from).collect(),
            validation: None,
            max_eval_samples: max_eval_samples(),
            layout: DataLayout::default(),
            max_length,
            truncate_answers: false,
            num_workers: num_workers(),
            max_bad_share: max_bad_share(),
            max_unknown_share: max_unknown_share(),
        }
    }

    /// Whether there are validation samples.
    pub(super) fn is_evaluated(&self) -> bool {
        self.validation.is_some() && self.max_eval_samples > 0
    }

    pub(super) fn validate(&self) -> Result<()> {
        at_least_one("data.max_length", self.max_length)?;
        at_least_one("data.num_workers", self.num_workers)?;
        at_most("data.num_workers", self.num_workers, MAX_WORKERS)?;
        if self.train.is_empty() {
            return Err(Error::config("data.train", "is empty, expected at least one source"));
        }
        if !(0.0..1.0).contains(&self.max_bad_share) {
            let message = format!("is {:?}, expected at least 0 and below 1", self.max_bad_share);
            return Err(Error::config("data.max_bad_share", message));
        }
        if !(0.0..=1.0).contains(&self.max_unknown_share) {
            let message = format!("is {:?}, expected 0 to 1", self.max_unknown_share);
            return Err(Error::config("data.max_unknown_share", message));
        }
        for TrainSource { source, weight } in &self.train {
            source.validate("data.train")?;
            check_weight("data.train.weight", *weight)?;
        }
        self.validation.iter().try_for_each(|source| source.validate("data.validation"))
    }

    /// Serialised fields that decide which samples a run sees, in which order: the names and the order of the first
    /// version of recipes, independent of later renames, so that checkpoints of that version can be resumed.
    pub(super) fn identity(&self) -> Result<String> {
        #[derive(Serialize)]
        struct Identity<'a> {
            train: &'a [TrainSource],
            // The constants stand for fields that may change from one start to the next.
            validation_samples: usize,
            layout: DataLayout,
            max_length: usize,
            workers: usize,
            max_bad_share: f64,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            truncate_answers: bool,
        }
        let identity = Identity {
            train: &self.train,
            validation_samples: 0,
            layout: self.layout,
            max_length: self.max_length,
            workers: 1,
            max_bad_share: 0.0,
            truncate_answers: self.truncate_answers,
        };
        toml::to_string(&identity)
            .map_err(|e| Error::training(format!("the recipe's `data` cannot be serialised: {e}")).caused_by(e))
    }
}

impl DataSource {
    fn validate(&self, field: &str) -> Result<()> {
        let Self::Files(source) = self else { return Ok(()) };
        if source.paths().is_empty() {
            return Err(Error::config(format!("{field}.path"), "is an empty list, expected at least one path"));
        }
        let paths = source.paths().iter().map(|path| (".path", path));
        let mut paths = paths.chain(source.images.iter().map(|images| (".images", images)));
        paths.try_for_each(|(name, path)| {
            let (field, text) = (format!("{field}{name}"), path.display().to_string());
            if is_address(&text) {
                let message = format!("is the address {text}, which is not fetched: download it, and name the file");
                return Err(Error::config(field, message));
            }
            not_empty(&field, &text)
        })?;
        let mut columns = source.columns.named();
        columns.try_for_each(|(name, column)| not_empty(&format!("{field}.columns.{name}"), column))
    }
}
