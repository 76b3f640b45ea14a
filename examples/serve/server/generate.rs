//! `/v1/chat/completions` and `/v1/completions`.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use haplovl::generation::Constraint;
use haplovl::pipeline::{Prompt, Request};
use serde_json::Map;

use super::answers::Answers;
use super::app::App;
use super::body::read_json;
use super::content::ContentReader;
use super::error::ApiError;
use super::named_model::NamedModel;
use super::protocol::{ChatRequest, CompletionRequest, FormatKind, ResponseFormat};
use super::wish::{Form, Wish};

/// Largest number of alternatives beside a token, as in OpenAI's API.
const MAX_TOP_LOGPROBS: usize = 20;
const MAX_COMPLETION_LOGPROBS: usize = 5;
/// Length of a completion if the request has no limit, as in OpenAI's API.
const COMPLETION_TOKENS: usize = 16;

pub async fn chat(State(app): State<Arc<App>>, request: HttpRequest) -> Result<Response, ApiError> {
    let (request, held) = read_json::<ChatRequest>(&app, request).await?;
    let shared = Arc::clone(&app);
    let answers = app.work(move |_| {
        let answers = submit_chat(&shared, request);
        drop(held);
        answers
    });
    answers.await?.respond().await
}

pub async fn completions(State(app): State<Arc<App>>, request: HttpRequest) -> Result<Response, ApiError> {
    let (request, held) = read_json::<CompletionRequest>(&app, request).await?;
    let shared = Arc::clone(&app);
    let answers = app.work(move |_| {
        let answers = submit_completion(&shared, request);
        drop(held);
        answers
    });
    answers.await?.respond().await
}

fn submit_chat(app: &Arc<App>, mut request: ChatRequest) -> Result<Answers, ApiError> {
    let named = app.models.find(request.model.as_deref())?;
    let logprobs = chat_logprobs(request.logprobs, request.top_logprobs)?;
    let wish = Wish::new(Form::Chat, request.n, logprobs, request.stream, request.stream_options.take())?;
    let mut overrides = request.overrides();
    overrides.max_new_tokens = one_limit(overrides.max_new_tokens, request.max_completion_tokens)?;
    let generation = overrides.apply(named.model.generation().clone())?;
    let constraint = request.response_format.map(|format| constraint(app, &named, format)).transpose()?.flatten();
    let conversation = ContentReader::new(app).conversation(request.messages)?;
    let answer = Request::new((), generation).with_constraint(constraint);
    Answers::submit(app, named, wish, vec![conversation.into()], &answer)
}

fn submit_completion(app: &Arc<App>, mut request: CompletionRequest) -> Result<Answers, ApiError> {
    let named = app.models.find(request.model.as_deref())?;
    if let Some(asked) = request.logprobs.filter(|asked| *asked > MAX_COMPLETION_LOGPROBS) {
        let message = format!("`logprobs` is {asked}, expected 0 to {MAX_COMPLETION_LOGPROBS}");
        return Err(ApiError::invalid("logprobs", message));
    }
    let wish = Wish::new(Form::Completion, request.n, request.logprobs, request.stream, request.stream_options.take())?;
    let mut overrides = request.overrides();
    overrides.max_new_tokens.get_or_insert(COMPLETION_TOKENS);
    let generation = overrides.apply(named.model.generation().clone())?;
    let prompts = Vec::from_iter(request.prompt.0.into_iter().map(Prompt::from));
    if prompts.is_empty() {
        return Err(ApiError::invalid("prompt", "`prompt` is an empty list, expected at least one text"));
    }
    Answers::submit(app, named, wish, prompts, &Request::new((), generation))
}

/// What a `response_format` makes of answers.
fn constraint(app: &App, named: &NamedModel, format: ResponseFormat) -> Result<Option<Arc<dyn Constraint>>, ApiError> {
    let schema = match (format.kind, format.json_schema) {
        (FormatKind::Text, None) => return Ok(None),
        (FormatKind::JsonObject, None) => Map::from_iter([("type".into(), "object".into())]),
        (FormatKind::JsonSchema, Some(named)) => named.schema.checked()?,
        (FormatKind::JsonSchema, None) => {
            return Err(ApiError::missing("response_format.json_schema"));
        }
        (_, Some(_)) => {
            let message = "`response_format.json_schema` is for the type `json_schema`: set it, or leave this out";
            return Err(ApiError::invalid("response_format.json_schema", message));
        }
    };
    app.grammars.compile(&named.model, schema).map(Some)
}

fn chat_logprobs(wanted: Option<bool>, top: Option<usize>) -> Result<Option<usize>, ApiError> {
    match (wanted.unwrap_or(false), top) {
        (true, top) if top.unwrap_or(0) <= MAX_TOP_LOGPROBS => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (true, top) => {
            let message = format!("`top_logprobs` is {}, expected 0 to {MAX_TOP_LOGPROBS}", top.unwrap_or(0));
            Err(ApiError::invalid("top_logprobs", message))
        }
        (false, Some(_)) => {
            let message = "`top_logprobs` needs `logprobs`: set it to true, or leave both out";
            Err(ApiError::invalid("top_logprobs", message))
        }
    }
}

/// The limit of an answer, which has an old and a new name.
fn one_limit(old: Option<usize>, new: Option<usize>) -> Result<Option<usize>, ApiError> {
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let message =
                format!("`max_tokens` is {old} and `max_completion_tokens` {new}, which mean the same: give one");
            Err(ApiError::invalid("max_tokens", message))
        }
        (old, new) => Ok(new.or(old)),
    }
}
