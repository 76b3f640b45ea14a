//! Numbers of independent PyTorch code, matched.
//!
//! Walks `tests/fixtures/parity` and, if `$HAPLOVL_PARITY_DIR` is set, that folder of the same shape as well. Each kind
//! of case says at its end how many cases it ran and its worst error.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

/// The tensors of one file, in their own types.
pub struct Case(BTreeMap<String, Tensor>);

impl Case {
    pub fn open(path: &Path) -> Self {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        Self(tensors.into_iter().collect())
    }

    pub fn get(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| panic!("the case has no tensor {name}"))
    }

    pub fn find(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).cloned()
    }

    pub fn ints(&self, name: &str) -> Vec<Vec<i64>> {
        self.get(name).to_dtype(DType::I64).unwrap().to_vec2().unwrap()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.0.iter()
    }
}

/// All case folders of one kind.
pub fn folders(kind: &str) -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity");
    let unseen = std::env::var_os("HAPLOVL_PARITY_DIR").map(PathBuf::from);
    let mut found = Vec::new();
    for root in [Some(own), unseen].into_iter().flatten() {
        let Ok(entries) = std::fs::read_dir(root.join(kind)) else { continue };
        found.extend(entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()));
    }
    found.sort();
    assert!(!found.is_empty(), "no parity cases of kind {kind}");
    found
}

/// Largest absolute difference; the shapes must be equal.
pub fn max_diff(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let diffs = wide(found).into_iter().zip(wide(expected)).map(|(a, b)| (a - b).abs());
    diffs.fold(0.0, |worst, d| if d.is_nan() { f64::NAN } else { f64::max(worst, d) })
}

/// Largest absolute difference relative to the largest expected value.
pub fn relative_diff(found: &Tensor, expected: &Tensor) -> f64 {
    let zero = expected.zeros_like().unwrap();
    max_diff(found, expected) / max_diff(expected, &zero).max(1e-8)
}

/// Number of cases and worst error of every measure of one kind.
#[derive(Default)]
pub struct Summary {
    cases: usize,
    worst: BTreeMap<&'static str, f64>,
}

impl Summary {
    pub fn case(&mut self) {
        self.cases += 1;
    }

    /// Records an error and fails above `tolerance`.
    pub fn check(&mut self, measure: &'static str, error: f64, tolerance: f64, context: &str) {
        assert!(error <= tolerance, "{context}: {measure} is off by {error:e}, more than {tolerance:e}");
        let worst = self.worst.entry(measure).or_default();
        *worst = worst.max(error);
    }

    /// Written past the test harness, so that it is seen without `--nocapture`.
    pub fn print(&self, kind: &str) {
        let worst: Vec<String> = self.worst.iter().map(|(name, e)| format!("{name} {e:.1e}")).collect();
        let mut stderr = std::io::stderr().lock();
        writeln!(stderr, "parity {kind}: {} cases, worst errors: {}", self.cases, worst.join(", ")).unwrap();
    }
}
