//! Texts, log probabilities, streams of a seed, penalties.

use haplovl::Error;
use haplovl::config::GenerationConfig;
use haplovl::generation::{Event, FinishReason, Request, SubmitError, TokenLogprob};

use crate::mock::{EOS, Fixture, Prompt, content, endless, greedy, letters, roomy};

#[test]
fn events_come_in_order_and_texts_add_up() {
    let fixture = Fixture::new(roomy());
    let request = Request::new(Prompt::long(4, 200), endless(30));
    let expected = fixture.answer(request.clone()).unwrap();
    let events = Vec::from_iter(fixture.submit(request).unwrap());
    assert!(matches!(events[0], Event::Started { prompt_tokens: 200, cached_tokens: 128 }), "{:?}", events[0]);
    let mut text = String::new();
    for event in &events[1..events.len() - 1] {
        let Event::Text { text: new, tokens } = event else { panic!("{event:?}") };
        assert!(!new.is_empty() && tokens.is_empty());
        text.push_str(new);
    }
    let Some(Event::Finished(finished)) = events.last() else { panic!("{events:?}") };
    assert_eq!((&text, &finished.tokens), (&expected.sequence.text, &expected.sequence.tokens));
    assert_eq!(text, letters(&finished.tokens).unwrap());
    assert_eq!(finished.reason, FinishReason::Length);
    let timings = finished.timings;
    assert_eq!((timings.prompt_tokens, timings.cached_tokens, timings.new_tokens), (200, 128, 30));
    assert!(finished.queue_seconds <= timings.seconds_to_first_token);
    assert!(timings.seconds_to_first_token <= timings.seconds);
}

#[test]
fn a_stop_string_ends_the_answer_and_is_left_out() {
    let fixture = Fixture::new(roomy());
    let prompt = Prompt::long(4, 20);
    let whole = fixture.answer(Request::new(prompt.clone(), endless(40))).unwrap().sequence.text;
    let stop = whole[10..13].to_owned();
    let at = whole.find(&stop).unwrap();
    let generation = GenerationConfig { stop_strings: vec![stop.clone()], ..endless(40) };
    let request = Request::new(prompt, generation).with_logprobs(0);
    let answer = fixture.answer(request.clone()).unwrap().sequence;
    assert_eq!((answer.text.as_str(), &answer.finish_reason), (&whole[..at], &FinishReason::StopString(stop)));
    let tokens = tokens_of(fixture.submit(request).unwrap());
    assert!(tokens.len() <= answer.tokens.len() && tokens.len() >= at, "{} of {at}", tokens.len());
}

fn tokens_of(events: impl Iterator<Item = Event>) -> Vec<TokenLogprob> {
    let tokens = events.filter_map(|event| if let Event::Text { tokens, .. } = event { Some(tokens) } else { None });
    tokens.flatten().collect()
}

#[test]
fn log_probabilities_are_those_of_the_raw_distribution() {
    let fixture = Fixture::new(roomy());
    let prompt = Prompt::long(9, 20);
    // Filters, temperature and penalties must not show.
    let generation = GenerationConfig {
        do_sample: true,
        temperature: Some(0.4),
        top_k: Some(5),
        presence_penalty: Some(1.0),
        ..greedy(60)
    };
    let request = Request::new(prompt.clone(), generation).with_logprobs(3);
    let answer = fixture.answer(request.clone()).unwrap().sequence;
    let tokens = tokens_of(fixture.submit(request).unwrap());
    let mut generated = answer.tokens.clone();
    generated.retain(|id| *id != EOS);
    assert_eq!(Vec::from_iter(tokens.iter().map(|token| token.id)), generated);
    let mut content = content(&prompt.batch());
    for token in &tokens {
        let logits = fixture.model.logits(&content);
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let expected = |id: u32| f64::from(logits[id as usize]) - sum.ln();
        let pairs = token.alternatives.iter().copied().chain([(token.id, token.logprob)]);
        for (id, logprob) in pairs {
            assert!((f64::from(logprob) - expected(id)).abs() < 1e-4, "{id}: {logprob} {}", expected(id));
        }
        let mut order = Vec::from_iter(0..logits.len() as u32);
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        assert_eq!(Vec::from_iter(token.alternatives.iter().map(|(id, _)| *id)), order[..3]);
        content.push(u64::from(token.id));
    }
}

#[test]
fn too_many_alternatives_and_invalid_settings_are_refused() {
    let fixture = Fixture::new(roomy());
    let prompt = Prompt::text(&[1]);
    let refused = |request| match fixture.submit(request).unwrap_err() {
        SubmitError::Invalid(error) => error.to_string(),
        other => panic!("{other}"),
    };
    assert!(refused(Request::new(prompt.clone(), greedy(1)).with_logprobs(21)).contains("`logprobs`"));
    let hot = GenerationConfig { temperature: Some(-1.0), ..greedy(1) };
    assert!(refused(Request::new(prompt.clone(), hot)).contains("`temperature`"));
    let foreign = GenerationConfig { eos_token_id: vec![96], ..greedy(1) };
    assert!(refused(Request::new(prompt.clone(), foreign)).contains("`eos_token_id`"));
    assert!(refused(Request::new(Prompt::long(1, 2048), greedy(1))).contains("no room"));
    let result = fixture.scheduler.submit(Request::new((), greedy(1)), |()| Err(Error::prompt("is no prompt")));
    assert!(matches!(result, Err(SubmitError::Invalid(Error::Prompt(_)))));
    assert_eq!(fixture.scheduler.metrics().requests.refused, 5);
}

#[test]
fn several_answers_to_one_prompt_have_streams_of_their_own() {
    let fixture = Fixture::new(roomy());
    let sampling = GenerationConfig { do_sample: true, seed: 3, ..endless(30) };
    let request = |stream| Request::new(Prompt::long(2, 150), sampling.clone()).with_random_stream(stream);
    let handles = [0, 1, 2, 1].map(|stream| fixture.submit(request(stream)).unwrap());
    let [first, second, third, again] = handles.map(|handle| handle.answer().unwrap().sequence.tokens);
    assert!(first != second && second != third && first != third);
    assert_eq!(second, again);
    // The prompt was prefilled once but for its last chunk.
    assert_eq!(fixture.scheduler.metrics().prefix_cache.misses, 1);
    let choices = fixture.scheduler.submit_choices(request(1), 2, |prompt| Ok(prompt.batch())).unwrap();
    let choices = Vec::from_iter(choices.into_iter().map(|handle| handle.answer().unwrap().sequence.tokens));
    assert_eq!(choices, [second, third]);
}

#[test]
fn penalties_count_the_answer_and_not_the_prompt() {
    let fixture = Fixture::new(roomy());
    let answer = |frequency, presence| {
        let penalties = (Some(frequency), Some(presence));
        let generation =
            GenerationConfig { frequency_penalty: penalties.0, presence_penalty: penalties.1, ..endless(60) };
        fixture.answer(Request::new(Prompt::long(2, 20), generation)).unwrap().sequence.tokens
    };
    let distinct = |mut ids: Vec<u32>| {
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    };
    assert_eq!(answer(0.0, 0.0)[0], answer(2.0, 2.0)[0]);
    assert!(distinct(answer(2.0, 0.0)) > distinct(answer(-2.0, 0.0)) + 10);
    assert!(distinct(answer(0.0, 2.0)) > distinct(answer(0.0, -2.0)));
}
