//! The facts as a table.

use std::fmt;

use super::{DataFacts, SourceFacts};
use crate::data::SourceSummary;
use crate::error::one_line;

/// Most lines for one reason.
const LISTED: usize = 5;
/// Most characters of a name in the table.
const NAME_CHARS: usize = 48;
/// Heads of the table; lengths are in tokens, and the last column is the share of samples over `data.max_length`.
const HEADS: [&str; 9] =
    ["source", "records", "with images", "text only", "bad so far", "median", "95 %", "longest", "too long"];

impl SourceFacts {
    /// Length that a share of the measured samples does not exceed.
    fn quantile(&self, share: f64) -> Option<usize> {
        let at = (share * self.lengths.len() as f64).ceil() as usize;
        self.lengths.get(at.saturating_sub(1)).copied()
    }
}

/// The end of a name that is too long for the table.
fn shortened(name: &str) -> String {
    let skipped = name.chars().count().saturating_sub(NAME_CHARS);
    if skipped == 0 {
        name.to_string()
    } else {
        name.chars().skip(skipped + 1).fold("…".into(), |all, c| all + c.encode_utf8(&mut [0; 4]))
    }
}

impl fmt::Display for DataFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> =
            std::iter::once(HEADS.map(String::from)).chain(self.sources.iter().map(SourceFacts::row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
        for row in &rows {
            write!(f, "{:<1$}", row[0], widths[0])?;
            row.iter().zip(&widths).skip(1).try_for_each(|(cell, width)| write!(f, "  {cell:>width$}"))?;
            writeln!(f)?;
        }
        self.write_totals(f)?;
        self.sources.iter().try_for_each(|source| source.write_notes(f))?;
        self.write_length(f)?;
        if self.validation + self.skipped_validation.len() > 0 {
            write!(f, "\nvalidation: {} samples, {} skipped", self.validation, self.skipped_validation.len())?;
        }
        self.skipped_validation.iter().take(LISTED).try_for_each(|skipped| write!(f, "\n  {skipped}"))
    }
}

impl DataFacts {
    /// One line: records with and without images, and how the table was made.
    fn write_totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |count: fn(&SourceFacts) -> usize| self.sources.iter().map(count).sum::<usize>();
        let about = if self.sources.iter().all(SourceFacts::is_counted) { "" } else { "about " };
        write!(
            f,
            "{} records, {about}{} with images, {about}{} text only; lengths in tokens of {} samples, at most {} allowed",
            sum(|source| source.summary.records),
            sum(|source| source.of_all(source.with_visuals())),
            sum(|source| source.of_all(source.summary.text_only)),
            sum(|source| source.measured),
            self.max_length,
        )
    }

    fn write_length(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (about, rows) = if self.is_estimated { ("about ", "rows") } else { ("", "samples") };
        let per_step = self.rows_per_step;
        write!(f, "\n{per_step} {rows} a step")?;
        if self.is_estimated {
            write!(
                f,
                ", about {:.1} samples",
                self.samples_per_epoch as f64 / self.steps_per_epoch.max(f64::MIN_POSITIVE)
            )?;
        }
        let (steps, epochs) = (self.steps, self.epochs());
        write!(f, "; {about}{:.1} steps an epoch; {steps} steps, {about}{epochs:.3} epochs", self.steps_per_epoch)
    }
}

impl SourceFacts {
    /// Whether every record was read.
    fn is_counted(&self) -> bool {
        self.summary.sampled == self.summary.records
    }

    /// Records with an image or a video among those that were read.
    fn with_visuals(&self) -> usize {
        self.summary.sampled.saturating_sub(self.summary.text_only + self.summary.bad)
    }

    /// Number among all records, in proportion to a number among those that were read.
    fn of_all(&self, read: usize) -> usize {
        (read as u128 * self.summary.records as u128 / self.summary.sampled.max(1) as u128) as usize
    }

    /// Bad records among those that were read, or samples that cannot be used among those that were measured.
    fn bad_so_far(&self) -> usize {
        self.summary.bad.max(self.bad)
    }

    /// Cells of the table, under [`HEADS`].
    fn row(&self) -> [String; HEADS.len()] {
        let SourceSummary { name, records, text_only, .. } = &self.summary;
        let about =
            |count: usize| if self.is_counted() { count.to_string() } else { format!("~{}", self.of_all(count)) };
        let tokens = |length: Option<usize>| length.map_or_else(|| "-".into(), |length| length.to_string());
        let long = (self.too_long + self.cut) as f64 / self.lengths.len().max(1) as f64;
        [
            if self.weight == 1.0 { shortened(name) } else { format!("{} x {}", shortened(name), self.weight) },
            records.to_string(),
            about(self.with_visuals()),
            about(*text_only),
            self.bad_so_far().to_string(),
            tokens(self.quantile(0.5)),
            tokens(self.quantile(0.95)),
            tokens(self.lengths.last().copied()),
            format!("{:.1} %", 100.0 * long),
        ]
    }

    fn write_notes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SourceSummary { name, left_out, bad_reasons, unread_fields, .. } = &self.summary;
        if left_out.files > 0 {
            write!(f, "\n{name}: {} files are left out", left_out.files)?;
            left_out.named.iter().take(LISTED).try_for_each(|file| write!(f, "\n  {file}"))?;
        }
        if !unread_fields.is_empty() {
            write!(f, "\n{}", one_line(&format!("{name}: fields that are not read: {}", unread_fields.join(", "))))?;
        }
        let (cut, too_long) = (self.cut, self.too_long);
        let unseen: Vec<&String> = bad_reasons.iter().filter(|bad| !self.named.contains(bad)).take(LISTED).collect();
        if self.bad_so_far() + cut + too_long > 0 {
            let (bad, measured) = (self.bad_so_far(), self.measured);
            write!(
                f,
                "\n{name}: {bad} bad, and of {measured} samples {too_long} too long, {cut} with a cut answer; such as"
            )?;
            self.named.iter().chain(unseen).try_for_each(|bad| write!(f, "\n  {bad}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> DataFacts {
        let summary = SourceSummary {
            name: "a.json".into(),
            records: 1000,
            sampled: 100,
            with_images: 80,
            text_only: 18,
            bad: 2,
            bad_reasons: vec!["a.json, record 9: no".into()],
            ..SourceSummary::default()
        };
        let mut source = SourceFacts { summary, weight: 2.0, lengths: (1..=100).collect(), ..SourceFacts::default() };
        (source.measured, source.too_long) = (100, 4);
        DataFacts {
            sources: vec![source],
            max_length: 96,
            rows_per_step: 8,
            samples_per_epoch: 2000,
            steps_per_epoch: 250.0,
            steps: 500,
            ..DataFacts::default()
        }
    }

    #[test]
    fn the_table_says_what_was_counted_and_what_is_estimated() {
        let text = facts().to_string();
        for expected in [
            "a.json x 2",
            "1000 records, about 800 with images, about 180 text only; lengths in tokens of 100 samples, at most 96",
            "1000         ~800       ~180           2      50    95      100     4.0 %",
            "8 samples a step; 250.0 steps an epoch; 500 steps, 2.000 epochs",
            "record 9: no",
        ] {
            assert!(text.contains(expected), "{expected} not in:\n{text}");
        }
        let packed = DataFacts { is_estimated: true, ..facts() }.to_string();
        assert!(packed.contains("8 rows a step, about 8.0 samples; about 250.0 steps an epoch"), "{packed}");
    }
}
