//! What a person watching the run sees.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::metrics::{GRAD_NORM, LEARNING_RATE, LOSS, Record, SAMPLES_PER_SECOND, TOKENS_PER_SECOND};

const TEMPLATE: &str = "{prefix} {wide_bar} {pos}/{len} [{elapsed} < {eta}]\n{msg}";

/// A progress bar on a terminal, and a plain line every so many steps elsewhere (a log file, a job scheduler).
#[derive(Debug)]
pub struct Progress {
    view: View,
    stage: String,
    total: u64,
    first: u64,
    began: Instant,
}

#[derive(Debug)]
enum View {
    Bar(ProgressBar),
    Lines { every: u64 },
}

impl Progress {
    /// Progress of a run of `total` steps of which `done` are behind it, on the standard error stream; without a
    /// terminal there is a line every `every` steps, and for the last one.
    pub fn new(stage: impl Into<String>, total: u64, done: u64, every: u64) -> Self {
        let stage = stage.into();
        let view = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style).with_prefix(stage.clone()).with_position(done);
            // The steps before a resume took no time of this process.
            bar.reset_eta();
            View::Bar(bar)
        } else {
            View::Lines { every: every.max(1) }
        };
        Self { view, stage, total, first: done, began: Instant::now() }
    }

    /// Shows that `done` steps are behind, the last one with these numbers.
    pub fn update(&self, done: u64, record: &Record) {
        match &self.view {
            View::Bar(bar) => {
                bar.set_message(summary(record));
                bar.set_position(done);
            }
            View::Lines { every } if done.is_multiple_of(*every) || done == self.total => {
                let eta = HumanDuration(eta(
                    self.began.elapsed(),
                    done.saturating_sub(self.first),
                    self.total - done.min(self.total),
                ));
                eprintln!("{} {done}/{} {} ETA {eta:#}", self.stage, self.total, summary(record));
            }
            View::Lines { .. } => {}
        }
    }

    /// Prints a line without tearing the bar.
    pub fn println(&self, line: &str) {
        match &self.view {
            View::Bar(bar) => bar.suspend(|| eprintln!("{line}")),
            View::Lines { .. } => eprintln!("{line}"),
        }
    }

    /// Leaves the bar as it stands.
    pub fn finish(&self) {
        if let View::Bar(bar) = &self.view {
            bar.abandon();
        }
    }
}

fn eta(elapsed: Duration, done: u64, left: u64) -> Duration {
    let seconds = elapsed.as_secs_f64() / done.max(1) as f64 * left as f64;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// One line: loss with its parts, learning rate, gradient norm and speed, as far as the record has them.
fn summary(record: &Record) -> String {
    let parts: Vec<String> = record
        .values
        .iter()
        .filter_map(|(name, value)| Some(format!("{} {value:.4}", name.strip_prefix("loss/")?)))
        .collect();
    let show = |name, format: &dyn Fn(f64) -> String| record.get(name).map(format);
    let shown = [
        show(LOSS, &|x| format!("loss {x:.4}")),
        (!parts.is_empty()).then(|| format!("({})", parts.join(", "))),
        show(LEARNING_RATE, &|x| format!("lr {x:.2e}")),
        show(GRAD_NORM, &|x| format!("|g| {x:.3}")),
        show(SAMPLES_PER_SECOND, &|x| format!("{x:.1} samples/s")),
        show(TOKENS_PER_SECOND, &|x| format!("{x:.0} tokens/s")),
    ];
    shown.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_holds_every_known_number() {
        let record = Record::new(7)
            .with(LOSS, 1.25)
            .with("loss/vision", 0.5)
            .with("loss/feature", 0.75)
            .with(LEARNING_RATE, 2e-4)
            .with(GRAD_NORM, 0.5)
            .with(SAMPLES_PER_SECOND, 12.34)
            .with(TOKENS_PER_SECOND, 4567.8)
            .with("memory", 1.0);
        let expected = "loss 1.2500 (feature 0.7500, vision 0.5000) lr 2.00e-4 |g| 0.500 12.3 samples/s 4568 tokens/s";
        assert_eq!(summary(&record), expected);
        assert_eq!(summary(&Record::new(7).with(LOSS, f64::NAN)), "loss NaN");
    }

    #[test]
    fn the_eta_counts_this_process_only() {
        assert_eq!(eta(Duration::from_secs(10), 5, 20), Duration::from_secs(40));
        assert_eq!(eta(Duration::from_secs(3), 0, 2), Duration::from_secs(6));
    }

    #[test]
    fn the_template_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
