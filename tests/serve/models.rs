//! Several models of one server: the base model, and it with adapters.

use haplovl::pipeline::{Engine, EngineConfig, LoadOptions, LoadedModel, ModelSource};
use serde_json::{Value, json};

use super::browser::Browser;
use super::client::Server;
use super::server::Settings;
use super::{CHAT, about, folders};

/// A server of the built-in model with a weak and a strong adapter.
fn server() -> Server {
    let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default()).unwrap();
    let folders = [("weak", 1.0), ("strong", 20.0)].map(|(name, alpha)| {
        let folder = tempfile::tempdir().unwrap();
        folders::write_adapter(folder.path(), &model, alpha);
        (name, folder)
    });
    let named = folders.iter().map(|(name, folder)| (*name, folder.path()));
    Server::over(Engine::with_adapters(model, named, EngineConfig::default()).unwrap(), Settings::default())
}

fn ask(server: &Server, model: Value, fields: Value) -> Value {
    let mut body = about(4, "describe the image.", fields);
    body["model"] = model;
    server.post(CHAT, &body).json()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn requests_choose_the_model_by_name() {
    let server = server();
    let models = server.get("/v1/models").json()["data"].clone();
    let of = |field: &str| Vec::from_iter(models.as_array().unwrap().iter().map(|model| model[field].clone()));
    assert_eq!(of("id"), ["builtin", "weak", "strong"]);
    assert_eq!(of("parent"), [Value::Null, json!("builtin"), json!("builtin")]);
    assert_eq!(server.get("/v1/models/strong").json()["id"], "strong");
    server.get("/v1/models/other").error(404);

    let base = ask(&server, json!("builtin"), json!({}));
    let strong = ask(&server, json!("strong"), json!({ "max_tokens": 40 }));
    assert_eq!((&base["model"], &strong["model"]), (&json!("builtin"), &json!("strong")));
    assert_ne!(text(&base), text(&strong));
    assert_eq!(text(&ask(&server, Value::Null, json!({}))), text(&base));
    // Its own model answers as the library does, and streams bear its name.
    let mut body = about(4, "describe the image.", json!({ "max_tokens": 40, "stream": true }));
    body["model"] = json!("strong");
    let events = server.post(CHAT, &body).events();
    assert!(events.iter().all(|event| event["model"] == "strong"));
    assert_eq!(super::text_of(&events), text(&strong));

    body["model"] = json!("other");
    let error = server.post(CHAT, &body).error(404);
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`builtin`, `weak`, `strong`"), "{message}");
    let page = server.get("/metrics");
    for line in ["{model=\"builtin\"} 2", "{model=\"weak\"} 0", "{model=\"strong\"} 2"] {
        assert!(page.text().contains(&format!("haplovl_answers_accepted_total{line}\n")), "{}", page.text());
    }
}

#[test]
fn other_endpoints_take_the_model_too() {
    let server = server();
    let completion = |model: &str| {
        let body = json!({ "model": model, "prompt": "the picture shows", "max_tokens": 8 });
        server.post("/v1/completions", &body).json()["choices"][0]["text"].clone()
    };
    assert_ne!(completion("builtin"), completion("strong"));
    let vector = |model: &str| {
        let answer = server.post("/v1/embeddings", &json!({ "model": model, "input": "a red ring" })).json();
        assert_eq!(answer["model"], model);
        answer["data"][0]["embedding"].clone()
    };
    assert_ne!(vector("builtin"), vector("strong"));
    let weights = |model: &str| {
        let body = json!({ "model": model, "messages": super::asked(4, "is there a red ring?"), "word": "ring" });
        server.post("/v1/attention", &body).json()["images"][0]["weights"].clone()
    };
    assert_ne!(weights("builtin"), weights("strong"));
    for path in ["/v1/completions", "/v1/embeddings", "/v1/attention"] {
        let body = json!({ "model": "other", "prompt": "a", "input": "a", "messages": [], "word": "a" });
        let fields = match path {
            "/v1/completions" => vec!["model", "prompt"],
            "/v1/embeddings" => vec!["model", "input"],
            _ => vec!["model", "messages", "word"],
        };
        let body = Value::Object(fields.into_iter().map(|field| (field.into(), body[field].clone())).collect());
        assert_eq!(server.post(path, &body).error(404)["code"], "model_not_found", "{path}");
    }
}

#[test]
fn the_page_offers_several_models() {
    let Some(browser) = Browser::start(390, 844) else {
        eprintln!("skipped: no `chromedriver`; Debian has it in the package chromium-driver");
        return;
    };
    let server = server();
    browser.go(&format!("http://{}/", server.address));
    browser.wait("!document.getElementById('models').hidden && document.getElementById('models').length === 3");
    browser.run(
        "const models = document.getElementById('models'); models.value = 'strong'; models.dispatchEvent(new Event('change'))",
        json!([]),
    );
    browser.type_into("#question", "how many objects are there?\u{E007}");
    browser.wait("document.querySelector('.message.assistant .facts')?.textContent");
    assert!(server.get("/metrics").text().contains("haplovl_answers_accepted_total{model=\"strong\"} 1\n"));
    assert_eq!(browser.value("document.documentElement.scrollWidth <= window.innerWidth"), true);
    assert_eq!(browser.errors(), [] as [Value; 0]);
}
