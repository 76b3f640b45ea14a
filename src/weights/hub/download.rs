//! Fetching a checkpoint into the hub's shared cache.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError};
use indicatif::{ProgressBar, ProgressStyle};

use super::split_id;
use crate::{Error, Result};

/// The files of a repository that a model is made of. Weights in other formats and copies stay where they are.
const CHECKPOINT_FILES: [&str; 18] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "model.gguf",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_processor/preprocessor_config.json",
];

/// How the hub is reached.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    /// The cache folder; if `None`, what `HF_HUB_CACHE` or `HF_HOME` say.
    pub cache: Option<PathBuf>,
    /// Whether to use the cache only.
    pub offline: bool,
}

impl Hub {
    /// What the environment asks for.
    pub fn from_env() -> Self {
        let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| is_true(&value));
        Self { cache: None, offline }
    }

    /// Downloads the checkpoint `id` at `revision` and returns its folder, see [`download`](super::download).
    ///
    /// # Errors
    /// [`Error::Hub`] saying what failed and what to do.
    pub fn download(&self, id: &str, revision: Option<&str>) -> Result<PathBuf> {
        let revision = revision.unwrap_or("main");
        let (organisation, name) =
            split_id(id).ok_or_else(|| Error::hub(format!("`{id}` is not an id of the form organisation/name")))?;
        if !is_revision(revision) {
            return Err(Error::hub(format!("`{revision}` is not a revision: expected a branch, tag or commit")));
        }
        let failed = |e| Error::hub(format!("`{id}` at revision `{revision}`: {e}{}", self.advice(&e)));
        let mut client = HFClient::builder();
        if let Some(cache) = &self.cache {
            client = client.cache_dir(cache);
        }
        let repository = client.build_sync().map_err(failed)?.model(organisation, name);
        repository
            .snapshot_download()
            .revision(revision)
            .allow_patterns(CHECKPOINT_FILES.map(String::from).to_vec())
            .local_files_only(self.offline)
            .progress(Bar::default())
            .send()
            .map_err(failed)
    }

    fn advice(&self, error: &HFError) -> &'static str {
        match error {
            HFError::LocalEntryNotFound { .. } if self.offline => {
                "; it is not in the cache and HF_HUB_OFFLINE forbids fetching it: unset it, or give a local folder"
            }
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } => {
                "; accept the model's terms on its page, and set HF_TOKEN to a token that may read it"
            }
            HFError::RepoNotFound { .. } => "; check the id (for a private model, set HF_TOKEN)",
            HFError::RevisionNotFound { .. } => "; check the revision",
            HFError::Request { .. } => {
                "; check the network, or set HF_HUB_OFFLINE=1 if the model was downloaded before"
            }
            _ => "",
        }
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// A git revision as the hub allows it, which becomes a path in the cache.
fn is_revision(revision: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (1..=250).contains(&revision.len())
        && revision.chars().all(allowed)
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'))
}

/// One bar for all files. It draws on stderr, and nothing if that is no terminal.
struct Bar {
    bar: ProgressBar,
    files: Mutex<HashMap<String, u64>>,
}

impl Default for Bar {
    fn default() -> Self {
        let bar = ProgressBar::new(0);
        let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, files: Mutex::default() }
    }
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        // Bytes may be told by file, over all files, or both: the larger number is the newer one.
        match event {
            DownloadEvent::Start { total_bytes, .. } => self.bar.set_length(*total_bytes),
            DownloadEvent::Progress { files } => {
                let mut known = self.files.lock().unwrap_or_else(PoisonError::into_inner);
                known.extend(files.iter().map(|file| (file.filename.clone(), file.bytes_completed)));
                self.bar.set_position(known.values().sum::<u64>().max(self.bar.position()));
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => {
                self.bar.set_position((*bytes_completed).max(self.bar.position()));
            }
            DownloadEvent::Complete => self.bar.finish_and_clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn offline_cache() -> (tempfile::TempDir, Hub) {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--some-org--a-model");
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), COMMIT).unwrap();
        std::fs::create_dir_all(model.join("snapshots").join(COMMIT)).unwrap();
        std::fs::write(model.join("snapshots").join(COMMIT).join("config.json"), "{}").unwrap();
        let hub = Hub { cache: Some(cache.path().to_path_buf()), offline: true };
        (cache, hub)
    }

    #[test]
    fn offline_uses_the_cache() {
        let (_cache, hub) = offline_cache();
        for revision in [None, Some("main"), Some(COMMIT)] {
            let folder = hub.download("some-org/a-model", revision).unwrap();
            assert!(folder.join("config.json").is_file(), "{}", folder.display());
        }
    }

    #[test]
    fn offline_says_what_is_not_cached() {
        let (_cache, hub) = offline_cache();
        for (id, revision) in [("some-org/other", None), ("some-org/a-model", Some("v2"))] {
            let message = hub.download(id, revision).unwrap_err().to_string();
            assert!(message.contains(id) && message.contains("HF_HUB_OFFLINE"), "{message}");
        }
    }

    #[test]
    fn ids_and_revisions_are_checked_first() {
        let (_cache, hub) = offline_cache();
        assert!(hub.download("no-slash", None).unwrap_err().to_string().contains("organisation/name"));
        for bad in ["", "../main", "a//b", "/main", "a b", "."] {
            let message = hub.download("some-org/a-model", Some(bad)).unwrap_err().to_string();
            assert!(message.contains("not a revision"), "{bad}: {message}");
        }
        assert!(is_revision("refs/pr/3") && is_revision("v1.0"));
    }

    #[test]
    fn the_switch_is_read_as_the_hub_reads_it() {
        assert!(is_true("1") && is_true("True") && is_true("ON") && !is_true("0") && !is_true(""));
    }
}
