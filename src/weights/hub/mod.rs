//! Resolution of a model path or hub id to the folder of the model.

use std::path::{Path, PathBuf};

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod environment;

#[cfg(feature = "hub")]
pub use download::Hub;

use crate::{Error, Result};

/// Folder of a model that is given as a path or a hub id, `organisation/name`.
///
/// An existing folder takes precedence; otherwise an id is looked up on the hub, at `revision` (a branch, tag or
/// commit; `main` if `None`). Environment variables configure the hub, see [`download`].
///
/// # Errors
/// [`Error::Weights`] for neither a folder nor an id, [`Error::Hub`] if the download fails.
pub fn resolve_model(path_or_id: &str, revision: Option<&str>) -> Result<PathBuf> {
    resolve_with(path_or_id, revision, download)
}

/// Downloads the files of a checkpoint (configuration, weights, tokenizer, chat template, preprocessing) and returns
/// its folder in the cache. Cached files are not fetched again, and an interrupted download resumes where it ended.
///
/// The environment variables are those of all hub clients: `HF_HOME` and `HF_HUB_CACHE` (where the cache is),
/// `HF_TOKEN` (for models with restricted access), `HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE` (1: use the cache only),
/// `HTTPS_PROXY`, and `SSL_CERT_FILE` (certificates to trust in place of the system's). Progress is shown if stderr is
/// a terminal.
///
/// # Errors
/// [`Error::Hub`] saying what failed and what to do; always, if this crate was built without the feature `hub`.
pub fn download(id: &str, revision: Option<&str>) -> Result<PathBuf> {
    #[cfg(feature = "hub")]
    return Hub::from_env().download(id, revision);
    #[cfg(not(feature = "hub"))]
    return Err(Error::hub(format!(
        "cannot fetch `{id}`{}: this build has no hub support: enable the crate's feature `hub`, or give a local folder",
        revision.map(|r| format!(" at revision `{r}`")).unwrap_or_default()
    )));
}

fn resolve_with(
    path_or_id: &str,
    revision: Option<&str>,
    download: impl Fn(&str, Option<&str>) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let path = Path::new(path_or_id);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.is_file() {
        return Err(Error::weights(format!("`{path_or_id}` is a file, expected the folder of a model")));
    }
    if split_id(path_or_id).is_none() {
        return Err(Error::weights(format!(
            "`{path_or_id}` is neither an existing folder nor a hub id of the form organisation/name{}",
            if path.ends_with("export") { ": train the stage that exports it first" } else { "" }
        )));
    }
    download(path_or_id, revision).map_err(|e| match e {
        Error::Hub(message) => Error::hub(format!("{} (and there is no folder `{path_or_id}` here)", message.text())),
        other => other,
    })
}

/// Organisation and name of a hub id; `None` if `id` is not one.
fn split_id(id: &str) -> Option<(&str, &str)> {
    id.split_once('/').filter(|(organisation, name)| is_id_part(organisation) && is_id_part(name))
}

/// Whether a part of an id follows the hub's rules for names, which also exclude path traversal.
fn is_id_part(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=96).contains(&part.len())
        && part.chars().all(allowed)
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("--")
        && !part.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never(_: &str, _: Option<&str>) -> Result<PathBuf> {
        panic!("must not contact the hub")
    }

    #[test]
    fn an_existing_folder_takes_precedence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(resolve_with(path, None, never).unwrap(), folder.path());
    }

    #[test]
    fn invalid_ids_never_reach_the_hub() {
        for bad in ["", "name", "a/b/c", "../x", "./x", "/etc", "a/", "/b", "a/..", "a b/c", "a/b--c", "a/b\\c", "é/x"]
        {
            let message = resolve_with(bad, None, |_, _| Ok("asked".into()))
                .map_or_else(|e| e.to_string(), |path| format!("resolved to {}", path.display()));
            assert!(message.contains("neither") || Path::new(bad).is_dir(), "{bad}: {message}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let message = resolve_with(file.path().to_str().unwrap(), None, never).unwrap_err().to_string();
        assert!(message.contains("is a file"), "{message}");
    }

    #[test]
    fn ids_are_looked_up_with_their_revision() {
        let asked = resolve_with("some-org/a_model.v1", Some("v2"), |id, revision| {
            Ok(Path::new("/cache").join(id).join(revision.unwrap()))
        });
        assert_eq!(asked.unwrap(), Path::new("/cache/some-org/a_model.v1/v2"));
        let refused = resolve_with("some-org/x", None, |_, _| Err(Error::hub("no network")));
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("no network") && message.contains("no folder `some-org/x`"), "{message}");
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_hub_feature_the_error_names_it() {
        assert!(download("a/b", None).unwrap_err().to_string().contains("feature `hub`"));
    }
}
