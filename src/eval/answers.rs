//! Comparison of short answers.

/// Words that do not change the meaning of a short answer.
const ARTICLES: [&str; 3] = ["a", "an", "the"];
const NUMBERS: [&str; 11] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

/// Normal form of a short answer: lower case, without punctuation and articles, with single spaces and numbers up to
/// ten as digits, as the VQA benchmark normalises answers.
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
    fn different_answers_do_not_match() {
        for (given, expected) in [("red", "blue"), ("red circle", "circle"), ("", ""), ("the", "a"), ("25", "2.5")] {
            assert!(!answers_match(given, expected), "{given:?} and {expected:?}");
        }
    }
}
