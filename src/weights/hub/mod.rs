//! From what a user calls a model to the folder that holds it.

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
pub use download::{DownloadProgress, Hub};

use crate::{Error, Result};

/// The folder of a model given as a path or as a hub id, `organisation/name`.
///
/// An existing folder wins; anything shaped like an id is looked up on the hub, at `revision` (a branch, tag or commit;
/// `main` if `None`). The environment says how, see [`download`].
///
/// # Errors
/// [`Error::Weights`] if it is neither, [`Error::Hub`] if the hub cannot deliver it.
pub fn resolve_model(path_or_id: &str, revision: Option<&str>) -> Result<PathBuf> {
    resolve_with(path_or_id, revision, download)
}

/// Downloads what a checkpoint needs (configuration, weights, tokenizer, chat template, preprocessing) and returns its
/// folder in the cache. Files that are cached are not fetched again, and a download that was cut off goes on where it ended.
///
/// Environment variables are those of all hub clients: `HF_HOME` and `HF_HUB_CACHE` (where the cache is), `HF_TOKEN` (for
/// models with restricted access), `HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE` (1: use the cache only), `HTTPS_PROXY`, and
/// `SSL_CERT_FILE` (certificates to trust in place of the system's). Nothing is printed: `tracing` gets an event
/// at the start and end of each file, and `Hub::with_progress` takes a function that shows how far it is.
///
/// # Errors
/// [`Error::Hub`] saying what failed and what to do; always, if this crate was built without the feature `hub`.
pub fn download(id: &str, revision: Option<&str>) -> Result<PathBuf> {
    #[cfg(feature = "hub")]
    return Hub::from_env().download(id, revision);
    #[cfg(not(feature = "hub"))]
    return Err(Error::hub(format!(
        "cannot fetch `{id}`{}: support is not compiled in, build with `--features hub` or give a local folder",
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
            if path.ends_with("export") { ": train the stage that writes it first" } else { "" }
        )));
    }
    download(path_or_id, revision).map_err(|e| match e {
        Error::Hub(message) => Error::hub(format!("{} (and there is no folder `{path_or_id}` here)", message.text())),
        other => other,
    })
}

/// Organisation and name of a hub id, if it is one.
fn split_id(id: &str) -> Option<(&str, &str)> {
    id.split_once('/').filter(|(organisation, name)| is_id_part(organisation) && is_id_part(name))
}

/// The hub's rule for names. It also keeps an id from meaning another place in the file system.
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
        panic!("must not ask the hub")
    }

    #[test]
    fn an_existing_folder_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(resolve_with(path, None, never).unwrap(), folder.path());
    }

    #[test]
    fn what_is_no_id_never_reaches_the_hub() {
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
    fn an_id_goes_to_the_hub_with_its_revision() {
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
    fn without_the_feature_says_how_to_build() {
        assert!(download("a/b", None).unwrap_err().to_string().contains("--features hub"));
    }
}
