//! Bodies of requests: bounded in size, time and memory, and JSON.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::app::App;
use super::error::ApiError;
use super::fetch::{self, ImageUrls};

/// Parts of `patience` that a whole body may take.
const WHOLE_BODY: u32 = 6;
/// Bytes of a body above the limit that are read and dropped, so that the client comes to read the answer.
const DRAINED: usize = 256 << 20;

/// Memory that a body takes, given back when this is dropped.
pub type Held = OwnedSemaphorePermit;

/// Reads a JSON body, and fetches the images that it names by address, if the server does that.
pub async fn read_json<T: DeserializeOwned + ImageUrls + Send + 'static>(
    app: &Arc<App>,
    request: Request,
) -> Result<(T, Held), ApiError> {
    check_type(request.headers())?;
    let (bytes, mut held) = read(app, request).await?;
    let parsed = app.work(move |_| {
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut json)?;
        let rest =
            |e| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body has more than JSON: {e}"));
        json.end().map_err(rest)?;
        Ok(value)
    });
    let mut request = parsed.await?;
    fetch::inline(app, &mut request, &mut held).await?;
    Ok((request, held))
}

/// A browser asks for leave before a foreign page sends JSON, but not before it sends a form or plain text.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("the body's type is `{essence}`: send JSON with `Content-Type: application/json`");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_content_type", message))
}

async fn read(app: &App, request: Request) -> Result<(Vec<u8>, Held), ApiError> {
    let limit = app.settings.max_body;
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let mut body = request.into_body().into_data_stream();
    if declared.is_some_and(|length: usize| length > limit) {
        return Err(too_large(app, &mut body).await);
    }
    let (mut bytes, mut held) = (Vec::new(), hold(app, 0)?);
    let began = Instant::now();
    while let Some(part) = next_part(app, &mut body, began).await? {
        if bytes.len() + part.len() > limit {
            return Err(too_large(app, &mut body).await);
        }
        bytes.extend_from_slice(&part);
        // As much as the buffer takes, which may be twice the bytes in it.
        let missing = (bytes.capacity() / 1024 + 1).saturating_sub(held.num_permits());
        held.merge(hold(app, missing)?);
    }
    Ok((bytes, held))
}

/// Takes `kib` KiB of the room for bodies.
pub fn hold(app: &App, kib: usize) -> Result<Held, ApiError> {
    let kib = u32::try_from(kib).unwrap_or(u32::MAX);
    let held = Arc::clone(&app.bodies).try_acquire_many_owned(kib);
    held.map_err(|_| ApiError::unavailable("the server holds as many bytes of requests as it may: try again"))
}

async fn next_part(app: &App, body: &mut BodyDataStream, began: Instant) -> Result<Option<Bytes>, ApiError> {
    let patience = app.settings.patience;
    let too_slow = || ApiError::timeout("the body of the request came too slowly: send it again");
    if began.elapsed() > patience * WHOLE_BODY {
        return Err(too_slow());
    }
    match timeout(patience, body.next()).await {
        Err(_) => Err(too_slow()),
        Ok(None) => Ok(None),
        Ok(Some(Ok(part))) => Ok(Some(part)),
        Ok(Some(Err(e))) => {
            let message = format!("the body of the request broke off: {e}");
            Err(ApiError::new(StatusCode::BAD_REQUEST, "incomplete_body", message))
        }
    }
}

async fn too_large(app: &App, body: &mut BodyDataStream) -> ApiError {
    let (began, mut left) = (Instant::now(), DRAINED);
    while let Ok(Some(part)) = next_part(app, body, began).await {
        left = left.saturating_sub(part.len());
        if left == 0 {
            break;
        }
    }
    let message =
        format!("the body is larger than {} bytes, the server's limit: send smaller images", app.settings.max_body);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}
