//! Relative paths of a recipe.

use std::path::{Component, Path, PathBuf};

use super::Recipe;
use crate::{Error, Result};

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
    /// A path of the recipe: relative to [`root`](Self::root) if the recipe has one, else to the current folder.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.as_deref().map_or_else(|| path.as_ref().to_path_buf(), |root| root.join(path.as_ref()))
    }

    /// Folder of the run, see [`output`](Self::output).
    pub fn output_folder(&self) -> PathBuf {
        self.resolve(&self.output)
    }

    /// A folder, a file or a hub id: what exists under `root` is a path; otherwise `ORGANISATION/NAME` is a hub id.
    pub(in crate::train) fn resolve_source(&self, source: &str) -> String {
        let path = self.resolve(source);
        let is_relative =
            Path::new(source).components().next().is_some_and(|part| !matches!(part, Component::Normal(_)));
        let may_be_id = !is_relative && source.split('/').count() == 2;
        if may_be_id && !path.exists() { source.to_string() } else { path.display().to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_relative_to_the_recipe_and_absolute_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let root = absolute_root(&folder.path().join("recipes/shapes/quick.toml"), Path::new("../..")).unwrap();
        assert_eq!(root, folder.path());
        let beside = absolute_root(Path::new("quick.toml"), Path::new(".")).unwrap();
        assert_eq!(beside, std::env::current_dir().unwrap());
    }
}
