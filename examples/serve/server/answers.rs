//! Answers to a request: one or several choices, whole or as a stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use haplovl::generation::{CancelToken, FinishReason};
use haplovl::pipeline::{Event, Finished, Prompt, Request, SubmitError, TokenLogprob};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::app::{App, json_response, new_id, unix_seconds};
use super::error::ApiError;
use super::log::TokenCounts;
use super::logprobs::Logprobs;
use super::named_model::NamedModel;
use super::wish::{Form, MAX_CHOICES, Wish};

/// Time without a token after which a comment shows that the server is there.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Answers under way; dropping them cancels their work.
pub struct Answers {
    app: Arc<App>,
    named: Arc<NamedModel>,
    wish: Wish,
    events: UnboundedReceiver<(usize, Event)>,
    cancels: Vec<CancelToken>,
    choices: Vec<Choice>,
    id: String,
    created: u64,
    /// An event that was read before the head of the response was sent.
    first: Option<(usize, Event)>,
    /// Token counts for the log, set at the end.
    counts: TokenCounts,
}

/// State of one choice.
#[derive(Default)]
struct Choice {
    text: String,
    logprobs: Logprobs,
    finish_reason: Option<&'static str>,
    prompt_tokens: usize,
    cached_tokens: usize,
    new_tokens: usize,
}

impl Answers {
    /// Submits all choices of all prompts, or none; `answer` is the request but for its prompt.
    pub fn submit(
        app: &Arc<App>,
        named: Arc<NamedModel>,
        wish: Wish,
        prompts: Vec<Prompt>,
        answer: &Request<()>,
    ) -> Result<Self, ApiError> {
        let count = prompts.len() * wish.n;
        if count > MAX_CHOICES {
            let message = format!("the request has {count} answers, expected at most {MAX_CHOICES}");
            return Err(ApiError::invalid("prompt", message));
        }
        let (sender, events) = unbounded_channel();
        let mut answers = Self::new(Arc::clone(app), named, wish, events, count);
        let Wish { n, logprobs, .. } = answers.wish;
        for (prompt, first) in prompts.into_iter().zip((0..).step_by(n)) {
            let request = answer.clone().with_logprobs(logprobs).with_adapter(answers.named.adapter.clone());
            let request = request.try_map(|()| Ok(prompt))?;
            let handles = app.engine.submit_choices(request, n).map_err(|error| refusal(app, error))?;
            for (index, handle) in (first..).zip(handles) {
                let sender = sender.clone();
                answers.cancels.push(handle.forward(move |event| sender.send((index, event)).is_ok())?);
            }
        }
        answers.named.count(count);
        Ok(answers)
    }

    fn new(
        app: Arc<App>,
        named: Arc<NamedModel>,
        wish: Wish,
        events: UnboundedReceiver<(usize, Event)>,
        count: usize,
    ) -> Self {
        let prefix = if wish.form == Form::Chat { "chatcmpl-" } else { "cmpl-" };
        Self {
            app,
            named,
            wish,
            events,
            cancels: Vec::with_capacity(count),
            choices: (0..count).map(|_| Choice::default()).collect(),
            id: new_id(prefix),
            created: unix_seconds(),
            first: None,
            counts: TokenCounts::default(),
        }
    }

    /// The response: an error if one is known by the time of the first event.
    pub async fn respond(self) -> Result<Response, ApiError> {
        let counts = self.counts.clone();
        let mut response = self.response().await?;
        response.extensions_mut().insert(counts);
        Ok(response)
    }

    async fn response(mut self) -> Result<Response, ApiError> {
        if !self.wish.stream {
            return self.whole().await;
        }
        let first = self.events.recv().await;
        self.first = Some(self.checked(first)?);
        let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
        Ok(Sse::new(self.into_stream()).keep_alive(keep_alive).into_response())
    }

    async fn next(&mut self) -> Result<(usize, Event), ApiError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let event = self.events.recv().await;
        self.checked(event)
    }

    /// An event, unless it is that of a failure.
    fn checked(&self, event: Option<(usize, Event)>) -> Result<(usize, Event), ApiError> {
        match event {
            Some((_, Event::Failed(error))) => Err(error.into()),
            Some((_, Event::Finished(Finished { reason: FinishReason::TimedOut, .. }))) => Err(self.app.too_late()),
            Some((_, Event::Finished(Finished { reason: FinishReason::Cancelled, .. }))) | None => {
                Err(ApiError::unavailable("the answer was given up, since the server ends"))
            }
            Some(event) => Ok(event),
        }
    }

    fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish_reason.is_some())
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        while !self.is_complete() {
            let (index, event) = self.next().await?;
            let tokens = self.choices[index].take(event);
            self.choices[index].logprobs.extend(&self.named.model, tokens)?;
        }
        let choices = self.choices.iter().enumerate().map(|(index, choice)| self.choice(index, choice));
        let choices = choices.collect::<Vec<_>>();
        let mut body = self.frame(choices.into(), false);
        body["usage"] = self.usage();
        Ok(json_response(&body))
    }

    /// The choice of a whole answer.
    fn choice(&self, index: usize, choice: &Choice) -> Value {
        let logprobs = self.logprobs(&choice.logprobs);
        let (text, reason) = (&choice.text, choice.finish_reason);
        match self.wish.form {
            Form::Chat => json!({
                "index": index,
                "message": { "role": "assistant", "content": text, "refusal": null },
                "logprobs": logprobs,
                "finish_reason": reason,
            }),
            Form::Completion => {
                json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
            }
        }
    }

    fn logprobs(&self, logprobs: &Logprobs) -> Value {
        match (self.wish.logprobs, self.wish.form) {
            (None, _) => Value::Null,
            (_, Form::Chat) => logprobs.for_chat(),
            (_, Form::Completion) => logprobs.for_completion(),
        }
    }

    /// The fields around choices.
    fn frame(&self, choices: Value, is_chunk: bool) -> Value {
        let object = match (self.wish.form, is_chunk) {
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
            (Form::Completion, _) => "text_completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.named.id,
            "choices": choices,
        })
    }

    /// Tokens of prompts, those of them that were cached, and the new ones of answers that have ended: each prompt counts
    /// once, however many choices it has.
    fn token_counts(&self) -> [usize; 3] {
        let prompts = || self.choices.iter().step_by(self.wish.n);
        let prompt: usize = prompts().map(|choice| choice.prompt_tokens).sum();
        let cached: usize = prompts().map(|choice| choice.cached_tokens).sum();
        [prompt, cached, self.choices.iter().map(|choice| choice.new_tokens).sum()]
    }

    fn usage(&self) -> Value {
        let [prompt, cached, new] = self.token_counts();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": { "cached_tokens": cached },
        })
    }

    /// The events of a stream: chunks, the token counts if asked for, and `[DONE]`; an error ends it.
    fn into_stream(self) -> impl futures_util::Stream<Item = Result<SseEvent, Infallible>> {
        stream::unfold(StreamState::Answers(Box::new(self)), |state| async move {
            let (data, state) = match state {
                StreamState::Answers(mut answers) => match answers.next_chunk().await {
                    Ok(Some(chunk)) => (chunk.to_string(), StreamState::Answers(answers)),
                    Ok(None) => ("[DONE]".into(), StreamState::Done),
                    Err(error) => (error.to_json().to_string(), StreamState::Failed),
                },
                StreamState::Failed => ("[DONE]".into(), StreamState::Done),
                StreamState::Done => return None,
            };
            Some((Ok(SseEvent::default().data(data)), state))
        })
    }

    /// The next chunk; `None` after the last one.
    async fn next_chunk(&mut self) -> Result<Option<Value>, ApiError> {
        if self.is_complete() {
            let wants_usage = std::mem::take(&mut self.wish.include_usage);
            return Ok(wants_usage.then(|| {
                let mut chunk = self.frame(json!([]), true);
                chunk["usage"] = self.usage();
                chunk
            }));
        }
        let (index, event) = self.next().await?;
        let choice = self.piece(index, event)?;
        Ok(Some(self.frame(json!([choice]), true)))
    }

    /// The choice of a chunk.
    fn piece(&mut self, index: usize, event: Event) -> Result<Value, ApiError> {
        let is_start = matches!(event, Event::Started { .. });
        let choice = &mut self.choices[index];
        let before = choice.text.len();
        let tokens = choice.take(event);
        // Only their place is kept of log probabilities that were sent.
        let mut logprobs = std::mem::take(&mut choice.logprobs);
        logprobs.extend(&self.named.model, tokens)?;
        choice.logprobs = logprobs.empty_after();
        let (text, reason) = (choice.text[before..].to_string(), choice.finish_reason);
        let logprobs = if logprobs.is_empty() { Value::Null } else { self.logprobs(&logprobs) };
        Ok(match self.wish.form {
            Form::Chat => {
                let delta = match (is_start, reason) {
                    (true, _) => json!({ "role": "assistant", "content": "" }),
                    (false, Some(_)) => json!({}),
                    (false, None) => json!({ "content": text }),
                };
                json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason })
            }
            Form::Completion => json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason }),
        })
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.cancels.iter().for_each(CancelToken::cancel);
        self.counts.set(self.token_counts());
    }
}

enum StreamState {
    Answers(Box<Answers>),
    Failed,
    Done,
}

impl Choice {
    /// Takes an event, and returns the tokens of its text.
    fn take(&mut self, event: Event) -> Vec<TokenLogprob> {
        match event {
            Event::Started { prompt_tokens, cached_tokens } => {
                (self.prompt_tokens, self.cached_tokens) = (prompt_tokens, cached_tokens);
            }
            Event::Text { text, tokens } => {
                self.text.push_str(&text);
                return tokens;
            }
            Event::Finished(finished) => {
                self.new_tokens = finished.timings.new_tokens;
                self.finish_reason = Some(match finished.reason {
                    FinishReason::Length => "length",
                    _ => "stop",
                });
            }
            _ => {}
        }
        vec![]
    }
}

/// The response to a request that the engine did not accept.
fn refusal(app: &App, error: SubmitError) -> ApiError {
    match error {
        SubmitError::QueueFull { .. } => ApiError::busy(error.to_string(), app.engine.metrics().expected_wait()),
        SubmitError::ShutDown => ApiError::unavailable("the server ends and takes no more requests"),
        SubmitError::TooLarge { needed, budget } => ApiError::invalid(
            "max_completion_tokens",
            format!(
                "the request may need {needed} bytes of KV cache, the server has {budget}: shorten the prompt, ask for \
                 fewer tokens, or raise the server's `--cache-mb`"
            ),
        ),
        SubmitError::Invalid(error) => error.into(),
        other => ApiError::internal(other.to_string()),
    }
}
