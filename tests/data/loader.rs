//! The data loader: order, threads, resuming, grouping, bad samples.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use haplovl::data::shapes::{QuestionKind, ShapesConfig, ShapesContent, ShapesDataset, Split};
use haplovl::data::{
    BadSample, Dataset, Group, Grouping, IMAGE_MARKER, ImageSource, Length, Loader, LoaderConfig, LoaderState, Portion,
    SampleResult,
};

/// Data set whose samples are their indices; some are bad.
struct Numbers {
    len: usize,
    bad: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq)]
struct Number(usize);

impl Length for Number {
    fn length(&self) -> usize {
        self.0 % 13 + 1
    }
}

impl Dataset for Numbers {
    type Item = usize;

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize) -> SampleResult<usize> {
        if self.bad.contains(&index) { Err(BadSample::NoTurns) } else { Ok(index) }
    }
}

const GROUPINGS: [Grouping; 3] = [
    Grouping::InOrder { rows: 4 },
    Grouping::ByLength { rows: 4, window: 3 },
    Grouping::Packed { rows: 2, row_length: 16, window: 10 },
];

fn config(grouping: Grouping) -> LoaderConfig {
    LoaderConfig { seed: 5, epochs: Some(3), prefetch: 7, max_bad_share: 0.3, grouping, ..LoaderConfig::default() }
}

fn load_from(state: LoaderState, config: LoaderConfig) -> Vec<Group<Number>> {
    let numbers = Numbers { len: 50, bad: vec![3, 17, 18] };
    let prepare = |number: usize| {
        // Uneven work, so that threads finish out of order.
        std::thread::sleep(std::time::Duration::from_micros(number as u64 % 5 * 100));
        Ok(Number(number))
    };
    Loader::new(numbers, config, state, prepare).unwrap().collect::<Result<_, _>>().unwrap()
}

fn load(config: LoaderConfig) -> Vec<Group<Number>> {
    load_from(LoaderState::default(), config)
}

#[test]
fn every_epoch_yields_each_valid_sample_once_in_a_new_order() {
    for grouping in GROUPINGS {
        let groups = load(config(grouping));
        let mut epochs: Vec<Vec<usize>> = vec![vec![]; 3];
        let mut epoch = 0;
        for group in &groups {
            assert_eq!(group.rows.iter().flatten().map(|n| n.0).collect::<Vec<_>>(), group.samples);
            epochs[epoch].extend(&group.samples);
            epoch = group.state.epoch as usize;
        }
        assert_eq!(groups.last().unwrap().state.epoch, 3);
        assert_ne!(epochs[0], epochs[1]);
        for epoch in &epochs {
            let once: BTreeSet<_> = epoch.iter().copied().collect();
            assert_eq!((epoch.len(), once.len()), (47, 47), "{grouping:?}");
            assert!(![3, 17, 18].iter().any(|bad| once.contains(bad)));
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_the_batches() {
    for grouping in GROUPINGS {
        let with = |workers, prefetch| load(LoaderConfig { workers, prefetch, ..config(grouping) });
        assert_eq!(with(1, 0), with(4, 33), "{grouping:?}");
    }
}

#[test]
fn the_seed_determines_the_order_and_shuffling_can_be_disabled() {
    let grouping = GROUPINGS[0];
    assert_ne!(load(config(grouping)), load(LoaderConfig { seed: 6, ..config(grouping) }));
    let plain = load(LoaderConfig { shuffle: false, ..config(grouping) });
    assert_eq!(plain[0].samples, [0, 1, 2], "3 is bad");
    assert_eq!(plain[1].samples, [4, 5, 6, 7]);
    assert_eq!(plain[13].samples, plain[0].samples, "the next epoch begins with a new window");
}

#[test]
fn resuming_after_any_group_continues_with_the_next() {
    for grouping in GROUPINGS {
        let all = load(config(grouping));
        for (i, group) in all.iter().enumerate() {
            let state = serde_json::from_str(&serde_json::to_string(&group.state).unwrap()).unwrap();
            assert_eq!(load_from(state, config(grouping)), all[i + 1..], "{grouping:?} after group {i}");
        }
    }
}

#[test]
fn by_length_reduces_padding_and_packing_fills_rows() {
    let padding = |grouping| {
        let groups = load(config(grouping));
        let waste = |group: &Group<Number>| {
            let longest = group.rows.iter().map(|row| row[0].length()).max().unwrap();
            group.rows.iter().map(|row| longest - row[0].length()).sum::<usize>()
        };
        groups.iter().map(waste).sum::<usize>()
    };
    assert!(padding(GROUPINGS[1]) * 2 < padding(GROUPINGS[0]));

    let packed = load(config(GROUPINGS[2]));
    let row_length = |row: &Vec<Number>| row.iter().map(Length::length).sum::<usize>();
    assert!(packed.iter().all(|group| group.rows.len() <= 2 && group.rows.iter().all(|row| row_length(row) <= 16)));
    let rows: usize = packed.iter().map(|group| group.rows.len()).sum();
    assert!(rows < 47 * 3 * 2 / 3, "{rows} rows for {} samples", 47 * 3);
}

#[test]
fn bad_samples_are_named_and_counted() {
    let log = Arc::new(Mutex::new(vec![]));
    let numbers = Numbers { len: 200, bad: vec![9] };
    let config = LoaderConfig { shuffle: false, epochs: Some(1), max_bad_share: 0.02, ..LoaderConfig::default() };
    let prepare =
        |number| if number == 20 { Err(haplovl::Error::prompt("too odd").into()) } else { Ok(Number(number)) };
    let keep = Arc::clone(&log);
    let loader = Loader::new(numbers, config, LoaderState::default(), prepare)
        .unwrap()
        .on_bad(move |r| keep.lock().unwrap().push(format!("{}: {} ({} of {})", r.sample, r.reason, r.bad, r.seen)));
    let last = loader.last().unwrap().unwrap();
    assert_eq!((last.state.seen, last.state.bad), (200, 2));
    let log = log.lock().unwrap();
    assert!(log[0].starts_with("sample 9: no turn of the assistant") && log[0].ends_with("(1 of 10)"), "{log:?}");
    assert_eq!(log[1..], ["sample 20: prompt: too odd (2 of 21)"]);
}

#[test]
fn too_many_bad_samples_stop_the_run() {
    let numbers = Numbers { len: 1000, bad: (500..1000).collect() };
    let config = LoaderConfig { shuffle: false, max_bad_share: 0.05, ..LoaderConfig::default() };
    let mut loader = Loader::new(numbers, config, LoaderState::default(), |n| Ok(Number(n))).unwrap();
    let error = loader.find_map(Result::err).unwrap().to_string();
    assert!(error.starts_with("data: 51 of 551 samples are bad, more than the allowed share of 0.05"), "{error}");
    assert!(error.contains("the last is sample 550") && error.contains("raise `max_bad_share`"), "{error}");
    assert!(loader.next().is_none(), "an error is the end");
}

#[test]
fn a_bad_sample_counts_and_is_reported_once_over_all_epochs() {
    for seed in 0..6 {
        let reports = Arc::new(Mutex::new(vec![]));
        let keep = Arc::clone(&reports);
        let config = LoaderConfig { seed, grouping: Grouping::InOrder { rows: 4 }, ..LoaderConfig::default() };
        let numbers = || Numbers { len: 120, bad: vec![77] };
        let loader = Loader::new(numbers(), config.clone(), LoaderState::default(), |n| Ok(Number(n))).unwrap();
        let mut loader = loader.on_bad(move |r| keep.lock().unwrap().push(r.sample.to_string()));
        let last = loader.by_ref().take(700).last().unwrap().unwrap();
        assert!(last.state.epoch > 20 && last.state.bad == 1, "{:?}", last.state);
        assert_eq!(*reports.lock().unwrap(), ["sample 77"]);
        // A resumed loader knows the sample already.
        let state = serde_json::from_str(&serde_json::to_string(&last.state).unwrap()).unwrap();
        let mut resumed = Loader::new(numbers(), config, state, |n| Ok(Number(n))).unwrap();
        resumed = resumed.on_bad(|report| panic!("{} again", report.sample));
        assert_eq!(resumed.take(40).last().unwrap().unwrap().state.bad, 1);
    }
}

#[test]
fn states_of_the_first_version_count_bad_samples_anew() {
    let state = r#"{ "epoch": 1, "position": 4, "groups": 0, "seen": 54, "bad": 6, "samples": 50 }"#;
    let groups = load_from(serde_json::from_str(state).unwrap(), config(GROUPINGS[0]));
    assert_eq!(groups.last().unwrap().state.bad, 3);
}

#[test]
fn a_data_set_with_exactly_the_allowed_share_never_stops_and_one_above_always_does() {
    for seed in 0..20 {
        let last = |bad: usize| {
            // Bad samples beside each other, as from one broken folder.
            let numbers = Numbers { len: 1000, bad: (300..300 + bad).collect() };
            let config = LoaderConfig { seed, epochs: Some(3), max_bad_share: 0.02, ..LoaderConfig::default() };
            Loader::new(numbers, config, LoaderState::default(), |n| Ok(Number(n))).unwrap().last().unwrap()
        };
        assert_eq!(last(20).unwrap().state.bad, 20, "seed {seed}");
        assert!(last(21).unwrap_err().to_string().contains("21 of "), "seed {seed}");
        let many = last(700).unwrap_err().to_string();
        let bad: usize = many["data: ".len()..].split(' ').next().unwrap().parse().unwrap();
        assert!(bad < 20, "a hopeless data set is given up early: {many}");
    }
}

#[test]
fn weights_repeat_samples_and_resume_exactly() {
    let portions = vec![Portion { samples: 20, weight: 2.5 }, Portion { samples: 30, weight: 0.5 }];
    for grouping in GROUPINGS {
        let config = LoaderConfig { portions: portions.clone(), ..config(grouping) };
        let all = load(config.clone());
        let (first, second): (Vec<usize>, Vec<usize>) =
            all.iter().flat_map(|group| group.samples.clone()).partition(|index| *index < 20);
        // 3, 17 and 18 of the first portion are bad.
        assert!((17 * 7..=17 * 8).contains(&first.len()), "{} {grouping:?}", first.len());
        assert_eq!(second.len(), 3 * 15, "{grouping:?}");
        for (i, group) in all.iter().enumerate() {
            let state = serde_json::from_str(&serde_json::to_string(&group.state).unwrap()).unwrap();
            assert_eq!(load_from(state, config.clone()), all[i + 1..], "{grouping:?} after group {i}");
        }
    }
}

#[test]
fn samples_longer_than_a_row_are_skipped() {
    let config = LoaderConfig {
        epochs: Some(1),
        max_bad_share: 0.9,
        ..config(Grouping::Packed { rows: 1, row_length: 6, window: 50 })
    };
    let groups = load(config);
    assert!(groups.iter().all(|group| group.rows[0].iter().map(Length::length).sum::<usize>() <= 6));
    assert_eq!(
        groups.last().unwrap().state.bad,
        50 - (0..50).filter(|n| n % 13 < 6 && ![3, 17, 18].contains(n)).count() as u64
    );
}

#[test]
fn only_bad_samples_end_the_run_early() {
    let numbers = Numbers { len: 3, bad: vec![0, 1, 2] };
    let config = LoaderConfig { max_bad_share: 0.99, ..LoaderConfig::default() };
    let mut loader = Loader::new(numbers, config, LoaderState::default(), |n| Ok(Number(n))).unwrap();
    assert!(loader.next().unwrap().is_err());
}

#[test]
fn a_panic_in_a_worker_skips_only_that_sample() {
    let prepare = |n| if n == 2 { panic!("on purpose") } else { Ok(Number(n)) };
    let load = |max_bad_share| {
        let numbers = Numbers { len: 8, bad: vec![] };
        let config = LoaderConfig { epochs: Some(1), max_bad_share, ..config(Grouping::InOrder { rows: 1 }) };
        Loader::new(numbers, config, LoaderState::default(), prepare).unwrap()
    };
    let groups: Vec<_> = load(0.5).map(|group| group.unwrap()).collect();
    assert_eq!((groups.len(), groups.last().unwrap().state.bad), (7, 1));
    assert!(load(0.0).find_map(Result::err).unwrap().to_string().contains("panicked"));
}

#[test]
fn a_loader_can_be_dropped_at_any_time() {
    let numbers = Numbers { len: 1_000_000, bad: vec![] };
    let slow = |n| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        Ok(Number(n))
    };
    let config = LoaderConfig { prefetch: 2000, ..config(GROUPINGS[0]) };
    let start = std::time::Instant::now();
    let mut loader = Loader::new(numbers, config, LoaderState::default(), slow).unwrap();
    loader.next().unwrap().unwrap();
    drop(loader);
    assert!(start.elapsed().as_secs() < 3, "the rest of the queue must not be worked off");
}

#[test]
fn invalid_settings_and_states_are_rejected() {
    let error = |len, config, state| {
        let loader = Loader::new(Numbers { len, bad: vec![] }, config, state, |n| Ok(Number(n)));
        loader.map(|_| ()).expect_err("must be refused").to_string()
    };
    let fresh = LoaderState::default;
    assert!(error(0, LoaderConfig::default(), fresh()).contains("contains no sample"));
    assert!(error(5, LoaderConfig { workers: 0, ..LoaderConfig::default() }, fresh()).contains("loader.workers"));
    let share = |max_bad_share| LoaderConfig { max_bad_share, ..LoaderConfig::default() };
    assert!(error(5, share(1.0), fresh()).contains("loader.max_bad_share"));
    assert!(error(5, share(f64::NAN), fresh()).contains("loader.max_bad_share"));
    let rows = LoaderConfig { grouping: Grouping::InOrder { rows: 0 }, ..LoaderConfig::default() };
    assert!(error(5, rows, fresh()).contains("loader.grouping.rows"));
    let state = LoaderState { samples: 9, position: 4, ..fresh() };
    let message = error(5, LoaderConfig::default(), state);
    assert!(message.contains("sample 4 of 9, but the data set now has 5"), "{message}");
    assert!(
        error(5, LoaderConfig::default(), LoaderState { samples: 5, position: 5, ..fresh() }).contains("cannot resume")
    );
}

#[test]
fn shapes_world_is_a_data_set() {
    let all = |content| {
        let dataset = ShapesDataset {
            split: Split::Train,
            first: 10,
            scenes: 40,
            side: 32,
            content,
            rounds: 1,
            image_last: false,
            kinds: QuestionKind::ALL.into(),
            config: ShapesConfig::default(),
        };
        assert!(dataset.get(40).is_err());
        (0..40).map(|i| dataset.get(i).unwrap()).collect::<Vec<_>>()
    };
    use ShapesContent::{Captions, Mixed, Objects, Questions, Statements};
    for content in [Captions, Statements, Objects, Questions, Mixed] {
        let conversations = all(content);
        assert_eq!(conversations, all(content), "the same every time");
        for conversation in conversations {
            assert!(matches!(&conversation.images[..], [ImageSource::Pixels(picture)] if picture.width() == 32));
            assert!(conversation.turns[0].text.starts_with(IMAGE_MARKER));
            assert_eq!(conversation.turns.len() % 2, 0);
        }
    }
    let counting = |kinds| ShapesDataset {
        split: Split::Train,
        first: 0,
        scenes: 20,
        side: 16,
        content: Questions,
        rounds: 1,
        image_last: false,
        kinds,
        config: ShapesConfig::default(),
    };
    let none = counting(vec![]).validate().unwrap_err().to_string();
    assert!(none.contains("shapes.kinds"), "{none}");
    let counting = counting(vec![QuestionKind::Counting]);
    for turns in (0..20).map(|i| counting.get(i).unwrap().turns) {
        assert!(turns.len() == 2 && (turns[0].text.contains("many") || turns[0].text.contains("count")), "{turns:?}");
    }
    let mixed: usize = all(ShapesContent::Mixed).iter().map(|c| c.turns.len()).sum();
    let questions: usize = all(ShapesContent::Questions).iter().map(|c| c.turns.len()).sum();
    assert_eq!(mixed, questions + 80, "a caption more in each");
    assert!(all(ShapesContent::Text).iter().all(|c| c.images.is_empty() && !c.turns.is_empty()));
}
