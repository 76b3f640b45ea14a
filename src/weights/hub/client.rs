//! Requests to the hub: list of files, metadata of a file, and its bytes.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::environment;
use crate::{Error, Result};

/// Connection timeout.
const CONNECT: Duration = Duration::from_secs(30);
/// Read timeout within a response.
const SILENCE: Duration = Duration::from_secs(60);
/// Delays before retries of a failed request.
const RETRIES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// Largest number of redirects within the hub that are followed for a file's metadata.
const REDIRECTS: usize = 5;
/// Largest list of files in bytes.
const MAX_LISTING: u64 = 16 << 20;

/// The result of a request.
pub(super) type Answer<T> = std::result::Result<T, Failure>;

/// An HTTP client of one hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// A commit of a repository.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    /// Commit id.
    pub(super) sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// Paths of all files.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.siblings.iter().map(|sibling| sibling.rfilename.as_str())
    }
}

/// A file of a repository.
#[derive(Debug)]
pub(super) struct RemoteFile {
    /// Path in the repository.
    pub(super) name: String,
    /// ETag, which identifies the content: equal files have equal ETags.
    pub(super) etag: String,
    /// Size in bytes.
    pub(super) size: u64,
    url: String,
}

/// A failed request.
#[derive(Debug)]
pub(super) enum Failure {
    /// No response, or an incomplete one.
    Network(ureq::Error),
    /// An HTTP error status.
    Refused {
        /// HTTP status.
        status: u16,
        /// The hub's error code (`x-error-code`); empty if it sent none.
        code: String,
    },
    /// A response without a required header, or with unexpected content.
    Malformed(String),
    /// A failed write to the cache.
    Disk(std::io::Error),
}

impl Client {
    /// A client of the hub that `HF_ENDPOINT` specifies, with the user's token.
    pub(super) fn from_env() -> Result<Self> {
        Self::new(&environment::endpoint(), environment::token()?)
    }

    pub(super) fn new(endpoint: &str, token: Option<String>) -> Result<Self> {
        let parsed = endpoint.parse::<Uri>().ok();
        if !parsed.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()) {
            return Err(Error::hub(format!("HF_ENDPOINT is `{endpoint}`, expected a URL such as https://host")));
        }
        Ok(Self { agent: agent(), endpoint: endpoint.trim_end_matches('/').to_string(), token })
    }

    /// The commit that `revision` refers to, and its files.
    pub(super) fn list(&self, id: &str, revision: &str) -> Answer<Listing> {
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, escape(revision));
        let text = retried(|| {
            let response = self.get(&url, None)?;
            Ok(response.into_body().into_with_config().limit(MAX_LISTING).read_to_string()?)
        })?;
        let listing: Listing = serde_json::from_str(&text)
            .map_err(|e| Failure::Malformed(format!("{url} did not return a list of files ({e})")))?;
        checked_name(&listing.sha, "commit")?;
        Ok(listing)
    }

    /// ETag and size of the file `name` of a commit.
    pub(super) fn describe(&self, id: &str, commit: &str, name: &str) -> Answer<RemoteFile> {
        let url = format!("{}/{id}/resolve/{commit}/{name}", self.endpoint);
        let headers = retried(|| self.head(&url))?;
        let etag = header(&headers, &["x-linked-etag", "etag"])
            .map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_string())
            .ok_or_else(|| Failure::Malformed(format!("{url} has no ETag")))?;
        checked_name(&etag, "ETag")?;
        let size = header(&headers, &["x-linked-size", "content-length"])
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| Failure::Malformed(format!("{url} has no size")))?;
        Ok(RemoteFile { name: name.to_string(), etag, size, url })
    }

    /// Appends the missing bytes of `file` to `partial`, resuming interrupted responses as long as each brings
    /// progress. `seen` receives each new length.
    pub(super) fn fetch(&self, file: &RemoteFile, partial: &mut File, seen: impl Fn(u64)) -> Answer<()> {
        let mut retries = RETRIES.iter();
        loop {
            let before = length(partial)?;
            let failure = match self.fetch_once(file, partial, &seen) {
                Err(failure) if failure.may_pass() => failure,
                other => return other,
            };
            if length(partial)? > before {
                retries = RETRIES.iter();
            }
            std::thread::sleep(*retries.next().ok_or(failure)?);
        }
    }

    fn fetch_once(&self, file: &RemoteFile, partial: &mut File, seen: impl Fn(u64)) -> Answer<()> {
        let start = length(partial)?;
        if start < file.size {
            let response = self.get(&file.url, (start > 0).then_some(start))?;
            let start = if continues(&response, start) { start } else { 0 };
            partial.set_len(start)?;
            partial.seek(SeekFrom::Start(start))?;
            copy(response.into_body().into_reader().take(file.size - start + 1), partial, start, seen)?;
        }
        match length(partial)? {
            found if found == file.size => Ok(()),
            found if found < file.size => Err(Failure::Network(std::io::Error::from(ErrorKind::UnexpectedEof).into())),
            found => {
                partial.set_len(0)?;
                Err(Failure::Malformed(format!("{} has {found} bytes or more, expected {}", file.name, file.size)))
            }
        }
    }

    /// A successful response, from byte `start` on if the hub supports ranges.
    fn get(&self, url: &str, start: Option<u64>) -> Answer<Response<Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(start) = start {
            request = request.header("range", format!("bytes={start}-"));
        }
        accepted(request.call()?)
    }

    /// Response headers of the hub itself for a file, without following redirects to its storage.
    fn head(&self, url: &str) -> Answer<HeaderMap> {
        let mut url = url.to_string();
        for _ in 0..REDIRECTS {
            let mut request = self.agent.head(&url).config().max_redirects(0).max_redirects_will_error(false).build();
            if let Some(token) = &self.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let headers = accepted(request.call()?)?.headers().clone();
            match header(&headers, &["location"]).and_then(|location| within(&url, location)) {
                Some(next) => url = next,
                None => return Ok(headers),
            }
        }
        Err(Failure::Malformed(format!("{url} redirects too often")))
    }
}

fn agent() -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    Agent::config_builder()
        .http_status_as_error(false)
        .tls_config(tls.build())
        .user_agent(concat!("haplovl/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        // The token is only for the hub, not for the storage host that it redirects to.
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .build()
        .new_agent()
}

/// The response, or an error for a status that is not a success.
fn accepted(response: Response<Body>) -> Answer<Response<Body>> {
    let status = response.status();
    if status.is_success() || status.is_redirection() {
        return Ok(response);
    }
    let code = header(response.headers(), &["x-error-code"]).unwrap_or_default().to_string();
    Err(Failure::Refused { status: status.as_u16(), code })
}

/// Value of the first of these headers that is present.
fn header<'a>(headers: &'a HeaderMap, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| headers.get(*name)?.to_str().ok())
}

/// Target of a redirect if it is on the host of `url`, for example that of a renamed repository.
fn within(url: &str, location: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let on_host = location.starts_with('/') && !location.starts_with("//");
    on_host.then(|| Some(format!("{}://{}{location}", uri.scheme_str()?, uri.authority()?)))?
}

/// Whether a response is the requested range from byte `start` on, rather than the whole file.
fn continues(response: &Response<Body>, start: u64) -> bool {
    let range = header(response.headers(), &["content-range"]);
    response.status() == 206 && range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

fn copy(mut from: impl Read, to: &mut File, start: u64, seen: impl Fn(u64)) -> Answer<()> {
    let (mut buffer, mut position) = (vec![0; 1 << 18], start);
    loop {
        let count = match from.read(&mut buffer).map_err(ureq::Error::from) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return Err(error.into()),
        };
        to.write_all(&buffer[..count])?;
        position += count as u64;
        seen(position);
    }
}

fn length(file: &File) -> std::io::Result<u64> {
    file.metadata().map(|found| found.len())
}

/// Checks a name from the hub that becomes the name of a file in the cache.
fn checked_name(name: &str, what: &str) -> Answer<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if (1..=128).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(Failure::Malformed(format!("the hub sent the invalid {what} `{}`", name.chars().take(80).collect::<String>())))
}

/// Escapes a revision as one segment of a URL; its other allowed characters need no escape.
fn escape(revision: &str) -> String {
    revision.replace('/', "%2F")
}

/// The result of `request`, which is retried after transient failures.
fn retried<T>(request: impl Fn() -> Answer<T>) -> Answer<T> {
    for wait in RETRIES {
        match request() {
            Err(failure) if failure.may_pass() => std::thread::sleep(wait),
            other => return other,
        }
    }
    request()
}

impl Failure {
    /// Whether the failure is transient, so that a retry may succeed.
    fn may_pass(&self) -> bool {
        match self {
            Self::Network(ureq::Error::Timeout(_)) => true,
            Self::Network(ureq::Error::Io(e)) => matches!(
                e.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::TimedOut
                    | ErrorKind::UnexpectedEof
            ),
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Advice for the user.
    fn advice(&self) -> &'static str {
        match self {
            Self::Network(_) => "; check the network, or set HF_HUB_OFFLINE=1 if the model was downloaded before",
            Self::Refused { code, .. } if code == "RevisionNotFound" => "; check the revision",
            Self::Refused { code, .. } if code == "GatedRepo" => TERMS,
            Self::Refused { code, .. } if code == "RepoNotFound" => UNKNOWN,
            Self::Refused { status: 404, .. } => UNKNOWN,
            Self::Refused { status: 401 | 403, .. } => TERMS,
            Self::Refused { status: 429 | 500.., .. } => "; try again later",
            Self::Disk(_) => "; check the free space and the permissions of the cache (HF_HOME says where it is)",
            Self::Refused { .. } | Self::Malformed(_) => "; check HF_ENDPOINT",
        }
    }

    /// The error of a download of `what`.
    pub(super) fn into_error(self, what: &str) -> Error {
        let message = format!("{what}: {self}{}", self.advice());
        match self {
            Self::Network(cause) => Error::hub(message).caused_by(cause),
            Self::Disk(cause) => Error::hub(message).caused_by(cause),
            Self::Refused { .. } | Self::Malformed(_) => Error::hub(message),
        }
    }
}

const TERMS: &str = "; accept the model's terms on its page, and set HF_TOKEN to a token that may read it";
const UNKNOWN: &str = "; check the id (for a private model, set HF_TOKEN)";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(e) => write!(f, "the hub could not be reached ({e})"),
            Self::Refused { status, code } if code.is_empty() => write!(f, "the hub answered {status}"),
            Self::Refused { status, code } => write!(f, "the hub answered {status} ({code})"),
            Self::Malformed(message) => f.write_str(message),
            Self::Disk(e) => write!(f, "the cache cannot be written ({e})"),
        }
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        Self::Network(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}
