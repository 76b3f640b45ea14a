//! The option that an answer to a multiple-choice question chooses.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::python_text::{strip, words};

/// Most options of a question, one for each capital letter.
pub const MAX_OPTIONS: usize = 26;
/// Characters beside a letter that do not belong to a word.
const MARKS: [char; 24] = [
    '.', '(', ')', '[', ']', ',', ':', ';', '!', '?', '*', '#', '{', '}', '"', '`', '$', '/', '<', '>', '“', '”', '：',
    '。',
];
/// Number of words up to which `A` is taken for a letter, not for an article.
const SHORT: usize = 3;
/// Words behind `A` that make it a letter, not an article: `A is right`.
const BEHIND_A: [&str; 19] = [
    "is",
    "was",
    "and",
    "or",
    "because",
    "since",
    "as",
    "seems",
    "looks",
    "would",
    "should",
    "must",
    "but",
    "fits",
    "matches",
    "describes",
    "does",
    "has",
    "makes",
];
/// Words before a letter that name an option.
const BEFORE_LETTERS: [&str; 4] = ["option", "choice", "letter", "answer"];
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
    /// 3. It is the text of just one option, in any case.
    /// 4. Just one letter stands alone in it. Among more than three words, `A` before another word is an article: `A man is
    ///    there` names no option, but `it is A`, `A is right` and `option A shows it` do. `I` is a pronoun, but in `(I)`,
    ///    `I is right`, `it is I` and `option I`.
    /// 5. It has the text of just one option in it, and is at most twice as long as all options together.
    ///
    /// Rules 4 and 5 are the heuristic of VLMEvalKit, the others are those of LLaVA's scorer of ScienceQA; where
    /// VLMEvalKit asks another model or draws an option at random, the answer is wrong here, for a named reason.
    pub fn find<A: AsRef<str>>(answer: &str, options: &[A]) -> Self {
        let count = options.len().min(MAX_OPTIONS);
        let (answer, letters) = (strip(answer), Vec::from_iter(('A'..='Z').take(count)));
        let found = leading_letter(answer, &letters)
            .or_else(|| letter_after_phrase(answer, &letters))
            .or_else(|| same_text(answer, options, &letters));
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
    // `I, as one can see`
    let is_pronoun = letter == 'I' && behind.starts_with(',');
    let is_marked = behind.starts_with([')', ']'])
        || (inside.starts_with(letter) && behind.starts_with(['.', ':', ',']) && behind[1..].starts_with([' ', '\n']));
    (letters.contains(&letter) && (is_alone || (is_marked && !is_pronoun))).then_some(letter)
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
        named.extend(lone.filter(|letter| match letter {
            'A' => words.len() <= SHORT || !is_article(before, word, behind),
            'I' => !is_pronoun(before, word, behind),
            _ => true,
        }));
    }
    named.sort_unstable();
    named.dedup();
    named
}

/// A word without marks around it, in lower case.
fn bare(word: Option<&str>) -> String {
    word.unwrap_or_default().trim_matches(MARKS).to_lowercase()
}

fn names_option(before: Option<&str>) -> bool {
    BEFORE_LETTERS.contains(&bare(before).as_str())
}

/// Whether `A` is an article: another word follows without a mark between, and neither of those around it names an option.
fn is_article(before: Option<&str>, word: &str, behind: Option<&str>) -> bool {
    let leads = behind.is_some() && word.ends_with('A');
    leads && !names_option(before) && !BEHIND_A.contains(&bare(behind).as_str())
}

/// Whether `I` is a pronoun: nothing around it makes it an option.
fn is_pronoun(before: Option<&str>, word: &str, behind: Option<&str>) -> bool {
    let is_enclosed = word.starts_with(MARKS) && word.ends_with(MARKS);
    let follows = names_option(before) || ["is", "be"].contains(&bare(before).as_str());
    !(is_enclosed || follows || bare(behind) == "is")
}

/// The only option whose text is the answer.
fn same_text<A: AsRef<str>>(answer: &str, options: &[A], letters: &[char]) -> Option<char> {
    let plain = |text: &str| strip(text).trim_end_matches('.').to_lowercase();
    let answer = plain(answer);
    let same = options.iter().zip(letters).filter(|(option, _)| plain(option.as_ref()) == answer);
    match Vec::from_iter(same.map(|(_, letter)| *letter)).as_slice() {
        [letter] if !answer.is_empty() => Some(*letter),
        _ => None,
    }
}

/// The only option whose text is in the answer.
fn by_text<A: AsRef<str>>(answer: &str, options: &[A], letters: &[char]) -> Choice {
    let answer = answer.to_lowercase();
    let texts = Vec::from_iter(options.iter().map(|option| strip(option.as_ref()).to_lowercase()));
    let found = texts.iter().zip(letters).filter(|(text, _)| !text.is_empty() && answer.contains(text.as_str()));
    let is_long = answer.chars().count() > 2 * texts.iter().map(|text| text.chars().count()).sum::<usize>();
    match Vec::from_iter(found.map(|(_, letter)| *letter)).as_slice() {
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
            ("Therefore, A describes the picture", 'A'),
            ("A fits best", 'A'),
            ("Option A shows what is asked for", 'A'),
            ("I think that \"A\" is right", 'A'),
            ("<answer>A</answer>", 'A'),
            ("答案：A", 'A'),
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
            ("I see A big bird", Choice::Nothing),
            ("A big bird sits in a tree", Choice::Nothing),
            ("It is large. A big bird sits there", Choice::Nothing),
            ("A Chinese man is standing there", Choice::Nothing),
            ("A \"STOP\" sign is visible in it", Choice::Nothing),
            ("**A man** is standing over there", Choice::Nothing),
            ("- A man is riding\n- A horse runs", Choice::Nothing),
            ("A/B", Choice::Ambiguous),
            ("It could be A but also B", Choice::Ambiguous),
            ("E", Choice::Nothing),
            ("", Choice::Nothing),
            ("a horse", Choice::Nothing),
            ("the answer is Because of C and D", Choice::Ambiguous),
        ] {
            assert_eq!(Choice::find(answer, &OPTIONS), choice, "{answer}");
        }
        assert_eq!(Choice::find("I think it is F because of it", &[""; 9]), Choice::Letter('F'));
        for answer in
            ["Option I is right", "It should be I", "I is right, as far as one can see", "So it is (I), I think"]
        {
            assert_eq!(Choice::find(answer, &[""; 9]), Choice::Letter('I'), "{answer}");
        }
        for answer in
            ["I would say it is a cat", "I, as an AI, cannot see images", "So do I.", "I was not able to see it"]
        {
            assert_eq!(Choice::find(answer, &[""; 9]), Choice::Nothing, "{answer}");
        }
        let articles = ["A dog", "A TV", "A plane", "A T-shirt"];
        for (answer, letter) in [
            ("The answer is A plane.", 'C'),
            ("A TV.", 'B'),
            ("A TV is on the wall", 'B'),
            ("In the image there is **A plane**.", 'C'),
            ("It shows:\n\n- A plane in the sky", 'C'),
            ("The correct option is A.", 'A'),
        ] {
            assert_eq!(Choice::find(answer, &articles), Choice::Letter(letter), "{answer}");
        }
        let long = format!("a dog {}", "and more ".repeat(20));
        assert_eq!(Choice::find(&long, &OPTIONS), Choice::Nothing);
        assert_eq!(Choice::find::<&str>("A", &[]), Choice::Nothing);
        assert_eq!(Choice::find("Z", &[""; 40]), Choice::Letter('Z'));
        assert_eq!(Choice::find("é.", &OPTIONS).letter(), None);
    }
}
