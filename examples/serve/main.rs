//! Example: serves a model over HTTP, by OpenAI's API and with a page to try it.
//!
//! `cargo run --release --features serve --example serve`, then open <http://127.0.0.1:8080>, or
//! `curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -d '{"messages": ..}'`.

#[path = "../common/cli.rs"]
mod cli;
#[path = "../common/download.rs"]
mod download;
#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/model.rs"]
mod model;
mod server;

use std::env::VarError;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use haplovl::pipeline::{Engine, EngineConfig, ModelSource};
use haplovl::processor::ImageDecoder;
use server::{ApiKeys, App, Hosts, LineLog, Settings};
use tokio::net::TcpListener;

/// Environment variable of the API key.
const KEY_VARIABLE: &str = "HAPLOVL_API_KEY";
/// Threads of the server itself; models compute on threads of their own.
const THREADS: usize = 2;

/// Serves a model over HTTP: OpenAI's API, metrics for Prometheus, and a page to try it.
///
/// Many requests are answered at once, each as if it were alone. SIGTERM and Ctrl-C end the server once the answers under
/// way are complete; a second signal ends it at once.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    serve\n  \
    serve --model ./haplovl-7b --quantize q8_0 --port 9000\n  \
    serve --model ./haplovl-7b --adapter cats=runs/cats/export --adapter dogs=runs/dogs/export\n  \
    HAPLOVL_API_KEY=secret serve --host 0.0.0.0 --max-batch 16 --cache-mb 4096 --timeout 120")]
struct Arguments {
    #[command(flatten)]
    model: model::BaseOptions,
    /// Folder of a LoRA or DoRA adapter in PEFT's form, and the name by which requests choose it as their `model`; may be repeated.
    /// Without a name, all requests are answered with it
    #[arg(long, value_name = "[NAME=]DIR", value_parser = adapter)]
    adapter: Vec<NamedAdapter>,
    /// Address to listen on; 0.0.0.0 or :: for all of this machine
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: std::net::IpAddr,
    /// Port to listen on; 0 for any that is free
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// File of API keys, one a line, any of which clients must send [default: the key in HAPLOVL_API_KEY, else none]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Answers that are computed at the same time
    #[arg(long, default_value_t = EngineConfig::default().max_batch, value_name = "N")]
    max_batch: usize,
    /// Requests that may wait; a further one gets status 429
    #[arg(long, default_value_t = EngineConfig::default().queue, value_name = "N")]
    queue: usize,
    /// Memory of keys and values in MiB, kept prompts included [default: half of what is free]
    #[arg(long, value_name = "MIB")]
    cache_mb: Option<usize>,
    /// Largest body of a request in MiB
    #[arg(long, default_value_t = 32, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_body_mb: u32,
    /// Largest number of pixels of all images of a request
    #[arg(long, default_value_t = Settings::default().max_pixels, value_name = "N",
          value_parser = clap::value_parser!(u64).range(1..=ImageDecoder::default().max_pixels))]
    max_pixels: u64,
    /// Name by which browsers may call the server beside localhost, as behind a proxy; may be repeated [default: any,
    /// unless --host is an address of this machine alone]
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    allow_host: Vec<String>,
    /// Hosts that images may be fetched from by http and https, such as images.example.org,example.org:8443; never from
    /// private and loopback addresses [default: none, images come as data URLs]
    #[arg(long, value_name = "HOST,..", value_delimiter = ',', value_parser = image_host)]
    allow_image_hosts: Vec<String>,
    /// Print a line on stderr for each request, and what the library reports
    #[arg(long)]
    log: bool,
    /// Longest time of a request in seconds, waiting included
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Origin whose pages may call the server from a browser, such as https://example.org, or * for any
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    cors: Option<String>,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        memory::keep();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        runtime.block_on(run(arguments))
    })
}

async fn run(arguments: Arguments) -> Result<()> {
    let settings = arguments.settings()?;
    if arguments.log {
        tracing::subscriber::set_global_default(LineLog(|line: &str| cli::note(line)))?;
    }
    let config = arguments.engine_config();
    arguments.check_adapters(&settings.model_id)?;
    config.validate()?;
    // Bound before the model is loaded: a port that is taken is reported at once.
    let address = SocketAddr::new(arguments.host, arguments.port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"));
    let listener = listener.map_err(|e| anyhow::anyhow!("{e:#}: choose another --port or --host"))?;
    let stop = Stop::register()?;
    let engine = arguments.engine(config)?;
    let has_key = !settings.keys.is_empty();
    let app = Arc::new(App::new(engine, settings));
    cli::note(format_args!(
        "serving {} on http://{}{}",
        app.models.iter().map(|model| format!("`{}`", model.id)).collect::<Vec<_>>().join(", "),
        listener.local_addr()?,
        if has_key { ", to clients with the API key" } else { "" }
    ));
    server::serve(listener, server::router(Arc::clone(&app)), Arc::clone(&app), stop.wait()).await;
    tokio::task::spawn_blocking(move || app.engine.shutdown()).await?;
    cli::note("all answers are complete, the server ends");
    Ok(())
}

impl Arguments {
    fn settings(&self) -> Result<Settings> {
        Ok(Settings {
            model_id: model_id(self.model.source()),
            keys: self.keys()?,
            hosts: self.hosts(),
            cors: self.cors.clone(),
            image_hosts: self.allow_image_hosts.clone(),
            max_body: (self.max_body_mb as usize) << 20,
            max_bodies: Settings::default().max_bodies.max((self.max_body_mb as usize) << 21),
            max_pixels: self.max_pixels,
            timeout: Duration::from_secs(self.timeout),
            ..Settings::default()
        })
    }

    /// Behind an address that others reach, names are the business of who runs the server.
    fn hosts(&self) -> Hosts {
        match self.host.is_loopback() || !self.allow_host.is_empty() {
            true => Hosts::Named(self.allow_host.clone()),
            false => Hosts::Any,
        }
    }

    fn keys(&self) -> Result<ApiKeys> {
        let (text, from) = match (&self.api_key_file, std::env::var(KEY_VARIABLE)) {
            (Some(path), _) => {
                let read = std::fs::read_to_string(path).with_context(|| path.display().to_string());
                (read.map_err(|e| anyhow::anyhow!("{e:#}"))?, path.display().to_string())
            }
            (None, Ok(key)) => (key, KEY_VARIABLE.into()),
            (None, Err(VarError::NotPresent)) => return Ok(ApiKeys::default()),
            (None, Err(VarError::NotUnicode(_))) => {
                bail!("{KEY_VARIABLE} is not UTF-8: choose a key of letters and digits")
            }
        };
        let keys = ApiKeys::from_lines(&text);
        ensure!(!keys.is_empty(), "{from} holds no API key: write one a line, or leave it out to serve without");
        Ok(keys)
    }

    /// Checks that each adapter can be told from the others and from the model.
    fn check_adapters(&self, model_id: &str) -> Result<()> {
        let mut names = vec![Some(model_id)];
        for NamedAdapter { name, .. } in &self.adapter {
            ensure!(name.is_some() || self.adapter.len() == 1, "several adapters need names: give each as NAME=DIR");
            let name = name.as_deref();
            ensure!(
                !names.contains(&name),
                "two models are named `{}`: name adapters otherwise",
                name.unwrap_or_default()
            );
            names.push(name);
        }
        Ok(())
    }

    /// Loads the model with its adapters.
    fn engine(&self, config: EngineConfig) -> Result<Engine> {
        let model = self.model.load()?;
        if let [NamedAdapter { name: None, folder }] = self.adapter.as_slice() {
            return Ok(Engine::new(model.with_adapter(folder)?, config)?);
        }
        let named = self.adapter.iter().filter_map(|adapter| Some((adapter.name.clone()?, &adapter.folder)));
        Ok(Engine::with_adapters(model, named, config)?)
    }

    fn engine_config(&self) -> EngineConfig {
        EngineConfig::default()
            .with_max_batch(self.max_batch)
            .with_queue(self.queue)
            .with_kv_cache_bytes(self.cache_mb.map(|mib| mib.saturating_mul(1 << 20)))
            .with_timeout(Duration::from_secs(self.timeout))
    }
}

/// The name of a model in requests: its hub id, or the last part of its path.
fn model_id(source: &ModelSource) -> String {
    match source {
        ModelSource::Path(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        other => other.to_string(),
    }
}

/// An adapter, and the name by which requests choose it.
#[derive(Debug, Clone)]
struct NamedAdapter {
    name: Option<String>,
    folder: PathBuf,
}

/// Reads `NAME=DIR`; what is no name is a part of the folder's.
fn adapter(given: &str) -> Result<NamedAdapter> {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
    Ok(match given.split_once('=') {
        Some((name, folder)) if is_name(name) => NamedAdapter { name: Some(name.into()), folder: folder.into() },
        _ => NamedAdapter { name: None, folder: given.into() },
    })
}

fn host_name(given: &str) -> Result<String> {
    let is_name = !given.is_empty() && given.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    ensure!(is_name, "expected the name of a host without scheme and port, such as box.example.org");
    Ok(given.trim_end_matches('.').into())
}

fn image_host(given: &str) -> Result<String> {
    let (host, port) = given.split_once(':').map_or((given, None), |(host, port)| (host, Some(port)));
    ensure!(port.is_none_or(|port| port.parse::<u16>().is_ok()), "expected a port of 1 to 65535 after the colon");
    Ok(port.map_or(host_name(host)?, |port| format!("{host}:{port}")))
}

fn origin(given: &str) -> Result<String> {
    let is_origin =
        given == "*" || given.split_once("://").is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
    ensure!(is_origin && given.is_ascii(), "expected an origin such as https://example.org, or *");
    Ok(given.into())
}

/// SIGTERM and Ctrl-C: the first ends the server in good order, the second at once.
struct Stop {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    /// Registers the signals, which end the process no more.
    #[cfg(unix)]
    fn register() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    #[cfg(not(unix))]
    fn register() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }

    async fn wait(mut self) {
        self.next().await;
        cli::note("no new requests: the server ends once the answers under way are complete");
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(1);
        });
    }
}
