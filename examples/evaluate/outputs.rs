//! The files that an evaluation writes.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::Value;

/// Files of one evaluation.
pub struct Outputs {
    /// Folder of results and report; none if they are not written.
    pub folder: Option<PathBuf>,
    /// File of answers; for scoring, the file that is read.
    pub predictions: PathBuf,
    /// Whether answers are written to it.
    pub is_written: bool,
    pub sheet: Option<PathBuf>,
}

impl Outputs {
    pub fn results(&self) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join("results.json"))
    }

    pub fn report(&self) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join("report.html"))
    }

    /// Makes the folders of all files before hours go into them, and refuses to overwrite what is not from an earlier run
    /// of the same.
    ///
    /// # Errors
    /// If a file is also another one or is read, is a device or a pipe, holds the results of other predictions, or if a folder
    /// cannot be made.
    pub fn prepare(&self, inputs: &[PathBuf]) -> Result<()> {
        if let Some(sheet) = self.sheet.as_ref().filter(|sheet| !ends_in(sheet, "tsv")) {
            bail!("--sheet {}: is written as TSV: give it a name that ends in .tsv", sheet.display());
        }
        // The other names would be read as what they say.
        let is_lines = ["jsonl", "json", "ndjson", "txt"].iter().any(|end| ends_in(&self.predictions, end));
        ensure!(
            !self.is_written || is_lines || self.predictions.extension().is_none(),
            "--predictions {}: are written as JSON lines: give the file a name that ends in .jsonl",
            self.predictions.display()
        );
        let named = [("results.json", self.results()), ("report.html", self.report()), ("--sheet", self.sheet.clone())];
        let written = Vec::from_iter(named.into_iter().filter_map(|(name, path)| Some((name, path?))));
        for (_, path) in &written {
            let folder = path.parent().unwrap_or(Path::new(""));
            std::fs::create_dir_all(folder).map_err(|e| anyhow!("making {}: {e}", folder.display()))?;
            let is_special = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
            ensure!(!is_special, "{}: is no regular file: name another one", path.display());
        }
        let mut taken = Vec::from_iter(inputs.iter().map(|input| ("a file that is read", place(input))));
        taken.push(("the file of predictions", place(&self.predictions)));
        for (name, path) in &written {
            if let Some((other, _)) = taken.iter().find(|(_, other)| *other == place(path)) {
                bail!("{}: would be {name} and is {other}: name another file or --out", path.display());
            }
            taken.push((*name, place(path)));
        }
        self.check_results()
    }

    /// Refuses results of other predictions.
    fn check_results(&self) -> Result<()> {
        let Some(path) = self.results().filter(|path| path.exists()) else { return Ok(()) };
        let text = std::fs::read(&path).map_err(|e| anyhow!("{}: {e}", path.display()))?;
        let results: Value = serde_json::from_slice(&text).unwrap_or_default();
        let of = results["config"]["predictions"].as_str();
        ensure!(
            of == Some(&*place(&self.predictions).to_string_lossy()),
            "{}: holds the results of {}: name another --out, or remove it",
            path.display(),
            of.unwrap_or("something else")
        );
        Ok(())
    }
}

fn ends_in(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Where a path leads, so that two names of one file are equal.
pub fn place(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let absent = || Some(folder.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(absent).unwrap_or_else(|| path.to_path_buf())
}
