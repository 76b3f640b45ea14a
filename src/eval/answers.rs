//! Comparison of short answers.

/// Words that do not change the meaning of a short answer.
const ARTICLES: [&str; 3] = ["a", "an", "the"];
const NUMBERS: [&str; 11] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

/// Normal form of a short answer, similar to the VQA benchmark's:
///
/// 1. lower case;
/// 2. ASCII punctuation becomes a space, apart from apostrophes, and `.`, `,` and `:` between two digits;
/// 3. the words `a`, `an` and `the` are removed;
/// 4. the words `zero` to `ten` become digits;
/// 5. words are separated by single spaces.
pub fn normalise_answer(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let plain: String = lower.char_indices().map(|(at, c)| if is_mark(&lower, at, c) { ' ' } else { c }).collect();
    let words = plain.split_whitespace().filter(|word| !ARTICLES.contains(word));
    let digits = words.map(|word| match NUMBERS.iter().position(|&name| name == word) {
        Some(number) => number.to_string(),
        None => word.to_owned(),
    });
    digits.collect::<Vec<_>>().join(" ")
}

/// Whether a character is punctuation; a decimal point and an apostrophe are not.
fn is_mark(text: &str, at: usize, c: char) -> bool {
    let digit = |neighbour: Option<char>| neighbour.is_some_and(|n| n.is_ascii_digit());
    let inside_number = || digit(text[..at].chars().next_back()) && digit(text[at + c.len_utf8()..].chars().next());
    c.is_ascii_punctuation() && c != '\'' && !(matches!(c, '.' | ',' | ':') && inside_number())
}

/// Whether `given` and `expected` have the same normal form, see [`normalise_answer`]; an empty answer matches none.
pub fn answers_match(given: &str, expected: &str) -> bool {
    let given = normalise_answer(given);
    !given.is_empty() && given == normalise_answer(expected)
}

/// The answer that most of `answers` match, the first of them in case of a tie; `None` for no answers.
pub fn commonest_answer<A: AsRef<str>>(answers: &[A]) -> Option<&str> {
    let mut counts: Vec<(String, usize, &str)> = Vec::new();
    for answer in answers.iter().map(AsRef::as_ref) {
        let normal = normalise_answer(answer);
        match counts.iter_mut().find(|(other, ..)| *other == normal) {
            Some((_, count, _)) => *count += 1,
            None => counts.push((normal, 1, answer)),
        }
    }
    // The last of equal ones is the largest, so that the first answer comes last.
    counts.into_iter().rev().max_by_key(|(_, count, _)| *count).map(|(_, _, answer)| answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_articles_and_punctuation_are_ignored() {
        for (given, expected) in [
            ("Yes.", "yes"),
            (" the  Red circle , ", "red circle"),
            ("Three", "3"),
            ("a cat's tail", "cat's tail"),
            ("at 2.5 m.", "at 2.5 m"),
            ("12:30", "12:30"),
        ] {
            assert!(answers_match(given, expected), "{given:?} and {expected:?}");
        }
    }

    #[test]
    fn the_commonest_answer_is_counted_in_normal_form() {
        assert_eq!(commonest_answer(&["red", "Two", "2", "red", "two."]), Some("Two"));
        assert_eq!(commonest_answer(&["b", "a"]), Some("b"));
        assert_eq!(commonest_answer::<&str>(&[]), None);
    }

    #[test]
    fn different_answers_do_not_match() {
        for (given, expected) in [("red", "blue"), ("red circle", "circle"), ("", ""), ("the", "a"), ("25", "2.5")] {
            assert!(!answers_match(given, expected), "{given:?} and {expected:?}");
        }
    }
}
