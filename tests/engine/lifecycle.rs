//! Queue, time-outs, cancellation, errors, jobs, the end of the engine.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use haplovl::Error;
use haplovl::generation::{EngineConfig, Event, FinishReason, Handle, Request, SubmitError};

use crate::mock::{FAIL, FAIL_STEP, Fixture, Mock, NAN, PANIC, Prompt, Work, endless, greedy, letters, roomy};

fn endless_request(seed: u64) -> Request<Prompt> {
    Request::new(Prompt::long(seed, 20), endless(1000))
}

/// A model that takes a millisecond for each step.
fn slow() -> Mock {
    let mut model = Mock::new();
    (model.step_time, model.item_time) = (Duration::from_millis(1), Duration::from_millis(1));
    model
}

/// Waits for something that comes within a moment.
fn eventually(mut what: impl FnMut() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(20), "did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_full_queue_refuses_and_takes_again_later() {
    let fixture = Fixture::new(roomy().with_max_batch(2).with_queue(3));
    fixture.model.close();
    let request = || Request::new(Prompt::long(1, 20), endless(5));
    let handles = Vec::from_iter((0..5).map(|_| fixture.submit(request()).unwrap()));
    fixture.model.wait_until_reached();
    let error = fixture.submit(request()).unwrap_err();
    assert!(matches!(error, SubmitError::QueueFull { waiting: 4, running: 1 }), "{error}");
    assert!(error.to_string().contains("try again later"), "{error}");
    // The prompt of a refused request is not looked at.
    let unprepared = fixture.scheduler.submit(Request::new((), greedy(1)), |()| panic!("prepared"));
    assert!(unprepared.is_err());
    let too_many = fixture.scheduler.submit_choices(Request::new((), greedy(1)), 6, |()| panic!("prepared"));
    assert!(too_many.unwrap_err().to_string().contains("`choices`: is 6, more than the 5"));
    fixture.model.open();
    handles.into_iter().for_each(|handle| drop(handle.answer().unwrap()));
    fixture.answer(request()).unwrap();
    let requests = fixture.scheduler.metrics().requests;
    assert_eq!((requests.accepted, requests.queue_full, requests.length), (6, 2, 6));
}

#[test]
fn requests_start_in_the_order_of_their_arrival() {
    let fixture = Fixture::over(slow(), roomy().with_max_batch(3).with_queue(100));
    let submit = |n| {
        let now = Instant::now();
        let prompt = Prompt::long(n, 20 + 10 * n as usize % 300);
        (now, fixture.submit(Request::new(prompt, endless(9))).unwrap())
    };
    let handles = Vec::from_iter((0..40).map(submit));
    let start = |(submitted, handle): (Instant, Handle)| match handle.last() {
        Some(Event::Finished(finished)) => submitted + Duration::from_secs_f64(finished.queue_seconds),
        other => panic!("{other:?}"),
    };
    let starts = Vec::from_iter(handles.into_iter().map(start));
    // A prefill takes at least three milliseconds.
    assert!(starts.windows(2).all(|pair| pair[0] + Duration::from_millis(2) < pair[1]), "{starts:?}");
}

#[test]
fn streams_go_on_while_a_long_prompt_is_prefilled() {
    let fixture = Fixture::over(slow(), roomy());
    let mut stream = fixture.submit(endless_request(1)).unwrap();
    assert!(stream.by_ref().any(|event| matches!(event, Event::Text { .. })));
    fixture.model.work.lock().unwrap().clear();
    // Fifteen chunks of three work items each.
    fixture.answer(Request::new(Prompt::long(2, 15 * 128), endless(1))).unwrap();
    let work = fixture.model.work.lock().unwrap().clone();
    let items = work.split(|work| matches!(work, Work::Decode(_))).map(<[_]>::len);
    assert_eq!(work.iter().filter(|work| **work == Work::Item).count(), 45);
    let most = items.max().unwrap();
    assert!(most <= 6, "{most} work items in a row");
}

#[test]
fn a_time_limit_holds_in_the_queue_and_while_running() {
    let limit = Duration::from_millis(60);
    let fixture = Fixture::over(slow(), roomy().with_max_batch(1).with_timeout(limit));
    let runs = fixture.submit(endless_request(1)).unwrap();
    fixture.model.close();
    let waits = fixture.submit(endless_request(2)).unwrap();
    std::thread::sleep(limit);
    fixture.model.open();
    let events = Vec::from_iter(waits);
    let [Event::Finished(finished)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&finished.reason, finished.tokens.len()), (&FinishReason::TimedOut, 0));
    assert!(finished.queue_seconds >= 0.06);
    let answer = runs.answer().unwrap();
    assert_eq!(answer.sequence.finish_reason, FinishReason::TimedOut);
    let answer = fixture.submit(endless_request(3)).unwrap().answer().unwrap().sequence;
    assert_eq!(answer.finish_reason, FinishReason::TimedOut);
    assert!((1..61).contains(&answer.tokens.len()), "{}", answer.tokens.len());
    assert_eq!(answer.text, letters(&answer.tokens).unwrap());
    assert_eq!(fixture.scheduler.metrics().requests.timed_out, 3);
}

#[test]
fn a_dropped_handle_cancels_within_one_token() {
    let fixture = Fixture::over(slow(), roomy().with_max_batch(1));
    let mut stream = fixture.submit(endless_request(1)).unwrap();
    assert!(stream.by_ref().any(|event| matches!(event, Event::Text { .. })));
    let waiting = fixture.submit(endless_request(2)).unwrap();
    drop(waiting);
    fixture.model.close();
    fixture.model.wait_until_reached();
    let before = fixture.model.work.lock().unwrap().len();
    drop(stream);
    fixture.model.open();
    eventually(|| fixture.scheduler.metrics().requests.cancelled == 2);
    // The step that was under way, and no other.
    assert_eq!(fixture.model.work.lock().unwrap().len(), before + 1);
    assert_eq!(fixture.answer(Request::new(Prompt::text(&[1]), endless(3))).unwrap().sequence.tokens.len(), 3);
}

#[test]
fn no_event_follows_a_cancellation_and_the_answer_so_far_is_there() {
    let fixture = Fixture::over(slow(), roomy());
    let mut stream = fixture.submit(endless_request(1)).unwrap();
    assert!(stream.by_ref().any(|event| matches!(event, Event::Text { .. })));
    std::thread::sleep(Duration::from_millis(20));
    stream.cancel();
    assert!(stream.next().is_none() && stream.next().is_none());
    let answer = stream.answer().unwrap().sequence;
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
    assert!(!answer.tokens.is_empty());
    // From another thread, while the reader waits for an event.
    fixture.model.close();
    let mut stream = fixture.submit(endless_request(2)).unwrap();
    assert!(matches!(stream.next(), Some(Event::Started { .. })));
    let (cancel, model) = (stream.cancel_token(), Arc::clone(&fixture.model));
    let other = std::thread::spawn(move || {
        model.wait_until_reached();
        cancel.cancel();
        model.open();
    });
    assert!(stream.next().is_none());
    other.join().unwrap();
}

#[test]
fn sinks_that_refuse_panic_or_are_slow_harm_no_one_else() {
    let fixture = Fixture::new(roomy());
    let (sender, seen) = channel();
    let stop = move |_| {
        sender.send(()).unwrap();
        false
    };
    fixture.submit(endless_request(1)).unwrap().forward(stop).unwrap();
    fixture.submit(endless_request(2)).unwrap().forward(|_| panic!("on purpose")).unwrap();
    let (_held, wait) = channel::<()>();
    fixture
        .submit(Request::new(Prompt::text(&[3]), endless(50)))
        .unwrap()
        .forward(move |_| wait.recv().is_ok())
        .unwrap();
    fixture.answer(Request::new(Prompt::text(&[4]), endless(100))).unwrap();
    eventually(|| fixture.scheduler.metrics().requests.ended() == 4);
    let requests = fixture.scheduler.metrics().requests;
    assert_eq!((requests.cancelled, requests.length), (2, 2));
    assert_eq!(seen.iter().count(), 1);
}

#[test]
fn a_request_that_fails_fails_alone() {
    let fixture = Fixture::over(slow(), roomy());
    let other = fixture.submit(Request::new(Prompt::long(1, 20), endless(80))).unwrap();
    let message = |id| fixture.answer(Request::new(Prompt::text(&[1, id]), endless(9))).unwrap_err().to_string();
    let nan = message(NAN);
    assert!(nan.contains("position 3") && nan.contains("NaN"), "{nan}");
    assert!(message(FAIL).contains("the prefill fails on purpose"));
    assert!(message(PANIC).contains("the model panicked: on purpose"));
    let answer = other.answer().unwrap().sequence;
    assert_eq!(answer.tokens.len(), 80);
    let alone = Fixture::new(roomy()).answer(Request::new(Prompt::long(1, 20), endless(80))).unwrap().sequence;
    assert_eq!(answer, alone);
    let metrics = fixture.scheduler.metrics();
    assert_eq!((metrics.requests.failed, metrics.kv_reserved_bytes), (3, 0));
}

#[test]
fn an_error_of_a_whole_step_reaches_each_of_its_requests_and_the_engine_goes_on() {
    let fixture = Fixture::over(slow(), roomy());
    let mut others = [1, 2].map(|seed| fixture.submit(endless_request(seed)).unwrap());
    others.iter_mut().for_each(|other| assert!(other.any(|event| matches!(event, Event::Text { .. }))));
    let culprit = fixture.submit(Request::new(Prompt::text(&[FAIL_STEP]), endless(9))).unwrap();
    for handle in others.into_iter().chain([culprit]) {
        let error = handle.answer().unwrap_err();
        assert!(matches!(error, Error::Generation(_)) && error.to_string().contains("on purpose"), "{error}");
    }
    assert_eq!(fixture.answer(Request::new(Prompt::text(&[1]), endless(3))).unwrap().sequence.tokens.len(), 3);
    assert_eq!(fixture.scheduler.metrics().requests.failed, 3);
}

#[test]
fn jobs_run_between_steps_and_their_panics_are_errors() {
    let fixture = Fixture::over(slow(), roomy());
    let stream = fixture.submit(Request::new(Prompt::long(1, 20), endless(50))).unwrap();
    let thread = fixture.scheduler.run(|| std::thread::current().name().map(str::to_owned)).unwrap();
    assert_eq!(thread.as_deref(), Some("engine"));
    let message = fixture.scheduler.run::<()>(|| panic!("for {}", "this")).unwrap_err().to_string();
    assert!(message.contains("the job panicked: for this"), "{message}");
    assert_eq!(stream.answer().unwrap().sequence.tokens.len(), 50);
    // A job may use the engine, and may be its end.
    let scheduler = Arc::new(fixture.scheduler);
    let inner = Arc::clone(&scheduler);
    let job = move || (inner.run(|| 1).unwrap(), inner.shutdown());
    assert_eq!(scheduler.run(job).unwrap().0, 1);
    scheduler.shutdown();
}

#[test]
fn a_shutdown_lets_requests_end_and_takes_no_more() {
    let fixture = Fixture::over(slow(), roomy().with_max_batch(1));
    let handles = [1, 2, 3].map(|seed| fixture.submit(Request::new(Prompt::long(seed, 9), endless(20))).unwrap());
    fixture.scheduler.shutdown();
    assert_eq!(fixture.scheduler.metrics().requests.length, 3);
    handles.into_iter().for_each(|handle| assert_eq!(handle.answer().unwrap().sequence.tokens.len(), 20));
    assert!(matches!(fixture.submit(endless_request(1)), Err(SubmitError::ShutDown)));
    assert!(fixture.scheduler.run(|| ()).unwrap_err().to_string().contains("shut down"));
    fixture.scheduler.shutdown();
}

#[test]
fn the_end_of_the_engine_cancels_all() {
    let fixture = Fixture::over(slow(), roomy().with_max_batch(1));
    let handles = [1, 2].map(|seed| fixture.submit(endless_request(seed)).unwrap());
    let Fixture { model, scheduler } = fixture;
    drop(scheduler);
    for handle in handles {
        assert_eq!(handle.answer().unwrap().sequence.finish_reason, FinishReason::Cancelled);
    }
    assert_eq!(model.memory.now(), 0);
}

#[test]
fn impossible_settings_are_named() {
    let config = EngineConfig::default();
    for (config, field) in [
        (config.with_max_batch(0), "max_batch"),
        (config.with_max_batch(1000), "max_batch"),
        (config.with_queue(1 << 20), "queue"),
        (config.with_kv_cache_bytes(0), "kv_cache_bytes"),
        (config.with_timeout(Duration::ZERO), "timeout"),
    ] {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.contains(&format!("`{field}`")), "{message}");
    }
}

#[test]
fn metrics_count_what_happened() {
    let fixture = Fixture::new(roomy());
    for _ in 0..2 {
        fixture.answer(Request::new(Prompt::long(1, 300), endless(10))).unwrap();
    }
    let metrics = fixture.scheduler.metrics();
    assert_eq!((metrics.prompt_tokens, metrics.cached_tokens, metrics.new_tokens), (600, 256, 20));
    assert_eq!(metrics.decode_steps, 18);
    assert_eq!(metrics.kv_budget_bytes, 1 << 24);
    assert_eq!((metrics.prefix_cache.hits, metrics.prefix_cache.misses), (2, 2));
    assert_eq!(metrics.prefix_cache.bytes, 2560);
    let counts = [metrics.queue_seconds, metrics.first_token_seconds, metrics.request_seconds].map(|h| h.count());
    assert_eq!((counts, metrics.inter_token_seconds.count()), ([2; 3], 18));
}
