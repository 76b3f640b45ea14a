//! HTTP server over an engine: OpenAI's API, metrics, and a page.

mod answers;
mod app;
mod attention;
mod body;
mod connection;
mod content;
mod embeddings;
mod error;
mod fetch;
mod generate;
mod grammar;
mod json_schema;
mod log;
mod logprobs;
mod metrics;
mod models;
mod named_model;
mod page;
mod protocol;
mod settings;
mod wish;

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

pub use app::App;
pub use connection::serve;
use error::ApiError;
pub use log::LineLog;
use log::RequestLog;
pub use settings::{ApiKeys, Hosts, Settings};

/// The server's addresses.
pub fn router(app: Arc<App>) -> Router {
    let open = Router::new()
        .route("/", get(page::page))
        .route("/examples/{name}", get(page::example))
        .route("/health", get(models::health));
    let guarded = Router::new()
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/completions", post(generate::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/attention", post(attention::attention))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/metrics", get(metrics::metrics))
        .route_layer(from_fn_with_state(Arc::clone(&app), require_key));
    open.merge(guarded)
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// Refuses a client without a key.
async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, ApiError> {
    let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if app.settings.keys.allow(given) {
        return Ok(next.run(request).await);
    }
    let message = match given {
        None => "no API key: send it as `Authorization: Bearer KEY`",
        Some(_) => "the API key is wrong: send the server's as `Authorization: Bearer KEY`",
    };
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
}

/// Refuses foreign names, answers a browser's question before a call from a foreign page, counts and logs responses, and
/// adds headers.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let log = RequestLog::new(&request);
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_string();
    let mut response = match check_host(&app, request.headers()) {
        Err(error) => error.into_response(),
        Ok(()) if is_preflight(&app, request.method(), request.headers()) => preflight(),
        Ok(()) => next.run(request).await,
    };
    app.count_response(&route, response.status());
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(&app::new_id("req-")) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    if let Some(origin) = app.settings.cors.as_deref().and_then(|origin| HeaderValue::from_str(origin).ok()) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    log.follow(response)
}

fn check_host(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    if app.settings.hosts.allow(host) {
        return Ok(());
    }
    let host = String::from_utf8_lossy(host.unwrap_or_default()).chars().take(100).collect::<String>();
    let message = format!(
        "the server is not called `{host}`: call it by `localhost` or its address, or start it with `--allow-host NAME`"
    );
    Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message))
}

fn is_preflight(app: &App, method: &Method, headers: &HeaderMap) -> bool {
    app.settings.cors.is_some()
        && method == Method::OPTIONS
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        // Clients of OpenAI's API send headers of their own.
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "*, Authorization"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}
