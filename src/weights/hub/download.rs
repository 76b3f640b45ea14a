//! Downloads of checkpoints into the hub's shared cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::RepoCache;
use super::client::{Answer, Client, Failure, Listing, RemoteFile};
use super::{environment, split_id};
use crate::{Error, Result};

/// The files of a repository that a model is made of. Weights in other formats and copies stay where they are.
const CHECKPOINT_FILES: [&str; 17] = [
    "config.json",
    "generation_config.json",
    "model.gguf",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_processor/preprocessor_config.json",
];

/// The weights as safetensors.
const SAFETENSORS: [&str; 3] = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"];

/// The weights as PyTorch saves them, fetched only where there are no safetensors.
const PICKLES: [&str; 3] = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"];

/// Progress of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DownloadProgress<'a> {
    /// Path in the repository of the file that is being fetched.
    pub file: &'a str,
    /// Bytes so far of all files to fetch, with what an earlier download left. Falls when a server sends a file from its start
    /// again.
    pub bytes: u64,
    /// Bytes of all files to fetch.
    pub total: u64,
}

type Callback = dyn Fn(&DownloadProgress<'_>) + Send + Sync;

/// How the hub is reached.
#[derive(Clone, Default)]
pub struct Hub {
    /// The cache folder; if `None`, what `HF_HUB_CACHE` or `HF_HOME` say.
    pub cache: Option<PathBuf>,
    /// Whether to use the cache only.
    pub offline: bool,
    progress: Option<Arc<Callback>>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("cache", &self.cache).field("offline", &self.offline).finish_non_exhaustive()
    }
}

impl Hub {
    /// What the environment asks for.
    pub fn from_env() -> Self {
        Self { offline: environment::offline(), ..Self::default() }
    }

    /// Calls `progress` whenever bytes have arrived, and after each file.
    pub fn with_progress(self, progress: impl Fn(&DownloadProgress<'_>) + Send + Sync + 'static) -> Self {
        Self { progress: Some(Arc::new(progress)), ..self }
    }

    /// Downloads the checkpoint `id` at `revision` and returns its folder, see [`download`](super::download).
    ///
    /// # Errors
    /// [`Error::Hub`] saying what failed and what to do, [`Error::Io`] if the cache cannot be read or written.
    pub fn download(&self, id: &str, revision: Option<&str>) -> Result<PathBuf> {
        let revision = revision.unwrap_or("main");
        if split_id(id).is_none() {
            return Err(Error::hub(format!("`{id}` is not an id of the form organisation/name")));
        }
        if !is_revision(revision) {
            return Err(Error::hub(format!("`{revision}` is not a revision: expected a branch, tag or commit")));
        }
        let root = self.cache.clone().map_or_else(environment::cache, Ok)?;
        let cache = RepoCache::new(&root, id);
        if self.offline {
            return cached(&cache, id, revision);
        }
        let client = Client::from_env()?;
        Download { client: &client, cache: &cache, id, revision, progress: self.progress.as_deref() }.run()
    }
}

/// The folder of a checkpoint that was downloaded before.
fn cached(cache: &RepoCache, id: &str, revision: &str) -> Result<PathBuf> {
    cache.downloaded(revision)?.ok_or_else(|| {
        Error::hub(format!(
            "`{id}` at revision `{revision}` is not in the cache and HF_HUB_OFFLINE forbids fetching it: unset it, or give \
             a local folder"
        ))
    })
}

/// One download.
struct Download<'a> {
    client: &'a Client,
    cache: &'a RepoCache,
    id: &'a str,
    revision: &'a str,
    progress: Option<&'a Callback>,
}

impl Download<'_> {
    /// The folder of the commit's files, once all are there.
    fn run(&self) -> Result<PathBuf> {
        let _span = tracing::info_span!("download", id = self.id, revision = self.revision).entered();
        let listing = self.client.list(self.id, self.revision).map_err(|e| self.failed(e))?;
        let folder = self.cache.snapshot(&listing.sha);
        let files = self.missing(&listing, &folder)?;
        let total = files.iter().fold(0u64, |total, file| total.saturating_add(file.size));
        let mut before = 0u64;
        for file in &files {
            self.fetch(&listing.sha, file, |bytes| self.report(&file.name, before.saturating_add(bytes), total))?;
            before = before.saturating_add(file.size);
        }
        // Last, so that a revision in the cache is a complete one.
        self.cache.note(self.revision, &listing.sha)?;
        Ok(folder)
    }

    /// The files of a checkpoint that are not in `folder` yet.
    fn missing(&self, listing: &Listing, folder: &Path) -> Result<Vec<RemoteFile>> {
        let wanted = checkpoint_files(listing.files());
        if wanted.is_empty() {
            let message = "holds no file of a model: check the id";
            return Err(Error::hub(format!("`{}` at revision `{}` {message}", self.id, self.revision)));
        }
        let missing = wanted.into_iter().filter(|name| !folder.join(name).exists());
        let described = missing.map(|name| self.client.describe(self.id, &listing.sha, name));
        described.collect::<Answer<_>>().map_err(|e| self.failed(e))
    }

    /// Makes sure that a file is in the cache. Each new length of it is reported to `seen`.
    fn fetch(&self, commit: &str, file: &RemoteFile, seen: impl Fn(u64)) -> Result<()> {
        let blob = self.cache.lock(&file.etag)?;
        if !blob.is_complete()? {
            tracing::info!(file = file.name, bytes = file.size, "downloading file");
            let mut partial = blob.partial()?;
            self.client.fetch(file, &mut partial, &seen).map_err(|e| self.failed(e))?;
            blob.publish(&partial)?;
            tracing::info!(file = file.name, bytes = file.size, "file downloaded");
        }
        seen(file.size);
        self.cache.link(commit, &file.name, &blob)
    }

    fn report(&self, file: &str, bytes: u64, total: u64) {
        if let Some(progress) = self.progress {
            progress(&DownloadProgress { file, bytes, total });
        }
    }

    fn failed(&self, failure: Failure) -> Error {
        failure.into_error(&format!("`{}` at revision `{}`", self.id, self.revision))
    }
}

/// The files that a model is made of, with one copy of its weights.
fn checkpoint_files<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let names: Vec<&str> = names.collect();
    let has_safetensors = names.iter().any(|name| is_one_of(&SAFETENSORS, name));
    let weights = if has_safetensors { &SAFETENSORS } else { &PICKLES };
    names.into_iter().filter(|name| is_one_of(&CHECKPOINT_FILES, name) || is_one_of(weights, name)).collect()
}

/// Whether a file matches a pattern, in which `*` is any part of a file name.
fn is_one_of(patterns: &[&str], name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    patterns.iter().any(|pattern| match pattern.split_once('*') {
        Some((start, end)) => {
            let middle = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
            middle.is_some_and(|middle| middle.chars().all(allowed))
        }
        None => name == *pattern,
    })
}

/// A git revision as the hub allows it, which becomes a path in the cache.
fn is_revision(revision: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (1..=250).contains(&revision.len())
        && revision.chars().all(allowed)
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn offline_cache() -> (tempfile::TempDir, Hub) {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--some-org--a-model");
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), COMMIT).unwrap();
        std::fs::create_dir_all(model.join("snapshots").join(COMMIT)).unwrap();
        std::fs::write(model.join("snapshots").join(COMMIT).join("config.json"), "{}").unwrap();
        let hub = Hub { cache: Some(cache.path().to_path_buf()), offline: true, ..Hub::default() };
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
    fn only_files_of_a_checkpoint_are_wanted() {
        let wanted = |names: &[&'static str]| checkpoint_files(names.iter().copied());
        let model = ["config.json", "model-00001-of-00002.safetensors", "video_processor/preprocessor_config.json"];
        assert_eq!(wanted(&model), model);
        assert!(wanted(&["model-/../../x.safetensors", "a/config.json", "model-a b.safetensors"]).is_empty());
        let bin = ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tokenizer.model", "vocab.json"];
        assert_eq!(wanted(&bin), bin);
        assert_eq!(
            wanted(&["pytorch_model.bin", "model.safetensors"]),
            ["model.safetensors"],
            "one copy of the weights"
        );
    }

    /// A hub on this machine that holds one repository, `some-org/a-model`.
    #[derive(Default)]
    struct Server {
        /// Bodies by path.
        bodies: HashMap<String, Vec<u8>>,
        /// After how many bytes each answer of a path ends; then the path is whole again.
        cuts: Mutex<HashMap<String, usize>>,
        /// Bearer of the token that it wants.
        bearer: Option<String>,
        /// First line and `Range` of each request.
        seen: Mutex<Vec<String>>,
    }

    impl Server {
        fn new(files: &[(&str, &[u8])]) -> Self {
            let names: Vec<_> = files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
            let listing = serde_json::json!({ "sha": COMMIT, "siblings": names }).to_string().into_bytes();
            let path = |name: &str| format!("/some-org/a-model/resolve/{COMMIT}/{name}");
            let mut bodies: HashMap<_, _> = files.iter().map(|(name, body)| (path(name), body.to_vec())).collect();
            bodies.insert("/api/models/some-org/a-model/revision/refs%2Fpr%2F1".into(), listing);
            Self { bodies, ..Default::default() }
        }

        /// Serves until the test ends; the URL and the requests.
        fn start(self) -> (String, Arc<Self>) {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let server = Arc::new(self);
            let answering = server.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    // A client that goes away is no fault.
                    let _ = answering.answer(stream.unwrap());
                }
            });
            (url, server)
        }

        fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
            let lines = BufReader::new(stream.try_clone()?).lines().map_while(|line| line.ok());
            let lines: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let value = |name: &str| {
                let mut pairs = lines.iter().filter_map(|line| line.split_once(": "));
                pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_string())
            };
            let range = value("range");
            self.seen.lock().unwrap().push(format!("{} {}", lines[0], range.as_deref().unwrap_or("")));
            let mut words = lines[0].split(' ');
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            let (code, body) = match self.bodies.get(path) {
                _ if self.bearer.is_some() && value("authorization") != self.bearer => ("401 No", None),
                None => ("404 Not Found", None),
                Some(body) => (if range.is_some() { "206 Partial Content" } else { "200 OK" }, Some(body)),
            };
            let body = body.map_or(&[][..], |body| body);
            let start =
                range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
            let sent = &body[start..];
            write!(
                stream,
                "HTTP/1.1 {code}\r\nConnection: close\r\nContent-Length: {}\r\nETag: \"{:08x}\"\r\n\
                 Content-Range: bytes {start}-{}/{}\r\n\r\n",
                sent.len(),
                crc32fast::hash(body),
                body.len(),
                body.len()
            )?;
            let cut = if method == "GET" { self.cuts.lock().unwrap().remove(path) } else { Some(0) };
            stream.write_all(&sent[..cut.unwrap_or(sent.len()).min(sent.len())])
        }
    }

    fn fetch(url: &str, token: Option<&str>, cache: &Path) -> Result<PathBuf> {
        let client = Client::new(url, token.map(String::from))?;
        let cache = RepoCache::new(cache, "some-org/a-model");
        run(&client, &cache, None)
    }

    fn run(client: &Client, cache: &RepoCache, progress: Option<&Callback>) -> Result<PathBuf> {
        Download { client, cache, id: "some-org/a-model", revision: "refs/pr/1", progress }.run()
    }

    #[test]
    fn progress_counts_the_bytes_of_all_files() {
        let (url, _server) = Server::new(&[("config.json", b"{}"), ("model.safetensors", b"weights")]).start();
        let root = tempfile::tempdir().unwrap();
        let (client, cache) = (Client::new(&url, None).unwrap(), RepoCache::new(root.path(), "some-org/a-model"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let hub = Hub::default().with_progress(move |progress| {
            kept.lock().unwrap().push((progress.file.to_owned(), progress.bytes, progress.total));
        });
        run(&client, &cache, hub.progress.as_deref()).unwrap();
        let mut reports = std::mem::take(&mut *seen.lock().unwrap());
        reports.dedup();
        assert_eq!(reports, [("config.json".to_owned(), 2, 9), ("model.safetensors".to_owned(), 9, 9)]);
        run(&client, &cache, hub.progress.as_deref()).unwrap();
        assert!(seen.lock().unwrap().is_empty(), "nothing is left to fetch");
    }

    #[test]
    fn a_checkpoint_is_fetched_once_and_then_known_offline() {
        let files: [(&str, &[u8]); 4] = [
            ("config.json", b"{}"),
            ("README.md", b"never asked for"),
            ("model.safetensors", b"weights"),
            ("video_processor/preprocessor_config.json", b"{\"a\": 1}"),
        ];
        let (url, server) = Server::new(&files).start();
        let root = tempfile::tempdir().unwrap();
        let folder = fetch(&url, None, root.path()).unwrap();
        for (name, body) in files.iter().filter(|(name, _)| *name != "README.md") {
            assert_eq!(&std::fs::read(folder.join(name)).unwrap(), body, "{name}");
        }
        assert!(!folder.join("README.md").exists());
        server.seen.lock().unwrap().clear();
        assert_eq!(fetch(&url, None, root.path()).unwrap(), folder);
        assert_eq!(server.seen.lock().unwrap().len(), 1, "only the list: {:?}", server.seen.lock().unwrap());
        let hub = Hub { cache: Some(root.path().to_path_buf()), offline: true, ..Hub::default() };
        assert_eq!(hub.download("some-org/a-model", Some("refs/pr/1")).unwrap(), folder);
    }

    #[test]
    fn a_download_that_was_cut_off_goes_on_where_it_ended() {
        let body: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let server = Server::new(&[("model.safetensors", &body)]);
        let path = format!("/some-org/a-model/resolve/{COMMIT}/model.safetensors");
        server.cuts.lock().unwrap().insert(path, 40_000);
        let (url, server) = server.start();
        let root = tempfile::tempdir().unwrap();
        let folder = fetch(&url, None, root.path()).unwrap();
        assert!(std::fs::read(folder.join("model.safetensors")).unwrap() == body);
        assert!(
            server.seen.lock().unwrap().last().unwrap().contains("bytes=40000-"),
            "{:?}",
            server.seen.lock().unwrap()
        );
        let blobs = root.path().join("models--some-org--a-model/blobs");
        assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 1, "nothing incomplete is left");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let server = Server { bearer: Some("Bearer hf_right".into()), ..Server::new(&[("config.json", b"{}")]) };
        let (url, _server) = server.start();
        let message = fetch(&url, Some("hf_wrong"), root.path()).unwrap_err().to_string();
        assert!(message.contains("401") && message.contains("HF_TOKEN") && !message.contains("hf_wrong"), "{message}");
        fetch(&url, Some("hf_right"), root.path()).unwrap();
        let (url, _server) = Server::default().start();
        let message = fetch(&url, None, root.path()).unwrap_err().to_string();
        assert!(message.contains("404") && message.contains("check the id"), "{message}");
        let (url, _server) = Server::new(&[("README.md", b"")]).start();
        let message = fetch(&url, None, root.path()).unwrap_err().to_string();
        assert!(message.contains("no file of a model"), "{message}");
    }

    #[test]
    fn what_is_no_hub_is_said_to_be_none() {
        let root = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let message = fetch(&format!("http://{free}"), None, root.path()).unwrap_err().to_string();
        assert!(message.contains("check the network"), "{message}");
        assert!(fetch("hub", None, root.path()).unwrap_err().to_string().contains("HF_ENDPOINT"));
        let mut server = Server::new(&[]);
        let listing = "/api/models/some-org/a-model/revision/refs%2Fpr%2F1";
        for bad in ["<html>", r#"{"sha": "../..", "siblings": []}"#] {
            server.bodies.insert(listing.into(), bad.into());
            let (url, _server) = std::mem::take(&mut server).start();
            let message = fetch(&url, None, root.path()).unwrap_err().to_string();
            assert!(message.contains("HF_ENDPOINT"), "{message}");
        }
    }
}
