//! `/v1/models` and `/health`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::app::{App, json_response};
use super::error::ApiError;
use super::named_model::NamedModel;

pub async fn list(State(app): State<Arc<App>>) -> Response {
    let models = app.models.iter().map(|named| model(&app, named)).collect::<Vec<_>>();
    json_response(&json!({ "object": "list", "data": models }))
}

pub async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let named = app.models.find(Some(&id))?;
    Ok(json_response(&model(&app, &named)))
}

pub async fn health() -> Response {
    json_response(&json!({ "status": "ok" }))
}

fn model(app: &App, named: &NamedModel) -> Value {
    let config = named.model.model().config();
    json!({
        "id": named.id,
        "object": "model",
        "created": app.started,
        "owned_by": "haplovl",
        "parent": named.adapter.as_ref().map(|_| &app.settings.model_id),
        "context_length": config.max_position_embeddings,
        "layers": config.pre_decoder.num_hidden_layers + config.post_decoder.num_hidden_layers,
        "pre_decoder_layers": config.pre_decoder.num_hidden_layers,
    })
}
