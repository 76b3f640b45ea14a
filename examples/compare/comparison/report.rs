//! The page of a comparison: tables and charts, made from the results alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter, Write};
use std::path::Path;

use anyhow::Result;
use haplovl::data::shapes::QuestionKind;
use haplovl::eval::Accuracy;
use haplovl::train::plot::{Plot, Series};
use haplovl::weights::write_bytes_atomically;

use super::correctness::ALL;
use super::cost::FORMULA;
use super::exam::question_alone;
use super::interval::{Estimate, Graded, RESAMPLES};
use super::plan::{Design, Setting};
use super::results::{Point, Results, read_all};
use super::{Options, Plan, chart, named};

/// Folder of the charts, beside the page.
const IMAGES: &str = "images";

/// Results of one entry, by seed.
pub(super) struct Row<'a> {
    pub(super) results: Vec<&'a Results>,
    pub(super) graded: Graded<'a>,
}

impl<'a> Row<'a> {
    fn new(results: impl IntoIterator<Item = &'a Results>) -> Self {
        let results = Vec::from_iter(results);
        let graded = Graded::new(results.iter().map(|results| (results.seed, &results.correctness)));
        Self { results, graded }
    }

    pub(super) fn seeds(&self) -> BTreeSet<u64> {
        self.results.iter().map(|results| results.seed).collect()
    }

    /// The results of some seeds only.
    pub(super) fn of_seeds(&self, seeds: &BTreeSet<u64>) -> Self {
        Self::new(self.results.iter().copied().filter(|results| seeds.contains(&results.seed)))
    }

    /// Mean of a value over the seeds.
    fn mean(&self, value: impl Fn(&Results) -> f64) -> f64 {
        self.results.iter().map(|results| value(results)).sum::<f64>() / self.results.len().max(1) as f64
    }

    /// Mean of the validation loss after the last step.
    pub(super) fn loss(&self) -> f64 {
        self.mean(|results| results.loss().unwrap_or(f64::NAN))
    }

    pub(super) fn first(&self) -> Option<&'a Results> {
        self.results.first().copied()
    }

    /// Mean of a curve over the seeds.
    fn curve(&self, value: impl Fn(&Point) -> f64) -> Vec<(f64, f64)> {
        let points = self.first().map_or(&[][..], |results| &results.curve);
        let at = |n: usize| self.results.iter().filter_map(move |results| results.curve.get(n));
        let mean = |n: usize| at(n).map(&value).sum::<f64>() / at(n).count().max(1) as f64;
        points.iter().enumerate().map(|(n, point)| (point.samples as f64, mean(n))).collect()
    }
}

/// Writes the page of a setting to `page`, and its charts to a folder beside it. Returns the text of the page.
///
/// # Errors
/// If there are no results yet, or files cannot be read or written.
pub fn report(options: &Options, page: &Path) -> Result<String> {
    let plan = Plan::read(&options.recipes)?;
    let all = read_all(&options.out.join(&options.setting))?;
    let rows: BTreeMap<String, Row<'_>> = all.iter().map(|(name, seeds)| (name.clone(), Row::new(seeds))).collect();
    anyhow::ensure!(!rows.is_empty(), "{} holds no results yet: let a run finish", options.out.display());
    let world = plan.setting(&options.setting)?;
    let question_alone = question_alone(world);
    all.values().flatten().try_for_each(|results| check_questions(results, world, &question_alone))?;
    let images = page.parent().unwrap_or(Path::new("")).join(IMAGES);
    std::fs::create_dir_all(&images).map_err(|e| named(&images, e))?;
    let (setting, recipes) = (options.setting.as_str(), options.recipes.as_path());
    let report = Report { plan: &plan, world, question_alone, rows, setting, recipes, images: &images };
    let text = report.text()?;
    write_bytes_atomically(page, text.as_bytes())?;
    Ok(text)
}

/// Refuses results of other questions than the test's.
fn check_questions(results: &Results, world: &Setting, test: &Accuracy) -> Result<()> {
    let found = results.correctness.accuracy();
    let [found, expected] =
        [&found, test].map(|accuracy| accuracy.kinds().iter().map(|(kind, tally)| (kind, tally.total)));
    if results.correctness.scenes() as u64 != world.test_scenes || !found.eq(expected) {
        let (name, Results { setting, seed, .. }) = (results.name(), results);
        anyhow::bail!(
            "{name} of seed {seed}: `correctness` in its results.json is not of the questions of setting `{setting}`: \
             move it away, and `compare` tests the model again"
        );
    }
    Ok(())
}

pub(super) struct Report<'a> {
    pub(super) plan: &'a Plan,
    world: &'a Setting,
    /// Answers to the questions of the test, see [`question_alone`].
    question_alone: Accuracy,
    pub(super) rows: BTreeMap<String, Row<'a>>,
    setting: &'a str,
    recipes: &'a Path,
    images: &'a Path,
}

impl Report<'_> {
    fn text(&self) -> Result<String> {
        let designs = self.designs();
        let mut text = format!("## Setting `{}`\n\n", self.setting);
        self.other_plans(&mut text)?;
        self.claims(&mut text)?;
        self.overall(&mut text, &designs)?;
        self.by_kind(&mut text, &designs)?;
        self.costs(&mut text, &designs)?;
        self.curves(&mut text, &designs)?;
        self.scaling(&mut text)?;
        Ok(text)
    }

    /// Names the results that are not of the present plan.
    fn other_plans(&self, text: &mut String) -> Result<()> {
        let mut others = Vec::new();
        for results in self.rows.values().flat_map(|row| &row.results) {
            let entry = results.entry();
            let is_planned = self.plan.design(&entry.design).is_ok()
                && entry.size.as_ref().is_none_or(|size| self.plan.scaling.sizes.contains_key(size));
            if !is_planned || self.plan.provenance(self.recipes, self.world, &entry)? != results.provenance {
                others.push(format!("{} of seed {}", results.name(), results.seed));
            }
        }
        if !others.is_empty() {
            writeln!(text, "**Made by other recipes than the present ones**: {}.\n", others.join(", "))?;
        }
        Ok(())
    }

    /// Rows of the plan's designs that have results, in full size and with all images, in the order of the plan.
    fn designs(&self) -> Vec<(&str, &Row<'_>)> {
        let row = |name: &'_ str| self.rows.get_key_value(name).map(|(name, row)| (name.as_str(), row));
        self.plan.designs.iter().filter_map(|design| row(&design.name)).collect()
    }

    /// Each claim with its verdict, and what it stands on.
    fn claims(&self, text: &mut String) -> Result<()> {
        writeln!(
            text,
            "| claim | verdict | difference in accuracy, points | questions | seeds |\n|---|---|---|---|---|"
        )?;
        for claim in &self.plan.claims {
            let kind = claim.kind.map_or(ALL, QuestionKind::name);
            let origin = if claim.paper { " (paper)" } else { "" };
            let bound = match claim.within {
                0.0 => String::new(),
                within => format!(": at most {within} points less"),
            };
            write!(text, "| {}{bound}{origin} | ", claim.says)?;
            let pair = self.rows.get(&claim.design).zip(self.rows.get(&claim.against));
            let Some((own, other, seeds @ 1..)) =
                pair.map(|(own, other)| (own, other, own.graded.common_seeds(&other.graded)))
            else {
                writeln!(text, "not run | | {kind} | 0 |")?;
                continue;
            };
            let difference = own.graded.difference(&other.graded, kind);
            let verdict = Verdict::of(&difference, claim.within / 100.0);
            let by = difference.percent();
            writeln!(text, "**{verdict}** | {by} | {kind} | {seeds} |")?;
        }
        writeln!(
            text,
            "\nThe 95 % intervals are percentiles of {RESAMPLES} resamples of seeds and scenes, paired in differences. With one \
             seed they cover the choice of test scenes alone, and with two or three they are too narrow, since so few seeds \
             hardly show how runs differ. The verdict is **yes** or **no** if the whole interval says so, otherwise **open**; \
             {} claims are tested without correction.\n",
            self.plan.claims.len()
        )?;
        Ok(())
    }

    fn overall(&self, text: &mut String, designs: &[(&str, &Row<'_>)]) -> Result<()> {
        let Some((reference, base)) = designs.first() else { return Ok(()) };
        writeln!(text, "Accuracy in percent with 95 % intervals.\n")?;
        writeln!(text, "| design | seeds | accuracy | difference from {reference} | validation loss |")?;
        writeln!(text, "|---|---|---|---|---|")?;
        for (name, row) in designs {
            let right = row.graded.accuracy(ALL).percent();
            let difference = match row.graded.common_seeds(&base.graded) {
                0 => "no common seed".into(),
                _ => row.graded.difference(&base.graded, ALL).percent(),
            };
            let loss = row.loss();
            writeln!(text, "| {name} | {} | {right} | {difference} | {loss:.4} |", row.results.len())?;
        }
        writeln!(text)?;
        for Design { name, about, .. } in &self.plan.designs {
            if self.rows.contains_key(name) {
                writeln!(text, "- **{name}**: {about}.")?;
            }
        }
        Ok(())
    }

    fn by_kind(&self, text: &mut String, designs: &[(&str, &Row<'_>)]) -> Result<()> {
        let alone = &self.question_alone;
        let kinds: Vec<String> = alone.kinds().keys().cloned().chain([ALL.to_string()]).collect();
        writeln!(text, "\n| design | {} |\n|---|{}", kinds.join(" | "), "---|".repeat(kinds.len()))?;
        let mut series = Vec::new();
        for (name, row) in designs {
            let estimates: Vec<Estimate> = kinds.iter().map(|kind| row.graded.accuracy(kind)).collect();
            let cells: Vec<String> = estimates.iter().map(Estimate::percent).collect();
            writeln!(text, "| {name} | {} |", cells.join(" | "))?;
            series.push((name.to_string(), estimates));
        }
        let tallies = Vec::from_iter(alone.kinds().values().copied().chain([alone.overall()]));
        let percent = tallies.iter().map(|tally| format!("{:.1}", 100.0 * tally.accuracy()));
        writeln!(text, "| *question alone* | {} |", Vec::from_iter(percent).join(" | "))?;
        let asked = tallies.iter().map(|tally| tally.total.to_string());
        writeln!(text, "| *questions* | {} |", Vec::from_iter(asked).join(" | "))?;
        writeln!(
            text,
            "\n*Question alone* gives the most common answer to each form of question among training scenes, whatever objects it \
             describes: a baseline that never looks at the image."
        )?;
        let title = format!("Accuracy by kind of question, {}", self.setting);
        let (link, path) = self.image("kinds");
        chart::write_svg(&path, &title, &kinds, &series)?;
        writeln!(text, "\n![{title}]({link})")?;
        Ok(())
    }

    fn costs(&self, text: &mut String, designs: &[(&str, &Row<'_>)]) -> Result<()> {
        writeln!(
            text,
            "\n{FORMULA}. A sample is one of stage 2, forward and backward. MB are those of \
             parameters, gradients, moments and EMA, without activations.\n"
        )?;
        writeln!(
            text,
            "| design | parameters | frozen | MB in training | GFLOPs a question | GFLOPs a sample | stages before, s | stage 2, s | tokens/s |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|---|---|---|")?;
        for (name, row) in designs {
            let Some(first) = row.first() else { continue };
            // `abs`, since an empty sum is -0.
            let before =
                row.mean(|results| results.stages.iter().rev().skip(1).map(|stage| stage.seconds).sum::<f64>().abs());
            let last = row.mean(|results| results.stages.last().map_or(0.0, |stage| stage.seconds));
            let tokens = row.mean(|results| results.stages.last().map_or(0.0, |stage| stage.tokens));
            let [question, sample] = [first.flops_question, first.flops_sample].map(|flops| flops / 1e9);
            writeln!(
                text,
                "| {name} | {} | {} | {:.1} | {question:.3} | {sample:.3} | {before:.0} | {last:.0} | {:.0} |",
                first.parameters,
                first.frozen,
                first.static_bytes() as f64 / 1e6,
                tokens / last
            )?;
        }
        Ok(())
    }

    fn curves(&self, text: &mut String, designs: &[(&str, &Row<'_>)]) -> Result<()> {
        let is_start =
            |name: &str| name == "haplovl" || ["no-stage-1", "connector-"].iter().any(|start| name.starts_with(start));
        let starts: Vec<_> = designs.iter().filter(|(name, _)| is_start(name)).copied().collect();
        self.losses(text, designs)?;
        self.curve(text, "starts", "Validation loss of stage 2 by its start", &starts, true, |point| point.loss)?;
        self.curve(text, "losses", "Validation loss of stage 2 by design", designs, true, |point| point.loss)?;
        let title = "Accuracy by samples of stage 2, %";
        self.curve(text, "accuracy", title, designs, false, |point| 100.0 * point.accuracy)
    }

    /// Table of validation losses by the samples of stage 2.
    fn losses(&self, text: &mut String, designs: &[(&str, &Row<'_>)]) -> Result<()> {
        let curves: Vec<_> = designs.iter().map(|(name, row)| (name, row.curve(|point| point.loss))).collect();
        let samples = curves.first().map(|(_, curve)| curve.iter().map(|(samples, _)| samples.to_string()));
        let samples: Vec<String> = samples.into_iter().flatten().collect();
        writeln!(text, "\nValidation loss by samples of stage 2. The losses of `eve` contain its alignment loss.\n")?;
        writeln!(text, "| design | {} |\n|---|{}", samples.join(" | "), "---|".repeat(samples.len()))?;
        for (name, curve) in curves {
            let losses: Vec<String> = curve.iter().map(|(_, loss)| format!("{loss:.3}")).collect();
            writeln!(text, "| {name} | {} |", losses.join(" | "))?;
        }
        Ok(())
    }

    fn curve(
        &self,
        text: &mut String,
        file: &str,
        title: &str,
        rows: &[(&str, &Row<'_>)],
        log_y: bool,
        value: impl Fn(&Point) -> f64,
    ) -> Result<()> {
        let line = |(name, row): &(&str, &Row<'_>)| Series { name: name.to_string(), points: row.curve(&value) };
        let series: Vec<Series> = rows.iter().map(line).filter(|series| !series.points.is_empty()).collect();
        self.plot(text, file, title, ["samples", ""], log_y, series)
    }

    /// Draws a chart and names it in the text; without any series there is none.
    pub(super) fn plot(
        &self,
        text: &mut String,
        file: &str,
        title: &str,
        [x_label, y_label]: [&str; 2],
        log_y: bool,
        series: Vec<Series>,
    ) -> Result<()> {
        if series.is_empty() {
            return Ok(());
        }
        let (link, path) = self.image(file);
        let title = format!("{title}, {}", self.setting);
        let [x_label, y_label] = [x_label, y_label].map(String::from);
        Plot { x_label, y_label, log_y, smoothing: 0.0, ..Plot::losses(title.clone(), series) }.write_svg(&path)?;
        writeln!(text, "\n![{title}]({link})")?;
        Ok(())
    }

    /// Link to a chart, and its file.
    fn image(&self, name: &str) -> (String, std::path::PathBuf) {
        let file = format!("results-{}-{name}.svg", self.setting);
        (format!("{IMAGES}/{file}"), self.images.join(file))
    }
}

/// Whether a claim holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Yes,
    No,
    Open,
}

impl Verdict {
    /// The verdict of a difference that must not be below minus `within`.
    fn of(difference: &Estimate, within: f64) -> Self {
        match difference.interval {
            [low, _] if low > -within => Self::Yes,
            [_, high] if high < -within => Self::No,
            _ => Self::Open,
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Open => "open",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Estimate, Verdict};

    #[test]
    fn a_claim_holds_if_its_interval_is_on_one_side() {
        let verdict = |low, high, within| Verdict::of(&Estimate { value: 0.0, interval: [low, high] }, within);
        assert_eq!(verdict(0.01, 0.03, 0.0), Verdict::Yes);
        assert_eq!(verdict(-0.03, -0.01, 0.0), Verdict::No);
        assert_eq!(verdict(-0.01, 0.01, 0.0), Verdict::Open);
        assert_eq!(verdict(-0.01, 0.01, 0.02), Verdict::Yes);
        assert_eq!(verdict(-0.05, -0.01, 0.02), Verdict::Open);
    }
}
