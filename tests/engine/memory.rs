//! The prefix cache and the memory of keys and values.

use haplovl::generation::{EngineConfig, Request, SubmitError};

use crate::mock::{BYTES_PER_POSITION, Fixture, Prompt, Work, endless, greedy, roomy};

/// Settings with room for so many positions.
fn room_for(positions: usize) -> EngineConfig {
    EngineConfig::default().with_kv_cache_bytes(positions * BYTES_PER_POSITION)
}

#[test]
fn ten_questions_about_one_image_prefill_it_once() {
    let fixture = Fixture::new(roomy());
    let questions = (0..10).map(|n| Prompt::with_image(5, &[n, n + 1, n + 2]));
    let handles = Vec::from_iter(questions.map(|prompt| fixture.submit(Request::new(prompt, greedy(8))).unwrap()));
    handles.into_iter().for_each(|handle| drop(handle.answer().unwrap()));
    // The image, and one question each.
    let prefilled = fixture.model.prefilled.lock().unwrap().clone();
    assert_eq!((prefilled.len(), prefilled.values().sum::<usize>()), (11, 11));
    let cache = fixture.scheduler.metrics().prefix_cache;
    assert_eq!((cache.hits, cache.misses, cache.chunks), (9, 1, 1));
}

#[test]
fn another_image_of_the_same_size_is_not_shared() {
    let fixture = Fixture::new(roomy());
    let first = Prompt::with_image(5, &[1, 2]);
    assert_eq!(fixture.cached(&first), 0);
    let image = first.batch().layout.seq_len - 2;
    assert_eq!(fixture.cached(&Prompt::with_image(6, &[1, 2])), 0);
    assert_eq!(fixture.cached(&Prompt::with_image(5, &[3])), image);
    // The chunk after the image is another one than the same text alone.
    assert_eq!(fixture.cached(&Prompt { image: Some(5), ids: vec![7; 200] }), image);
    assert_eq!(fixture.cached(&Prompt::text(&[7; 200])), 0);
    assert_eq!(fixture.cached(&Prompt { image: Some(5), ids: vec![7; 200] }), image + 128);
}

#[test]
fn a_text_of_whole_chunks_computes_its_last_one_again() {
    let fixture = Fixture::new(roomy());
    let prompt = Prompt::long(1, 256);
    assert_eq!([0; 2].map(|_| fixture.cached(&prompt)), [0, 128]);
    let longer = Prompt { image: None, ids: [prompt.ids, vec![3]].concat() };
    assert_eq!([0; 2].map(|_| fixture.cached(&longer)), [128, 256]);
}

#[test]
fn the_least_recently_used_chunk_goes_first() {
    // Room for three shared chunks beside a request of two positions.
    let fixture = Fixture::new(room_for(3 * 128 + 2));
    let prompts = [1, 2, 3, 4].map(|seed| Prompt::long(seed, 129));
    let cached = |n: usize| fixture.cached(&prompts[n]) > 0;
    assert_eq!([0, 1, 2].map(cached), [false; 3]);
    assert!(cached(0));
    assert!(!cached(3));
    assert_eq!([0, 2, 3].map(cached), [true; 3]);
    assert!(!cached(1));
    assert_eq!(fixture.scheduler.metrics().prefix_cache.evictions, 2);
}

#[test]
fn a_chunk_that_others_follow_stays_until_they_are_gone() {
    let fixture = Fixture::new(room_for(3 * 128 + 130));
    let chain = Prompt::long(1, 3 * 128 + 1);
    assert_eq!([0; 2].map(|_| fixture.cached(&chain)), [0, 384]);
    // A text of one chunk pushes the end of the chain out, not its beginning.
    let other = Prompt::long(2, 129);
    assert_eq!(fixture.cached(&other), 0);
    let bytes = fixture.scheduler.metrics().prefix_cache.bytes;
    assert!(bytes <= (3 * 128 + 130) * BYTES_PER_POSITION, "{bytes}");
    assert_eq!(fixture.cached(&Prompt { image: None, ids: chain.ids[..257].to_vec() }), 256);
}

#[test]
fn a_request_beyond_all_memory_is_refused_and_the_largest_possible_runs() {
    let fixture = Fixture::new(room_for(100));
    let error = fixture.submit(Request::new(Prompt::long(1, 80), greedy(21))).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, SubmitError::TooLarge { needed: 1010, budget: 1000 }), "{message}");
    assert!(message.contains("1010 bytes") && message.contains("`max_new_tokens`"), "{message}");
    let answer = fixture.answer(Request::new(Prompt::long(1, 80), endless(20))).unwrap();
    assert_eq!(answer.sequence.tokens.len(), 20);
    assert!(fixture.model.memory.peak() <= 1000);
    assert_eq!(fixture.scheduler.metrics().requests.refused, 1);
}

#[test]
fn requests_run_together_only_if_memory_lasts_for_both() {
    for (positions, together) in [(100, 2), (99, 1)] {
        let fixture = Fixture::new(room_for(positions));
        fixture.model.close();
        let request = |seed| fixture.submit(Request::new(Prompt::long(seed, 30), endless(20))).unwrap();
        let handles = [1, 2, 3].map(request);
        fixture.model.open();
        handles.into_iter().for_each(|handle| drop(handle.answer().unwrap()));
        let most = |work: &Work| if let Work::Decode(rows) = work { *rows } else { 0 };
        assert_eq!(fixture.model.work.lock().unwrap().iter().map(most).max(), Some(together));
    }
}

#[test]
fn a_large_request_is_not_overtaken() {
    let fixture = Fixture::new(room_for(200));
    fixture.model.close();
    let small = |seed| fixture.submit(Request::new(Prompt::long(seed, 10), endless(30))).unwrap();
    let first = small(1);
    fixture.model.wait_until_reached();
    let large = fixture.submit(Request::new(Prompt::long(2, 100), endless(100))).unwrap();
    let last = [3, 4, 5, 6].map(small);
    fixture.model.open();
    first.answer().unwrap();
    large.answer().unwrap();
    // The large one took all memory; whoever came later started after its end.
    let metrics = fixture.scheduler.metrics();
    assert!(metrics.requests.length >= 2, "{metrics:?}");
    last.into_iter().for_each(|handle| drop(handle.answer().unwrap()));
    let work = fixture.model.work.lock().unwrap().clone();
    let alone = work.iter().position(|work| *work == Work::Decode(4)).unwrap();
    let decoded_before = work[..alone].iter().filter(|work| matches!(work, Work::Decode(1))).count();
    assert!(decoded_before >= 128, "{decoded_before}");
}

#[test]
fn memory_returns_to_zero() {
    let fixture = Fixture::new(roomy());
    let requests = (0..20).map(|n| Request::new(Prompt::long(n % 4, 100 + 20 * n as usize), greedy(30)));
    let mut handles = Vec::from_iter(requests.map(|request| fixture.submit(request).unwrap()));
    handles.truncate(10);
    handles.into_iter().for_each(|handle| drop(handle.answer().unwrap()));
    fixture.scheduler.shutdown();
    let metrics = fixture.scheduler.metrics();
    assert_eq!((metrics.kv_reserved_bytes, metrics.running, metrics.waiting, metrics.batch_size), (0, 0, 0, 0));
    assert_eq!(metrics.requests.ended(), 20);
    let Fixture { model, scheduler } = fixture;
    drop(scheduler);
    assert_eq!(model.memory.now(), 0);
}

#[test]
fn the_prefix_is_looked_up_when_the_prefill_starts() {
    let fixture = Fixture::new(roomy());
    fixture.model.close();
    let prompt = Prompt::long(1, 300);
    let handles = [0; 3].map(|_| fixture.submit(Request::new(prompt.clone(), greedy(4))).unwrap());
    fixture.model.open();
    let cached = handles.map(|handle| handle.answer().unwrap().timings.cached_tokens);
    assert_eq!(cached, [0, 256, 256]);
}
