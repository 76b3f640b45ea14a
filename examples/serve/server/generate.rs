//! `/v1/chat/completions` and `/v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use haplovl::pipeline::Prompt;

use super::answers::Answers;
use super::app::App;
use super::body::read_json;
use super::content::ContentReader;
use super::error::ApiError;
use super::protocol::{ChatRequest, CompletionRequest, ResponseFormat};
use super::wish::{Form, Wish};

/// Largest number of alternatives beside a token, as in OpenAI's API.
const MAX_TOP_LOGPROBS: usize = 20;
const MAX_COMPLETION_LOGPROBS: usize = 5;
/// Length of a completion if the request has no limit, as in OpenAI's API.
const COMPLETION_TOKENS: usize = 16;

pub async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (request, held) = read_json::<ChatRequest>(&app, request).await?;
    let shared = Arc::clone(&app);
    let answers = app.work(move |_| {
        let answers = submit_chat(&shared, request);
        drop(held);
        answers
    });
    answers.await?.respond().await
}

pub async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
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
    app.check_model(request.model.as_deref())?;
    check_format(request.response_format.as_ref())?;
    let logprobs = chat_logprobs(request.logprobs, request.top_logprobs)?;
    let wish = Wish::new(Form::Chat, request.n, logprobs, request.stream, request.stream_options.take())?;
    let mut overrides = request.overrides();
    overrides.max_new_tokens = one_limit(overrides.max_new_tokens, request.max_completion_tokens)?;
    let generation = overrides.apply(app.engine.model().generation().clone())?;
    let conversation = ContentReader::new(app).conversation(request.messages)?;
    Answers::submit(app, wish, vec![conversation.into()], &generation)
}

fn submit_completion(app: &Arc<App>, mut request: CompletionRequest) -> Result<Answers, ApiError> {
    app.check_model(request.model.as_deref())?;
    if let Some(asked) = request.logprobs.filter(|asked| *asked > MAX_COMPLETION_LOGPROBS) {
        let message = format!("`logprobs` is {asked}, expected 0 to {MAX_COMPLETION_LOGPROBS}");
        return Err(ApiError::invalid("logprobs", message));
    }
    let wish = Wish::new(Form::Completion, request.n, request.logprobs, request.stream, request.stream_options.take())?;
    let mut overrides = request.overrides();
    overrides.max_new_tokens.get_or_insert(COMPLETION_TOKENS);
    let generation = overrides.apply(app.engine.model().generation().clone())?;
    let prompts = Vec::from_iter(request.prompt.0.into_iter().map(Prompt::from));
    if prompts.is_empty() {
        return Err(ApiError::invalid("prompt", "`prompt` is an empty list, expected at least one text"));
    }
    Answers::submit(app, wish, prompts, &generation)
}

fn check_format(format: Option<&ResponseFormat>) -> Result<(), ApiError> {
    match format {
        Some(format) if format.kind != "text" => {
            let message = format!(
                "`response_format.type` is `{}`, but this server supports `text` only: ask for the form in the prompt, \
                 and check the answer",
                format.kind
            );
            Err(ApiError::invalid("response_format.type", message))
        }
        _ => Ok(()),
    }
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
