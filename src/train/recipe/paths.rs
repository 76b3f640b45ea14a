//! Relative paths of a recipe.

use std::path::{Component, Path, PathBuf};

use super::Recipe;
use crate::weights::{ModelSource, ResolvedModel};
use crate::{Error, Result, files};

/// `root` of the recipe file `recipe`, relative to the file's folder, as an absolute path without `..`.
pub(super) fn absolute_root(recipe: &Path, root: &Path) -> Result<PathBuf> {
    let folder = recipe.parent().unwrap_or(Path::new(""));
    let path = std::path::absolute(folder.join(root)).map_err(|e| Error::io(root, e))?;
    Ok(path.components().fold(PathBuf::new(), |mut path, part| {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
        path
    }))
}

impl Recipe {
    /// A path of the recipe: relative to [`root`](Self::root) if the recipe has one, else to the current folder. `~/` is the
    /// home folder.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let path = files::in_home(path).unwrap_or_else(|| path.to_path_buf());
        self.root.as_deref().map_or_else(|| path.clone(), |root| root.join(&path))
    }

    /// Folder of the run, see [`output`](Self::output).
    pub fn output_folder(&self) -> PathBuf {
        self.resolve(&self.output)
    }

    /// The files of the model that a field names: `builtin`, a folder or file (see [`Self::resolve`]), or a hub id with
    /// an optional `@revision`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, with the errors of [`ModelSource::resolve`].
    pub(in crate::train) fn open_model_source(&self, field: &str, source: &str) -> Result<ResolvedModel> {
        let path = self.resolve(source);
        let model = ModelSource::located(source, path.clone()).and_then(|source| source.resolve());
        model.map_err(|e| match &e {
            Error::Hub(_) => Error::config(field, format!("{e}; nor is there {}", path.display())).caused_by(e),
            _ => Error::config(field, e.to_string()).caused_by(e),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_folder() {
        let data = crate::train::DataConfig::new(vec![], 9);
        let stage = crate::train::Stage::Tune { init_from: Default::default(), pre_decoder_lr_scale: 1.0 };
        let mut recipe =
            Recipe::new("~/run", "tiny", "shapes", stage, data, crate::train::UpdateConfig::new(1, 1, 1.0));
        recipe.root = Some("/root-of-recipe".into());
        if let Some(home) = std::env::home_dir() {
            assert_eq!(recipe.output_folder(), home.join("run"));
        }
        assert_eq!(recipe.resolve("a~/b"), Path::new("/root-of-recipe/a~/b"));
    }

    #[test]
    fn a_root_is_relative_to_the_recipe_and_absolute_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let root = absolute_root(&folder.path().join("recipes/shapes/quick.toml"), Path::new("../..")).unwrap();
        assert_eq!(root, folder.path());
        let beside = absolute_root(Path::new("quick.toml"), Path::new(".")).unwrap();
        assert_eq!(beside, std::env::current_dir().unwrap());
    }
}
