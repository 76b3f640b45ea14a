//! Summary of a source: how many records have images, videos or text only, and what cannot be used.

use super::{Dataset, Record, guarded};
use crate::error::one_line;

/// Number of bad samples and of files left out that a summary names.
const NAMED: usize = 10;

/// Files of a source that are not read, such as images of an unsupported format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Number of these files.
    pub files: usize,
    /// The first of them, each with the reason, as single lines.
    pub named: Vec<String>,
}

impl LeftOut {
    /// Counts a file, and names it if it is one of the first.
    pub fn add(&mut self, file: &str, reason: &str) {
        self.files += 1;
        if self.named.len() < NAMED {
            self.named.push(one_line(&format!("{file}: {reason}")));
        }
    }

    /// Adds the files that another part of the source leaves out.
    pub fn merge(&mut self, other: &Self) {
        self.files += other.files;
        let room = NAMED.saturating_sub(self.named.len());
        self.named.extend(other.named.iter().take(room).cloned());
    }
}

/// Content of a source, counted over a sample of its records. Images are not decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceSummary {
    /// Name of the source.
    pub name: String,
    /// Number of all records, good and bad.
    pub records: usize,
    /// Number of records that were read for the numbers below.
    pub sampled: usize,
    /// Sampled records with at least one image.
    pub with_images: usize,
    /// Sampled records with at least one video.
    pub with_videos: usize,
    /// Sampled records with neither image nor video.
    pub text_only: usize,
    /// Sampled records that cannot be used.
    pub bad: usize,
    /// Name of and reason for the first bad records, as single lines.
    pub bad_reasons: Vec<String>,
    /// Files that are not read.
    pub left_out: LeftOut,
    /// Names of the fields of records that are not read.
    pub unread_fields: Vec<String>,
}

/// Summarises a source by reading at most `sample` records spread over it.
pub fn summarise<D>(name: impl Into<String>, dataset: &D, sample: usize) -> SourceSummary
where
    D: Dataset<Item = Record> + ?Sized,
{
    let mut summary = SourceSummary {
        name: name.into(),
        records: dataset.len(),
        left_out: dataset.left_out(),
        unread_fields: dataset.unread_fields(),
        ..SourceSummary::default()
    };
    for index in dataset.spread(sample) {
        summary.sampled += 1;
        match guarded(|| dataset.get(index)) {
            Ok(record) => summary.count(&record),
            Err(reason) => {
                summary.bad += 1;
                if summary.bad_reasons.len() < NAMED {
                    summary.bad_reasons.push(one_line(&format!("{}: {reason}", dataset.describe(index))));
                }
            }
        }
    }
    summary
}

impl SourceSummary {
    fn count(&mut self, record: &Record) {
        self.with_images += usize::from(!record.images.is_empty());
        self.with_videos += usize::from(!record.videos.is_empty());
        self.text_only += usize::from(record.images.is_empty() && record.videos.is_empty());
    }
}
