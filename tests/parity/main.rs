//! Parity with independent PyTorch code.
//!
//! The tests walk `tests/fixtures/parity` and, if `$HAPLOVL_PARITY_DIR` is set, that folder too, which has the same
//! structure. Each kind of case reports the number of cases and the worst error of each measure.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod clip_vit;
mod llm;
mod lora;
mod model;
mod preprocess;
mod stage1_losses;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

/// Tensors of one case file, in their stored dtypes.
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

/// Lists the case folders of one kind: in the fixtures, in `$HAPLOVL_PARITY_DIR` and one level below it.
pub fn folders(kind: &str) -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity");
    let mut roots = vec![own];
    if let Some(unseen) = std::env::var_os("HAPLOVL_PARITY_DIR").map(PathBuf::from) {
        assert!(unseen.is_dir(), "$HAPLOVL_PARITY_DIR is {}, which is not a folder", unseen.display());
        roots.extend(subfolders(&unseen));
        roots.push(unseen);
    }
    let mut found: Vec<PathBuf> = roots.iter().flat_map(|root| subfolders(&root.join(kind))).collect();
    found.sort();
    assert!(!found.is_empty(), "no parity cases of kind {kind}");
    found
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

/// Opens the files of a folder that end in `suffix`, with their names without suffix. Weights are skipped, and so are
/// gradients if `suffix` does not include them.
pub fn files(folder: &Path, suffix: &str) -> Vec<(String, Case)> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(suffix).map(String::from))
        .filter(|name| name != "model" && !name.starts_with("model-0") && !name.ends_with(".grads"))
        .collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), Case::open(&folder.join(name + suffix)))).collect()
}

/// Opens the cases of a folder; panics if there are none.
pub fn cases(folder: &Path) -> Vec<(String, Case)> {
    let found = files(folder, ".safetensors");
    assert!(!found.is_empty(), "{} holds no case", folder.display());
    found
}

pub fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Computes the largest absolute difference; panics if the shapes differ.
pub fn max_diff(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let diffs = wide(found).into_iter().zip(wide(expected)).map(|(a, b)| (a - b).abs());
    diffs.fold(0.0, |worst, d| if d.is_nan() { f64::NAN } else { f64::max(worst, d) })
}

/// Computes the largest absolute difference, relative to the largest expected value.
pub fn relative_diff(found: &Tensor, expected: &Tensor) -> f64 {
    let zero = expected.zeros_like().unwrap();
    max_diff(found, expected) / max_diff(expected, &zero).max(1e-8)
}

/// Number of cases, and worst error of every measure, of one kind of case.
#[derive(Default)]
pub struct Summary {
    cases: usize,
    worst: BTreeMap<&'static str, f64>,
}

impl Summary {
    pub fn case(&mut self) {
        self.cases += 1;
    }

    /// Records an error; panics if it exceeds `tolerance`.
    pub fn check(&mut self, measure: &'static str, error: f64, tolerance: f64, context: &str) {
        assert!(error <= tolerance, "{context}: {measure} is off by {error:e}, more than {tolerance:e}");
        let worst = self.worst.entry(measure).or_default();
        *worst = worst.max(error);
    }

    /// Prints the summary to stderr directly, so that it shows without `--nocapture`.
    pub fn print(&self, kind: &str) {
        let worst: Vec<String> = self.worst.iter().map(|(name, e)| format!("{name} {e:.1e}")).collect();
        let worst = if worst.is_empty() { "all equal".into() } else { format!("worst errors: {}", worst.join(", ")) };
        writeln!(std::io::stderr().lock(), "parity {kind}: {} cases, {worst}", self.cases).unwrap();
    }
}
