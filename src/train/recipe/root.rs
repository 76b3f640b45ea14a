//! The folder that relative paths of a recipe file start from.

use std::path::{Path, PathBuf};

use super::paths::absolute_root;
use super::{DataSource, Recipe, Stage};
use crate::{Error, Result};

/// `root` of the recipe in the file `path` as an absolute folder, and a notice if it is neither set nor the file's
/// folder.
///
/// Without `root`, paths start from the file's folder. Recipes that were written to be run from another folder keep
/// working: if the current folder has a path of the recipe that the file's folder lacks, all paths start from the
/// current folder.
pub(super) fn choose(recipe: &Recipe, path: &Path) -> Result<(Option<PathBuf>, Option<String>)> {
    if let Some(root) = &recipe.root {
        return Ok((Some(absolute_root(path, root)?), None));
    }
    let own = absolute_root(path, Path::new("."))?;
    let current = std::env::current_dir().map_err(|e| Error::io(".", e))?;
    let only_there = |name: &String| !own.join(name).exists() && current.join(name).exists();
    let Some(name) = named_paths(recipe).into_iter().find(only_there) else { return Ok((Some(own), None)) };
    let notice = format!(
        "paths of {} start from the current folder {}, which has {name}, and not from the recipe's own folder, which has not: \
         set `root` in the recipe to settle it",
        path.display(),
        current.display()
    );
    Ok((Some(current), Some(notice)))
}

impl Recipe {
    /// The error for a file that a field of the recipe names and that cannot be read, with the field and the folder that
    /// relative paths start from.
    pub(in crate::train) fn in_field(&self, field: &str, error: Error) -> Error {
        let Error::Io { source, path } = error else { return error };
        let root = self.root.as_deref().unwrap_or(Path::new("."));
        let message =
            format!("{}: {source}; relative paths of the recipe start from {}", path.display(), root.display());
        Error::config(field, message).caused_by(source)
    }
}

/// All paths of a recipe as they are written, inputs first; some may be presets or hub ids.
fn named_paths(recipe: &Recipe) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let mut names = vec![recipe.config.clone(), recipe.tokenizer.source.clone()];
    let sources = recipe.data.train.iter().map(|train| &train.source).chain(&recipe.data.validation);
    for source in sources {
        if let DataSource::Files(files) = source {
            names.extend(files.paths().iter().chain(&files.images).map(|file| path(file)));
        }
    }
    if let Stage::Distill { vision_teacher, text_teacher, .. } = &recipe.stage {
        names.extend([vision_teacher.clone(), text_teacher.clone()]);
    }
    if let Some(init) = recipe.stage.init_from() {
        names.extend(init.clip.iter().chain(&init.llm).chain(&init.stage).cloned());
    }
    names.push(path(&recipe.output));
    names
}
