//! `/v1/attention`, an endpoint of this server alone: the attention of a word of the messages to the parts of each image.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use haplovl::pipeline::{LoadedModel, Word};
use haplovl::processor::{AttentionCell, AttentionMap, Conversation};
use serde_json::{Value, json};

use super::app::{App, json_response};
use super::body::read_json;
use super::content::ContentReader;
use super::error::ApiError;
use super::protocol::AttentionRequest;

/// Largest attention matrices of a layer in bytes: all heads, all pairs of positions, f32.
const MAX_MATRICES: usize = 1 << 30;

pub async fn attention(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (mut request, held) = read_json::<AttentionRequest>(&app, request).await?;
    let named = app.models.find(request.model.as_deref())?;
    let _turn = app.turn().await?;
    let messages = std::mem::take(&mut request.messages);
    let conversation = app.work(move |app| {
        let conversation = ContentReader::new(app).conversation(messages);
        drop(held);
        conversation
    });
    let conversation = conversation.await?;
    let maps = app.on_engine(&named.model, move |model| maps(model, &conversation, &request));
    maps.await.map(|value| json_response(&value))
}

fn maps(model: &LoadedModel, conversation: &Conversation, request: &AttentionRequest) -> haplovl::Result<Value> {
    check_length(model, conversation)?;
    let config = model.model().config();
    let (pre, post) = (config.pre_decoder.num_hidden_layers, config.post_decoder.num_hidden_layers);
    let layer = request.layer.unwrap_or(pre.saturating_sub(1));
    let word = Word { text: &request.word, occurrence: request.occurrence };
    let maps = model.word_attention(conversation, word, layer, request.head)?;
    Ok(json!({
        "object": "attention",
        "word": request.word,
        "layer": layer,
        "layers": pre + post,
        "pre_decoder_layers": pre,
        "images": maps.iter().map(image).collect::<Vec<_>>(),
    }))
}

fn check_length(model: &LoadedModel, conversation: &Conversation) -> haplovl::Result<()> {
    let positions = model.processor().sequence(conversation, true)?.len();
    let config = model.model().config();
    let heads = config.pre_decoder.num_attention_heads.max(config.post_decoder.num_attention_heads);
    let bytes = positions.saturating_mul(positions).saturating_mul(4 * heads);
    if bytes <= MAX_MATRICES {
        return Ok(());
    }
    Err(haplovl::Error::prompt(format!(
        "has {positions} tokens, whose attention takes {bytes} bytes, more than the limit of {MAX_MATRICES}: send fewer \
         messages or smaller images"
    )))
}

/// The map of an image: borders of its cells in pixels, and the cells' weights in reading order.
fn image(map: &AttentionMap) -> Value {
    let (size, cells) = (map.size(), map.cells());
    let row = cells.get(..size.width).unwrap_or_default();
    let column = Vec::from_iter(cells.iter().step_by(size.width.max(1)));
    let x = row.iter().map(|cell| cell.pixel_columns.start).chain(row.last().map(|cell| cell.pixel_columns.end));
    let y = column.iter().map(|cell| cell.pixel_rows.start).chain(column.last().map(|cell| cell.pixel_rows.end));
    let weight = |cell: &AttentionCell| cell.weight;
    json!({
        "rows": size.height,
        "columns": size.width,
        "x": x.collect::<Vec<_>>(),
        "y": y.collect::<Vec<_>>(),
        "weights": cells.iter().map(weight).collect::<Vec<_>>(),
        "total": map.total(),
    })
}
