//! Constraints on answers: choices, ends, errors, company.

use std::sync::Arc;

use haplovl::config::GenerationConfig;
use haplovl::generation::{AnswerEnd, Choices, Constraint, ConstraintState, FinishReason, Request, TokenMask};
use haplovl::{Error, Result};

use crate::mock::{EOS, Fixture, Prompt, endless, greedy, letters, roomy};

fn choices(answers: &[&[u32]]) -> Arc<dyn Constraint> {
    Arc::new(Choices::new(answers.iter().map(|answer| answer.to_vec()).collect()).unwrap())
}

#[test]
fn answers_are_among_the_choices() {
    let fixture = Fixture::new(roomy());
    let answers: [&[u32]; 4] = [&[1, 2, 3], &[1, 2], &[7], &[7, 7, 7, 7]];
    for seed in 0..40 {
        let generation = GenerationConfig { do_sample: true, temperature: Some(3.0), seed, ..greedy(10) };
        let request = Request::new(Prompt::long(seed, 5), generation);
        let answer = fixture.answer(request.clone().with_constraint(choices(&answers))).unwrap().sequence;
        let (text, ended): (_, Vec<u32>) = answer.tokens.iter().partition(|id| **id != EOS);
        let text: Vec<u32> = text;
        assert!(answers.contains(&text.as_slice()), "{text:?}");
        // An end token is sampled only where the answer could go on.
        let could_go_on = [&[1, 2][..], &[7]].contains(&text.as_slice());
        let reason = if could_go_on { FinishReason::EndOfSequence(EOS) } else { FinishReason::Complete };
        assert_eq!((answer.finish_reason, ended.len()), (reason, usize::from(could_go_on)));
        assert_eq!(answer.text, letters(&text).unwrap());
        // The first tokens of the prompt's own answer are others.
        assert_ne!(fixture.answer(request).unwrap().sequence.tokens, answer.tokens);
    }
}

#[test]
fn a_limit_cuts_a_constrained_answer_and_a_stop_string_ends_it() {
    let fixture = Fixture::new(roomy());
    let ask = |generation| {
        let request = Request::new(Prompt::long(1, 5), generation).with_constraint(choices(&[&[1, 2, 3, 4]]));
        fixture.answer(request).unwrap().sequence
    };
    let (cut, whole) = (ask(greedy(2)), ask(endless(4)));
    assert_eq!((cut.text.as_str(), cut.finish_reason), ("bc", FinishReason::Length));
    // Its last token is also the last of the limit.
    assert_eq!((whole.text.as_str(), whole.finish_reason), ("bcde", FinishReason::Complete));
    let stopped = ask(GenerationConfig { stop_strings: vec!["d".into()], ..greedy(9) });
    assert_eq!((stopped.text.as_str(), stopped.finish_reason), ("bc", FinishReason::StopString("d".into())));
}

#[test]
fn choices_need_tokens() {
    let error = |answers: Vec<Vec<u32>>| Choices::new(answers).unwrap_err().to_string();
    assert!(error(vec![]).contains("no choices"));
    assert!(error(vec![vec![1], vec![]]).contains("choice 1"));
}

/// Allows ids whose parity is that of their position, and goes wrong on purpose.
#[derive(Debug, Clone, Copy)]
enum Parity {
    Endless,
    NothingAfter(usize),
    FailsAfter(usize),
    PanicsAfter(usize),
    FailsAtStart,
}

struct ParityState(Parity, usize);

impl Constraint for Parity {
    fn start(&self) -> Result<Box<dyn ConstraintState>> {
        match self {
            Self::FailsAtStart => Err(Error::config("parity", "fails on purpose")),
            parity => Ok(Box::new(ParityState(*parity, 0))),
        }
    }
}

impl ConstraintState for ParityState {
    fn allowed(&mut self) -> Result<TokenMask> {
        match self.0 {
            Parity::NothingAfter(most) if self.1 >= most => Ok(TokenMask::default()),
            Parity::FailsAfter(most) if self.1 >= most => Err(Error::config("parity", "fails on purpose")),
            Parity::PanicsAfter(most) => {
                assert!(self.1 < most, "on purpose");
                Ok((0..80).collect())
            }
            _ => Ok((0..80).filter(|id| *id as usize % 2 == self.1 % 2).collect()),
        }
    }

    fn accept(&mut self, _: u32) -> Result<()> {
        self.1 += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<AnswerEnd> {
        Ok(AnswerEnd::Forbidden)
    }
}

#[test]
fn constrained_answers_in_company_equal_those_alone() {
    let request = |n: u64| {
        let generation = GenerationConfig { do_sample: n.is_multiple_of(2), seed: n, ..greedy(20 + n as usize) };
        let constraint = (!n.is_multiple_of(3)).then(|| Arc::new(Parity::Endless) as Arc<dyn Constraint>);
        Request::new(Prompt::long(n % 4, 30), generation).with_constraint(constraint)
    };
    let alone = Vec::from_iter((0..12).map(|n| Fixture::new(roomy()).answer(request(n)).unwrap().sequence));
    for (n, answer) in alone.iter().enumerate().filter(|(n, _)| n % 3 > 0) {
        assert!(answer.tokens.iter().enumerate().all(|(at, id)| *id as usize % 2 == at % 2), "{n}: {answer:?}");
        assert_eq!((answer.tokens.len(), &answer.finish_reason), (20 + n, &FinishReason::Length));
    }
    let fixture = Fixture::new(roomy());
    let handles = Vec::from_iter((0..12).map(|n| fixture.submit(request(n)).unwrap()));
    let together = Vec::from_iter(handles.into_iter().map(|handle| handle.answer().unwrap().sequence));
    assert_eq!(together, alone);
}

#[test]
fn a_constraint_that_goes_wrong_ends_its_own_answer_alone() {
    let fixture = Fixture::new(roomy());
    let request = |parity: Parity| {
        let constraint: Arc<dyn Constraint> = Arc::new(parity);
        Request::new(Prompt::long(3, 30), endless(30)).with_constraint(constraint)
    };
    let others = Vec::from_iter((0..3).map(|_| fixture.submit(request(Parity::Endless)).unwrap()));
    for (parity, says) in [
        (Parity::NothingAfter(3), "no token at position 3"),
        (Parity::FailsAfter(2), "fails on purpose"),
        (Parity::PanicsAfter(4), "the constraint panicked"),
    ] {
        let error = fixture.answer(request(parity)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let refused = fixture.submit(request(Parity::FailsAtStart)).unwrap_err().to_string();
    assert!(refused.contains("fails on purpose"), "{refused}");
    let answers = Vec::from_iter(others.into_iter().map(|handle| handle.answer().unwrap().sequence.tokens));
    assert!(answers.iter().all(|tokens| tokens.len() == 30 && *tokens == answers[0]));
    assert_eq!(fixture.scheduler.metrics().requests.failed, 3);
}

#[test]
fn a_mask_is_the_set_of_its_ids() {
    let ids = [0u32, 31, 32, 95, 200];
    let mask: TokenMask = ids.into_iter().collect();
    assert!((0..400).all(|id| mask.contains(id) == ids.contains(&id)));
    assert_eq!(TokenMask::from_words(vec![1 | 1 << 31, 1, 1 << 31, 0, 0, 0, 1 << 8]), mask);
}
