//! A line for each request, and a subscriber that makes lines of events.

use std::fmt::{Debug, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::Error;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::app::unix_seconds;

/// Longest part of a path that is logged, in characters.
const MAX_PATH: usize = 200;

/// Token counts of a response, which its handler puts into the response's extensions, and fills while it streams.
#[derive(Debug, Clone, Default)]
pub struct TokenCounts(Arc<[AtomicUsize; 3]>);

impl TokenCounts {
    /// Sets the tokens of prompts, those of them that were cached, and the generated ones.
    pub fn set(&self, values: [usize; 3]) {
        self.0.iter().zip(values).for_each(|(count, value)| count.store(value, Ordering::Relaxed));
    }
}

/// A request, logged when its response has been sent or given up.
pub struct RequestLog {
    began: Instant,
    method: Method,
    path: String,
    status: StatusCode,
    tokens: TokenCounts,
    is_complete: bool,
}

impl RequestLog {
    pub fn new(request: &Request) -> Self {
        Self {
            began: Instant::now(),
            method: request.method().clone(),
            path: request.uri().path().chars().take(MAX_PATH).collect(),
            // Stays if the client goes away before there is a response: the status that servers log for that.
            status: StatusCode::from_u16(499).unwrap_or_default(),
            tokens: TokenCounts::default(),
            is_complete: false,
        }
    }

    /// The response, which takes this with it to its end.
    pub fn follow(mut self, mut response: Response) -> Response {
        self.status = response.status();
        self.is_complete = response.body().is_end_stream();
        self.tokens = response.extensions_mut().remove().unwrap_or_default();
        response.map(|body| Body::new(LoggedBody { body, log: self }))
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let [prompt_tokens, cached_tokens, new_tokens] =
            self.tokens.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        tracing::info!(
            method = %self.method,
            path = self.path,
            status = self.status.as_u16(),
            seconds = self.began.elapsed().as_secs_f64(),
            prompt_tokens,
            cached_tokens,
            new_tokens,
            complete = self.is_complete,
            "request"
        );
    }
}

/// A body that ends its request's log.
struct LoggedBody {
    body: Body,
    log: RequestLog,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.log.is_complete = frame.is_none() || self.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A subscriber that makes a line of each event from the level INFO up: seconds since 1970, level, message, fields.
pub struct LineLog<F>(pub F);

impl<F: Fn(&str) + Send + Sync + 'static> Subscriber for LineLog<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let Line { message, fields } = line;
        (self.0)(&format!("{} {} {message}{fields}", unix_seconds(), event.metadata().level()));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Message and fields of an event; what clients sent stays on one line.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.record_debug(field, &format_args!("{value:.3}"));
    }
}
