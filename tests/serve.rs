//! The example `serve`: endpoints, streams, errors, limits, cancellation and shutdown, over real connections.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "serve/browser.rs"]
mod browser;
#[path = "serve/client.rs"]
mod client;
#[path = "serve/folders.rs"]
mod folders;
#[path = "serve/http.rs"]
mod http;
#[path = "../examples/common/memory.rs"]
mod memory;
#[path = "serve/models.rs"]
mod models;
#[path = "serve/page.rs"]
mod page;
#[path = "../examples/serve/server/mod.rs"]
mod server;
#[path = "serve/soak.rs"]
mod soak;
#[path = "serve/structured.rs"]
mod structured;

use std::io::{Cursor, Read, Write};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::pipeline::{EngineConfig, VisualQuestionAnswerer};
use haplovl::processor::RgbImage;
use image::ImageFormat;
use serde_json::{Value, json};

use client::Server;
use http::Reply;
use server::{ApiKeys, Hosts, LineLog, Settings};

const CHAT: &str = "/v1/chat/completions";

/// A server that most tests share.
static SERVER: LazyLock<Server> = LazyLock::new(|| Server::start(Settings::default(), EngineConfig::default()));

fn scene(index: u64) -> RgbImage {
    Split::Test.scene(index, &ShapesConfig::default()).render(64)
}

/// An example image of the page.
fn page_example(index: u64) -> RgbImage {
    Split::Test.scene(index, &ShapesConfig::default()).render(336)
}

fn data_url(image: &RgbImage) -> String {
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).unwrap();
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png.into_inner()))
}

fn image_part(url: &str) -> Value {
    json!({ "type": "image_url", "image_url": { "url": url } })
}

/// A message about a scene.
fn asked(index: u64, question: &str) -> Value {
    let content = json!([image_part(&data_url(&scene(index))), { "type": "text", "text": question }]);
    json!([{ "role": "user", "content": content }])
}

/// The body of a request about a scene, with further fields.
fn about(index: u64, question: &str, fields: Value) -> Value {
    let mut body = json!({ "model": "builtin", "messages": asked(index, question) });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn answers_equal_those_of_the_library() {
    let answerer = VisualQuestionAnswerer::new(SERVER.app.engine.model());
    for (index, question) in [(4, "how many objects are there?"), (7, "describe the image."), (9, "list all objects.")]
    {
        let right = answerer.ask([scene(index).into()], question).unwrap();
        let answer = SERVER.post(CHAT, &about(index, question, json!({}))).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], right.sequence.text, "{question}");
        assert_eq!(choice["message"]["role"], "assistant");
        assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));
        assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("builtin")));
        let (prompt, new) = (right.timings.prompt_tokens, right.timings.new_tokens);
        assert_eq!(answer["usage"]["prompt_tokens"], prompt);
        assert_eq!(
            (&answer["usage"]["completion_tokens"], &answer["usage"]["total_tokens"]),
            (&json!(new), &json!(prompt + new))
        );
        assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    }
}

#[test]
fn a_stream_adds_up_to_the_whole_answer() {
    let ask = |fields| SERVER.post(CHAT, &about(3, "describe the image.", fields));
    let whole = ask(json!({})).json();
    let events = ask(json!({ "stream": true, "stream_options": { "include_usage": true } })).events();
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"]));
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    // The second question about an image finds it in the cache.
    assert!(usage["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
    assert_eq!(text_of(chunks), whole["choices"][0]["message"]["content"]);
    let reasons = Vec::from_iter(chunks.iter().map(|chunk| chunk["choices"][0]["finish_reason"].clone()));
    assert_eq!(reasons.iter().filter(|reason| !reason.is_null()).count(), 1);
    assert_eq!(reasons.last(), Some(&json!("stop")));
    assert!(chunks.len() > 4 && chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

/// The text of a chat's chunks.
fn text_of(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[test]
fn choices_differ_by_stream_and_repeat_by_seed() {
    let ask = |seed: i64, stream: bool| {
        let fields = json!({ "n": 4, "temperature": 1.8, "seed": seed, "stream": stream });
        SERVER.post(CHAT, &about(3, "describe the image.", fields))
    };
    let texts = |answer: &Value| {
        let choices = answer["choices"].as_array().unwrap();
        let indices = Vec::from_iter(choices.iter().map(|choice| choice["index"].as_u64().unwrap()));
        assert_eq!(indices, [0, 1, 2, 3]);
        Vec::from_iter(choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap().to_string()))
    };
    let first = texts(&ask(5, false).json());
    assert_eq!(texts(&ask(5, false).json()), first);
    assert_ne!(texts(&ask(-6, false).json()), first);
    assert!(first.iter().any(|text| *text != first[0]), "{first:?}");
    let events = ask(5, true).events();
    for (index, text) in first.iter().enumerate() {
        let of_choice = |event: &&Value| event["choices"][0]["index"] == index;
        assert_eq!(text_of(&Vec::from_iter(events.iter().filter(of_choice).cloned())), *text);
    }
    let usage = ask(5, false).json()["usage"].clone();
    let one = SERVER.post(CHAT, &about(3, "describe the image.", json!({ "max_tokens": 1 }))).json();
    assert_eq!(usage["prompt_tokens"], one["usage"]["prompt_tokens"]);
    assert_eq!(one["choices"][0]["finish_reason"], "length");
}

#[test]
fn without_a_seed_samples_differ() {
    let fields = || json!({ "temperature": 2.0, "n": 2, "max_completion_tokens": 20 });
    let ask = || SERVER.post(CHAT, &about(3, "describe the image.", fields())).json()["choices"].clone();
    assert_ne!(ask(), ask());
}

#[test]
fn log_probabilities_are_those_of_the_tokens() {
    let fields = json!({ "logprobs": true, "top_logprobs": 3 });
    let answer = SERVER.post(CHAT, &about(3, "describe the image.", fields.clone())).json();
    let choice = &answer["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert!(tokens.len() + 1 >= answer["usage"]["completion_tokens"].as_u64().unwrap() as usize);
    assert!(!text.is_empty());
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy decoding takes the likeliest.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&token["token"], &token["logprob"]));
        assert!(top.windows(2).all(|pair| pair[0]["logprob"].as_f64() >= pair[1]["logprob"].as_f64()));
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        assert_eq!(token["bytes"], json!(token["token"].as_str().unwrap().as_bytes()));
    }
    let mut streamed = fields;
    streamed["stream"] = true.into();
    let events = SERVER.post(CHAT, &about(3, "describe the image.", streamed)).events();
    let pieces = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    let pieces = Vec::from_iter(pieces.flatten());
    assert_eq!(pieces.len(), tokens.len());
    for (piece, token) in pieces.into_iter().zip(tokens) {
        assert_eq!(piece["token"], token["token"]);
        assert_eq!(piece["logprob"], token["logprob"], "{piece} {token}");
    }
}

#[test]
fn stop_strings_and_limits_end_answers() {
    let ask = |fields| SERVER.post(CHAT, &about(3, "describe the image.", fields)).json();
    let whole = ask(json!({}))["choices"][0]["message"]["content"].as_str().unwrap().to_string();
    let word = whole.split(' ').nth(3).unwrap();
    for stop in [json!(word), json!(["nowhere", word])] {
        let cut = ask(json!({ "stop": stop }));
        assert_eq!(cut["choices"][0]["message"]["content"], whole.split_once(word).unwrap().0);
        assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    }
    let short = ask(json!({ "max_completion_tokens": 3, "max_tokens": 3 }));
    assert_eq!(
        (&short["usage"]["completion_tokens"], &short["choices"][0]["finish_reason"]),
        (&json!(3), &json!("length"))
    );
}

#[test]
fn a_conversation_goes_on_with_the_answer_as_it_came() {
    let mut body = about(4, "how many objects are there?", json!({}));
    let first = SERVER.post(CHAT, &body).json();
    // Clients send the message back with all its fields.
    let messages = body["messages"].as_array_mut().unwrap();
    messages.insert(0, json!({ "role": "developer", "content": "answer in words." }));
    messages.push(first["choices"][0]["message"].clone());
    messages.push(json!({ "role": "user", "content": [{ "type": "text", "text": "describe the image." }] }));
    let second = SERVER.post(CHAT, &body).json();
    assert!(!second["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
}

#[test]
fn several_images_are_seen() {
    let images = [4, 5].map(|index| image_part(&data_url(&scene(index))));
    let content = json!([{ "type": "text", "text": "describe the image." }, images[0], images[1]]);
    let body = json!({ "messages": [{ "role": "user", "content": content }] });
    let tokens = |reply: Reply| reply.json()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(SERVER.post(CHAT, &body)) > tokens(SERVER.post(CHAT, &about(4, "describe the image.", json!({})))));
}

#[test]
fn completions_go_on_from_a_text() {
    let body = json!({ "model": "builtin", "prompt": ["the picture shows", "a large red"], "n": 2, "logprobs": 2, "max_tokens": 5 });
    let answer = SERVER.post("/v1/completions", &body).json();
    assert_eq!(answer["object"], "text_completion");
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert_eq!((&choices[0]["text"], &choices[2]["text"]), (&choices[1]["text"], &choices[3]["text"]));
    assert_ne!(choices[0]["text"], choices[2]["text"]);
    let logprobs = &choices[0]["logprobs"];
    let count = logprobs["tokens"].as_array().unwrap().len();
    for list in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().unwrap().len(), count, "{list}");
    }
    assert_eq!(logprobs["text_offset"][0], 0);
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 2);
    let streamed = json!({ "prompt": "the picture shows", "max_tokens": 5, "stream": true });
    let events = SERVER.post("/v1/completions", &streamed).events();
    let text: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, choices[0]["text"].as_str().unwrap());
}

#[test]
fn models_health_and_metrics() {
    let models = SERVER.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("builtin")));
    assert_eq!(SERVER.get("/v1/models/builtin").json(), models["data"][0]);
    assert_eq!(SERVER.get("/v1/models/org/other").error(404)["code"], "model_not_found");
    assert_eq!(SERVER.get("/health").json(), json!({ "status": "ok" }));
    SERVER.post(CHAT, &about(1, "describe the image.", json!({}))).json();
    let metrics = SERVER.get("/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let value = |name: &str| -> f64 {
        let line = metrics.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {}", metrics.text())).parse().unwrap()
    };
    assert!(value("haplovl_new_tokens_total") > 1.0);
    assert!(value("haplovl_first_token_seconds_count") >= 1.0);
    assert!(value("haplovl_prefix_cache_bytes") > 0.0);
    assert!(value("haplovl_http_responses_total{route=\"/v1/chat/completions\",status=\"200\"}") >= 1.0);
    assert_eq!(value("haplovl_first_token_seconds_bucket{le=\"+Inf\"}"), value("haplovl_first_token_seconds_count"));
    for line in metrics.text().lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("haplovl_") && value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn every_error_has_the_form_and_names_the_field() {
    let url = data_url(&scene(1));
    let with_part = |part: Value| json!({ "messages": [{ "role": "user", "content": [part] }] });
    let plain = |fields: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "hello" }] });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let at_url = json!("messages[0].content[0].image_url.url");
    let cases: Vec<(Value, u16, Value, &str)> = vec![
        (json!([]), 400, Value::Null, "invalid_json"),
        (json!({}), 400, json!("messages"), "missing_required_parameter"),
        (json!({ "messages": [] }), 400, json!("messages"), "invalid_value"),
        (json!({ "messages": "hello" }), 400, json!("messages"), "invalid_value"),
        (json!({ "messages": [{ "role": "tool", "content": "x" }] }), 400, json!("messages[0].role"), "invalid_value"),
        (json!({ "messages": [{ "role": "user" }] }), 400, json!("messages[0].content"), "invalid_value"),
        (json!({ "messages": [{ "role": "user", "content": 3 }] }), 400, json!("messages[0].content"), "invalid_value"),
        (
            json!({ "messages": [{ "role": "user", "content": "x", "name": "me" }] }),
            400,
            json!("messages[0].name"),
            "unsupported_parameter",
        ),
        (
            json!({ "messages": [{ "role": "system", "content": [image_part(&url)] }] }),
            400,
            json!("messages[0].content[0]"),
            "invalid_value",
        ),
        (plain(json!({ "model": "gpt-4o" })), 404, json!("model"), "model_not_found"),
        (plain(json!({ "invented": 1 })), 400, json!("invented"), "unsupported_parameter"),
        (plain(json!({ "tools": [{ "type": "function" }] })), 400, json!("tools"), "unsupported_parameter"),
        (plain(json!({ "logit_bias": { "5": 1 } })), 400, json!("logit_bias"), "unsupported_parameter"),
        (plain(json!({ "store": true })), 400, json!("store"), "unsupported_parameter"),
        (plain(json!({ "temperature": "hot" })), 400, json!("temperature"), "invalid_value"),
        (plain(json!({ "temperature": -1 })), 400, json!("temperature"), "invalid_value"),
        (plain(json!({ "top_p": 0 })), 400, json!("top_p"), "invalid_value"),
        (plain(json!({ "top_k": -1 })), 400, json!("top_k"), "invalid_value"),
        (plain(json!({ "frequency_penalty": 1e9 })), 400, json!("frequency_penalty"), "invalid_value"),
        (plain(json!({ "presence_penalty": "x" })), 400, json!("presence_penalty"), "invalid_value"),
        (plain(json!({ "seed": 1.5 })), 400, json!("seed"), "invalid_value"),
        (plain(json!({ "stop": "" })), 400, json!("stop"), "invalid_value"),
        (plain(json!({ "stop": [1] })), 400, json!("stop[0]"), "invalid_value"),
        (plain(json!({ "n": 0 })), 400, json!("n"), "invalid_value"),
        (plain(json!({ "n": 1000 })), 400, json!("n"), "invalid_value"),
        (plain(json!({ "max_tokens": 0 })), 400, json!("max_completion_tokens"), "invalid_value"),
        (plain(json!({ "max_tokens": 1, "max_completion_tokens": 2 })), 400, json!("max_tokens"), "invalid_value"),
        (plain(json!({ "top_logprobs": 2 })), 400, json!("top_logprobs"), "invalid_value"),
        (plain(json!({ "logprobs": true, "top_logprobs": 21 })), 400, json!("top_logprobs"), "invalid_value"),
        (plain(json!({ "stream_options": { "include_usage": true } })), 400, json!("stream_options"), "invalid_value"),
        (
            plain(json!({ "stream": true, "stream_options": { "x": 1 } })),
            400,
            json!("stream_options.x"),
            "unsupported_parameter",
        ),
        (
            plain(json!({ "response_format": { "type": "json_schema", "json_schema": {} } })),
            400,
            json!("response_format.json_schema.name"),
            "missing_required_parameter",
        ),
        (with_part(json!({ "type": "text" })), 400, json!("messages[0].content[0].text"), "invalid_value"),
        (with_part(json!({ "type": "audio" })), 400, json!("messages[0].content[0].type"), "invalid_value"),
        (
            with_part(json!({ "type": "image_url", "image_url": { "url": url, "detail": "low" } })),
            400,
            json!("messages[0].content[0].image_url.detail"),
            "invalid_value",
        ),
        (with_part(image_part("https://example.org/cat.png")), 400, at_url.clone(), "invalid_value"),
        (with_part(image_part("file:///etc/passwd")), 400, at_url.clone(), "invalid_value"),
        (with_part(image_part("/etc/passwd")), 400, at_url.clone(), "invalid_value"),
        (with_part(image_part("data:image/png;base64,!!!")), 400, at_url.clone(), "invalid_value"),
        (with_part(image_part("data:image/png,raw")), 400, at_url.clone(), "invalid_value"),
        (with_part(image_part(&url[..url.len() / 2])), 400, at_url.clone(), "invalid_value"),
        (with_part(image_part("data:text/plain;base64,aGVsbG8=")), 400, at_url, "invalid_value"),
        (
            plain(json!({ "messages": [{ "role": "user", "content": "red ".repeat(5000) }] })),
            400,
            Value::Null,
            "invalid_prompt",
        ),
    ];
    for (body, status, param, code) in cases {
        let error = SERVER.post(CHAT, &body).error(status);
        assert_eq!((&error["param"], &error["code"]), (&param, &json!(code)), "{body}\n{error}");
    }
    // Values without effect are taken.
    let neutral = json!({ "tools": [], "logit_bias": null, "store": false, "response_format": { "type": "text" }, "user": "me", "metadata": {} });
    SERVER.post(CHAT, &plain(neutral)).json();
}

#[test]
fn bodies_that_are_no_json_are_errors() {
    let json = [("Content-Type", "application/json")];
    let deep = "[".repeat(1 << 20);
    let long_name = format!("{{\"{}\": 1}}", "x".repeat(1 << 20));
    let twice = r#"{"messages": [], "n": 1, "n": 2}"#;
    for body in ["", "{", "nonsense", "{\"messages\": 1e999}", "\u{feff}{}", deep.as_str(), &long_name, twice, "{} {}"]
    {
        SERVER.send("POST", CHAT, &json, body.as_bytes()).error(400);
    }
    SERVER.send("POST", CHAT, &json, b"\xff\xfe{}").error(400);
    SERVER.send("POST", CHAT, &[("Content-Type", "text/plain")], b"{}").error(415);
    SERVER.send("POST", CHAT, &[], b"{}").error(415);
}

#[test]
fn unknown_addresses_and_methods() {
    assert_eq!(SERVER.get("/nowhere").error(404)["code"], "not_found");
    let reply = SERVER.get(CHAT);
    assert_eq!(reply.error(405)["code"], "method_not_allowed");
    assert_eq!(reply.header("allow"), Some("POST"));
    SERVER.send("DELETE", "/v1/models", &[], b"").error(405);
    assert!(SERVER.get("/health").header("x-request-id").is_some());
}

#[test]
fn embeddings_of_texts_and_images() {
    let input = json!(["a large red ring", image_part(&data_url(&scene(1))), { "type": "text", "text": "a large red ring" }, "a small blue star"]);
    let answer = SERVER.post("/v1/embeddings", &json!({ "model": "builtin", "input": input })).json();
    let data = answer["data"].as_array().unwrap();
    let vector =
        |n: usize| Vec::from_iter(data[n]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()));
    let dot = |a: usize, b: usize| vector(a).iter().zip(vector(b)).map(|(a, b)| a * b).sum::<f64>();
    assert_eq!(data.len(), 4);
    for (n, item) in data.iter().enumerate() {
        assert!((dot(n, n) - 1.0).abs() < 1e-5 && item["index"] == n && item["object"] == "embedding");
    }
    assert!((dot(0, 2) - 1.0).abs() < 1e-6 && dot(0, 3) < 0.999 && dot(0, 1) < 0.999);
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 12);
    let base64 = json!({ "input": "a large red ring", "encoding_format": "base64", "dimensions": vector(0).len() });
    let base64 = SERVER.post("/v1/embeddings", &base64).json();
    let bytes = BASE64_STANDARD.decode(base64["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let values = bytes.chunks(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())));
    assert!(values.zip(vector(0)).all(|(a, b)| (a - b).abs() < 1e-7));
    for (body, param) in [
        (json!({ "input": [] }), "input"),
        (json!({ "input": [[1, 2]] }), "input[0]"),
        (json!({ "input": [1, 2] }), "input[0]"),
        (json!({ "input": "x", "dimensions": 3 }), "dimensions"),
        (json!({ "input": "x", "encoding_format": "int8" }), "encoding_format"),
        (json!({ "input": [image_part("http://x/y.png")] }), "input[0].image_url.url"),
    ] {
        assert_eq!(SERVER.post("/v1/embeddings", &body).error(400)["param"], param);
    }
    assert_eq!(SERVER.post("/v1/embeddings", &json!({ "input": "" })).error(400)["code"], "invalid_prompt");
}

#[test]
fn attention_of_a_word() {
    let messages = json!([
        { "role": "user", "content": [image_part(&data_url(&scene(4))), { "type": "text", "text": "is there a red ring or a red star?" }] },
        { "role": "assistant", "content": "a red ring." },
    ]);
    let ask = |fields: Value| {
        let mut body = json!({ "messages": messages, "word": "red" });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        SERVER.post("/v1/attention", &body)
    };
    let maps = |fields| ask(fields).json()["images"].clone();
    let all = ask(json!({})).json();
    assert_eq!(all["layer"], all["pre_decoder_layers"].as_u64().unwrap() - 1);
    let map = &all["images"][0];
    let (rows, columns) = (map["rows"].as_u64().unwrap() as usize, map["columns"].as_u64().unwrap() as usize);
    assert_eq!(map["weights"].as_array().unwrap().len(), rows * columns);
    let edges = |name: &str| Vec::from_iter(map[name].as_array().unwrap().iter().map(|x| x.as_u64().unwrap()));
    assert_eq!((edges("x").len(), edges("y").len()), (columns + 1, rows + 1));
    assert_eq!((edges("x")[0], edges("x")[columns], edges("y")[rows]), (0, 64, 64));
    let places = [0, 1, 2].map(|occurrence| maps(json!({ "occurrence": occurrence })));
    assert!(places[0] != places[1] && places[1] != places[2]);
    let mean = places.iter().map(|map| map[0]["total"].as_f64().unwrap()).sum::<f64>() / 3.0;
    assert!((mean - map["total"].as_f64().unwrap()).abs() < 1e-4);
    assert_ne!(maps(json!({ "layer": 0, "head": 0 })), maps(json!({ "layer": 0 })));
    assert_eq!(ask(json!({ "layer": 999 })).error(400)["param"], "layer");
    assert_eq!(ask(json!({ "head": 999 })).error(400)["param"], "head");
    assert!(ask(json!({ "occurrence": 3 })).error(400)["message"].as_str().unwrap().contains("3 time(s)"));
    ask(json!({ "word": "zebra" })).error(400);
    ask(json!({ "word": "" })).error(400);
}

#[test]
fn the_page_runs_its_own_script_alone() {
    let (page, again) = (SERVER.get("/"), SERVER.get("/"));
    let policy = page.header("content-security-policy").unwrap();
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(nonce.len() == 32 && page.text().matches(nonce).count() == 2);
    assert_ne!(again.header("content-security-policy"), page.header("content-security-policy"));
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
    for foreign in ["http://", "https://", "innerHTML", "__NONCE__", "onclick="] {
        assert!(!page.text().contains(foreign), "{foreign}");
    }
    assert!(page.text().contains("v1/attention"));
}

#[test]
fn example_images_are_drawn() {
    let reply = SERVER.get("/examples/4.png");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("image/png")));
    let image = image::load_from_memory(&reply.body).unwrap().into_rgb8();
    assert_eq!(image, page_example(4));
    for name in ["4.jpg", "-1.png", "99999999999.png", "..%2f4.png", ".png"] {
        SERVER.get(&format!("/examples/{name}")).error(404);
    }
}

#[test]
fn a_key_is_asked_for() {
    let settings = Settings { keys: ApiKeys::from_lines("first\n\n second \n"), ..Settings::default() };
    let server = Server::start(settings, EngineConfig::default());
    let get = |path: &str, key: &str| server.send("GET", path, &[("Authorization", key)], b"");
    for path in ["/v1/models", "/metrics"] {
        let reply = server.get(path);
        assert_eq!(reply.error(401)["code"], "invalid_api_key");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        for wrong in ["Bearer firs", "Bearer firstt", "Bearer ", "first", "Basic first", "Bearer first second"] {
            get(path, wrong).error(401);
        }
        assert_eq!(get(path, "Bearer first").status, 200);
        assert_eq!(get(path, "bearer second").status, 200);
    }
    server.post(CHAT, &about(1, "describe the image.", json!({}))).error(401);
    assert_eq!((server.get("/health").status, server.get("/").status), (200, 200));
}

#[test]
fn each_request_is_a_line_in_the_log() {
    static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    tracing::subscriber::set_global_default(LineLog(|line: &str| LINES.lock().unwrap().push(line.into()))).unwrap();
    for stream in [true, false] {
        let fields = json!({ "max_tokens": 3, "user": "not shown", "stream": stream });
        assert_eq!(SERVER.post(CHAT, &about(3, "describe the image.", fields)).status, 200);
    }
    SERVER.get("/nowhere%0a?key=secret").error(404);
    let told = |parts: &[&str]| {
        let lines = LINES.lock().unwrap();
        assert!(
            lines.iter().all(|line| !line.contains('\n') && !line.contains("secret") && !line.contains("not shown"))
        );
        lines.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    };
    let began = Instant::now();
    // The line of a response is written after its end, when its client may be on.
    let chat =
        ["INFO request method=POST path=\"/v1/chat/completions\" status=200 seconds=", "new_tokens=3 complete=true"];
    while told(&chat) < 2 || told(&["method=GET path=\"/nowhere%0a\" status=404", "complete=true"]) == 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", LINES.lock().unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn foreign_names_are_refused() {
    let named = Settings { hosts: Hosts::Named(vec!["box.example".into()]), ..Settings::default() };
    let server = Server::start(named, EngineConfig::default());
    let get = |host: &str| server.send("GET", "/health", &[("Host", host)], b"");
    for host in
        ["localhost:8080", "LOCALHOST", "127.0.0.1", "[::1]:80", "10.0.0.5:1", "box.example", "Box.Example.:443"]
    {
        assert_eq!(get(host).status, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "x@y@z", ""] {
        let error = get(host).error(403);
        assert_eq!(error["code"], "host_not_allowed");
        assert!(error["message"].as_str().unwrap().contains("--allow-host"), "{host}");
    }
    assert_eq!(SERVER.send("GET", "/health", &[("Host", "evil.example")], b"").status, 200);
}

#[test]
fn foreign_pages_are_let_in_only_if_asked_for() {
    let headers = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")];
    let reply = SERVER.send("OPTIONS", CHAT, &headers, b"");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (405, None));
    let settings =
        Settings { cors: Some("https://a.example".into()), keys: ApiKeys::from_lines("k"), ..Settings::default() };
    let server = Server::start(settings, EngineConfig::default());
    let reply = server.send("OPTIONS", CHAT, &headers, b"");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (204, Some("https://a.example")));
    assert!(reply.header("access-control-allow-headers").unwrap().contains("Authorization"));
    // Errors too, so that a page can read them.
    let reply = server.get("/v1/models");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (401, Some("https://a.example")));
}

#[test]
fn bodies_are_bounded_in_size_and_time() {
    let settings = Settings {
        max_body: 10_000,
        max_bodies: 40 << 10,
        patience: Duration::from_millis(300),
        ..Settings::default()
    };
    let server = Server::start(settings, EngineConfig::default());
    let json = ("Content-Type", "application/json");
    let large = vec![b' '; 20_000];
    assert_eq!(server.send("POST", CHAT, &[json], &large).error(413)["code"], "request_too_large");
    // 100 MB, of which the server keeps nothing.
    server.send("POST", CHAT, &[json], &vec![b' '; 100_000_000]).error(413);
    let chunked = [format!("{:x}\r\n", large.len()).as_bytes(), &large, b"\r\n0\r\n\r\n"].concat();
    server.send("POST", CHAT, &[json, ("Transfer-Encoding", "chunked")], &chunked).error(413);
    // A body that stops coming.
    server.send("POST", CHAT, &[json, ("Content-Length", "100")], b"{").error(408);
    // A head that stops coming, and a connection that says nothing.
    for start in ["POST /v1/chat", ""] {
        let mut stream = server.connect();
        stream.write_all(start.as_bytes()).unwrap();
        let (began, mut answer) = (Instant::now(), Vec::new());
        let _ = stream.read_to_end(&mut answer);
        assert!(began.elapsed() < Duration::from_secs(10), "{start}");
    }
    // Bodies that are held at the same time.
    let held =
        Vec::from_iter((0..6).map(|_| server.open("POST", CHAT, &[json, ("Content-Length", "9999")], &[b' '; 9000])));
    let statuses = Vec::from_iter(held.into_iter().map(|mut stream| Reply::read(&mut stream).status));
    assert!(statuses.contains(&503) && statuses.contains(&408), "{statuses:?}");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn images_are_bounded_in_pixels() {
    let server = Server::start(Settings { max_pixels: 10_000, ..Settings::default() }, EngineConfig::default());
    let ask = |images: &[String]| {
        let content = Vec::from_iter(images.iter().map(|url| image_part(url)));
        server.post(CHAT, &json!({ "messages": [{ "role": "user", "content": content }], "max_tokens": 1 }))
    };
    let small = data_url(&scene(1));
    ask(std::slice::from_ref(&small)).json();
    ask(&[small.clone(), small.clone()]).json();
    // Three are too many together; one alone may be too large, whatever its file takes.
    assert_eq!(ask(&[small.clone(), small.clone(), small]).error(400)["param"], "messages[0].content[2].image_url.url");
    let bomb = data_url(&RgbImage::new(4000, 4000));
    let error = ask(&[bomb]).error(400);
    assert!(error["message"].as_str().unwrap().contains("16000000"), "{error}");
}

#[test]
fn a_full_queue_is_said_at_once() {
    let server = Server::start(Settings::default(), EngineConfig::default().with_max_batch(1).with_queue(7));
    let body = about(1, "describe the image.", json!({ "n": 8 }));
    let json = [("Content-Type", "application/json")];
    let mut first = server.open("POST", CHAT, &json, body.to_string().as_bytes());
    server.wait_for("work", |metrics| metrics.running > 0);
    let reply = server.post(CHAT, &body);
    let error = reply.error(429);
    assert_eq!((&error["code"], &error["type"]), (&json!("rate_limit_exceeded"), &json!("rate_limit_error")));
    assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    // All choices are begun, or none; and none of more than could ever be.
    assert_eq!(Reply::read(&mut first).json()["choices"].as_array().unwrap().len(), 8);
    assert_eq!(server.metrics().requests.accepted, 8);
    let error = server.post(CHAT, &about(1, "describe the image.", json!({ "n": 9 }))).error(400);
    assert_eq!(error["param"], "n");
}

#[test]
fn too_long_a_wait_is_an_error() {
    let timeout = Duration::from_millis(1);
    let config = EngineConfig::default().with_timeout(timeout);
    let server = Server::start(Settings { timeout, ..Settings::default() }, config);
    for stream in [false, true] {
        let reply = server.post(CHAT, &about(1, "describe the image.", json!({ "n": 16, "stream": stream })));
        match reply.status {
            // The stream began before the time was over.
            200 => assert!(reply.events().iter().any(|event| event["error"]["code"] == "timeout")),
            _ => assert_eq!(reply.error(408)["code"], "timeout"),
        }
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_client_that_goes_away_stops_its_work() {
    let server = Server::start(Settings::default(), EngineConfig::default().with_max_batch(1));
    for stream in [true, false] {
        let before = server.metrics().requests.ended();
        let body = about(1, "describe the image.", json!({ "n": 40, "stream": stream }));
        let headers = [("Content-Type", "application/json")];
        let mut connection = server.open("POST", CHAT, &headers, body.to_string().as_bytes());
        if stream {
            connection.read_exact(&mut [0; 300]).unwrap();
        } else {
            server.wait_for("work", |metrics| metrics.running > 0);
        }
        drop(connection);
        server.wait_for("idle", |metrics| {
            metrics.running + metrics.waiting == 0 && metrics.requests.ended() == before + 40
        });
    }
    let requests = server.metrics().requests;
    assert!(requests.cancelled > 40, "{requests:?}");
    assert_eq!(server.metrics().kv_reserved_bytes, 0);
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let patience = Duration::from_millis(300);
    let server = Server::start(Settings { patience, ..Settings::default() }, EngineConfig::default().with_queue(1000));
    // Their answers are more than the buffers of a connection take.
    let mut connection = server.connect();
    connection.write_all(&b"GET /examples/1.png HTTP/1.1\r\nHost: test\r\n\r\n".repeat(2000)).unwrap();
    let wait_for = |condition: &dyn Fn(&str) -> bool| {
        let began = Instant::now();
        while !server.get("/metrics").text().lines().any(condition) {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for(&|line| line.starts_with("haplovl_http_responses_total{route=\"/examples/{name}\",status=\"200\"}"));
    // The connection that asks is left.
    wait_for(&|line| line == "haplovl_http_connections 1");
}

#[test]
fn many_connections_wait_for_their_turn() {
    let settings = Settings { max_connections: 4, patience: Duration::from_millis(500), ..Settings::default() };
    let server = Server::start(settings, EngineConfig::default());
    let idle = Vec::from_iter((0..16).map(|_| server.connect()));
    // Those that say nothing are closed, and the others get their turn.
    assert_eq!(server.get("/health").status, 200);
    drop(idle);
}

#[test]
fn the_end_waits_for_answers_under_way() {
    let mut server = Server::start(Settings::default(), EngineConfig::default());
    let body = about(1, "describe the image.", json!({ "stream": true, "n": 8 }));
    let mut connection =
        server.open("POST", CHAT, &[("Content-Type", "application/json")], body.to_string().as_bytes());
    server.wait_for("work", |metrics| metrics.running > 0);
    server.stop();
    let events = Reply::read(&mut connection).events();
    assert_eq!(events.iter().filter(|event| !event["choices"][0]["finish_reason"].is_null()).count(), 8);
    server.join();
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn ten_questions_about_one_image_prefill_it_once() {
    let server = Server::start(Settings::default(), EngineConfig::default());
    std::thread::scope(|scope| {
        for n in 0..10 {
            let server = &server;
            scope.spawn(move || {
                server.post(CHAT, &about(1, &format!("how many objects are there? {n}"), json!({}))).json()
            });
        }
    });
    let metrics = server.metrics();
    assert_eq!(metrics.requests.stopped, 10);
    assert!(metrics.prefix_cache.hits >= 9, "{metrics:?}");
}

/// A server of files: an image, a redirect to it, and more bytes than a body may have. Returns its host and port.
fn file_server(image: Vec<u8>, large: usize) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            let (status, header, body) = match head[..read].split(|byte| *byte == b' ').nth(1).unwrap() {
                b"/image.png" => ("200 OK", String::new(), image.clone()),
                b"/moved.png" => ("302 Found", "Location: /image.png\r\n".into(), Vec::new()),
                b"/large.png" => ("200 OK", String::new(), vec![0; large]),
                _ => ("404 Not Found", String::new(), Vec::new()),
            };
            let head =
                format!("HTTP/1.1 {status}\r\n{header}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            // The client may have seen enough.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    format!("localhost:{port}")
}

#[test]
fn images_are_fetched_from_named_hosts_only_and_never_from_private_addresses() {
    let mut png = Cursor::new(Vec::new());
    scene(4).write_to(&mut png, ImageFormat::Png).unwrap();
    let host = file_server(png.into_inner(), 2 << 20);
    let named = Settings { image_hosts: vec![host.clone()], max_body: 1 << 20, ..Settings::default() };
    let open = Server::start(Settings { image_addresses: |_| true, ..named.clone() }, EngineConfig::default());
    let ask = |url: &str| {
        let content = json!([image_part(url), { "type": "text", "text": "how many objects are there?" }]);
        json!({ "messages": [{ "role": "user", "content": content }] })
    };
    let text = |body: &Value| open.post(CHAT, body).json()["choices"][0]["message"]["content"].clone();
    assert_eq!(
        text(&ask(&format!("http://{host}/image.png"))),
        text(&about(4, "how many objects are there?", json!({})))
    );
    let embedding = json!({ "input": [image_part(&format!("HTTP://{host}/image.png"))] });
    assert_eq!(open.post("/v1/embeddings", &embedding).status, 200);

    let place = "messages[0].content[0].image_url.url";
    for (path, says) in [("moved.png", "302"), ("nothing.png", "404"), ("large.png", "more than")] {
        let error = open.post(CHAT, &ask(&format!("http://{host}/{path}"))).error(400);
        assert_eq!(error["param"], place);
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    for url in ["http://127.0.0.1/a.png", "http://example.org/a.png", "http://localhost@example.org/a.png"] {
        let error = open.post(CHAT, &ask(url)).error(400);
        assert!(error["message"].as_str().unwrap().contains("not among the hosts"), "{error}");
    }
    let closed = Server::start(named, EngineConfig::default());
    let error = closed.post(CHAT, &ask(&format!("http://{host}/image.png"))).error(400);
    assert!(error["message"].as_str().unwrap().contains("no public address"), "{error}");
    let error = SERVER.post(CHAT, &ask(&format!("http://{host}/image.png"))).error(400);
    assert!(error["message"].as_str().unwrap().contains("fetches nothing"), "{error}");
}
