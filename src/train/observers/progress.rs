//! Observer that shows progress on stderr.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::error::one_line;
use crate::train::metrics::{
    GRAD_NORM, LEARNING_RATE, LOSS, Record, SAMPLES_PER_SECOND, TOKENS_PER_SECOND, VALIDATION_LOSS,
};
use crate::train::{Outcome, RunStart, SkippedSample, StepReport, TrainObserver};
use crate::{Error, Result};

const TEMPLATE: &str = "{prefix} {wide_bar} {pos}/{len} [{elapsed} < {eta}]\n{msg}";

/// Observer that shows a progress bar where stderr is a terminal, and elsewhere (a log file, a job scheduler) a line
/// every [`logging_steps`](crate::train::RunConfig::logging_steps) steps, with notices in between. Output that cannot
/// be written is dropped: a closed terminal must not cost a run.
#[derive(Debug, Default)]
pub struct Progress {
    view: Option<View>,
    stage: String,
    total: u64,
    first: u64,
}

#[derive(Debug)]
enum View {
    Bar(ProgressBar),
    Lines { every: u64, began: Instant },
}

impl Progress {
    /// Prints a text without tearing the bar. Control characters, which may come from data, are escaped.
    fn line(&self, text: &str) {
        let print = || {
            let _ = writeln!(std::io::stderr().lock(), "{}", printable(text));
        };
        match &self.view {
            Some(View::Bar(bar)) => bar.suspend(print),
            Some(View::Lines { .. }) | None => print(),
        }
    }

    fn show(&self, metrics: &Record) {
        let done = metrics.step;
        match &self.view {
            Some(View::Bar(bar)) => {
                bar.set_message(summary(metrics));
                bar.set_position(done);
            }
            Some(View::Lines { every, began }) if done.is_multiple_of(*every) || done == self.total => {
                let left = eta(began.elapsed(), done.saturating_sub(self.first), self.total.saturating_sub(done));
                self.line(&format!(
                    "{} {done}/{} {} ETA {:#}",
                    self.stage,
                    self.total,
                    summary(metrics),
                    HumanDuration(left)
                ));
            }
            Some(View::Lines { .. }) | None => {}
        }
    }
}

impl TrainObserver for Progress {
    fn on_start(&mut self, start: &RunStart<'_>) -> Result<()> {
        let (stage, total, done) = (start.recipe.stage.name(), start.steps, start.resumed.unwrap_or(0));
        let view = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style).with_prefix(stage).with_position(done);
            // Steps before the resume must not count for the ETA.
            bar.reset_eta();
            View::Bar(bar)
        } else {
            View::Lines { every: start.recipe.run.logging_steps.max(1), began: Instant::now() }
        };
        *self = Self { view: Some(view), stage: stage.into(), total, first: done };
        Ok(())
    }

    fn on_step(&mut self, _: &StepReport, metrics: &Record) -> Result<()> {
        self.show(metrics);
        if let Some(loss) = metrics.get(VALIDATION_LOSS) {
            self.line(&format!("step {}: validation loss {loss:.4}", metrics.step));
        }
        Ok(())
    }

    fn on_skipped_sample(&mut self, sample: &SkippedSample) {
        self.line(&format!("skipped {}: {}", one_line(&sample.sample), one_line(&sample.reason)));
    }

    fn on_notice(&mut self, notice: &str) {
        self.line(notice);
    }

    fn on_end(&mut self, _: std::result::Result<&Outcome, &Error>) -> Result<()> {
        // The bar stays on the screen as it is.
        if let Some(View::Bar(bar)) = &self.view {
            bar.abandon();
        }
        Ok(())
    }
}

fn printable(text: &str) -> String {
    let escape = |c: char| c.is_control() && c != '\n';
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if escape(c) {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
        out
    })
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
    fn the_summary_shows_every_known_metric() {
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
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\n  b\u{1b}[31m"), "a\n  b\\u{1b}[31m");
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
