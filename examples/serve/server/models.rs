//! `/v1/models` and `/health`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::app::{App, json_response};
use super::error::ApiError;

pub async fn list(State(app): State<Arc<App>>) -> Response {
    json_response(&json!({ "object": "list", "data": [model(&app)] }))
}

pub async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    app.check_model(Some(&id))?;
    Ok(json_response(&model(&app)))
}

pub async fn health() -> Response {
    json_response(&json!({ "status": "ok" }))
}

fn model(app: &App) -> Value {
    let config = app.engine.model().model().config();
    json!({
        "id": app.settings.model_id,
        "object": "model",
        "created": app.started,
        "owned_by": "haplovl",
        "context_length": config.max_position_embeddings,
        "layers": config.pre_decoder.num_hidden_layers + config.post_decoder.num_hidden_layers,
        "pre_decoder_layers": config.pre_decoder.num_hidden_layers,
    })
}
