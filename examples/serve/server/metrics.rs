//! `/metrics`: counters, gauges and histograms as Prometheus reads them.

use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use haplovl::pipeline::{Histogram, Metrics};

use super::app::App;

pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut page = Page::default();
    of_engine(&mut page, &app.engine.metrics());
    page.head("answers_accepted_total", "counter", "Answers that entered the queue, by model.");
    for model in app.models.iter() {
        page.value("answers_accepted_total", &format!("{{model=\"{}\"}}", escaped(&model.id)), model.answers());
    }
    page.head("http_responses_total", "counter", "Responses by route and status.");
    for ((route, status), count) in app.responses() {
        page.value("http_responses_total", &format!("{{route=\"{route}\",status=\"{status}\"}}"), count);
    }
    page.gauge("http_connections", "Open connections.", app.open_connections());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.0).into_response()
}

/// A label's value as the format has it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn of_engine(page: &mut Page, metrics: &Metrics) {
    let requests = &metrics.requests;
    page.head("requests_total", "counter", "Requests to the engine by outcome.");
    for (outcome, count) in [
        ("stopped", requests.stopped),
        ("length", requests.length),
        ("cancelled", requests.cancelled),
        ("timed_out", requests.timed_out),
        ("failed", requests.failed),
        ("queue_full", requests.queue_full),
        ("refused", requests.refused),
    ] {
        page.value("requests_total", &format!("{{outcome=\"{outcome}\"}}"), count);
    }
    page.counter("requests_accepted_total", "Requests that entered the queue.", requests.accepted);
    page.counter("prompt_tokens_total", "Tokens of prompts.", metrics.prompt_tokens);
    page.counter("cached_tokens_total", "Tokens of prompts found in the prefix cache.", metrics.cached_tokens);
    page.counter("new_tokens_total", "Generated tokens.", metrics.new_tokens);
    page.counter("decode_steps_total", "Decode steps.", metrics.decode_steps);
    let cache = &metrics.prefix_cache;
    page.counter("prefix_cache_hits_total", "Chunks of prompts found in the prefix cache.", cache.hits);
    page.counter("prefix_cache_misses_total", "Chunks of prompts not found in the prefix cache.", cache.misses);
    page.counter("prefix_cache_evictions_total", "Chunks removed from the prefix cache.", cache.evictions);
    page.gauge("prefix_cache_chunks", "Chunks in the prefix cache.", cache.chunks);
    page.gauge("prefix_cache_bytes", "Bytes of the prefix cache.", cache.bytes);
    page.gauge("kv_budget_bytes", "Bytes that keys and values may take.", metrics.kv_budget_bytes);
    page.gauge("kv_reserved_bytes", "Bytes reserved for requests under way.", metrics.kv_reserved_bytes);
    page.gauge("requests_waiting", "Requests in the queue.", metrics.waiting);
    page.gauge("requests_running", "Requests that are prefilled or decoded.", metrics.running);
    page.gauge("batch_size", "Sequences of the last decode step.", metrics.batch_size);
    page.histogram("queue_seconds", "Seconds in the queue.", &metrics.queue_seconds);
    page.histogram("first_token_seconds", "Seconds to the first token.", &metrics.first_token_seconds);
    page.histogram("inter_token_seconds", "Seconds between tokens.", &metrics.inter_token_seconds);
    page.histogram("request_seconds", "Seconds to the end of an answer.", &metrics.request_seconds);
}

/// Text of the page.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP haplovl_{name} {help}\n# TYPE haplovl_{name} {kind}\n");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "haplovl_{name}{labels} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.value(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.value(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        for (bound, count) in histogram.cumulative() {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".into() };
            self.value(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), count);
        }
        self.value(&format!("{name}_sum"), "", histogram.sum());
        self.value(&format!("{name}_count"), "", histogram.count());
    }
}
