//! The source of a model: built in, a folder, or the hub.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::weights::resolve_model;
use crate::{Error, Result};

/// The source of a model: `builtin`, a folder, or a hub id with an optional `@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelSource {
    /// The small model that is part of this crate.
    Builtin,
    /// A folder, or `organisation/name` on the hub; an existing folder wins.
    Named {
        /// The path or id.
        name: String,
        /// Branch, tag or commit on the hub; `main` if absent.
        revision: Option<String>,
    },
}

impl FromStr for ModelSource {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if s.is_empty() {
            return Err(Error::weights("the name of the model is empty: give `builtin`, a folder or a hub id"));
        }
        if s == "builtin" {
            return Ok(Self::Builtin);
        }
        // A folder may have an `@` in its name.
        let (name, revision) = match s.split_once('@') {
            Some((name, revision)) if !std::path::Path::new(s).exists() => (name, Some(revision.into())),
            _ => (s, None),
        };
        Ok(Self::Named { name: name.into(), revision })
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin => f.write_str("builtin"),
            Self::Named { name, revision: None } => f.write_str(name),
            Self::Named { name, revision: Some(revision) } => write!(f, "{name}@{revision}"),
        }
    }
}

impl ModelSource {
    /// The folder of the model, downloaded if necessary.
    ///
    /// # Errors
    /// The errors of [`resolve_model`], and [`Error::Weights`] for [`Self::Builtin`], which is part of the program.
    pub fn folder(&self) -> Result<PathBuf> {
        match self {
            Self::Named { name, revision } => resolve_model(name, revision.as_deref()),
            Self::Builtin => Err(Error::weights(
                "the built-in model has no folder: name one, for example `assets/builtin` of this crate's repository",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_and_print_as_they_were_written() {
        let named = |name: &str, revision: Option<&str>| ModelSource::Named {
            name: name.into(),
            revision: revision.map(Into::into),
        };
        for (text, source) in [
            ("builtin", ModelSource::Builtin),
            ("./builtin", named("./builtin", None)),
            ("org/name", named("org/name", None)),
            ("org/name@v1.0", named("org/name", Some("v1.0"))),
        ] {
            assert_eq!(text.parse::<ModelSource>().unwrap(), source);
            assert_eq!(source.to_string(), text);
        }
        let folder = tempfile::Builder::new().prefix("a@b").tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(path.parse::<ModelSource>().unwrap().folder().unwrap(), folder.path());
        assert!("".parse::<ModelSource>().is_err());
    }

    #[test]
    fn what_is_not_there_says_so() {
        let message = |text: &str| text.parse::<ModelSource>().unwrap().folder().unwrap_err().to_string();
        assert!(message("builtin").contains("assets/builtin"));
        assert!(message("no such folder").contains("neither an existing folder nor a hub id"));
    }
}
