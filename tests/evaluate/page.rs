//! The report in a real browser, with questions and answers that try to run scripts.
#![cfg(feature = "builtin")]

use haplovl::eval::benchmark::{Prediction, Results};
use haplovl::pipeline::{LoadOptions, LoadedModel, ModelSource};
use serde_json::json;

use super::browser::Browser;
use super::report::Report;
use super::{base64_png, folder, open};

const MARKUP: &str = "</script><script>window.ran=1</script><img src=x onerror=window.ran=2><b id=bold>x</b>";

#[test]
fn the_report_shows_answers_and_runs_nothing_from_them() {
    let table = format!(
        "index\timage\tquestion\tA\tB\tanswer\tcategory\n1\t{}\twhich? {MARKUP}\t{MARKUP}\tblue\tB\tcolour {MARKUP}\n\
         2\t1\thow many?\tone\ttwo\tA\tcounting\n",
        base64_png(90)
    );
    let folder = folder(&[("MMStar.tsv", &table)]);
    let questions = open("mmstar", folder.path()).unwrap();
    let predictions = [Prediction::new("1", MARKUP.to_owned()), Prediction::new("2", "A".to_owned())];
    let predictions = questions.matched(&predictions).unwrap();
    let results = Results::of(&questions, &predictions);
    let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default()).unwrap();
    let path = folder.path().join("report.html");
    let config = json!({ "model": format!("m {MARKUP}"), "adapter": null });
    let (questions, predictions, results) = (&questions, &predictions[..], &results);
    let report = Report { questions, predictions, results, instruction: None, seed: 0, config: &config };
    report.write(&path, 10, Some(&model)).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("<b id=bold>") && !text.contains("http://") && !text.contains("https://"));
    let Some(browser) = Browser::start(1200, 900) else {
        eprintln!("skipped: no `chromedriver`; Debian has it in the package chromium-driver");
        return;
    };
    browser.go(&format!("file://{}", path.display()));
    browser.wait("document.querySelectorAll('article').length === 2");
    browser.wait("[...document.querySelectorAll('.picture canvas')].every(canvas => canvas.width === 96)");
    assert_eq!(browser.value("document.querySelectorAll('.picture canvas').length"), 2);
    assert_eq!(
        browser.value("[...document.querySelectorAll('#facts dt')].map(fact => fact.textContent).join()"),
        "model,seed"
    );
    assert_eq!(browser.value("document.querySelector('article').className"), "wrong");
    assert_eq!(browser.value("document.querySelector('article .prompt').textContent.includes('window.ran=1')"), true);
    browser.run("at('verdict').value = 'right'; render()", json!([]));
    assert_eq!(browser.value("document.querySelectorAll('article.right').length"), 1);
    assert_eq!(browser.value("document.querySelectorAll('article').length"), 1);
    browser.run(
        "at('verdict').value = ''; at('category').selectedIndex = 1; at('heat').checked = false; render()",
        json!([]),
    );
    assert_eq!(browser.value("document.querySelectorAll('article').length"), 1);
    assert_eq!(browser.value("getComputedStyle(document.querySelector('canvas')).display"), "none");
    assert_eq!(browser.value("window.ran === undefined && document.getElementById('bold') === null"), true);
    let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    let background = || browser.value("getComputedStyle(document.body).backgroundColor");
    let light = background();
    browser.devtools("Emulation.setEmulatedMedia", dark);
    assert_ne!(background(), light);
    assert_eq!(browser.errors(), Vec::<serde_json::Value>::new());
    browser.screenshot(&std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("evaluate-report.png"));
}
