//! Reading and preparing a part of a source in a bounded time.

use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use rayon::prelude::*;

use super::SourceFacts;
use crate::data::{BadSample, Dataset, Records, SourceSummary, random_stream, summarise};
use crate::error::one_line;
use crate::train::collate::Limit;
use crate::train::dataset::TrainingData;
use crate::train::recipe::DataSource;

/// Number of records that are read first, to find out how long it takes.
const PROBED: usize = 64;
/// Time in which the records of all sources are read, about.
const READING: Duration = Duration::from_millis(600);
/// Samples that are prepared to learn their lengths, over all sources.
pub(super) const MEASURED: usize = 512;
/// Time in which they are prepared, about.
const MEASURING: Duration = Duration::from_secs(2);
/// Samples that are prepared before the time is checked.
const CHUNK: usize = 32;
/// Most samples that are named for one source.
const NAMED: usize = 5;

impl SourceFacts {
    /// Facts about a source, which may take its part of the time, one of `parts`.
    pub(super) fn new(weight: f64, source: &Source<'_>, kind: &DataSource, parts: u32) -> Self {
        let mut facts = Self { summary: source.summary(name(kind), READING / parts), weight, ..Self::default() };
        facts.measure(source, MEASURED.div_ceil(parts as usize), Instant::now() + MEASURING / parts);
        facts.lengths.sort_unstable();
        facts
    }

    /// Prepares `count` samples until `deadline`.
    fn measure(&mut self, source: &Source<'_>, count: usize, deadline: Instant) {
        for indices in shuffled(source.records.spread(count)).chunks(CHUNK) {
            if self.measured > 0 && Instant::now() > deadline {
                break;
            }
            let found: Vec<_> = indices.par_iter().map(|index| source.length(*index)).collect();
            indices.iter().zip(found).for_each(|(index, found)| self.add(&source.records.describe(*index), found));
        }
    }

    fn add(&mut self, name: &str, found: Result<Measured, BadSample>) {
        self.measured += 1;
        let reason = match found {
            Ok(Measured { length, fit }) => {
                self.lengths.push(length);
                match fit {
                    Fit::Whole => return,
                    Fit::Cut => {
                        self.cut += 1;
                        format!("{length} tokens long: the end of the last answer is cut")
                    }
                    Fit::TooLong => {
                        self.too_long += 1;
                        format!("{length} tokens long: skipped")
                    }
                }
            }
            Err(reason) => {
                self.bad += 1;
                reason.to_string()
            }
        };
        if self.named.len() < NAMED {
            self.named.push(one_line(&format!("{name}: {reason}")));
        }
    }
}

/// Length of a sample, and whether it fits.
struct Measured {
    length: usize,
    fit: Fit,
}

enum Fit {
    Whole,
    Cut,
    TooLong,
}

/// Source among all training data.
pub(super) struct Source<'a> {
    pub data: &'a TrainingData,
    pub records: &'a Records,
}

impl Source<'_> {
    /// Content of as many records as can be read in `time`, but of some in any case.
    fn summary(&self, name: String, time: Duration) -> SourceSummary {
        let began = Instant::now();
        let probe = summarise(name.clone(), self.records, PROBED);
        let each = began.elapsed().as_secs_f64() / probe.sampled.max(1) as f64;
        let count = (time.as_secs_f64() / each.max(1e-9)) as usize;
        if probe.sampled == probe.records || count <= PROBED { probe } else { summarise(name, self.records, count) }
    }

    fn length(&self, index: usize) -> Result<Measured, BadSample> {
        let prepare = |limit| self.data.prepare(self.records, index, limit);
        let length = prepare(Limit::NONE)?.sequence.len();
        let fit = match self.data.limit {
            Limit { longest, .. } if length <= longest => Fit::Whole,
            limit if limit.truncates && prepare(limit).is_ok() => Fit::Cut,
            _ => Fit::TooLong,
        };
        Ok(Measured { length, fit })
    }
}

/// Indices in an order in which every beginning is spread over all of them.
fn shuffled(mut indices: Vec<usize>) -> Vec<usize> {
    indices.shuffle(&mut random_stream(0, 0));
    indices
}

/// Name of a source for people.
fn name(source: &DataSource) -> String {
    match source {
        DataSource::Shapes(dataset) => {
            let split = serde_json::to_value(dataset.split).unwrap_or_default();
            format!("shapes {}", split.as_str().unwrap_or_default())
        }
        DataSource::Files(files) => {
            let paths: Vec<_> = files.paths().iter().map(|path| path.display().to_string()).collect();
            one_line(&paths.join(", "))
        }
    }
}
