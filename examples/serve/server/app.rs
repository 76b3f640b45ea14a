//! State of the server: engine, settings, and the limits of what happens at the same time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use haplovl::pipeline::{Engine, LoadedModel};
use haplovl::processor::ImageDecoder;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::ApiError;
use super::fetch::Fetcher;
use super::grammar::Grammars;
use super::named_model::Models;
use super::settings::Settings;

/// Requests that prepare jobs for the engine's thread or wait for them, at a time.
const MAX_JOBS: usize = 4;

/// State that all requests share.
pub struct App {
    pub engine: Engine,
    pub settings: Settings,
    pub models: Models,
    pub grammars: Grammars,
    pub(super) fetcher: Option<Fetcher>,
    /// Start of the server, in seconds since 1970.
    pub started: u64,
    /// Room for the bytes of bodies, in KiB.
    pub(super) bodies: Arc<Semaphore>,
    /// Room for work on the CPU outside of the engine.
    work: Semaphore,
    /// Room for requests that prepare jobs for the engine's thread or wait for them.
    jobs: Semaphore,
    /// Responses by route and status.
    responses: Mutex<BTreeMap<(String, u16), u64>>,
    pub(super) connections: AtomicU64,
}

impl App {
    pub fn new(engine: Engine, settings: Settings) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, Into::into);
        Self {
            bodies: Arc::new(Semaphore::new(settings.max_bodies / 1024)),
            work: Semaphore::new(cores),
            jobs: Semaphore::new(MAX_JOBS),
            responses: Mutex::default(),
            connections: AtomicU64::new(0),
            started: unix_seconds(),
            fetcher: Fetcher::new(&settings),
            models: Models::new(&settings.model_id, &engine),
            grammars: Grammars::default(),
            engine,
            settings,
        }
    }

    /// Runs CPU work on a thread of its own, as many at a time as there are cores.
    pub async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let _turn = self.work.acquire().await.map_err(|_| ApiError::unavailable("the server ends"))?;
        self.in_background(work).await
    }

    /// Runs work on a thread of its own that mostly waits.
    pub async fn in_background<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&app)).await;
        done.map_err(|_| ApiError::internal("the request made the server's code panic; this is a bug"))?
    }

    /// Waits for a turn to prepare jobs and run them: few at a time hold their images.
    pub async fn turn(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        let turn = tokio::time::timeout(self.settings.timeout, self.jobs.acquire()).await;
        turn.map_err(|_| self.too_late())?.map_err(|_| ApiError::unavailable("the server ends"))
    }

    /// Runs a job on the engine's thread, in the time that a request has. The job of a client that is gone by the time it
    /// would begin is left out.
    pub async fn on_engine<T: Send + 'static>(
        self: &Arc<Self>,
        model: &LoadedModel,
        job: impl FnOnce(&LoadedModel) -> haplovl::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let wanted = Arc::new(());
        let asked = Arc::downgrade(&wanted);
        let model = model.clone();
        let job = move |_: &LoadedModel| match asked.strong_count() {
            0 => Ok(None),
            _ => job(&model).map(Some),
        };
        let done = self.in_background(move |app| Ok(app.engine.run(job)??));
        let done = tokio::time::timeout(self.settings.timeout, done).await.unwrap_or(Ok(None));
        drop(wanted);
        done?.ok_or_else(|| self.too_late())
    }

    /// The error of a request that took too long.
    pub fn too_late(&self) -> ApiError {
        let seconds = self.settings.timeout.as_secs_f64();
        ApiError::timeout(format!("the answer was not complete after {seconds} s, the server's limit: ask for less"))
    }

    /// A decoder for images of up to `max_pixels`.
    pub fn decoder(&self, max_pixels: u64) -> ImageDecoder {
        ImageDecoder { max_pixels, ..*self.engine.model().processor().decoder() }
    }

    pub(super) fn count_response(&self, route: &str, status: StatusCode) {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        *responses.entry((route.into(), status.as_u16())).or_default() += 1;
    }

    /// Responses by route and status.
    pub(super) fn responses(&self) -> BTreeMap<(String, u16), u64> {
        self.responses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn open_connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// A response of JSON.
pub fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// A fresh id with a prefix.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}{:024x}", rand::random::<u128>() >> 32)
}
