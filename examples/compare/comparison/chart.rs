//! Chart of accuracies by kind of question, with intervals.

use std::error::Error;
use std::path::Path;

use anyhow::{Result, anyhow};
use haplovl::train::plot::COLORS;
use haplovl::weights::write_bytes_atomically;
use plotters::prelude::*;

use super::interval::Estimate;

/// Share of the place of a kind that its estimates take.
const SPREAD: f64 = 0.7;

/// Draws the estimates of each series, one for each kind, side by side.
pub fn write_svg(path: &Path, title: &str, kinds: &[String], series: &[(String, Vec<Estimate>)]) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, title, kinds, series).map_err(|e| anyhow!("{}: cannot be drawn: {e}", path.display()))?;
    Ok(write_bytes_atomically(path, svg.as_bytes())?)
}

fn draw(
    svg: &mut String,
    title: &str,
    kinds: &[String],
    series: &[(String, Vec<Estimate>)],
) -> std::result::Result<(), Box<dyn Error>> {
    let root = SVGBackend::with_string(svg, (1100, 600)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 24))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(-0.5..kinds.len() as f64 - 0.5, 0.0..100.0)?;
    let name =
        |x: &f64| kinds.get(x.round().max(0.0) as usize).filter(|_| x.fract() == 0.0).cloned().unwrap_or_default();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * kinds.len() + 1)
        .x_label_formatter(&name)
        .y_desc("accuracy, %")
        .max_light_lines(0)
        .draw()?;
    for (n, (label, estimates)) in series.iter().enumerate() {
        let (r, g, b) = COLORS[n % COLORS.len()];
        let colour = RGBColor(r, g, b);
        let shift = SPREAD * ((n as f64 + 0.5) / series.len() as f64 - 0.5);
        let points = || estimates.iter().enumerate().map(|(kind, estimate)| (kind as f64 + shift, estimate));
        let bar = |(x, estimate): (f64, &Estimate)| {
            PathElement::new(Vec::from(estimate.interval.map(|bound| (x, 100.0 * bound))), colour.stroke_width(2))
        };
        chart.draw_series(points().map(bar))?;
        let dot = |(x, estimate): (f64, &Estimate)| Circle::new((x, 100.0 * estimate.value), 4, colour.filled());
        chart
            .draw_series(points().map(dot))?
            .label(label)
            .legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}
