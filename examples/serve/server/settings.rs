//! Settings of the server, and the keys that clients show.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::uri::Authority;
use subtle::ConstantTimeEq;

use super::fetch::is_public;

/// Settings of the server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The id of the model.
    pub model_id: String,
    /// API keys, any of which is accepted; without any, none is asked for.
    pub keys: ApiKeys,
    /// Names by which browsers may call the server.
    pub hosts: Hosts,
    /// Origin whose pages may call the server, or `*`.
    pub cors: Option<String>,
    /// Hosts that images are fetched from, with their port where it is not the scheme's own; without any, nothing is
    /// fetched.
    pub image_hosts: Vec<String>,
    /// Addresses that such a host may have.
    pub image_addresses: fn(IpAddr) -> bool,
    /// Largest body of a request in bytes, and of the images fetched for it.
    pub max_body: usize,
    /// Bytes of all bodies that are held at the same time.
    pub max_bodies: usize,
    /// Largest number of pixels of all images of a request.
    pub max_pixels: u64,
    /// Longest time from a request to the end of its answer.
    pub timeout: Duration,
    /// Connections at the same time; further ones wait.
    pub max_connections: usize,
    /// Longest wait for the head of a request, for the next part of its body, and for the client to take a part of the
    /// answer.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model_id: "builtin".into(),
            keys: ApiKeys::default(),
            hosts: Hosts::Any,
            cors: None,
            image_hosts: Vec::new(),
            image_addresses: is_public,
            max_body: 32 << 20,
            max_bodies: 512 << 20,
            max_pixels: 1 << 25,
            timeout: Duration::from_secs(300),
            max_connections: 512,
            patience: Duration::from_secs(20),
        }
    }
}

/// Names by which browsers may call the server.
///
/// A foreign page can make its own name point to this machine, and its browser then takes the server for the page's own.
/// The header `Host` shows such a name. Addresses in numbers cannot be made to point elsewhere, and are always taken.
#[derive(Debug, Clone)]
pub enum Hosts {
    Any,
    /// `localhost`, and these.
    Named(Vec<String>),
}

impl Hosts {
    /// Whether a request with this `Host` header is taken; one without is from no browser.
    pub fn allow(&self, header: Option<&[u8]>) -> bool {
        let (Self::Named(names), Some(header)) = (self, header) else { return true };
        let Ok(authority) = Authority::try_from(header) else { return false };
        let host = authority.host().trim_end_matches('.');
        let address = host.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// API keys.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<String>);

impl ApiKeys {
    /// The keys of a text, one a line; empty lines are none.
    pub fn from_lines(text: &str) -> Self {
        Self(text.lines().map(str::trim).filter(|key| !key.is_empty()).map(Into::into).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a client may call the server with this `Authorization` header. The time that takes tells nothing about a
    /// key but its length.
    pub fn allow(&self, header: Option<&[u8]>) -> bool {
        let given = header.and_then(bearer).unwrap_or_default();
        let known = self.0.iter().fold(0, |known, key| known | key.as_bytes().ct_eq(given).unwrap_u8());
        self.is_empty() || known == 1
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// The key of `Bearer KEY`.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
}
