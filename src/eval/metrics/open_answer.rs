//! Match of an open question, as MMMU's authors score it: the answer's key phrases and numbers are looked through for the
//! right one.

use std::sync::LazyLock;

use fancy_regex::Regex;

use super::python_text::{float, strip};

/// Words before the key phrase of a line. The last line may also end in an equation.
const INDICATORS: [&str; 8] = ["could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "];
/// Key phrases that say nothing.
const TRIVIAL: [&str; 7] = [":", ",", ".", "!", "?", ";", "'"];

/// Numbers with thousands separators, in scientific notation, and others, with digits of any script.
static NUMBERS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = [
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    ];
    patterns.iter().filter_map(|pattern| Regex::new(pattern).ok()).collect()
});

/// A phrase or a number, as answers are compared.
#[derive(Debug, PartialEq)]
enum Normalised {
    Text(String),
    Number(f64),
}

/// Whether an answer to an open question has one of the right ones.
///
/// Of each line, the shortest text after a word such as `is` or `answer` counts, and all numbers in it; of an answer
/// without such words, all of it. A right text must be part of one of them, a right number equal one to two decimals. Case does
/// not matter, and a right text of one character must have a space beside it. Numbers after a run of hundreds of digits may be
/// missed.
pub fn open_match<S: AsRef<str>>(answer: &str, right: &[S]) -> bool {
    let right = Vec::from_iter(right.iter().flat_map(|right| normalised(right.as_ref())));
    let phrases = key_phrases(answer);
    let numbers = phrases.iter().flat_map(|phrase| numbers(phrase)).collect::<Vec<_>>();
    phrases.iter().chain(&numbers).flat_map(|given| normalised(given)).any(|given| match given {
        Normalised::Number(given) => right.contains(&Normalised::Number(given)),
        Normalised::Text(given) => {
            right.iter().any(|right| matches!(right, Normalised::Text(right) if given.contains(right.as_str())))
        }
    })
}

/// The phrases of an answer that may hold what it says, or all of it.
fn key_phrases(answer: &str) -> Vec<String> {
    let answer = strip(answer).trim_matches('.').to_lowercase();
    let lines = Vec::from_iter(answer.split('\n'));
    let phrase = |(at, line): (usize, &&str)| {
        let is_last = at + 1 == lines.len();
        let indicators = INDICATORS.into_iter().chain(is_last.then_some("="));
        let ends = indicators.filter_map(|indicator| Some(strip(line.rsplit_once(indicator)?.1)));
        let shorter = |best: &'_ str, end: &'_ str| best.is_empty() || end.chars().count() < best.chars().count();
        let best = ends.reduce(|best, end| if shorter(best, end) { end } else { best })?;
        (!best.is_empty() && !TRIVIAL.contains(&best)).then(|| best.to_owned())
    };
    let phrases = Vec::from_iter(lines.iter().enumerate().filter_map(phrase));
    if phrases.is_empty() { vec![answer] } else { phrases }
}

/// The numbers in a phrase, as they stand there.
fn numbers(phrase: &str) -> Vec<String> {
    let found = NUMBERS.iter().flat_map(|pattern| pattern.find_iter(phrase).map_while(Result::ok));
    found.map(|found| found.as_str().to_owned()).collect()
}

/// A number rounded to two decimals, or a text in lower case; one of a single character is looked for with a space before or
/// after it.
fn normalised(text: &str) -> Vec<Normalised> {
    let text = strip(text);
    if let Some(number) = float(&text.replace(',', "")) {
        return vec![Normalised::Number(format!("{number:.2}").parse().unwrap_or(number))];
    }
    let text = text.to_lowercase();
    match text.chars().count() {
        1 => vec![Normalised::Text(format!(" {text}")), Normalised::Text(format!("{text} "))],
        _ => vec![Normalised::Text(text)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_phrases_follow_the_shortest_indicator_of_a_line() {
        for (answer, expected) in [
            ("The answer is 5.", vec!["5"]),
            ("So the result is about 3 m.\nThus it could be 4 m", vec!["about 3 m.", "4 m"]),
            // Only the last line may be an equation.
            ("x = 3", vec!["3"]),
            ("x = 3\ny = 4", vec!["4"]),
            ("No idea", vec!["no idea"]),
            ("the answer is :", vec!["the answer is :"]),
            // Lines are split at line breaks alone.
            ("It is red. The car is blue.", vec!["blue"]),
            ("", vec![""]),
        ] {
            assert_eq!(key_phrases(answer), expected, "{answer}");
        }
    }

    #[test]
    fn numbers_are_found_in_three_notations() {
        assert_eq!(NUMBERS.len(), 3);
        let found = |phrase| numbers(phrase);
        // Parts of numbers are found, too, as by the authors' patterns.
        assert_eq!(found("1,234 and -5,678,901"), ["1,234", "-5,678,901", "234", "901"]);
        assert_eq!(found("-1.5e3 j"), ["-1.5e3", "-1", "3"]);
        assert_eq!(found("from .5 to -3.25, or 7"), [".5", "-3", "7"]);
        assert_eq!(found("$12"), ["12"]);
        assert!(found("none").is_empty() && found("5kg").is_empty());
    }

    #[test]
    fn an_open_answer_is_right_if_it_has_a_right_text_or_number() {
        for (answer, right) in [
            ("The answer is 3.14159", "3.14"),
            ("The answer is 1,200 euros", "1200"),
            ("Therefore it is the Calvin cycle.", "calvin cycle"),
            ("x = 24/7", "24/7"),
            ("The value is 0.125", "0.12 "),
            ("it is option b here", "b"),
            ("2", "2.0"),
            ("The distance is $63$", "63"),
        ] {
            assert!(open_match(answer, &[right]), "{answer} and {right}");
        }
        for (answer, right) in [
            ("The answer is 3.1", "3.14"),
            ("The answer is red", "blue"),
            // A single character is not found inside of a word, and a number not as a text.
            ("it is a cab", "b"),
            ("12", "1"),
            ("", "blue"),
            ("nan", "nan"),
            ("The value is 0.125", "0.13"),
        ] {
            assert!(!open_match(answer, &[right]), "{answer} and {right}");
        }
        assert!(open_match("about 10", &["ten", "10"]) && !open_match("about 10", &[] as &[&str]));
    }
}
