//! Loss and accuracy against data and parameters: tables, charts, fitted lines, and where those of two designs meet.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use haplovl::train::plot::Series;

use super::correctness::ALL;
use super::plan::Entry;
use super::report::{Report, Row};
use super::results::Results;

/// Designs with their rows by size, smallest first.
enum Sizes<'a> {
    Of(Vec<(String, Vec<(f64, Row<'a>)>)>),
    /// No design has several sizes.
    None,
    NoCommonSeed,
}

impl<'a> Report<'a> {
    /// Tables by images and by parameters, if any design has several sizes of either.
    pub fn scaling(&self, text: &mut String) -> Result<()> {
        let data = |results: &Results| results.size.is_none().then(|| results.images() as f64);
        let sizes = |results: &Results| results.scenes.is_none().then_some(results.parameters as f64);
        self.scaled(text, "images", &data)?;
        self.scaled(text, "parameters", &sizes)
    }

    fn scaled(&self, text: &mut String, what: &str, size: &dyn Fn(&Results) -> Option<f64>) -> Result<()> {
        let designs = match self.sizes(size) {
            Sizes::Of(designs) => designs,
            Sizes::None => return Ok(()),
            Sizes::NoCommonSeed => {
                writeln!(text, "\nNothing by {what}: there is no seed that every size of every design has.")?;
                return Ok(());
            }
        };
        let Some((reference, _)) = designs.first() else { return Ok(()) };
        writeln!(text, "\n| design | {what} | accuracy, % | difference from {reference} | validation loss |")?;
        writeln!(text, "|---|---|---|---|---|")?;
        let (mut series, mut losses, mut fits) = (Vec::new(), Vec::new(), Vec::new());
        for (design, sizes) in &designs {
            for (size, row) in sizes {
                let (right, loss) = (row.graded.accuracy(ALL).percent(), row.loss());
                let difference = self.against(reference, row).unwrap_or_else(|| "not run".into());
                writeln!(text, "| {design} | {size} | {right} | {difference} | {loss:.4} |")?;
            }
            let points = |value: &dyn Fn(&Row<'_>) -> f64| -> Vec<(f64, f64)> {
                sizes.iter().map(|(size, row)| (size.log10(), value(row))).collect()
            };
            let loss = Line::fit(&points(&|row| row.loss().log10()));
            let right = Line::fit(&points(&|row| 100.0 * row.graded.accuracy(ALL).value));
            if let Some((loss, right)) = loss.zip(right) {
                let (power, gain) = (loss.slope, right.slope);
                let mut fitted = format!(
                    "- {design}: loss proportional to {what}^{power:.3}, {gain:+.1} points of accuracy for ten times \
                     the {what}"
                );
                let lost =
                    sizes.iter().filter(|(_, row)| !row.loss().log10().is_finite()).map(|(size, _)| size.to_string());
                let lost = Vec::from_iter(lost).join(", ");
                if !lost.is_empty() {
                    fitted += &format!("; the line of the loss is without {lost}, whose loss is not a positive number");
                }
                fits.push(fitted);
                losses.push((design.as_str(), loss));
            }
            series.push(Series { name: design.clone(), points: points(&|row| row.loss()) });
        }
        let seeds = designs.iter().find_map(|(_, sizes)| Some(sizes.first()?.1.seeds())).unwrap_or_default();
        let of = if seeds.len() == 1 { "seed" } else { "seeds" };
        let seeds = Vec::from_iter(seeds.iter().map(u64::to_string)).join(", ");
        writeln!(text, "\nLines are fitted by least squares to the logarithm of {what}, {of} {seeds}:\n")?;
        writeln!(text, "{}", fits.join("\n"))?;
        let measured = designs.iter().flat_map(|(_, sizes)| sizes.iter().map(|(size, _)| *size));
        let (least, most) = measured.fold((f64::INFINITY, 0.0), |(a, b): (f64, f64), x| (a.min(x), b.max(x)));
        if let Some(((first, line), others)) = losses.split_first() {
            for (other, theirs) in others {
                let meet = match line.meets(theirs).filter(|at| (least..=most).contains(at)) {
                    Some(at) => format!("meet at {at:.0} {what}"),
                    None => "do not meet within what was measured".into(),
                };
                writeln!(text, "- the lines of the losses of {first} and {other} {meet}")?;
            }
        }
        let (file, title) = (format!("by-{what}"), format!("Validation loss of stage 2 by {what}"));
        self.plot(text, &file, &title, [&format!("log10 of {what}"), "validation loss"], true, series)
    }

    /// Designs that have several sizes, in the order of the plan, with the seeds that all of these sizes have.
    fn sizes(&self, size: &dyn Fn(&Results) -> Option<f64>) -> Sizes<'a> {
        let mut rows: BTreeMap<&str, Vec<(f64, &Row<'a>)>> = BTreeMap::new();
        for row in self.rows.values() {
            let Some(results) = row.first() else { continue };
            if let (Some(size), Ok(_)) = (size(results), self.plan.design(&results.design)) {
                rows.entry(&results.design).or_default().push((size, row));
            }
        }
        rows.retain(|_, rows| rows.len() > 1);
        if rows.is_empty() {
            return Sizes::None;
        }
        let of_all = rows.values().flatten().map(|(_, row)| row.seeds()).reduce(|all, own| &all & &own);
        let of_all = of_all.unwrap_or_default();
        if of_all.is_empty() {
            return Sizes::NoCommonSeed;
        }
        let restricted = |rows: &[(f64, &Row<'a>)]| {
            let mut sizes = Vec::from_iter(rows.iter().map(|(size, row)| (*size, row.of_seeds(&of_all))));
            sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
            sizes
        };
        let planned = self.plan.designs.iter().map(|design| design.name.as_str());
        Sizes::Of(planned.filter_map(|name| Some((name.to_string(), restricted(rows.get(name)?)))).collect())
    }

    /// Right answers of a row more than those of a design of the same size with the same images.
    fn against(&self, reference: &str, row: &Row<'_>) -> Option<String> {
        let entry = row.first()?.entry();
        let same = Entry { design: reference.to_string(), ..entry };
        Some(row.graded.difference(&self.rows.get(&same.name())?.graded, ALL).percent())
    }
}

/// A straight line.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    slope: f64,
    intercept: f64,
}

impl Line {
    /// The least-squares line through the points that are finite; `None` if these have one x or none.
    fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let points = Vec::from_iter(points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()));
        let count = points.len() as f64;
        let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(|point| value(point)).sum::<f64>() / count;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        let slope = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>() / spread;
        (spread > 0.0).then_some(Self { slope, intercept: y - slope * x })
    }

    /// The size at which two lines over its logarithm meet; `None` for parallel ones.
    fn meets(&self, other: &Self) -> Option<f64> {
        let at = 10f64.powf((other.intercept - self.intercept) / (self.slope - other.slope));
        (at.is_finite() && at > 0.0).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_recovered() {
        let points = [10f64, 100.0, 1000.0].map(|x| (x.log10(), (3.0 * x.powf(-0.25)).log10()));
        let Line { slope, intercept } = Line::fit(&points).unwrap();
        assert!((slope + 0.25).abs() < 1e-12 && (intercept - 3f64.log10()).abs() < 1e-12, "{slope} {intercept}");
        assert_eq!(Line::fit(&points[..1]), None);
        assert_eq!(Line::fit(&[(1.0, 2.0), (f64::NAN, 1.0)]), None);
        assert_eq!(Line::fit(&[]), None);
    }

    #[test]
    fn lines_meet_where_they_are_equal() {
        let line = |slope, intercept| Line { slope, intercept };
        // 10^(2 - x/2) and 10^(1 - x/4) are equal at x = 4.
        let (steep, flat) = (line(-0.5, 2.0), line(-0.25, 1.0));
        assert!((steep.meets(&flat).unwrap() - 1e4).abs() < 1e-6 && (flat.meets(&steep).unwrap() - 1e4).abs() < 1e-6);
        assert_eq!((steep.meets(&line(-0.5, 1.0)), steep.meets(&steep)), (None, None));
    }
}
