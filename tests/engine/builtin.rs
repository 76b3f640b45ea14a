//! The engine over the built-in model answers as the pipelines do.

use std::sync::Arc;

use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::pipeline::{Constraint, Engine, Request};
use haplovl::prelude::*;

const QUESTIONS: [&str; 3] =
    ["how many objects are there?", "describe the image.", "is there a red circle in the picture?"];

fn scene(n: u64) -> RgbImage {
    Split::Test.scene(n, &ShapesConfig::default()).render(64)
}

#[test]
fn answers_equal_those_of_the_pipelines_alone_and_in_company() {
    let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default()).unwrap();
    let (answerer, captioner) = (VisualQuestionAnswerer::new(&model), Captioner::new(&model));
    let generation = model.generation().clone();
    let engine = Engine::new(model, EngineConfig::default()).unwrap();
    let cases = Vec::from_iter((0..12).map(|n| (scene(n), QUESTIONS[n as usize % 3])));
    let expected = Vec::from_iter(cases.iter().map(|(image, question)| {
        let answer = answerer.ask([image.clone().into()], question).unwrap();
        (answer.sequence, answer.timings.prompt_tokens)
    }));
    let submit = |(image, question): &(RgbImage, &str)| {
        engine.submit(Request::new(Conversation::ask([image.clone()], *question), generation.clone())).unwrap()
    };
    for (case, expected) in cases.iter().zip(&expected) {
        let answer = submit(case).answer().unwrap();
        assert_eq!((answer.sequence, answer.timings.prompt_tokens), *expected);
    }
    for _ in 0..2 {
        let handles = Vec::from_iter(cases.iter().map(submit));
        for (handle, expected) in handles.into_iter().zip(&expected) {
            assert_eq!(handle.answer().unwrap().sequence, expected.0);
        }
    }
    let captions = Vec::from_iter(cases.iter().map(|(image, _)| captioner.caption(image.clone()).unwrap()));
    let prompt = Captioner::DEFAULT_PROMPT;
    let handles = Vec::from_iter(cases.iter().map(|(image, _)| submit(&(image.clone(), prompt))));
    for (handle, expected) in handles.into_iter().zip(&captions) {
        assert_eq!(handle.answer().unwrap().sequence, expected.sequence);
    }
    let metrics = engine.metrics();
    assert_eq!(metrics.requests.accepted, 48);
    assert!(metrics.cached_tokens > 0);
}

#[test]
fn a_text_is_continued_without_the_chat_template() {
    let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default()).unwrap();
    let tokens = model.processor().tokenizer().encode("the image").unwrap().len();
    let generation = GenerationConfig { max_new_tokens: Some(4), ..model.generation().clone() };
    let engine = Engine::new(model, EngineConfig::default()).unwrap();
    let answer = engine.submit(Request::new("the image", generation.clone())).unwrap().answer().unwrap();
    assert!((tokens..=tokens + 1).contains(&answer.timings.prompt_tokens));
    let error = engine.submit(Request::new("", generation)).unwrap_err().to_string();
    assert!(error.contains("empty"), "{error}");
    assert_eq!(
        engine.run(|model| model.model().config().vocab_size).unwrap(),
        engine.model().model().config().vocab_size
    );
}

#[test]
fn the_model_chooses_among_texts() {
    let model = LoadedModel::load(&ModelSource::Builtin, LoadOptions::default()).unwrap();
    let colours = Arc::new(model.choices(&["a red ring", "a red star", "a red", "blue"]).unwrap());
    let unknown = model.choices(&["yes", "perhaps"]).unwrap_err().to_string();
    assert!(unknown.contains("perhaps"), "{unknown}");
    let generation = model.generation().clone();
    let engine = Engine::new(model, EngineConfig::default()).unwrap();
    for index in 0..4 {
        let question = Conversation::ask([scene(index)], "describe the image.");
        let request =
            Request::new(question, generation.clone()).with_constraint(Arc::clone(&colours) as Arc<dyn Constraint>);
        let answer = engine.submit(request).unwrap().answer().unwrap();
        assert!(["a red ring", "a red star", "a red", "blue"].contains(&answer.text()), "{:?}", answer.text());
    }
}
