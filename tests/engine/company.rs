//! The same request gives the same tokens alone and in any company.

use std::time::Duration;

use haplovl::config::GenerationConfig;
use haplovl::generation::{EngineConfig, Request};
use proptest::prelude::*;

use crate::mock::{BYTES_PER_POSITION, Fixture, Prompt, content, endless, greedy, roomy};

#[test]
fn greedy_tokens_are_the_argmax_over_the_whole_content() {
    let fixture = Fixture::new(roomy());
    for prompt in [Prompt::text(&[1]), Prompt::with_image(3, &[4, 5]), Prompt::long(1, 600)] {
        for _ in 0..2 {
            let answer = fixture.answer(Request::new(prompt.clone(), endless(20))).unwrap();
            let mut content = content(&prompt.batch());
            for &id in &answer.sequence.tokens {
                let mut logits = fixture.model.logits(&content);
                // Placeholders are never generated.
                logits.truncate(94);
                let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(logits.iter().position(|logit| *logit == best), Some(id as usize));
                content.push(u64::from(id));
            }
            assert_eq!(answer.sequence.tokens.len(), 20);
        }
    }
}

#[derive(Debug, Clone)]
struct Plan {
    prompt: Prompt,
    generation: GenerationConfig,
    stream: u64,
    pause: u64,
    /// Cancelled after so many events.
    cancelled: Option<usize>,
}

impl Plan {
    fn request(&self) -> Request<Prompt> {
        Request::new(self.prompt.clone(), self.generation.clone()).with_random_stream(self.stream)
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let prompt = (prop::option::of(0u8..3), 0u64..3, 1usize..400)
        .prop_map(|(image, seed, len)| Prompt { image, ids: Prompt::long(seed, len).ids });
    let generation = (1usize..40, any::<bool>(), 0u64..3, any::<bool>(), 0u8..2).prop_map(
        |(limit, do_sample, seed, stops, penalty)| GenerationConfig {
            do_sample,
            seed,
            stop_strings: if stops { vec!["ab".into(), "q".into()] } else { vec![] },
            frequency_penalty: Some(f64::from(penalty)),
            ..greedy(limit)
        },
    );
    let cancelled = prop::option::weighted(0.2, 0usize..10);
    (prompt, generation, 0u64..2, 0u64..3, cancelled).prop_map(|(prompt, generation, stream, pause, cancelled)| Plan {
        prompt,
        generation,
        stream,
        pause,
        cancelled,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn answers_in_company_equal_answers_alone(
        plans in prop::collection::vec(plan(), 1..24),
        max_batch in 1usize..9,
        positions in 450usize..2000,
    ) {
        let budget = positions * BYTES_PER_POSITION;
        let alone = |plan: &Plan| Fixture::new(roomy()).answer(plan.request()).unwrap().sequence;
        let config = EngineConfig::default().with_max_batch(max_batch).with_kv_cache_bytes(budget);
        let fixture = Fixture::new(config);
        let submitted = Vec::from_iter(plans.iter().map(|plan| {
            std::thread::sleep(Duration::from_micros(100 * plan.pause));
            (plan, fixture.submit(plan.request()).unwrap())
        }));
        for (plan, mut handle) in submitted {
            match plan.cancelled {
                Some(events) => drop(handle.by_ref().take(events).count()),
                None => prop_assert_eq!(handle.answer().unwrap().sequence, alone(plan)),
            }
        }
        fixture.scheduler.shutdown();
        let metrics = fixture.scheduler.metrics();
        prop_assert!(fixture.model.memory.peak() <= budget, "{} of {budget} bytes", fixture.model.memory.peak());
        prop_assert_eq!((metrics.kv_reserved_bytes, metrics.running, metrics.waiting), (0, 0, 0));
        prop_assert_eq!(metrics.requests.ended(), plans.len() as u64);
        prop_assert_eq!(metrics.requests.failed, 0);
    }
}
