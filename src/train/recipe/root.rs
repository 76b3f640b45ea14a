//! The folder that relative paths of a recipe file start from.

use std::path::{Path, PathBuf};

use super::paths::absolute_root;
use super::{DataSource, Recipe, Stage};
use crate::config::HaploVlConfig;
use crate::{Error, Result};

/// `root` of the recipe in the file `path` as an absolute folder, and a notice if it is neither set nor the file's
/// folder.
///
/// Without `root`, paths start from the file's folder. Recipes that were written to be run from another folder keep
/// working: if only the current folder has an input of the recipe, or the checkpoints of its run where no input tells,
/// all paths start from the current folder.
pub(super) fn choose(recipe: &Recipe, path: &Path) -> Result<(Option<PathBuf>, Option<String>)> {
    if let Some(root) = &recipe.root {
        return Ok((Some(absolute_root(path, root)?), None));
    }
    let own = absolute_root(path, Path::new("."))?;
    let current = std::env::current_dir().map_err(|e| Error::io(".", e))?;
    let Some(name) = only_in(&current, &own, recipe) else { return Ok((Some(own), None)) };
    let notice = format!(
        "paths of {} start from the current folder {}, which has {name}, and not from the recipe's own folder, which has not: \
         set `root` in the recipe to settle it",
        path.display(),
        current.display()
    );
    Ok((Some(current), Some(notice)))
}

/// A path of the recipe that the folder `current` has and the recipe's own folder has not.
fn only_in(current: &Path, own: &Path, recipe: &Recipe) -> Option<String> {
    let inputs = inputs(recipe);
    let input = inputs.iter().find(|name| !own.join(name).exists() && current.join(name).exists());
    let checkpoints = recipe.output.join("checkpoints");
    let is_untold = || recipe.output.is_relative() && !inputs.iter().any(|name| own.join(name).exists());
    let is_run = || is_untold() && !own.join(&checkpoints).exists() && current.join(&checkpoints).exists();
    input.cloned().or_else(|| is_run().then(|| checkpoints.display().to_string()))
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

/// Relative paths of files and folders that a recipe reads, as they are written; some may be hub ids.
fn inputs(recipe: &Recipe) -> Vec<String> {
    let mut names = vec![recipe.config.clone(), recipe.tokenizer.source.clone()];
    let sources = recipe.data.train.iter().map(|train| &train.source).chain(&recipe.data.validation);
    for source in sources {
        if let DataSource::Files(files) = source {
            names.extend(files.paths().iter().chain(&files.images).map(|file| file.display().to_string()));
        }
    }
    if let Stage::Distill { vision_teacher, text_teacher, .. } = &recipe.stage {
        names.extend([vision_teacher.clone(), text_teacher.clone()]);
    }
    if let Some(init) = recipe.stage.init_from() {
        names.extend(init.clip.iter().chain(&init.llm).chain(&init.stage).cloned());
    }
    names.retain(|name| Path::new(name).is_relative() && !is_keyword(name));
    names
}

/// Whether a name stands for something other than a file or folder.
fn is_keyword(name: &str) -> bool {
    ["shapes", "builtin"].contains(&name) || HaploVlConfig::preset(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::FilesSource;
    use crate::train::{DataConfig, UpdateConfig};

    fn recipe(config: &str, data: &str) -> Recipe {
        let data = DataConfig::new(vec![DataSource::Files(FilesSource::new(data))], 9);
        let stage = Stage::Tune { init_from: Default::default(), pre_decoder_lr_scale: 1.0 };
        Recipe::new("run", config, "shapes", stage, data, UpdateConfig::new(1, 1, 1.0))
    }

    #[test]
    fn inputs_decide_and_checkpoints_only_where_no_input_tells() {
        let folder = tempfile::tempdir().unwrap();
        let (own, current) = (folder.path().join("own"), folder.path().join("current"));
        let make = |path: PathBuf| std::fs::create_dir_all(path).unwrap();
        // Folders that are called like the output and like keywords decide nothing.
        ["run", "shapes", "tiny"].into_iter().for_each(|name| make(current.join(name)));
        make(own.clone());
        let chosen = |data: &str| only_in(&current, &own, &recipe("tiny", data));
        assert_eq!(chosen("a.json"), None);
        make(current.join("a.json"));
        assert_eq!(chosen("a.json").as_deref(), Some("a.json"));
        make(own.join("a.json"));
        assert_eq!(chosen("a.json"), None);
        make(current.join("run/checkpoints"));
        assert_eq!(chosen("a.json"), None);
        assert_eq!(chosen("/nowhere/a.json").as_deref(), Some("run/checkpoints"));
        make(own.join("run/checkpoints"));
        assert_eq!(chosen("/nowhere/a.json"), None);
    }
}
