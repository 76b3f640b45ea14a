//! Sampling, incremental decoding and stopping, through the public API.

#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

use haplovl::config::GenerationConfig;
use haplovl::generation::{CancelToken, Detokenizer, Sampler, StopStrings, TextStream};
use haplovl::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;

fn sampling() -> GenerationConfig {
    GenerationConfig { do_sample: true, seed: 7, ..Default::default() }
}

fn sampler(config: &GenerationConfig) -> Sampler {
    Sampler::new(config, 0).unwrap()
}

/// Shares of each token in many draws from `logits`.
fn shares(config: &GenerationConfig, logits: &[f32]) -> Vec<f64> {
    shares_of(20_000, config, logits)
}

fn shares_of(draws: usize, config: &GenerationConfig, logits: &[f32]) -> Vec<f64> {
    let mut sampler = sampler(config);
    let mut counts = vec![0usize; logits.len()];
    let mut row = vec![0.0; logits.len()];
    for _ in 0..draws {
        row.copy_from_slice(logits);
        counts[sampler.sample(&mut row).unwrap() as usize] += 1;
    }
    counts.iter().map(|&c| c as f64 / draws as f64).collect()
}

/// Four standard deviations of a share in 20,000 draws are at most 0.0141.
fn assert_shares(found: &[f64], expected: &[f64]) {
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 0.0142 && (*e > 0.0 || *f == 0.0), "found {found:?}, expected {expected:?}");
    }
}

fn log(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

const PROBABILITIES: [f32; 5] = [0.1, 0.4, 0.05, 0.3, 0.15];

#[test]
fn greedy_picks_the_most_likely_token_and_breaks_ties_by_id() {
    let mut greedy = sampler(&GenerationConfig::default());
    assert_eq!(greedy.sample(&mut [0.0, 3.0, -1.0, 3.0]).unwrap(), 1);
    assert_eq!(greedy.sample(&mut [f32::NEG_INFINITY, -5.0]).unwrap(), 1);
    // Temperature 0 and top-k 1 are greedy too.
    for config in
        [GenerationConfig { temperature: Some(0.0), ..sampling() }, GenerationConfig { top_k: Some(1), ..sampling() }]
    {
        assert_eq!(shares(&config, &[1.0, 1.1, 1.1]), [0.0, 1.0, 0.0]);
    }
}

#[test]
fn samples_follow_the_distribution_and_the_temperature() {
    let expected = PROBABILITIES.map(f64::from);
    assert_shares(&shares(&sampling(), &log(&PROBABILITIES)), &expected);
    // Temperature 1/2 squares the probabilities; their squares sum to 0.285.
    let cold = GenerationConfig { temperature: Some(0.5), ..sampling() };
    assert_shares(&shares(&cold, &log(&PROBABILITIES)), &expected.map(|p| p * p / 0.285));
    // A temperature that overflows the division is greedy, not NaN.
    let frozen = GenerationConfig { temperature: Some(1e-300), ..sampling() };
    assert_eq!(shares(&frozen, &log(&PROBABILITIES)), [0.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn filters_keep_the_expected_tokens() {
    let logits = log(&PROBABILITIES);
    let top_k = GenerationConfig { top_k: Some(2), ..sampling() };
    assert_shares(&shares(&top_k, &logits), &[0.0, 0.4 / 0.7, 0.0, 0.3 / 0.7, 0.0]);
    let top_k = GenerationConfig { top_k: Some(99), ..sampling() };
    assert_shares(&shares(&top_k, &logits), &PROBABILITIES.map(f64::from));
    // 0.4 + 0.3 reaches 0.69, but not 0.71, which needs 0.15 as well.
    let top_p = GenerationConfig { top_p: Some(0.69), ..sampling() };
    assert_shares(&shares(&top_p, &logits), &[0.0, 0.4 / 0.7, 0.0, 0.3 / 0.7, 0.0]);
    let top_p = GenerationConfig { top_p: Some(0.71), ..sampling() };
    assert_shares(&shares(&top_p, &logits), &[0.0, 0.4 / 0.85, 0.0, 0.3 / 0.85, 0.15 / 0.85]);
    // At least one token is always left.
    let top_p = GenerationConfig { top_p: Some(1e-9), ..sampling() };
    assert_eq!(shares(&top_p, &logits), [0.0, 1.0, 0.0, 0.0, 0.0]);
    // The threshold is 0.3 * 0.4 = 0.12: 0.15 is kept, 0.1 is dropped.
    let min_p = GenerationConfig { min_p: Some(0.3), ..sampling() };
    assert_shares(&shares(&min_p, &logits), &[0.0, 0.4 / 0.85, 0.0, 0.3 / 0.85, 0.15 / 0.85]);
    let min_p = GenerationConfig { min_p: Some(1.0), ..sampling() };
    assert_eq!(shares(&min_p, &logits), [0.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn top_p_applies_after_top_k() {
    // Of 0.4 and 0.3, the first is 0.57 after renormalisation: top-p 0.55 keeps only this token.
    let config = GenerationConfig { top_k: Some(2), top_p: Some(0.55), ..sampling() };
    assert_eq!(shares(&config, &log(&PROBABILITIES)), [0.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn filters_match_a_sorting_reference_on_a_large_vocabulary() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    // Rounded, so that there are ties at every cut.
    let logits: Vec<f32> = (0..5000).map(|_| (rng.random::<f32>() * 40.0).round() / 4.0).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    for (config, kept) in [
        (GenerationConfig { top_k: Some(40), ..sampling() }, 40),
        (GenerationConfig { top_k: Some(700), ..sampling() }, 700),
        (GenerationConfig { top_p: Some(0.05), ..sampling() }, {
            let mut sum = 0.0;
            let reaches = |&i: &usize| {
                sum += f64::from(logits[i]).exp() / total;
                sum >= 0.05
            };
            order.iter().position(reaches).unwrap() + 1
        }),
    ] {
        let shares = shares_of(7000, &config, &logits);
        let drawn = |i: &&usize| shares[**i] > 0.0;
        assert_eq!(order[kept..].iter().filter(drawn).count(), 0, "top {kept}");
        assert!(order[..kept].iter().filter(drawn).count() >= kept * 9 / 10, "top {kept}");
    }
}

#[test]
fn the_repetition_penalty_lowers_positive_and_negative_logits_once() {
    let config = GenerationConfig { repetition_penalty: Some(2.0), ..Default::default() };
    let mut positive = sampler(&config);
    positive.observe(&[0, 0, 0]);
    let mut logits = [3.0, 1.4, -2.0];
    assert_eq!(positive.sample(&mut logits).unwrap(), 0);
    assert_eq!(logits, [1.5, 1.4, -2.0]);
    let mut negative = sampler(&config);
    negative.observe(&[0]);
    let mut logits = [-1.0, -1.5, -3.0];
    assert_eq!(negative.sample(&mut logits).unwrap(), 1);
    assert_eq!(logits, [-2.0, -1.5, -3.0]);
    // Sampled tokens are penalised from then on, and an id beyond the vocabulary has no effect.
    negative.observe(&[u32::MAX]);
    assert_eq!(negative.sample(&mut [-1.0, -1.5, -2.9]).unwrap(), 0);
}

#[test]
fn banned_ids_are_never_sampled() {
    let mut greedy = sampler(&GenerationConfig::default()).ban(&[1, 99]);
    assert_eq!(greedy.sample(&mut [0.0, 9.0, 1.0]).unwrap(), 2);
    let mut drawing = sampler(&sampling()).ban(&[1]);
    assert!((0..200).all(|_| drawing.sample(&mut [0.0, 9.0, 1.0]).unwrap() != 1));
}

#[test]
fn samples_depend_on_the_seed_and_the_row() {
    let draw = |seed, row| {
        let mut sampler = Sampler::new(&GenerationConfig { seed, ..sampling() }, row).unwrap();
        Vec::from_iter((0..64).map(|_| sampler.sample(&mut [0.0; 100]).unwrap()))
    };
    assert_eq!(draw(1, 0), draw(1, 0));
    assert_ne!(draw(1, 0), draw(2, 0));
    assert_ne!(draw(1, 0), draw(1, 1));
}

#[test]
fn nan_and_infinite_logits_are_errors_with_a_position() {
    let inf = f32::INFINITY;
    for (mut logits, what) in [
        (vec![0.0, f32::NAN, 1.0], "token 1 is NaN"),
        (vec![f32::NAN; 3], "token 0 is NaN"),
        (vec![0.0, 1.0, inf], "token 2 is inf"),
        (vec![-inf, -inf], "all 2 logits"),
        (vec![], "all 0 logits"),
    ] {
        for config in [GenerationConfig::default(), sampling()] {
            let mut sampler = sampler(&config);
            sampler.observe(&[5; 12]);
            let error = sampler.sample(&mut logits).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::Generation { .. }), "{message}");
            assert!(message.contains("position 12") && message.contains(what), "{message}");
        }
    }
}

#[test]
fn an_invalid_configuration_is_rejected() {
    let error = Sampler::new(&GenerationConfig { top_p: Some(-1.0), ..Default::default() }, 0).unwrap_err();
    assert!(error.to_string().contains("top_p"), "{error}");
}

/// Decoder whose ids are bytes, as the base tokens of a byte-level tokenizer.
fn bytes_to_text(ids: &[u32]) -> Result<String> {
    Ok(String::from_utf8_lossy(&Vec::from_iter(ids.iter().map(|&id| id as u8))).into_owned())
}

/// The piece emitted for each id, then the rest.
fn pieces<F: Fn(&[u32]) -> Result<String>>(decode: F, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(decode);
    let mut pieces = Vec::from_iter(ids.iter().map(|&id| detokenizer.push(id).unwrap()));
    pieces.push(detokenizer.flush().unwrap());
    pieces
}

fn byte_ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn a_character_of_several_tokens_is_emitted_whole() {
    assert_eq!(pieces(bytes_to_text, &byte_ids("a😀é")), ["a", "", "", "", "😀", "", "é", ""]);
    // A truncated character is emitted as the decoder renders it.
    assert_eq!(pieces(bytes_to_text, &byte_ids("a😀")[..3]), ["a", "", "", "\u{FFFD}"]);
    // A replacement character that is part of the text is delayed, not lost.
    assert_eq!(pieces(bytes_to_text, &byte_ids("\u{FFFD}b")).concat(), "\u{FFFD}b");
}

/// Decoder whose ids below 256 are bytes, where a run of bytes is valid UTF-8 as a whole or replaced; other ids are
/// words.
fn byte_runs(ids: &[u32]) -> Result<String> {
    let run = |run: &[u32]| match run[0] < 256 {
        true => String::from_utf8(run.iter().map(|id| *id as u8).collect()).unwrap_or("\u{FFFD}".repeat(run.len())),
        false => run.iter().map(|id| format!(" w{id}")).collect(),
    };
    Ok(ids.chunk_by(|a, b| (*a < 256) == (*b < 256)).map(run).collect())
}

#[test]
fn a_stray_byte_after_a_character_loses_no_text() {
    for character in ["a", "é", "你", "😀"] {
        let mut ids = byte_ids(character);
        ids.extend([0xf0].into_iter().chain(300..330));
        let expected = format!("{character}\u{FFFD}{}", byte_runs(&ids[ids.len() - 30..]).unwrap());
        assert_eq!(pieces(byte_runs, &ids).concat(), expected);
    }
}

#[test]
fn tokens_that_end_within_characters_decode_to_the_text() {
    let text = "Ünï😀cödé 你好 👩‍👩‍👧 plain words, and 한국어 🇩🇪".repeat(8);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut tokens: Vec<&[u8]> = vec![];
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let (token, behind) = rest.split_at(rng.random_range(1..=5).min(rest.len()));
        tokens.push(token);
        rest = behind;
    }
    let decode = |ids: &[u32]| {
        let bytes = Vec::from_iter(ids.iter().flat_map(|&id| tokens[id as usize].iter().copied()));
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let ids = Vec::from_iter(0..tokens.len() as u32);
    assert_eq!(pieces(decode, &ids).concat(), text);
}

/// A tokenizer that decodes like those of the Llama family: `▁` is a space, the first space is dropped, and byte tokens
/// encode characters without a token.
fn llama_like() -> Tokenizer {
    let tokens = ["▁Hello", "▁world", "!", "▁", "<0xE4>", "<0xBD>", "<0xA0>", "<0xE5>", "<0xA5>"];
    let vocab = serde_json::Map::from_iter(tokens.iter().enumerate().map(|(i, t)| (t.to_string(), i.into())));
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{"id": 9, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false}],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "!"},
    });
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

#[test]
fn llama_style_spaces_and_byte_tokens_decode_incrementally() {
    let tokenizer = llama_like();
    let decode = |ids: &[u32]| tokenizer.decode(ids, true).map_err(|e| Error::tokenizer(e.to_string()));
    assert_eq!(pieces(decode, &[0, 1, 2, 0]), ["Hello", " world", "!", " Hello", ""]);
    // The special token has no text, and the token after it must not lose its leading space.
    assert_eq!(pieces(decode, &[0, 9, 9, 1]), ["Hello", "", "", " world", ""]);
    let many = [vec![0], vec![9; 100], vec![1]].concat();
    assert_eq!(pieces(decode, &many).concat(), "Hello world");
    // Two characters of three bytes each; the decoder retracts the first until the second is complete.
    let two = [1, 4, 5, 6, 7, 8, 5, 1];
    assert_eq!(pieces(decode, &two).concat(), tokenizer.decode(&two, true).unwrap());
    assert_eq!(pieces(decode, &two).concat(), "world你好 world");
}

#[test]
fn decoding_work_per_token_is_constant() {
    for id in [b'a', 0xF0, 0xFF] {
        let longest = std::cell::Cell::new(0);
        let decode = |ids: &[u32]| {
            longest.set(longest.get().max(ids.len()));
            bytes_to_text(ids)
        };
        pieces(decode, &[u32::from(id); 500]);
        assert!(longest.get() <= 32, "byte {id}: {} tokens decoded at once", longest.get());
    }
}

/// The text emitted for each piece, and the stop string found.
fn show(stops: &[&str], text: &[&str]) -> (Vec<String>, Option<String>) {
    let mut search = StopStrings::new(&Vec::from_iter(stops.iter().map(ToString::to_string)));
    let mut shown = vec![];
    for piece in text {
        let piece = search.push(piece);
        shown.push(piece.text);
        if piece.stop.is_some() {
            return (shown, piece.stop);
        }
    }
    shown.push(search.flush());
    (shown, None)
}

#[test]
fn a_stop_string_over_several_pieces_is_never_emitted() {
    let owned = |texts: &[&str]| Vec::from_iter(texts.iter().map(ToString::to_string));
    assert_eq!(show(&["END"], &["one E", "N", "D two"]), (owned(&["one ", "", ""]), Some("END".into())));
    assert_eq!(show(&["END"], &["one E", "N", "d"]), (owned(&["one ", "", "ENd", ""]), None));
    assert_eq!(show(&["END"], &["EN", "EN"]), (owned(&["", "EN", "EN"]), None));
    // A partial match of a longer stop string may contain a complete shorter one.
    assert_eq!(show(&["aab"], &["aa", "ab"]), (owned(&["", "a"]), Some("aab".into())));
    // Of two stop strings in one piece, the first in the text is found.
    assert_eq!(show(&["b", "a"], &["xaxb"]), (owned(&["x"]), Some("a".into())));
    assert_eq!(show(&["", "ü!"], &["ü", "ü", "!"]), (owned(&["", "ü", ""]), Some("ü!".into())));
    assert_eq!(show(&[], &["x", "y"]), (owned(&["x", "y", ""]), None));
}

#[test]
fn a_stream_finds_a_stop_string_of_byte_tokens() {
    let stop = ["é😀".to_string()];
    let mut stream = TextStream::new(bytes_to_text, &stop);
    let mut text = String::new();
    let ids = byte_ids("café😀more");
    let mut used = 0;
    for id in &ids {
        used += 1;
        let piece = stream.push(*id).unwrap();
        text += &piece.text;
        if piece.stop.is_some() {
            assert_eq!(piece.stop.as_deref(), Some("é😀"));
            break;
        }
    }
    assert_eq!((text.as_str(), used), ("caf", "café😀".len()));
    let mut stream = TextStream::new(bytes_to_text, &stop);
    assert_eq!(stream.push(u32::from(b'a')).unwrap().text, "a");
    byte_ids("é").iter().for_each(|&id| assert_eq!(stream.push(id).unwrap().text, ""));
    assert_eq!(stream.finish().unwrap().text, "é");
}

#[test]
fn clones_of_a_cancel_token_share_its_state() {
    let token = CancelToken::default();
    let other = token.clone();
    assert!(!other.is_cancelled());
    token.cancel();
    assert!(other.is_cancelled());
}

#[test]
fn frequency_and_presence_penalties_count_sampled_tokens_only() {
    let config = GenerationConfig { frequency_penalty: Some(0.5), presence_penalty: Some(0.25), ..Default::default() };
    let mut sampler = sampler(&config);
    // The prompt has no effect.
    sampler.observe(&[0, 0, 0]);
    for expected in [[3.0, 2.0], [2.25, 2.0], [1.75, 2.0], [1.75, 1.25]] {
        let mut logits = [3.0, 2.0];
        sampler.sample(&mut logits).unwrap();
        assert_eq!(logits, expected);
    }
    // A negative penalty encourages repetition, and both come after the repetition penalty.
    let config = GenerationConfig { repetition_penalty: Some(2.0), presence_penalty: Some(-1.0), ..Default::default() };
    let mut sampler = Sampler::new(&config, 0).unwrap();
    sampler.sample(&mut [4.0, 0.0]).unwrap();
    let mut logits = [4.0, 2.5];
    assert_eq!(sampler.sample(&mut logits).unwrap(), 0);
    assert_eq!(logits, [3.0, 2.5]);
}
