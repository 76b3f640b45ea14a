//! Images at http and https addresses: fetched from hosts that whoever runs the server has named, and from no others.
//!
//! A request must not make the server call what only the server can reach. So a host's name is looked up once, and only
//! public addresses of it are connected to; redirects and proxies are not followed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::Semaphore;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::app::App;
use super::body::{Held, hold};
use super::error::ApiError;
use super::settings::Settings;

/// Images that are fetched at the same time.
const AT_ONCE: usize = 8;

/// A request whose images may be addresses.
pub trait ImageUrls {
    /// The places of the images in the body, and their URLs.
    fn image_urls(&mut self) -> Vec<(String, &mut String)>;
}

/// Fetches images by http.
pub struct Fetcher {
    agent: Agent,
    hosts: Vec<String>,
    turns: Semaphore,
}

impl Fetcher {
    /// A fetcher, unless no host is named.
    pub fn new(settings: &Settings) -> Option<Self> {
        let public = PublicAddresses { is_allowed: settings.image_addresses };
        let agent = Agent::with_parts(config(settings.patience), DefaultConnector::default(), public);
        let hosts = settings.image_hosts.clone();
        (!hosts.is_empty()).then(|| Self { agent, hosts, turns: Semaphore::new(AT_ONCE) })
    }

    /// The content of an image.
    fn fetch(&self, place: &str, url: &str, limit: usize) -> Result<Vec<u8>, ApiError> {
        let refuse = |why: String| ApiError::invalid(place, format!("`{place}` {why}"));
        let uri: Uri = url.parse().map_err(|e| refuse(format!("is no URL: {e}")))?;
        let host = self.named_host(&uri).ok_or_else(|| {
            let host: String = uri.authority().map_or("", |name| name.as_str()).chars().take(80).collect();
            refuse(format!(
                "is at `{host}`, which is not among the hosts that this server fetches from: send a data URL"
            ))
        })?;
        let failed = |e: ureq::Error| match e {
            ureq::Error::HostNotFound => refuse(format!("cannot be fetched: `{host}` has no public address")),
            ureq::Error::BodyExceedsLimit(limit) => {
                refuse(format!("has more than {limit} bytes: send a smaller image"))
            }
            e => refuse(format!("cannot be fetched from `{host}`: {e}")),
        };
        let mut response = self.agent.get(&uri).call().map_err(failed)?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(refuse(format!("cannot be fetched: `{host}` answers {status}; redirects are not followed")));
        }
        response.body_mut().with_config().limit(limit as u64).read_to_vec().map_err(failed)
    }

    /// The host of an address, if it was named, with its port where that is not the scheme's own.
    fn named_host(&self, uri: &Uri) -> Option<String> {
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let own_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let host = match authority.port_u16() {
            Some(port) if port != own_port => format!("{}:{port}", authority.host()),
            _ => authority.host().to_string(),
        };
        self.hosts.iter().any(|name| name.eq_ignore_ascii_case(&host)).then_some(host)
    }
}

fn config(patience: Duration) -> Config {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    Agent::config_builder()
        .http_status_as_error(false)
        .tls_config(tls.build())
        .user_agent(concat!("haplovl/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_global(Some(patience))
        .build()
}

/// Whether a URL is an address to fetch from.
pub fn is_address(url: &str) -> bool {
    let has_scheme = |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    has_scheme("http://") || has_scheme("https://")
}

/// Replaces the addresses in a request by data URLs of what is there.
///
/// All images of a request together take no more time than a request may, and no more bytes than a body.
pub async fn inline(app: &Arc<App>, request: &mut impl ImageUrls, held: &mut Held) -> Result<(), ApiError> {
    let Some(fetcher) = &app.fetcher else { return Ok(()) };
    let addresses = request.image_urls().into_iter().filter(|(_, url)| is_address(url)).collect::<Vec<_>>();
    if addresses.is_empty() {
        return Ok(());
    }
    let limit = app.settings.max_body.min(app.settings.max_bodies / 4);
    // Bytes, and the longer text that they become.
    held.merge(hold(app, 3 * limit / 1024)?);
    let fetched = tokio::time::timeout(app.settings.timeout, fetch_all(app, fetcher, addresses, limit));
    fetched.await.map_err(|_| ApiError::timeout("the images of the request came too slowly: send data URLs"))?
}

async fn fetch_all(
    app: &Arc<App>,
    fetcher: &Fetcher,
    addresses: Vec<(String, &mut String)>,
    limit: usize,
) -> Result<(), ApiError> {
    let mut left = limit;
    for (place, url) in addresses {
        let _turn = fetcher.turns.acquire().await.map_err(|_| ApiError::unavailable("the server ends"))?;
        let address = std::mem::take(url);
        let bytes = app.in_background(move |app| match &app.fetcher {
            Some(fetcher) => fetcher.fetch(&place, &address, left),
            None => Ok(Vec::new()),
        });
        let bytes = bytes.await?;
        left -= bytes.len();
        *url = format!("data:application/octet-stream;base64,{}", BASE64_STANDARD.encode(bytes));
    }
    Ok(())
}

/// Looks up names, and leaves out the addresses that are not allowed.
#[derive(Debug)]
struct PublicAddresses {
    is_allowed: fn(IpAddr) -> bool,
}

impl Resolver for PublicAddresses {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = DefaultResolver::default().resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        found.iter().filter(|address| (self.is_allowed)(address.ip())).for_each(|address| allowed.push(*address));
        if allowed.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(allowed) }
    }
}

/// Whether an address is one of the public internet: none of this machine, a private network, or a special purpose
/// (IANA's registries of special-purpose addresses).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or_else(|| is_public_v6(address), is_public_v4),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_private = matches!((a, b), (10, _) | (100, 64..=127) | (169, 254) | (172, 16..=31) | (192, 168));
    let is_special =
        matches!((a, b, c), (192, 0, 0 | 2) | (192, 88, 99) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113));
    !(matches!(a, 0 | 127 | 224..) || is_private || is_special)
}

/// Global unicast is 2000::/3. Of it, 2001::/23 is for protocols, 2001:db8::/32 and 3fff::/20 are for documentation, and
/// 2002::/16 leads to an IPv4 address.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    let is_special = matches!((a, b), (0x2001, 0..=0x1ff | 0xdb8) | (0x2002, _) | (0x3fff, 0..=0xfff));
    a & 0xe000 == 0x2000 && !is_special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_and_of_private_networks_are_not_public() {
        let private = "127.0.0.1 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 \
            255.255.255.255 224.0.0.1 198.18.0.1 192.0.2.1 ::1 :: ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 fe80::1 \
            fc00::1 fd12::1 ff02::1 2001:db8::1 2001::1 2002:7f00:1:: 64:ff9b::7f00:1 3fff::1";
        let public =
            "8.8.8.8 172.32.0.1 100.128.0.1 192.167.0.1 198.20.0.1 ::ffff:8.8.8.8 2606:4700::1111 2a00:1450::1";
        for (addresses, expected) in [(private, false), (public, true)] {
            for address in addresses.split_whitespace() {
                assert_eq!(is_public(address.parse().unwrap()), expected, "{address}");
            }
        }
    }

    #[test]
    fn hosts_are_named_with_ports_that_are_not_the_schemes_own() {
        let settings = Settings { image_hosts: vec!["a.org".into(), "b.org:8080".into()], ..Settings::default() };
        let fetcher = Fetcher::new(&settings).unwrap();
        let allowed = "http://a.org/x http://a.org:80/x https://A.org:443/x?q http://b.org:8080";
        let refused =
            "http://a.org:443/ http://b.org/ http://a.org@b.org/ http://me:key@a.org/ http://xa.org/ http://a.org.b/";
        for (urls, expected) in [(allowed, true), (refused, false)] {
            for url in urls.split_whitespace() {
                assert_eq!(fetcher.named_host(&url.parse().unwrap()).is_some(), expected, "{url}");
            }
        }
    }
}
