//! The source of a model: built in, a folder or file, or the hub.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::hub::{download, split_id};
use crate::{Error, Result};

/// Ends of file names, which no hub id has: a name with one of them is the path of a file.
const FILE_NAMES: [&str; 9] = [".json", ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".model", ".toml"];

/// The source of a model: `builtin`, a folder or file, or a hub id with an optional `@revision`.
///
/// All fields of recipes and options of programs that name a model take it in this form. What exists on disk is a path;
/// a name of the form `ORGANISATION/NAME` or `ORGANISATION/NAME@REVISION` is otherwise a hub id.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelSource {
    /// The small model that is part of this crate.
    Builtin,
    /// A folder or file.
    Path(PathBuf),
    /// A model on the hub.
    Hub {
        /// `organisation/name`.
        id: String,
        /// Branch, tag or commit; `main` if absent.
        revision: Option<String>,
    },
}

/// The files of a model on disk. A folder that was unpacked from the program is removed with this value.
#[derive(Debug)]
pub struct ResolvedModel {
    path: PathBuf,
    _unpacked: Option<tempfile::TempDir>,
}

impl ResolvedModel {
    /// The folder of the model, or the file if the source names one.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl FromStr for ModelSource {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::located(s, PathBuf::from(s))
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin => f.write_str("builtin"),
            Self::Path(path) => path.display().fmt(f),
            Self::Hub { id, revision: None } => f.write_str(id),
            Self::Hub { id, revision: Some(revision) } => write!(f, "{id}@{revision}"),
        }
    }
}

impl ModelSource {
    /// The source called `name`, which is the path `path` if there is a file or folder, or no hub id is meant.
    pub(crate) fn located(name: &str, path: PathBuf) -> Result<Self> {
        if name.trim().is_empty() {
            return Err(Error::weights(
                "the name of the model is empty: give `builtin`, a folder, a file or a hub id such as ORGANISATION/NAME",
            ));
        }
        if name == "builtin" {
            return Ok(Self::Builtin);
        }
        // A folder may have an `@` in its name.
        let (id, revision) = match name.split_once('@') {
            Some((id, revision)) => (id, Some(revision.to_string())),
            None => (name, None),
        };
        let may_be_id = split_id(id).is_some() && !FILE_NAMES.iter().any(|end| id.ends_with(end));
        Ok(if may_be_id && !path.exists() { Self::Hub { id: id.into(), revision } } else { Self::Path(path) })
    }

    /// The files of the model: downloaded if they are on the hub and not in its cache, unpacked to a temporary folder if
    /// they are part of the program.
    ///
    /// # Errors
    /// [`Error::Weights`] for a path where nothing is and for a built-in model that this build lacks, the errors of
    /// [`download`], and [`Error::Io`] if the temporary folder cannot be written.
    pub fn resolve(&self) -> Result<ResolvedModel> {
        self.resolve_with(download)
    }

    /// As [`Self::resolve`], with a function that downloads a hub id at a revision and returns its folder.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn resolve_with(&self, download: impl Fn(&str, Option<&str>) -> Result<PathBuf>) -> Result<ResolvedModel> {
        let path = match self {
            Self::Builtin => return unpacked(),
            Self::Path(path) => existing(path)?,
            Self::Hub { id, revision } => {
                download(id, revision.as_deref()).map_err(|e| beside_no_folder(e, &self.to_string()))?
            }
        };
        Ok(ResolvedModel { path, _unpacked: None })
    }
}

fn existing(path: &Path) -> Result<PathBuf> {
    match path.try_exists() {
        Ok(true) => Ok(path.to_path_buf()),
        Ok(false) => Err(Error::weights(format!(
            "`{}` is neither an existing folder nor a hub id of the form organisation/name{}",
            path.display(),
            if path.ends_with("export") { ": train the stage that writes it first" } else { "" }
        ))),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// A failed download of what may have been meant as a folder.
fn beside_no_folder(error: Error, name: &str) -> Error {
    match error {
        Error::Hub(message) => {
            let text = format!("{} (and there is no folder `{name}` here)", message.text());
            Error::hub(text).caused_by(Error::Hub(message))
        }
        other => other,
    }
}

#[cfg(feature = "builtin")]
fn unpacked() -> Result<ResolvedModel> {
    let folder = super::builtin::unpack()?;
    Ok(ResolvedModel { path: folder.path().to_path_buf(), _unpacked: Some(folder) })
}

#[cfg(not(feature = "builtin"))]
fn unpacked() -> Result<ResolvedModel> {
    Err(no_builtin())
}

/// The error for the built-in model in a build without it.
#[cfg(not(feature = "builtin"))]
pub(crate) fn no_builtin() -> Error {
    Error::weights(
        "the built-in model is not part of this build: build with the feature `builtin`, or name a folder or a hub id",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(id: &str, revision: Option<&str>) -> ModelSource {
        ModelSource::Hub { id: id.into(), revision: revision.map(Into::into) }
    }

    #[test]
    fn sources_are_told_apart_and_print_as_they_were_written() {
        for (text, source) in [
            ("builtin", ModelSource::Builtin),
            ("./builtin", ModelSource::Path("./builtin".into())),
            ("org/name", hub("org/name", None)),
            ("org/name@v1.0", hub("org/name", Some("v1.0"))),
            ("org/name.gguf", ModelSource::Path("org/name.gguf".into())),
        ] {
            assert_eq!(text.parse::<ModelSource>().unwrap(), source);
            assert_eq!(source.to_string(), text);
        }
        let folder = tempfile::Builder::new().prefix("a@b").tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(path.parse::<ModelSource>().unwrap().resolve().unwrap().path(), folder.path());
        assert!("".parse::<ModelSource>().is_err());
    }

    #[test]
    fn what_is_no_id_never_reaches_the_hub() {
        let never = |_: &str, _: Option<&str>| -> Result<PathBuf> { panic!("must not ask the hub") };
        for bad in
            ["name", "a/b/c", "../no-x", "./x", "/no/thing", "a/", "/b", "a/..", "a b/c", "a/b--c", "a/b\\c", "é/x"]
        {
            let error = bad.parse::<ModelSource>().unwrap().resolve_with(never);
            let message = error.map_or_else(|e| e.to_string(), |model| format!("is {}", model.path().display()));
            assert!(message.contains("neither an existing folder nor a hub id"), "{bad}: {message}");
        }
    }

    #[test]
    fn an_id_goes_to_the_hub_with_its_revision() {
        let asked = hub("some-org/a_model.v1", Some("v2"))
            .resolve_with(|id, revision| Ok(Path::new("/cache").join(id).join(revision.unwrap())));
        assert_eq!(asked.unwrap().path(), Path::new("/cache/some-org/a_model.v1/v2"));
        let refused = hub("some-org/x", None).resolve_with(|_, _| Err(Error::hub("no network")));
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("no network") && message.contains("no folder `some-org/x`"), "{message}");
    }

    #[cfg(feature = "builtin")]
    #[test]
    fn the_builtin_model_is_a_folder_as_long_as_it_is_used() {
        let model = ModelSource::Builtin.resolve().unwrap();
        let path = model.path().to_path_buf();
        assert!(path.join("config.json").is_file() && path.join("video_processor/preprocessor_config.json").is_file());
        drop(model);
        assert!(!path.exists());
    }
}
