//! `/v1/embeddings`: the mean of the pre-decoder's hidden states over a text or an image, of length 1.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use haplovl::pipeline::Embedder;
use haplovl::processor::Content;
use serde_json::{Value, json};

use super::app::{App, json_response};
use super::body::read_json;
use super::content::ContentReader;
use super::error::ApiError;
use super::protocol::{EmbeddingRequest, EncodingFormat};

/// Largest number of inputs of a request.
const MAX_INPUTS: usize = 256;

pub async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (request, held) = read_json::<EmbeddingRequest>(&app, request).await?;
    let format = request.encoding_format.unwrap_or_default();
    let _turn = app.turn().await?;
    let named = app.models.find(request.model.as_deref())?;
    let width = named.model.model().config().pre_decoder.hidden_size;
    let contents = app.work(move |app| {
        let contents = read(app, request, width);
        drop(held);
        contents
    });
    let (mut data, mut tokens) = (Vec::new(), 0);
    // One at a time, so that streams under way go on between two.
    for (index, content) in contents.await?.into_iter().enumerate() {
        let embedding = app.on_engine(&named.model, move |model| Embedder::new(model).embed(&content)).await?;
        tokens += embedding.tokens;
        let vector = encoded(&embedding.vector, format);
        data.push(json!({ "object": "embedding", "index": index, "embedding": vector }));
    }
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(json_response(&json!({ "object": "list", "data": data, "model": named.id, "usage": usage })))
}

fn read(app: &App, request: EmbeddingRequest, width: usize) -> Result<Vec<Content>, ApiError> {
    if let Some(asked) = request.dimensions.filter(|asked| *asked != width) {
        let message = format!("`dimensions` is {asked}, but the model's embeddings have {width}: leave it out");
        return Err(ApiError::invalid("dimensions", message));
    }
    let parts = request.input.0;
    if !(1..=MAX_INPUTS).contains(&parts.len()) {
        let message = format!("`input` has {} items, expected 1 to {MAX_INPUTS}", parts.len());
        return Err(ApiError::invalid("input", message));
    }
    let mut reader = ContentReader::new(app);
    let parts = parts.into_iter().enumerate();
    parts.map(|(n, part)| reader.part(&format!("input[{n}]"), part)).collect()
}

/// The vector as numbers, or as base64 of its little-endian bytes.
fn encoded(vector: &[f32], format: EncodingFormat) -> Value {
    match format {
        EncodingFormat::Float => json!(vector),
        EncodingFormat::Base64 => {
            let bytes = Vec::from_iter(vector.iter().flat_map(|value| value.to_le_bytes()));
            BASE64_STANDARD.encode(bytes).into()
        }
    }
}
