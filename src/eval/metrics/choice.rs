//! The option that an answer to a multiple-choice question chooses.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::python_text::{strip, words};

/// Most options of a question, one for each capital letter.
pub const MAX_OPTIONS: usize = 26;
/// Characters beside a letter that do not belong to a word.
const MARKS: [char; 13] = ['.', '(', ')', '[', ']', ',', ':', ';', '!', '*', '#', '{', '}'];
/// Words behind `A` or `I` that make it a letter, not an article or a pronoun: `A is right`.
const BEHIND_LETTERS: [&str; 12] =
    ["is", "was", "and", "or", "because", "since", "as", "seems", "looks", "would", "but", "for"];
/// What stands before the letter in a sentence.
const ANSWER_IS: &str = "answer is";

/// What an answer chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The option of this letter.
    Letter(char),
    /// Several options are named and none stands out.
    Ambiguous,
    /// No option is named.
    Nothing,
}

impl Choice {
    /// Finds the option that an answer chooses. `options` are the texts of A, B and so on.
    ///
    /// The rules are tried in this order:
    ///
    /// 1. The answer is a letter, also in brackets or lower case, or begins with one that a mark follows: `B`, `(b)`,
    ///    `B. a cat`.
    /// 2. It has `answer is` before a letter, once.
    /// 3. Just one letter stands alone in it. `A` before a word at the beginning of a sentence is an article and `I` before a
    ///    word a pronoun, unless it is a word such as `is`: `A man is there` names no option, `A is right` and `it is A` do.
    /// 4. It is the text of just one option, or has that of just one in it and is at most twice as long as all options
    ///    together, in any case.
    ///
    /// Rules 3 and 4 are the heuristic of VLMEvalKit, the others are those of LLaVA's scorer of ScienceQA; where
    /// VLMEvalKit asks another model or draws an option at random, the answer is wrong here, for a named reason.
    pub fn find<A: AsRef<str>>(answer: &str, options: &[A]) -> Self {
        let count = options.len().min(MAX_OPTIONS);
        let (answer, letters) = (strip(answer), Vec::from_iter(('A'..='Z').take(count)));
        let found = leading_letter(answer, &letters).or_else(|| letter_after_phrase(answer, &letters));
        if let Some(letter) = found {
            return Self::Letter(letter);
        }
        let named = lone_letters(answer, &letters);
        if let [letter] = named.as_slice() {
            return Self::Letter(*letter);
        }
        match (by_text(answer, options, &letters), named.as_slice()) {
            (Self::Nothing, [_, ..]) => Self::Ambiguous,
            (by_text, _) => by_text,
        }
    }

    /// The letter, if the answer chooses one.
    pub fn letter(self) -> Option<char> {
        match self {
            Self::Letter(letter) => Some(letter),
            Self::Ambiguous | Self::Nothing => None,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Letter(letter) => letter.fmt(f),
            Self::Ambiguous => f.write_str("several options"),
            Self::Nothing => f.write_str("no option"),
        }
    }
}

/// The letter that is the whole answer or begins it, with a mark behind.
fn leading_letter(answer: &str, letters: &[char]) -> Option<char> {
    let inside = answer.trim_start_matches(['(', '[', '*', '#', ' ']);
    let mut chars = inside.chars();
    let letter = chars.next()?.to_ascii_uppercase();
    let behind = chars.as_str();
    let is_alone = behind.chars().all(|c| MARKS.contains(&c));
    let is_marked = behind.starts_with([')', ']'])
        || (inside.starts_with(letter) && behind.starts_with(['.', ':', ',']) && behind[1..].starts_with([' ', '\n']));
    (letters.contains(&letter) && (is_alone || is_marked)).then_some(letter)
}

/// The letter behind `answer is`, if it is there once.
fn letter_after_phrase(answer: &str, letters: &[char]) -> Option<char> {
    let (_, rest) = answer.split_once(ANSWER_IS)?;
    let mut chars = rest.trim_start_matches([':', ' ', '(', '*', '\n']).chars();
    let letter = chars.next().filter(|letter| letters.contains(letter))?;
    let ends = chars.next().is_none_or(|c| MARKS.contains(&c) || c == '\n');
    (ends && !rest.contains(ANSWER_IS)).then_some(letter)
}

/// The letters that stand alone in an answer.
fn lone_letters(answer: &str, letters: &[char]) -> Vec<char> {
    let words = Vec::from_iter(words(answer));
    let mut named = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| words.get(at)).copied();
        let behind = words.get(at + 1).copied();
        let parts = word.split(MARKS).filter(|part| !part.is_empty());
        let lone = parts.filter_map(|part| letters.iter().find(|letter| part.chars().eq([**letter])));
        named.extend(lone.filter(|_| !is_word(before, word, behind)));
    }
    named.sort_unstable();
    named.dedup();
    named
}

/// Whether `A` is an article or `I` a pronoun, by the words around it.
fn is_word(before: Option<&str>, word: &str, behind: Option<&str>) -> bool {
    let begins = before.is_none_or(|before| before.ends_with(['.', '!', '?', ':', ';', ',']));
    let leads = behind.is_some_and(|behind| {
        behind.starts_with(char::is_lowercase) && !BEHIND_LETTERS.contains(&behind.trim_end_matches(MARKS))
    });
    leads && (word == "I" || (word == "A" && begins))
}

/// The option whose text is the answer, or the only one whose text is in it.
fn by_text<A: AsRef<str>>(answer: &str, options: &[A], letters: &[char]) -> Choice {
    let answer = answer.to_lowercase();
    let texts = Vec::from_iter(options.iter().map(|option| strip(option.as_ref()).to_lowercase()));
    let bare = answer.trim_end_matches('.');
    let chosen = |is_chosen: &dyn Fn(&String) -> bool| {
        let found = texts.iter().zip(letters).filter(|(text, _)| !text.is_empty() && is_chosen(text));
        Vec::from_iter(found.map(|(_, letter)| *letter))
    };
    if let [letter] = chosen(&|text| text.trim_end_matches('.') == bare).as_slice() {
        return Choice::Letter(*letter);
    }
    let is_long = answer.chars().count() > 2 * texts.iter().map(|text| text.chars().count()).sum::<usize>();
    match chosen(&|text| answer.contains(text.as_str())).as_slice() {
        [letter] if !is_long => Choice::Letter(*letter),
        [_, _, ..] if !is_long => Choice::Ambiguous,
        _ => Choice::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: [&str; 4] = ["a red cat", "a dog", "two dogs", "none"];

    #[test]
    fn letters_are_found_in_the_forms_that_models_write() {
        for (answer, letter) in [
            ("B", 'B'),
            (" b.", 'B'),
            ("(C)", 'C'),
            ("(c) two dogs", 'C'),
            ("A. a big red animal of some kind", 'A'),
            ("A: it is. B is wrong", 'A'),
            ("**D**", 'D'),
            ("The answer is B", 'B'),
            ("So the answer is: (C). Not A, since it is no cat", 'C'),
            ("I choose D", 'D'),
            ("The correct option is A.", 'A'),
            ("Therefore, A is correct.", 'A'),
            ("Based on the image, the answer would be A.", 'A'),
            ("So the right choice is (A).", 'A'),
            ("It should be A, since it is red", 'A'),
            ("I see A big bird", 'A'),
            ("A dog is there, so it must be B", 'B'),
            ("Option B is what I see here", 'B'),
            ("two dogs.", 'C'),
            ("A red cat", 'A'),
            ("it is a red cat", 'A'),
            ("None", 'D'),
        ] {
            assert_eq!(Choice::find(answer, &OPTIONS), Choice::Letter(letter), "{answer}");
        }
    }

    #[test]
    fn doubt_has_a_name() {
        for (answer, choice) in [
            ("A or B", Choice::Ambiguous),
            ("a dog and a red cat", Choice::Ambiguous),
            ("A big bird sits in a tree", Choice::Nothing),
            ("It is large. A big bird sits there", Choice::Nothing),
            ("It could be A but also B", Choice::Ambiguous),
            ("E", Choice::Nothing),
            ("", Choice::Nothing),
            ("a horse", Choice::Nothing),
            ("the answer is Because of C and D", Choice::Ambiguous),
        ] {
            assert_eq!(Choice::find(answer, &OPTIONS), choice, "{answer}");
        }
        assert_eq!(Choice::find("I think it is F because of it", &[""; 9]), Choice::Letter('F'));
        assert_eq!(Choice::find("Option I is right", &[""; 9]), Choice::Letter('I'));
        let long = format!("a dog {}", "and more ".repeat(20));
        assert_eq!(Choice::find(&long, &OPTIONS), Choice::Nothing);
        assert_eq!(Choice::find::<&str>("A", &[]), Choice::Nothing);
        assert_eq!(Choice::find("Z", &[""; 40]), Choice::Letter('Z'));
        assert_eq!(Choice::find("é.", &OPTIONS).letter(), None);
    }
}
