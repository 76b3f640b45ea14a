//! Requests to the hub: which files a repository holds, what each of them is, and their bytes.

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

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// Longest silence of the hub in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(60);
/// Waits before a failed request is sent again.
const RETRIES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// Redirects within the hub that are followed to learn what a file is.
const REDIRECTS: usize = 5;
/// Most bytes of a list of files.
const MAX_LISTING: u64 = 16 << 20;

/// The result of a request.
pub(super) type Answer<T> = std::result::Result<T, Failure>;

/// Connections to one hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// A commit of a repository.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    /// Id of the commit.
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
    /// Name of the content: files of the same content have the same.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
    url: String,
}

/// A failed request.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hub did not answer, or not completely.
    Network(ureq::Error),
    /// The hub answered that it will not.
    Refused {
        /// HTTP status.
        status: u16,
        /// The hub's own word for the reason; empty if it gave none.
        code: String,
    },
    /// The hub's answer lacks something, or holds something else.
    Malformed(String),
    /// What came could not be written.
    Disk(std::io::Error),
}

impl Client {
    /// A client of the hub that the environment names, with the user's token.
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

    /// The commit that `revision` stands for, and its files.
    pub(super) fn list(&self, id: &str, revision: &str) -> Answer<Listing> {
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, escape(revision));
        let text = retried(|| {
            let response = self.get(&url, None)?;
            Ok(response.into_body().into_with_config().limit(MAX_LISTING).read_to_string()?)
        })?;
        let listing: Listing = serde_json::from_str(&text)
            .map_err(|e| Failure::Malformed(format!("{url} answered something else than a list of files ({e})")))?;
        checked_name(&listing.sha, "commit")?;
        Ok(listing)
    }

    /// What the file `name` of a commit is.
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

    /// Appends to `partial` what it lacks of `file`, as long as the hub sends any. Each new length is reported.
    pub(super) fn fetch(&self, file: &RemoteFile, partial: &mut File, seen: impl Fn(u64)) -> Answer<()> {
        let mut waits = Waits::new(length(partial)?);
        loop {
            let failure = match self.fetch_once(file, partial, &seen) {
                Err(failure) if failure.may_pass() => failure,
                other => return other,
            };
            std::thread::sleep(waits.after(length(partial)?).ok_or(failure)?);
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

    /// A successful answer, from byte `start` on if the hub can.
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

    /// What the hub itself says of a file, wherever its bytes are.
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
        Err(Failure::Malformed(format!("{url} leads to itself")))
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
        // The token is for the hub, not for the storage that it may lead to.
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .build()
        .new_agent()
}

/// The answer, if it is no refusal.
fn accepted(response: Response<Body>) -> Answer<Response<Body>> {
    let status = response.status();
    if status.is_success() || status.is_redirection() {
        return Ok(response);
    }
    let code = header(response.headers(), &["x-error-code"]).unwrap_or_default().to_string();
    Err(Failure::Refused { status: status.as_u16(), code })
}

/// The first of these headers that is there.
fn header<'a>(headers: &'a HeaderMap, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| headers.get(*name)?.to_str().ok())
}

/// Where a redirect leads, if that is on the host of `url`: a repository that was renamed, for example.
fn within(url: &str, location: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let target: Uri = location.parse().ok()?;
    let on_host = target.scheme_str() == Some(scheme) && target.authority() == Some(authority);
    on_host.then(|| location.to_string())
}

/// Whether an answer holds a file from byte `start` on, and not from its first one.
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

/// A name from the hub that becomes the name of a file in the cache.
fn checked_name(name: &str, what: &str) -> Answer<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if (1..=128).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(Failure::Malformed(format!("the hub gave `{}` as {what}", name.chars().take(80).collect::<String>())))
}

/// A revision as one part of a URL; what it may hold otherwise needs no escape.
fn escape(revision: &str) -> String {
    revision.replace('/', "%2F")
}

/// Waits between the attempts at one file. They start again only when the file is longer than it ever was, so that a server
/// that sends it from the start each time and always cuts it off is given up.
struct Waits {
    longest: u64,
    left: std::array::IntoIter<Duration, { RETRIES.len() }>,
}

impl Waits {
    fn new(length: u64) -> Self {
        Self { longest: length, left: RETRIES.into_iter() }
    }

    /// The wait after an attempt that left `length` bytes, `None` when no attempt is left.
    fn after(&mut self, length: u64) -> Option<Duration> {
        if length > self.longest {
            *self = Self::new(length);
        }
        self.left.next()
    }
}

/// The result of `request`, which is sent again if it failed for a reason that may pass.
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
    /// Whether the same request may succeed a little later.
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

    /// What the user can do.
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

    /// The error for the user, on downloading `what`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_redirects_on_the_same_host_are_followed() {
        let url = "https://hub.test:8443/org/old/resolve/main/config.json";
        for (location, followed) in [
            ("/org/new/config.json", Some("https://hub.test:8443/org/new/config.json")),
            ("https://hub.test:8443/org/new", Some("https://hub.test:8443/org/new")),
            ("https://hub.test/org/new", None),
            ("http://hub.test:8443/org/new", None),
            ("https://storage.test:8443/blob", None),
            ("https://hub.test:8443@storage.test/blob", None),
            ("//storage.test/blob", None),
            ("config.json", None),
        ] {
            assert_eq!(within(url, location).as_deref(), followed, "{location}");
        }
    }

    #[test]
    fn a_file_that_never_gets_longer_is_given_up() {
        let mut waits = Waits::new(10);
        // Each attempt that gets further gives all waits back.
        assert_eq!([20, 30, 40].map(|length| waits.after(length)), [Some(RETRIES[0]); 3]);
        assert_eq!([5, 39, 40].map(|length| waits.after(length)), [Some(RETRIES[1]), Some(RETRIES[2]), None]);
    }
}
