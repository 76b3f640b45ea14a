//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use haplovl::Error;
use serde_json::{Value, json};

/// Longest message in characters; it may quote what the client sent.
const MAX_CHARS: usize = 300;
/// Longest wait in seconds that a client is told.
const MAX_WAIT: f64 = 600.0;

/// An error response.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which another try makes sense.
    retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let one_line = |c: char| if c.is_control() { ' ' } else { c };
        let message = message.into().chars().map(one_line).take(MAX_CHARS).collect();
        Self { status, message, param: None, code: Some(code), retry_after: None }
    }

    /// 400 for the value of a field.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).with_param(param)
    }

    /// 400 for a field that is missing.
    pub fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("`{param}` is missing");
        Self::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).with_param(param)
    }

    /// 429, with the time after which another try makes sense.
    pub fn busy(message: impl Into<String>, wait: Duration) -> Self {
        let seconds = wait.as_secs_f64().ceil().clamp(1.0, MAX_WAIT) as u32;
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message) }
    }

    /// 503: the server cannot take the request now, whoever sends it.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_unavailable", message) }
    }

    /// 408, for a body or an answer that took too long.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    pub fn with_param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The error as the value of a JSON body or of a stream's event.
    pub fn to_json(&self) -> Value {
        let Self { message, param, code, .. } = self;
        json!({ "error": { "message": message, "type": self.kind(), "param": param, "code": code } })
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.to_json().to_string();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Errors of the library: those that a request causes are 400, the others 500.
impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match &error {
            Error::Config { field, .. } => Self::invalid(param_of(field), message),
            Error::Prompt(_) | Error::ChatTemplate(_) | Error::Image { .. } | Error::Batch(_) | Error::Data(_) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_prompt", message)
            }
            _ => Self::internal(message),
        }
    }
}

/// OpenAI's name of a generation setting.
fn param_of(field: &str) -> &str {
    match field {
        "max_new_tokens" => "max_completion_tokens",
        "choices" => "n",
        field if field.starts_with("stop_strings") => "stop",
        field => field,
    }
}

/// The error of a JSON body, with the path of the field.
impl From<serde_path_to_error::Error<serde_json::Error>> for ApiError {
    fn from(error: serde_path_to_error::Error<serde_json::Error>) -> Self {
        let (path, cause) = (error.path().to_string(), error.inner());
        if let Some(field) = missing_field(&cause.to_string()) {
            let path = if path == "." { field.to_string() } else { format!("{path}.{field}") };
            return Self::missing(path);
        }
        if path == "." || cause.is_eof() || cause.is_syntax() {
            return Self::new(
                StatusCode::BAD_REQUEST,
                "invalid_json",
                format!("the body is not the JSON object that this endpoint takes: {cause}"),
            );
        }
        // serde would list all fields of the object.
        let message = match cause.to_string() {
            text if text.starts_with("unknown field") => format!("`{path}` is not supported here: leave it out"),
            text => format!("`{path}`: {text}"),
        };
        let code = if cause.to_string().contains("not supported") || message.contains("not supported") {
            "unsupported_parameter"
        } else {
            "invalid_value"
        };
        Self::new(StatusCode::BAD_REQUEST, code, message).with_param(path)
    }
}

/// The field of serde's message for one that is missing.
fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.split('`').next()
}

/// 404 for an address that does not exist.
pub async fn not_found() -> ApiError {
    let message = "no such address: the server has /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, \
                   /v1/attention, /health, /metrics and the page at /";
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

/// 405 for an address that exists, with another method.
pub async fn method_not_allowed() -> ApiError {
    let message = "this address does not take this method: the header `Allow` says which ones it takes";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
