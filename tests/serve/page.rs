//! The page in a real browser.

use std::path::Path;

use haplovl::pipeline::EngineConfig;
use serde_json::{Value, json};

use super::browser::Browser;
use super::client::Server;
use super::server::Settings;

/// The browser's name of the key Enter, in typed text.
const ENTER: &str = "\u{E007}";
const ARROW_LEFT: &str = "\u{E012}";

const LAST_ANSWER: &str = "[...document.querySelectorAll('.message.assistant')].at(-1)";
/// Keeps every state of the last answer's text, as a user sees it grow.
const WATCH: &str = "window.states = new Set(); new MutationObserver(() => {
    const answer = document.querySelector('.message.assistant:last-child > div');
    if (answer) window.states.add(answer.textContent);
}).observe(document.getElementById('log'), { childList: true, subtree: true, characterData: true })";
const DROP: &str = "const file = new File([await (await fetch(arguments[0])).blob()], 'scene.png', { type: 'image/png' });
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(file);
    document.getElementById('log').dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true }))";
const MARKUP: &str = "<img src=x onerror=\"window.ran=1\"><script>window.ran=2</script><b id=bold>how many?</b>";

/// A browser with the page open, and its server; `None` with a word where there is no browser.
fn opened() -> Option<(Browser, Server)> {
    let Some(browser) = Browser::start(1280, 860) else {
        eprintln!("skipped: no `chromedriver`; Debian has it in the package chromium-driver");
        return None;
    };
    let server = Server::start(Settings::default(), EngineConfig::default());
    browser.go(&format!("http://{}/", server.address));
    browser.wait("document.getElementById('model').textContent === 'builtin'");
    Some((browser, server))
}

fn ask(browser: &Browser, question: &str) {
    browser.type_into("#question", &format!("{question}{ENTER}"));
    browser
        .wait(&format!("{LAST_ANSWER}.querySelector('.facts').textContent && !document.querySelector('#send').hidden"));
}

fn answer(browser: &Browser) -> Value {
    browser.value(&format!("{LAST_ANSWER}.firstElementChild.textContent"))
}

/// The pixels of the heat map, once it is there.
fn heat_map(browser: &Browser) -> String {
    browser.wait(
        "document.querySelector('#maps canvas') && !document.querySelector('#side-note').textContent.includes('…')",
    );
    browser.value("document.querySelector('#maps canvas').toDataURL()").as_str().unwrap().into()
}

fn screenshot(browser: &Browser, name: &str) {
    browser.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("serve-{name}.png")));
}

#[test]
fn the_page_answers_and_shows_where_the_model_looks() {
    let Some((browser, server)) = opened() else { return };
    browser.run(DROP, json!(["examples/4.png"]));
    browser.wait("document.querySelectorAll('#chosen img').length === 1");
    browser.run(WATCH, json!([]));
    ask(&browser, "describe the image.");
    let url = super::data_url(&super::page_example(4));
    let body = json!({ "messages": [{ "role": "user", "content": [super::image_part(&url), { "type": "text", "text": "describe the image." }] }] });
    assert_eq!(answer(&browser), server.post(super::CHAT, &body).json()["choices"][0]["message"]["content"]);
    let states = browser.value("[...window.states]");
    assert!(states.as_array().unwrap().len() > 2, "not streamed: {states}");

    browser.click(".message.user .word:nth-of-type(3)");
    let (of_question, layer) = (heat_map(&browser), browser.value("document.getElementById('layer').value"));
    screenshot(&browser, "question");
    browser.type_into("#layer", ARROW_LEFT);
    browser.wait(&format!(
        "document.getElementById('layer-label').textContent.startsWith('Layer {} ')",
        layer.as_str().unwrap().parse::<usize>().unwrap() - 1
    ));
    browser.wait("document.querySelector('#maps canvas')");
    let other_layer = heat_map(&browser);
    assert_ne!(of_question, other_layer, "the slider changes the map");
    browser.click(".message.assistant .word:nth-of-type(6)");
    browser.wait(&format!("document.querySelector('#maps canvas')?.toDataURL() !== {}", json!(other_layer)));
    assert_ne!(heat_map(&browser), other_layer);
    assert_eq!(browser.errors(), [] as [Value; 0]);
    looks(&browser);
}

/// Screenshots in each form, where nothing is wider than the window.
fn looks(browser: &Browser) {
    for (theme, width, height) in [("light", 1280, 860), ("dark", 1280, 860), ("light", 390, 844), ("dark", 390, 844)] {
        let feature = json!([{ "name": "prefers-color-scheme", "value": theme }]);
        browser.devtools("Emulation.setEmulatedMedia", json!({ "features": feature }));
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        browser.devtools("Emulation.setDeviceMetricsOverride", size);
        let wide = browser.value("document.documentElement.scrollWidth");
        assert!(wide.as_u64().unwrap() <= width, "{wide} pixels of {width}");
        screenshot(browser, &format!("{theme}-{width}"));
    }
}

#[test]
fn markup_stays_text_and_images_are_chosen_and_removed() {
    let Some((browser, _server)) = opened() else { return };
    screenshot(&browser, "start");
    let file = tempfile::Builder::new().suffix(".png").tempfile().unwrap();
    super::page_example(5).save(file.path()).unwrap();
    browser.type_into("#file", file.path().to_str().unwrap());
    browser.wait("document.querySelectorAll('#chosen img').length === 1");
    browser.click("#examples button");
    browser.wait("document.querySelectorAll('#chosen img').length === 2");
    browser.click("#chosen figure:last-child button");
    browser.wait("document.querySelectorAll('#chosen img').length === 1");
    ask(&browser, MARKUP);
    assert_eq!(browser.value("document.querySelector('.message.user > div:nth-last-child(2)').textContent"), MARKUP);
    assert_eq!(browser.errors(), [] as [Value; 0]);
    // Neither as the page's own doing, nor if something got into it, does a script run.
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran=3' }))",
        json!([]),
    );
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=examples/x onerror=\"window.ran=4\">')",
        json!([]),
    );
    browser.run("await fetch('examples/1.png')", json!([]));
    assert_eq!(
        browser.value("[window.ran ?? null, document.querySelector('#bold, #log script, #log [onerror]')]"),
        json!([null, null])
    );
}
