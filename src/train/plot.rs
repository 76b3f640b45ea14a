//! Line charts as SVG.

use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;

use super::metrics::Record;
use crate::weights::write_bytes_atomically;
use crate::{Error, Result};

/// Largest number of points drawn per curve; more cannot be distinguished, and would make the file large.
const MAX_POINTS: usize = 1000;

/// Okabe-Ito palette, which colour-blind people can distinguish, without the colours that are too pale for lines, and four more.
pub const COLORS: [(u8, u8, u8); 10] = [
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (0, 0, 0),
    (148, 103, 189),
    (140, 86, 75),
    (127, 127, 127),
];

/// Curve of a chart.
#[derive(Debug, Clone)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points in order of x. Points that are not finite (or not above 0 on a logarithmic axis) are left out.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// The value `key` over the steps of a run.
    pub fn of_records(name: impl Into<String>, records: &[Record], key: &str) -> Self {
        let points = records.iter().filter_map(|record| Some((record.step as f64, record.get(key)?))).collect();
        Self { name: name.into(), points }
    }
}

/// Line chart of several curves.
#[derive(Debug, Clone)]
pub struct Plot {
    /// Heading.
    pub title: String,
    /// Label of the x axis.
    pub x_label: String,
    /// Label of the y axis.
    pub y_label: String,
    /// Whether the y axis is logarithmic.
    pub log_y: bool,
    /// Decay rate of the EMA that is drawn over the faint raw curve, in `0..1`; 0 draws the raw curve only.
    pub smoothing: f64,
    /// The curves.
    pub series: Vec<Series>,
}

impl Plot {
    /// Loss curves over steps, smoothed, and logarithmic unless some are negative, as those of stage 1 become.
    pub fn losses(title: impl Into<String>, series: Vec<Series>) -> Self {
        let [x_label, y_label] = ["step", "loss"].map(String::from);
        let negative = series.iter().flat_map(|series| &series.points).any(|&(_, loss)| loss < 0.0);
        Self { title: title.into(), x_label, y_label, log_y: !negative, smoothing: 0.9, series }
    }

    /// Draws the chart into the file `path`, atomically.
    ///
    /// # Errors
    /// [`Error::Config`] for a smoothing out of range, [`Error::Format`] if there is no point to draw, [`Error::Io`].
    pub fn write_svg(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if !(0.0..1.0).contains(&self.smoothing) {
            return Err(Error::config("plot.smoothing", format!("is {}, expected 0 up to below 1", self.smoothing)));
        }
        let curves: Vec<Vec<(f64, f64)>> = self.series.iter().map(|series| self.drawable(series)).collect();
        let (Some(x), Some(y)) = (range(&curves, |point| point.0), range(&curves, |point| point.1)) else {
            let message = format!("nothing to draw in `{}`: no series has a finite value", self.title);
            return Err(Error::format(path, message));
        };
        let svg =
            self.svg(&curves, x, y).map_err(|e| Error::format(path, format!("cannot be drawn: {e}")).caused_by(e))?;
        write_bytes_atomically(path, svg.as_bytes())
    }

    /// The points to draw: thinned, and with log10 of y on a logarithmic axis.
    fn drawable(&self, series: &Series) -> Vec<(f64, f64)> {
        let on_axis = |&(x, y): &(f64, f64)| (x, if self.log_y { y.log10() } else { y });
        let finite = |point: &(f64, f64)| point.0.is_finite() && point.1.is_finite();
        thin(&series.points.iter().map(on_axis).filter(finite).collect::<Vec<_>>())
    }

    fn svg(&self, curves: &[Vec<(f64, f64)>], x: Range<f64>, y: Range<f64>) -> std::result::Result<String, DrawError> {
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, (960, 600)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 24))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)?;
        let y_value = |y: &f64| format_value(if self.log_y { 10f64.powf(*y) } else { *y });
        chart
            .configure_mesh()
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .x_label_formatter(&|x| format_value(*x))
            .y_label_formatter(&y_value)
            .max_light_lines(0)
            .draw()?;
        for (n, (series, curve)) in self.series.iter().zip(curves).enumerate() {
            let (r, g, b) = COLORS[n % COLORS.len()];
            let color = RGBColor(r, g, b);
            if self.smoothing > 0.0 {
                chart.draw_series(LineSeries::new(curve.iter().copied(), color.mix(0.25)))?;
            }
            chart
                .draw_series(LineSeries::new(smooth(curve, self.smoothing), color.stroke_width(2)))?
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        root.present()?;
        drop(chart);
        drop(root);
        Ok(svg)
    }
}

type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// Means over groups of adjacent points, so that at most [`MAX_POINTS`] are left.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |run: &[(f64, f64)]| {
        let n = run.len() as f64;
        run.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / n, sum.1 + point.1 / n))
    };
    points.chunks(points.len().div_ceil(MAX_POINTS).max(1)).map(mean).collect()
}

/// EMA with bias correction.
fn smooth(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    let (mut mean, mut norm) = (0.0, 0.0);
    let next = |&(x, y): &(f64, f64)| {
        mean = weight * mean + (1.0 - weight) * y;
        norm = weight * norm + (1.0 - weight);
        (x, mean / norm)
    };
    points.iter().map(next).collect()
}

/// Range from the smallest to the largest value with a small margin; `None` without any value.
fn range(curves: &[Vec<(f64, f64)>], of: impl Fn(&(f64, f64)) -> f64) -> Option<Range<f64>> {
    let values = || curves.iter().flatten().map(&of);
    let (low, high) = (values().reduce(f64::min)?, values().reduce(f64::max)?);
    let room = if high > low { (high - low) * 0.03 } else { 0.5 };
    Some(low - room..high + room)
}

fn format_value(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value.abs()) {
        let digits = (2.0 - value.abs().max(1e-3).log10().floor()).clamp(0.0, 5.0) as usize;
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
    } else {
        format!("{value:.1e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn falling(name: &str, n: u64) -> Series {
        let records: Vec<Record> = (1..=n).map(|step| Record::new(step).with("loss", 3.0 / step as f64)).collect();
        Series::of_records(name, &records, "loss")
    }

    #[test]
    fn a_plot_is_a_bounded_svg_with_every_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        for log_y in [false, true] {
            let series = vec![falling("with stage 1", 50_000), falling("without", 10)];
            Plot { log_y, ..Plot::losses("Validation", series) }.write_svg(&path).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            assert!(["Validation", "with stage 1", "without", "step"].iter().all(|text| svg.contains(text)));
            assert!(svg.matches("<polyline").count() >= 4);
            assert!(svg.len() < 200_000, "{} bytes", svg.len());
        }
    }

    #[test]
    fn values_off_the_axis_are_dropped_and_an_empty_plot_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        let plot = |points: &[(f64, f64)]| {
            let series = Series { name: "s".into(), points: points.to_vec() };
            Plot::losses("t", vec![series]).write_svg(&path)
        };
        plot(&[(1.0, f64::NAN), (2.0, 0.5), (3.0, 0.0)]).unwrap();
        plot(&[(1.0, 0.5), (2.0, -1.0)]).unwrap();
        let error = plot(&[(1.0, f64::NAN)]).unwrap_err().to_string();
        assert!(error.contains("no series has a finite value"), "{error}");
        assert!(plot(&[]).is_err());
    }

    #[test]
    fn thinning_and_smoothing_keep_the_mean_of_a_constant() {
        let constant: Vec<(f64, f64)> = (0..2500).map(|x| (x.into(), 2.0)).collect();
        let thinned = thin(&constant);
        assert!(thinned.len() <= MAX_POINTS);
        assert!(smooth(&thinned, 0.9).iter().all(|point| (point.1 - 2.0).abs() < 1e-12));
        assert_eq!(smooth(&[(0.0, 1.0), (1.0, 3.0)], 0.0), [(0.0, 1.0), (1.0, 3.0)]);
    }

    #[test]
    fn axis_labels_are_short() {
        let shown = [0.0, 0.05, 1.0, 2.5, 40_000.0, 1e7, 1e-5, -0.25].map(format_value);
        assert_eq!(shown, ["0", "0.05", "1", "2.5", "40000", "1.0e7", "1.0e-5", "-0.25"]);
    }
}
