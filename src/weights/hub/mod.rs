//! Downloads from the Hugging Face hub.

use std::path::PathBuf;

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

#[cfg(not(feature = "hub"))]
use crate::Error;
use crate::Result;

/// Downloads what a checkpoint needs (configuration, weights, tokenizer, chat template, preprocessing) and returns its
/// folder in the cache. Files that are cached are not fetched again, and a download that was cut off goes on where it ended.
///
/// Environment variables are those of all hub clients: `HF_HOME` and `HF_HUB_CACHE` (where the cache is), `HF_TOKEN` (for
/// models with restricted access), `HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE` (1: use the cache only), `HTTPS_PROXY`, and
/// `SSL_CERT_FILE` (certificates to trust in place of the system's). Nothing is printed: `tracing` gets an event
/// at the start and end of each file, and `Hub::with_progress` takes a function that shows how far it is.
///
/// # Errors
/// [`Error::Hub`](crate::Error::Hub) saying what failed and what to do; always, if this crate was built without the feature
/// `hub`.
pub fn download(id: &str, revision: Option<&str>) -> Result<PathBuf> {
    #[cfg(feature = "hub")]
    return Hub::from_env().download(id, revision);
    #[cfg(not(feature = "hub"))]
    return Err(Error::hub(format!(
        "cannot fetch `{id}`{}: support is not compiled in, build with `--features hub` or give a local folder",
        revision.map(|r| format!(" at revision `{r}`")).unwrap_or_default()
    )));
}

/// Organisation and name of a hub id, if it is one.
pub(super) fn split_id(id: &str) -> Option<(&str, &str)> {
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

#[cfg(all(test, not(feature = "hub")))]
mod tests {
    use super::*;

    #[test]
    fn without_the_feature_says_how_to_build() {
        assert!(download("a/b", None).unwrap_err().to_string().contains("--features hub"));
    }
}
