//! `response_format`: answers in JSON by a schema.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use haplovl::pipeline::{Engine, EngineConfig, LoadOptions, LoadedModel};
use serde_json::{Map, Value, json};

use super::client::Server;
use super::http::Reply;
use super::server::Settings;
use super::{CHAT, SERVER, about, folders, text_of};

/// A server of a model that can write JSON.
static SPELLING: LazyLock<Server> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    folders::write_spelling_model(folder.path());
    let model = LoadedModel::from_folder(folder.path(), LoadOptions::default()).unwrap();
    let settings = Settings { model_id: "spelling".into(), ..Settings::default() };
    Server::over(Engine::new(model, EngineConfig::default()).unwrap(), settings)
});

fn ask(format: Value, fields: Value) -> Reply {
    let mut body = about(4, "describe the image.", fields);
    body["model"] = json!("spelling");
    body["response_format"] = format;
    SPELLING.post(CHAT, &body)
}

fn by(schema: Value) -> Value {
    json!({ "type": "json_schema", "json_schema": { "name": "scene", "strict": true, "schema": schema } })
}

fn object(properties: Value) -> Value {
    let required = Vec::from_iter(properties.as_object().unwrap().keys().cloned());
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// A schema with all kinds of values, of which each has an end.
fn scene() -> Value {
    let mut schema = object(json!({
        "colour": { "enum": ["red", "green", "blue"], "description": "of the largest" },
        "count": { "type": "integer", "minimum": 0, "maximum": 12 },
        "share": { "type": "number", "minimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.125 },
        "round": { "type": "boolean" },
        "none": { "type": "null" },
        "code": { "type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$" },
        "day": { "type": "string", "format": "date" },
        "note": { "type": "string", "maxLength": 12 },
        "either": { "anyOf": [{ "const": "e\"\\" }, { "type": "integer", "minimum": 100, "maximum": 999 }] },
        "objects": { "type": "array", "items": { "$ref": "#/$defs/object" }, "minItems": 1, "maxItems": 2 },
    }));
    schema["$defs"] = json!({ "object": object(json!({ "shape": { "enum": ["ring", "star"] } })) });
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema
}

/// Checks a value of [`scene`].
fn check(text: &str) {
    let value: Value = serde_json::from_str(text).expect(text);
    let fields = value.as_object().unwrap();
    let names = Vec::from_iter(scene()["properties"].as_object().unwrap().keys().cloned());
    assert!(fields.keys().eq(&names), "{text}");
    assert!(["red", "green", "blue"].contains(&fields["colour"].as_str().unwrap()), "{text}");
    assert!((0..=12).contains(&fields["count"].as_i64().unwrap()), "{text}");
    let eighths = fields["share"].as_f64().unwrap() * 8.0;
    assert!(eighths.fract() == 0.0 && (0.0..8.0).contains(&eighths), "{text}");
    assert!(fields["round"].is_boolean() && fields["none"].is_null(), "{text}");
    let code = fields["code"].as_str().unwrap().as_bytes();
    assert!(code.len() == 6 && code[2] == b'-' && code[..2].iter().all(u8::is_ascii_uppercase), "{text}");
    assert_eq!(fields["day"].as_str().unwrap().len(), 10, "{text}");
    assert!(fields["note"].as_str().unwrap().chars().count() <= 12, "{text}");
    let either = &fields["either"];
    assert!(*either == "e\"\\" || either.as_i64().is_some_and(|n| (100..1000).contains(&n)), "{text}");
    let objects = fields["objects"].as_array().unwrap();
    assert!((1..=2).contains(&objects.len()), "{text}");
    for object in objects {
        assert!(["ring", "star"].contains(&object["shape"].as_str().unwrap()), "{text}");
        assert_eq!(object.as_object().unwrap().len(), 1, "{text}");
    }
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap().iter();
    choices.map(|choice| choice["message"]["content"].as_str().unwrap().to_string()).collect()
}

#[test]
fn answers_are_valid_by_their_schema() {
    let answer = ask(by(scene()), json!({})).json();
    check(&texts(&answer)[0]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    for seed in 0..4 {
        let fields = json!({ "temperature": 1.5, "n": 3, "seed": seed, "frequency_penalty": 0.5 });
        let answer = ask(by(scene()), fields).json();
        texts(&answer).iter().for_each(|text| check(text));
        assert!(answer["choices"].as_array().unwrap().iter().all(|choice| choice["finish_reason"] == "stop"));
    }
}

#[test]
fn any_object_and_other_values() {
    let text = |format: Value, fields: Value| texts(&ask(format, fields).json())[0].clone();
    let limited = json!({ "max_tokens": 60, "temperature": 2.0, "seed": 3 });
    let any = text(json!({ "type": "json_object" }), limited.clone());
    assert!(any.starts_with('{'), "{any}");
    assert_eq!(
        text(by(json!({ "const": { "a": [1, true] } })), limited.clone()).replace([' ', '\n'], ""),
        r#"{"a":[1,true]}"#
    );
    let number = text(by(json!({ "type": "integer", "minimum": 10, "maximum": 19 })), limited);
    assert!((10..20).contains(&number.parse::<i32>().unwrap()), "{number}");
    assert_eq!(text(json!({ "type": "text" }), json!({})), text(Value::Null, json!({})));
}

#[test]
fn a_recursive_schema_nests_as_deep_as_the_answer_goes() {
    let node = object(
        json!({ "n": { "type": "integer" }, "next": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/node" }] } }),
    );
    let schema = json!({ "$ref": "#/$defs/node", "$defs": { "node": node } });
    let mut depths = Vec::new();
    for seed in 0..4 {
        let answer = ask(by(schema.clone()), json!({ "temperature": 1.0, "seed": seed, "max_tokens": 300 })).json();
        if answer["choices"][0]["finish_reason"] == "stop" {
            let value: Value = serde_json::from_str(&texts(&answer)[0]).unwrap();
            depths.push(std::iter::successors(Some(&value), |value| value.get("next")).count());
        }
    }
    assert!(depths.iter().any(|depth| *depth > 2), "{depths:?}");
}

#[test]
fn seeds_streams_log_probabilities_and_company() {
    let fields = |more: Value| {
        let mut fields = json!({ "temperature": 1.2, "seed": 9, "n": 2 });
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    };
    let whole = texts(&ask(by(scene()), fields(json!({}))).json());
    assert_ne!(whole[0], whole[1]);
    let events = ask(by(scene()), fields(json!({ "stream": true }))).events();
    for (index, text) in whole.iter().enumerate() {
        let of_choice = events.iter().filter(|event| event["choices"][0]["index"] == index);
        assert_eq!(text_of(&Vec::from_iter(of_choice.cloned())), *text);
    }
    let logged = ask(by(scene()), fields(json!({ "logprobs": true, "top_logprobs": 2 }))).json();
    assert_eq!(texts(&logged), whole);
    let tokens = logged["choices"][0]["logprobs"]["content"].as_array().unwrap();
    // Of the model's own distribution, where a token that the grammar forces may be unlikely.
    assert!(tokens.iter().all(|token| token["logprob"].as_f64().unwrap() <= 0.0));
    assert!(tokens.iter().any(|token| token["logprob"].as_f64() < token["top_logprobs"][0]["logprob"].as_f64()));
    let together = std::thread::scope(|scope| {
        let others = [json!(null), json!({ "type": "json_object" }), by(scene()), by(scene())];
        let others = Vec::from_iter(others.into_iter().map(|format| {
            scope.spawn(move || ask(format, json!({ "temperature": 1.2, "seed": 9, "n": 2, "max_tokens": 200 })).json())
        }));
        Vec::from_iter(others.into_iter().map(|other| texts(&other.join().unwrap())))
    });
    assert_eq!((&together[2], &together[3]), (&whole, &whole));
}

#[test]
fn limits_and_stop_strings_cut_answers() {
    let whole = texts(&ask(by(scene()), json!({})).json())[0].clone();
    let cut = ask(by(scene()), json!({ "max_tokens": 7 })).json();
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 7);
    assert!(whole.starts_with(&texts(&cut)[0]), "{cut}");
    let stopped = ask(by(scene()), json!({ "stop": ["\"count\""] })).json();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(texts(&stopped)[0], whole.split("\"count\"").next().unwrap());
}

#[test]
fn keywords_that_are_not_held_are_errors() {
    let place = |rest: &str| format!("response_format.json_schema.schema{rest}");
    let within = |schema: Value| json!({ "type": "object", "properties": { "a": schema } });
    let many = Vec::from_iter((0..20_000).map(|n| json!(n.to_string())));
    for (schema, param, code) in [
        (json!({ "not": {} }), ".not", "unsupported_parameter"),
        (within(json!({ "if": true, "then": false })), ".properties.a.if", "unsupported_parameter"),
        (within(json!({ "x-guidance": {} })), ".properties.a.x-guidance", "unsupported_parameter"),
        (within(json!({ "uniqueItems": true })), ".properties.a.uniqueItems", "unsupported_parameter"),
        (json!({ "patternProperties": { "a": {} } }), ".patternProperties", "unsupported_parameter"),
        (json!({ "$id": "https://example.org" }), ".$id", "unsupported_parameter"),
        (json!({ "anyOf": [{}, { "type": "strings" }] }), ".anyOf[1].type", "invalid_value"),
        (json!({ "anyOf": [], }), ".anyOf", "invalid_value"),
        (json!({ "anyOf": [{ "type": "null" }], "properties": {} }), ".anyOf", "invalid_value"),
        (json!({ "allOf": [{ "type": "null" }, {}] }), ".allOf", "invalid_value"),
        (json!({ "$ref": "https://example.org/schema" }), ".$ref", "invalid_value"),
        (json!({ "$ref": "file:///etc/passwd" }), ".$ref", "invalid_value"),
        (json!({ "$ref": "#/$defs/missing" }), ".$ref", "invalid_value"),
        (json!({ "$ref": "#/properties/a", "properties": { "a": {} } }), ".$ref", "invalid_value"),
        (within(json!({ "type": ["string", 3] })), ".properties.a.type", "invalid_value"),
        (within(json!({ "format": "credit-card" })), ".properties.a.format", "invalid_value"),
        (within(json!({ "maxLength": -1 })), ".properties.a.maxLength", "invalid_value"),
        (within(json!({ "maxItems": 1e12 })), ".properties.a.maxItems", "invalid_value"),
        (within(json!({ "multipleOf": 0 })), ".properties.a.multipleOf", "invalid_value"),
        (within(json!({ "multipleOf": 1e-7 })), ".properties.a.multipleOf", "invalid_value"),
        (within(json!({ "multipleOf": 1_000_003 })), ".properties.a.multipleOf", "invalid_value"),
        // No double is this integer.
        (within(json!({ "const": 9_007_199_254_740_993_u64 })), ".properties.a.const", "invalid_value"),
        (json!({ "required": ["a", 1] }), ".required", "invalid_value"),
        (json!({ "properties": ["a"] }), ".properties", "invalid_value"),
        (json!({ "properties": { "a": 3 } }), ".properties.a", "invalid_value"),
        (json!([1]), "", "invalid_value"),
        (json!({ "enum": many }), ".enum[9998]", "invalid_value"),
        (json!({ "description": "x".repeat(1 << 20) }), ".description", "invalid_value"),
    ] {
        let error = ask(by(schema.clone()), json!({})).error(400);
        let shown = schema.to_string().chars().take(100).collect::<String>();
        assert_eq!((&error["param"], &error["code"]), (&json!(place(param)), &json!(code)), "{shown}\n{error}");
    }
    let twice = r#"{"type": "object", "type": "string"}"#;
    let body = about(4, "x", json!({ "model": "spelling", "response_format": by(json!("SCHEMA")) })).to_string();
    let body = body.replace("\"SCHEMA\"", twice);
    let error = SPELLING.send("POST", CHAT, &[("Content-Type", "application/json")], body.as_bytes()).error(400);
    assert!(error["message"].as_str().unwrap().contains("twice"), "{error}");
}

#[test]
fn fields_beside_the_schema_are_checked() {
    for (format, param, code) in [
        (json!({}), "response_format.type", "missing_required_parameter"),
        (json!({ "type": "xml" }), "response_format.type", "invalid_value"),
        (json!({ "type": "grammar", "grammar": "a" }), "response_format.type", "invalid_value"),
        (json!({ "type": "json_object", "grammar": "a" }), "response_format.grammar", "unsupported_parameter"),
        (json!({ "type": "json_schema" }), "response_format.json_schema", "missing_required_parameter"),
        (
            json!({ "type": "json_object", "json_schema": { "name": "a", "schema": {} } }),
            "response_format.json_schema",
            "invalid_value",
        ),
        (
            json!({ "type": "json_schema", "json_schema": { "name": "a" } }),
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        (
            json!({ "type": "json_schema", "json_schema": { "schema": {} } }),
            "response_format.json_schema.name",
            "missing_required_parameter",
        ),
        (
            json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": {}, "strict": 1 } }),
            "response_format.json_schema.strict",
            "invalid_value",
        ),
    ] {
        let error = ask(format.clone(), json!({})).error(400);
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)), "{format}\n{error}");
    }
    // The words of shapes world have no braces.
    let format = json!({ "response_format": { "type": "json_object" } });
    let error = SERVER.post(CHAT, &about(4, "describe the image.", format)).error(400);
    assert_eq!(error["param"], "response_format");
}

/// Nests a schema by `wrap`, `depth` times.
fn nested(depth: usize, wrap: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(json!({ "type": "null" }), |schema, _| wrap(schema))
}

/// Schemas that would take much time or memory: each is refused, or answered, in bounded time.
fn hostile() -> Vec<(&'static str, Value)> {
    let text = |pattern: String| json!({ "type": "string", "pattern": pattern });
    let chain = |count: usize| {
        let link = |n: usize| {
            (format!("d{n}"), json!({ "type": "array", "items": { "$ref": format!("#/$defs/d{}", n + 1) } }))
        };
        let mut links = Map::from_iter((0..count).map(link));
        links.insert(format!("d{count}"), json!({ "type": "null" }));
        json!({ "$ref": "#/$defs/d0", "$defs": links })
    };
    let wide = object(Value::Object((0..1500).map(|n| (format!("p{n}"), json!({ "type": "string" }))).collect()));
    let optional = json!({ "type": "object", "properties": wide["properties"] });
    vec![
        ("nested arrays", nested(100, |items| json!({ "type": "array", "items": items }))),
        ("nested unions", nested(50, |one| json!({ "anyOf": [one, { "type": "string" }] }))),
        (
            "doubling unions",
            nested(
                8,
                |one| json!({ "anyOf": [{ "type": "array", "items": one }, { "type": "array", "items": one, "minItems": 1 }] }),
            ),
        ),
        ("a chain of references", chain(2000)),
        ("a reference to itself", json!({ "$ref": "#" })),
        (
            "references in a circle",
            json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
        ),
        (
            "a value that never ends",
            json!({ "$ref": "#/$defs/a", "$defs": { "a": object(json!({ "a": { "$ref": "#/$defs/a" } })) } }),
        ),
        ("many names", wide),
        ("many optional names", optional),
        ("many values", json!({ "enum": (0..9000).map(|n| format!("{n:024x}")).collect::<Vec<_>>() })),
        ("repeated repetition", text("^((a{1,1000}){1,1000}){1,1000}$".into())),
        ("a long look back", text("^(a|b)*a(a|b){2000}$".into())),
        ("exponential states", text("(a|b)*a(a|b){25}$".into())),
        ("nested groups", text(format!("{}a{}", "(".repeat(5000), ")".repeat(5000)))),
        ("classes of Unicode", text(r"^(\p{L}|\p{N}|\p{S}){1,500}\P{L}{1,500}$".into())),
        ("many alternatives", text((0..20_000).map(|n| n.to_string()).collect::<Vec<_>>().join("|"))),
        ("look-ahead", text("^(?=a)b$".into())),
        ("a back reference", text(r"^(a)\1$".into())),
        ("a broken pattern", text("(".into())),
        ("a long text", json!({ "type": "string", "minLength": 4_000_000_000_u64 })),
        ("texts between lengths", json!({ "type": "string", "minLength": 100_000, "maxLength": 200_000 })),
        ("a long list", json!({ "type": "array", "minItems": 4_000_000_000_u64, "items": { "type": "null" } })),
        (
            "a long list of lists",
            nested(20, |items| json!({ "type": "array", "minItems": 1000, "maxItems": 4_000_000, "items": items })),
        ),
        ("a sum of lengths", json!({ "type": "object", "minProperties": 1_000_000 })),
        ("a tiny step", json!({ "type": "number", "multipleOf": 1e-300 })),
        (
            "a huge step",
            json!({ "type": "integer", "multipleOf": 9_007_199_254_740_881_u64, "minimum": -1e300, "maximum": 1e300 }),
        ),
        ("a prime step", json!({ "type": "integer", "multipleOf": 9973 })),
        ("a narrow range", json!({ "type": "number", "minimum": 1e-320, "maximum": 1.1e-320 })),
        ("an empty range", json!({ "type": "integer", "minimum": 3, "maximum": 2 })),
        ("nothing", json!({ "anyOf": [false] })),
        ("overlapping choices", json!({ "oneOf": [{ "type": "string" }, { "type": "string", "maxLength": 3 }] })),
        ("one name many times", json!({ "type": "object", "required": vec!["a"; 5000] })),
        (
            "names of no properties",
            json!({ "type": "object", "required": (0..3000).map(|n| n.to_string()).collect::<Vec<_>>(), "additionalProperties": false }),
        ),
    ]
}

#[test]
fn hostile_schemas_end_in_bounded_time() {
    let mut refused = Vec::new();
    for (name, schema) in hostile() {
        let began = Instant::now();
        let reply = ask(by(schema), json!({ "max_tokens": 12, "temperature": 1.0, "seed": 1 }));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(30), "{name} took {took:?}");
        if reply.status != 200 {
            let error = reply.error(400);
            assert!(error["param"].as_str().unwrap().starts_with("response_format"), "{name}: {error}");
            refused.push(name);
        }
    }
    let wrong = [
        "a reference to itself",
        "references in a circle",
        "many optional names",
        "nested groups",
        "look-ahead",
        "a back reference",
        "a broken pattern",
        "a tiny step",
        "a huge step",
        "a narrow range",
        "an empty range",
        "nothing",
        "overlapping choices",
        "names of no properties",
    ];
    assert_eq!(refused, wrong);
    // The server goes on.
    check(&texts(&ask(by(scene()), json!({})).json())[0]);
}
