//! Words of captions, as the COCO caption evaluation separates them: the Penn Treebank tokens of Stanford's tokenizer in
//! lower case, without punctuation.

use super::python_text;

/// Tokens that the caption evaluation drops. Brackets are in its list as `-LRB-`, but lower case by then, so that they
/// stay.
const PUNCTUATION: [&str; 13] = ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"];
/// Words that are two tokens, and the length of the first.
const ASSIMILATIONS: [(&str, usize); 8] =
    [("cannot", 3), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("gimme", 3), ("wanna", 3), ("'tis", 2), ("'twas", 2)];
/// Abbreviations that keep their period.
const ABBREVIATIONS: &str = "\
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf cie \
    cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen \
    gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn \
    mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph ph.d ed.d plc ppte ppty pres prof \
    profs pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel \
    tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo";
/// Abbreviations that are words in lower case, and keep their period with a capital.
const CAPITAL_ABBREVIATIONS: &str = "ark az del ill la mass miss ore pa tex wash";
/// Abbreviations that keep their period before a number.
const BEFORE_NUMBERS: [&str; 10] = ["ca", "fig", "figs", "prop", "no", "nos", "art", "pp", "op", "arts"];
/// Words with a capital after which a single letter with a period was the end of a sentence.
const SENTENCE_STARTS: &str = "\
    About According Additionally After An A As At But Did During Earlier He Her Here How However If In It Last Many More \
    Now Once One Other Our She Since So Some Such That The Their Then There These They This We When While What Who Why \
    Yet You";
/// Ends of words with an apostrophe that are tokens of their own.
const CLITICS: [&str; 6] = ["re", "ve", "ll", "m", "s", "d"];
/// Words with an apostrophe that are one token.
const APOSTROPHE_WORDS: [&str; 15] = [
    "dunkin'",
    "somethin'",
    "ol'",
    "'em",
    "'till",
    "'til",
    "'cause",
    "cont'd",
    "nor'easter",
    "c'mon",
    "e'er",
    "s'mores",
    "ev'ry",
    "nat'l",
    "li'l",
];

/// The words of a caption, separated by single spaces.
///
/// These rules are followed: `don't` is `do n't`, `it's` is `it 's`, `cannot` is `can not`; words with hyphens or slashes
/// between them, numbers with commas, points and colons, dates, fractions, acronyms, and common abbreviations with their
/// period are one word; brackets are `-lrb-`, `-rrb-`, `-lsb-`, `-lcb-` and so on; `£` is `#` and `€` is `$`; addresses of
/// the web and of mail, `@names` and `#topics` stay whole; all is in lower case; and quotes, commas, periods, colons,
/// semicolons, single `?` and `!`, and dashes are left out, as are characters that the tokenizer does not know, such as
/// emoji. Not followed are the rules for phone numbers with spaces, markup with attributes or a slash at its end
/// (`<a href="x">`, `<br/>`), Asian smileys, characters of Windows-1252 in the place of control characters, escaped marks
/// (`1\/2`, `-LRB-`), the signs of Indic and Southeast Asian scripts, Roman numerals of one character, a curly apostrophe at
/// the beginning of a word, several curly quotes side by side, dates behind a hyphen, and an apostrophe beside a letter of
/// another script.
///
/// A few rules look at what follows a caption: `no.` keeps its period if the next one begins with a number.
/// [`tokenize_captions`] follows them too.
pub fn tokenize_caption(caption: &str) -> String {
    tokenize_captions([caption, ""]).swap_remove(0)
}

/// The words of captions as of the lines of one file, see [`tokenize_caption`].
pub fn tokenize_captions<A: AsRef<str>>(captions: impl IntoIterator<Item = A>) -> Vec<String> {
    let mut text = Vec::new();
    for caption in captions {
        text.extend(caption.as_ref().chars().map(|c| if is_line_break(c) { ' ' } else { c }));
        text.push('\n');
    }
    // The last line has no line break.
    if text.pop().is_none() {
        return Vec::new();
    }
    let lexer = Lexer { lower: text.iter().map(|c| lower(*c)).collect(), text };
    lexer.lines()
}

/// Longest run that a rule looks at, so that the time is linear in the length of any text; longer words are cut.
const MAX_RUN: usize = 512;
/// What `Lexer::at` returns behind the end of the text; no character.
const END: char = '\u{10ffff}';

struct Lexer {
    text: Vec<char>,
    /// The same characters in lower case, one for one.
    lower: Vec<char>,
}

/// A token that a rule finds.
struct Found {
    /// End of what the rule looks at: the rule that sees most wins.
    reach: usize,
    /// End of the token.
    end: usize,
    form: Form,
}

/// How a token is written.
enum Form {
    /// As it stands.
    Plain,
    /// With a straight apostrophe.
    Straight,
    /// As another text.
    Text(&'static str),
    /// Not at all.
    Dropped,
}

impl Found {
    fn new(end: usize, form: Form) -> Self {
        Self { reach: end, end, form }
    }
}

impl Lexer {
    /// The words of each line.
    fn lines(&self) -> Vec<String> {
        let (mut lines, mut line, mut at) = (Vec::new(), String::new(), 0);
        while let Some(c) = self.text.get(at) {
            if *c == '\n' {
                lines.push(std::mem::take(&mut line));
            }
            if c.is_whitespace() {
                at += 1;
                continue;
            }
            let found = self.longest(at);
            // A rule that took nothing would go on for ever.
            let end = found.end.max(at + 1);
            if let Some(token) = self.token(at, end, &found.form).filter(|token| !PUNCTUATION.contains(&token.as_str()))
            {
                line.push_str(if line.is_empty() { "" } else { " " });
                line.push_str(&token);
            }
            at = end;
        }
        lines.push(line);
        lines
    }

    fn token(&self, at: usize, end: usize, form: &Form) -> Option<String> {
        let text = String::from_iter(self.text[at..end].iter().filter(|c| **c != '\u{ad}')).to_lowercase();
        match form {
            // Some rules take spaces, and smileys brackets.
            Form::Plain => Some(text.replace(' ', "\u{a0}").replace('(', "-lrb-").replace(')', "-rrb-")),
            Form::Straight => Some(text.replace(['’', '´'], "'")),
            Form::Text(text) => Some((*text).to_owned()),
            Form::Dropped => None,
        }
        .filter(|token| !token.is_empty())
    }

    /// The token of the rule that sees most, of several the first.
    fn longest(&self, at: usize) -> Found {
        let rules = [
            Self::assimilation,
            Self::word_before_clitic,
            Self::word_before_not,
            Self::word,
            Self::apostrophe_word,
            Self::address,
            Self::handle,
            Self::clitic,
            Self::date,
            Self::number,
            Self::fraction,
            Self::alternatives,
            Self::abbreviation,
            Self::word_with_period,
            Self::code,
            Self::smiley,
            Self::run,
            Self::compound,
            Self::initials,
            Self::symbol,
        ];
        let mut best = Found { reach: at, end: at + 1, form: Form::Dropped };
        for found in rules.iter().filter_map(|rule| rule(self, at)) {
            if found.reach > best.reach {
                best = found;
            }
        }
        best
    }

    /// A character in lower case.
    fn at(&self, at: usize) -> char {
        self.lower.get(at).copied().unwrap_or(END)
    }

    fn is_apostrophe(&self, at: usize) -> bool {
        matches!(self.at(at), '\'' | '’' | '´' | '\u{92}')
    }

    /// The end of a run of characters, at least as far as `at`; of [`MAX_RUN`] characters at most.
    fn run_of(&self, at: usize, is_part: impl Fn(char) -> bool) -> usize {
        at + self.lower.iter().skip(at).take(MAX_RUN).take_while(|c| is_part(**c)).count()
    }

    /// The end of a run of at least one character.
    fn some_of(&self, at: usize, is_part: impl Fn(char) -> bool) -> Option<usize> {
        Some(self.run_of(at, is_part)).filter(|end| *end > at)
    }

    /// The end of a literal, in which `'` stands for any apostrophe.
    fn literal(&self, at: usize, literal: &str) -> Option<usize> {
        let matches = |(n, c): (usize, char)| self.at(at + n) == c || (c == '\'' && self.is_apostrophe(at + n));
        let length = literal.chars().count();
        literal.chars().enumerate().all(matches).then_some(at + length)
    }

    fn literal_of(&self, at: usize, literals: &[&str]) -> Option<usize> {
        literals.iter().filter_map(|literal| self.literal(at, literal)).max()
    }

    /// Letters and digits that begin with a letter, also several such parts with one of `.!?` between them.
    fn word_end(&self, at: usize) -> Option<usize> {
        let part = |at: usize| is_letter(self.at(at)).then(|| self.run_of(at, is_alphanumeric));
        let mut end = part(at)?;
        while matches!(self.at(end), '.' | '!' | '?')
            && let Some(next) = part(end + 1)
        {
            end = next;
        }
        Some(end)
    }

    fn word(&self, at: usize) -> Option<Found> {
        Some(Found::new(self.word_end(at)?, Form::Plain))
    }

    fn assimilation(&self, at: usize) -> Option<Found> {
        let found = ASSIMILATIONS.iter().find_map(|(word, first)| Some((self.literal(at, word)?, *first)));
        found.map(|(reach, first)| Found { reach, end: at + first, form: Form::Plain })
    }

    /// The end of an apostrophe and what it stands for: `'s`, `'re`.
    fn clitic_end(&self, at: usize) -> Option<usize> {
        if self.is_apostrophe(at) { self.literal_of(at + 1, &CLITICS) } else { None }
    }

    fn word_before_clitic(&self, at: usize) -> Option<Found> {
        let end = self.word_end(at)?;
        Some(Found { reach: self.clitic_end(end)?, end, form: Form::Plain })
    }

    /// `do` of `don't`.
    fn word_before_not(&self, at: usize) -> Option<Found> {
        let end = self.run_of(at, is_letter).checked_sub(1).filter(|end| *end > at)?;
        let last = self.at(end - 1);
        let reach = self.not_end(end).filter(|_| last.is_ascii_alphabetic() && last != 'n')?;
        Some(Found { reach, end, form: Form::Plain })
    }

    /// The end of `n't`.
    fn not_end(&self, at: usize) -> Option<usize> {
        let is_not = self.at(at) == 'n' && is_inner_apostrophe(self.at(at + 1)) && self.at(at + 2) == 't';
        is_not.then_some(at + 3)
    }

    /// `'s` and `n't` behind a word.
    fn clitic(&self, at: usize) -> Option<Found> {
        let ends = [self.clitic_end(at), self.not_end(at)].into_iter().flatten();
        // The two letters of `'re` need something behind them, even at the end of the file.
        let is_cut = |end: usize| self.at(end) == END && self.is_apostrophe(at) && end > at + 2;
        let end = ends.filter(|end| !is_letter(self.at(*end)) && !is_cut(*end)).max()?;
        Some(Found { reach: end + 1, end, form: Form::Straight })
    }

    fn apostrophe_word(&self, at: usize) -> Option<Found> {
        let literals = self.literal_of(at, &APOSTROPHE_WORDS);
        let is_apart = |end: &usize| self.at(*end).is_whitespace();
        let and = self.literal(at, "'n'").or_else(|| self.literal(at, "'n").filter(is_apart));
        let article = self.literal_of(at, &["l'", "d'", "j'"]);
        let ends = [literals, and, article, self.initial_end(at), self.decade_end(at), self.vowels_end(at)];
        let short = self.literal(at, "y'").filter(|end| is_letter(self.at(*end)));
        let end = ends.into_iter().flatten().chain(short).max()?;
        Some(Found::new(end, Form::Plain))
    }

    /// `D'Angelo`: one letter, an apostrophe, and two letters or more.
    fn initial_end(&self, at: usize) -> Option<usize> {
        let first = self.text.get(at).copied()?;
        let is_initial = first == 'n' || (first.is_ascii_uppercase() && !matches!(first, 'I' | 'Y'));
        let end = (is_initial && is_inner_apostrophe(self.at(at + 1))).then(|| self.run_of(at + 2, is_letter))?;
        (end >= at + 4).then_some(end)
    }

    /// `'90s`, and `'95` before a space.
    fn decade_end(&self, at: usize) -> Option<usize> {
        let digits = self.is_apostrophe(at).then(|| self.digits(at + 1, 2, 2))??;
        let is_decade = self.at(digits) == 's' && self.at(digits - 1) == '0' && self.at(at + 1) >= '2';
        if is_decade { Some(digits + 1) } else { self.at(digits).is_whitespace().then_some(digits) }
    }

    /// `hawai'i`: an apostrophe between a vowel and letters.
    fn vowels_end(&self, at: usize) -> Option<usize> {
        let end = self.run_of(at, is_letter);
        let is_vowel = end >= at + 2 && matches!(self.at(end - 1), 'a' | 'e' | 'i' | 'o' | 'u' | 'y');
        if is_vowel && is_inner_apostrophe(self.at(end)) { self.some_of(end + 1, is_letter) } else { None }
    }

    fn address(&self, at: usize) -> Option<Found> {
        let end = [self.url_end(at), self.mail_end(at)].into_iter().flatten().max()?;
        Some(Found::new(end, Form::Plain))
    }

    fn url_end(&self, at: usize) -> Option<usize> {
        let is_part = |c: char| !c.is_whitespace() && !"\"<>|(){}[]".contains(c);
        let is_end = |c: char| !".!?,;:'&-".contains(c);
        let last_part = |from: usize| {
            let end = self.run_of(from, is_part);
            (from..end).rev().find(|last| is_end(self.at(*last))).map(|last| last + 1)
        };
        if let Some(from) = self.literal_of(at, &["http://", "https://", "ftp://"]) {
            return last_part(from);
        }
        let host = self.host_end(at)?;
        let path = if self.at(host) == '/' { last_part(host + 1).filter(|end| *end > host + 2) } else { None };
        Some(path.unwrap_or(host))
    }

    /// The end of `www.` and names with points between them, or of names of which the last is a well-known domain.
    fn host_end(&self, at: usize) -> Option<usize> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let end = self.run_of(at, |c| is_name(c) || c == '.');
        let name = String::from_iter(&self.lower[at..end]);
        let name = name.trim_end_matches('.');
        let is_host = name.starts_with("www.") && name.matches('.').count() > 1
            || [".com", ".net", ".org", ".edu"].iter().any(|domain| name.len() > 4 && name.ends_with(domain));
        is_host.then(|| at + name.len())
    }

    /// The end of almost anything with `@` in it.
    fn mail_end(&self, at: usize) -> Option<usize> {
        let start = if self.at(at) == '<' { at + 1 } else { at };
        let is_part = |c: char| !c.is_whitespace() && !"\"<>|()".contains(c);
        let run = self.at(start).is_ascii_alphanumeric().then(|| self.run_of(start, is_part))?;
        let sign = (start + 1..run).find(|sign| self.at(*sign) == '@')?;
        // Names with single points between them.
        let pointless =
            (sign + 1..run).find(|end| self.at(*end) == '.' && (*end + 1 == run || self.at(*end + 1) == '.'));
        let end = pointless.unwrap_or(run);
        (end > sign + 1).then_some(if self.at(end) == '>' { end + 1 } else { end })
    }

    /// `@name` and `#topic`.
    fn handle(&self, at: usize) -> Option<Found> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let first = self.at(at + 1);
        let end = match self.at(at) {
            '@' if is_name(first) && !first.is_ascii_digit() => self.run_of(at + 1, is_name),
            '#' if is_letter(first) => self.run_of(at + 1, is_letter),
            _ => return None,
        };
        Some(Found::new(end, Form::Plain))
    }

    /// The end of digits, at least `least` and at most `most`.
    fn digits(&self, at: usize, least: usize, most: usize) -> Option<usize> {
        let end = self.run_of(at, is_digit).min(at + most);
        (end >= at + least).then_some(end)
    }

    fn date(&self, at: usize) -> Option<Found> {
        let is_mark = |at: usize| matches!(self.at(at), '-' | '/');
        let day = self.digits(at, 1, 2).filter(|end| is_mark(*end))?;
        let month = self.digits(day + 1, 1, 2).filter(|end| is_mark(*end))?;
        Some(Found::new(self.digits(month + 1, 2, 4)?, Form::Plain))
    }

    /// The end of digits with points, colons and commas between them.
    fn number_end(&self, at: usize) -> Option<usize> {
        let mut end = self.run_of(at, is_digit);
        while ".,:".contains(self.at(end))
            && let Some(next) = self.some_of(end + 1, is_digit)
        {
            end = next;
        }
        Some(end).filter(|end| *end > at)
    }

    fn number(&self, at: usize) -> Option<Found> {
        let digits = if matches!(self.at(at), '+' | '-') { at + 1 } else { at };
        Some(Found::new(self.number_end(digits)?, Form::Plain))
    }

    fn fraction(&self, at: usize) -> Option<Found> {
        if let Some(text) = vulgar_fraction(self.at(at)) {
            return Some(Found::new(at + 1, Form::Text(text)));
        }
        let part = |at: usize| {
            let slash = self.digits(at, 1, 4)?;
            if matches!(self.at(slash), '/' | '⁄') { self.digits(slash + 1, 1, 4) } else { None }
        };
        let mixed = self.digits(at, 1, 4).filter(|end| matches!(self.at(*end), '-' | ' ' | '\u{a0}'));
        let end = mixed.and_then(|end| part(end + 1)).or_else(|| part(at))?;
        Some(Found::new(end, Form::Plain))
    }

    /// `and/or`.
    fn alternatives(&self, at: usize) -> Option<Found> {
        let part = |at: usize| {
            let mut end = self.some_of(at, |c| c.is_ascii_alphanumeric())?;
            for _ in 0..2 {
                let next = if self.at(end) == '-' { self.some_of(end + 1, |c| c.is_ascii_alphabetic()) } else { None };
                end = next.unwrap_or(end);
            }
            Some(end)
        };
        let mut end = part(at)?;
        let next = |end: usize| if self.at(end) == '/' { part(end + 1) } else { None };
        end = next(end)?;
        Some(Found::new(next(end).unwrap_or(end), Form::Plain))
    }

    /// The end of letters with points between them.
    fn acronym_end(&self, at: usize) -> Option<usize> {
        let is_ascii = |at: usize| self.at(at).is_ascii_alphabetic();
        let mut end = is_ascii(at).then_some(at + 1)?;
        while self.at(end) == '.' && is_ascii(end + 1) {
            end += 2;
        }
        Some(end)
    }

    fn abbreviation(&self, at: usize) -> Option<Found> {
        let is_capital = self.text.get(at).is_some_and(|c| c.is_uppercase());
        let capitals = CAPITAL_ABBREVIATIONS.split(' ').filter(|_| is_capital);
        let known = ABBREVIATIONS.split(' ').chain(capitals).filter_map(|word| self.literal(at, word));
        let acronym = self.acronym_end(at);
        let end = known.chain(acronym).chain(self.before_number(at)).filter(|end| self.at(*end) == '.').max()? + 1;
        // A single letter at the end of a sentence.
        if end == at + 2 && self.starts_sentence(end) {
            return Some(Found { reach: end + 2, end: at + 1, form: Form::Plain });
        }
        Some(Found::new(end, Form::Plain))
    }

    /// The end of `no` in `no. 5`.
    fn before_number(&self, at: usize) -> Option<usize> {
        let end = self.literal_of(at, &BEFORE_NUMBERS)?;
        let next = if self.at(end + 1).is_whitespace() { end + 2 } else { end + 1 };
        is_digit(self.at(next)).then_some(end)
    }

    /// Whether spaces and a word that starts sentences follow.
    fn starts_sentence(&self, at: usize) -> bool {
        let start = self.run_of(at, char::is_whitespace);
        let end = self.run_of(start, is_letter);
        let word = String::from_iter(self.text.get(start..end).unwrap_or_default());
        let is_title = matches!(word.as_str(), "Mr" | "Ms") && self.at(end) == '.';
        let starts = SENTENCE_STARTS.split(' ').any(|known| known == word) && self.at(end).is_whitespace();
        start > at && (starts || is_title)
    }

    /// Any word before a period and a comma, colon or semicolon.
    fn word_with_period(&self, at: usize) -> Option<Found> {
        let ends = self.word_end(at).into_iter().chain(self.compound_end(at));
        let is_inside = |end: &usize| self.at(*end) == '.' && matches!(self.at(*end + 1), ',' | ';' | ':' | '、');
        let end = ends.filter(is_inside).max()? + 1;
        Some(Found { reach: end + 1, end, form: Form::Plain })
    }

    /// `c++`, `c#`, `<b>`, `&amp;`.
    fn code(&self, at: usize) -> Option<Found> {
        if let Some(end) = self.literal_of(at, &["c++", "c#", "f#"]) {
            return Some(Found::new(end, Form::Plain));
        }
        let entities = [("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "''"), ("&apos;", "'")];
        if let Some((end, text)) = entities.iter().find_map(|(entity, text)| Some((self.literal(at, entity)?, *text))) {
            return Some(Found::new(end, Form::Text(text)));
        }
        let name = if self.at(at + 1) == '/' { at + 2 } else { at + 1 };
        let is_tag = self.at(at) == '<' && self.at(name).is_ascii_alphabetic();
        let end = is_tag.then(|| self.run_of(name, |c| c.is_ascii_alphanumeric() || "_:.-".contains(c)))?;
        (self.at(end) == '>').then(|| Found::new(end + 1, Form::Plain))
    }

    fn smiley(&self, at: usize) -> Option<Found> {
        let eyes = if matches!(self.at(at), '<' | '>') { at + 1 } else { at };
        let nose = matches!(self.at(eyes), ':' | ';' | '=').then_some(eyes + 1)?;
        let mouth = if matches!(self.at(nose), '-' | 'o' | '*' | '\'') { nose + 1 } else { nose };
        let is_face = "()dpo\\{@|[]".contains(self.at(mouth))
            && !self.at(mouth + 1).is_ascii_alphanumeric()
            && self.at(mouth + 1) != END;
        is_face.then(|| Found { reach: mouth + 2, end: mouth + 1, form: Form::Plain })
    }

    /// Runs of the same mark.
    fn run(&self, at: usize) -> Option<Found> {
        let mark = self.at(at);
        let end = match mark {
            '?' | '!' => self.run_of(at, |c| matches!(c, '?' | '!')),
            '@' | '#' | '_' | '*' | '-' => self.run_of(at, |c| c == mark),
            '.' => self.literal(at, "...").map(|end| self.run_of(end, |c| c == '.'))?,
            _ => return None,
        };
        let form = match (mark, end - at) {
            ('-', 3 | 4) => Form::Text("--"),
            ('.', _) => Form::Text("..."),
            ('*', _) => Form::Plain,
            _ => Form::Plain,
        };
        Some(Found::new(end, form))
    }

    fn compound(&self, at: usize) -> Option<Found> {
        let ends = self.compound_end(at).into_iter().chain(self.pointed_compound_end(at));
        Some(Found::new(ends.max()?, Form::Plain))
    }

    /// The end of words with hyphens between them.
    fn compound_end(&self, at: usize) -> Option<usize> {
        let is_hyphen = |c: char| matches!(c, '-' | '_' | '\u{58a}' | '‐' | '‑');
        let part = |at: usize| {
            let is_article = matches!(self.at(at), 'd' | 'o' | 'l') && is_inner_apostrophe(self.at(at + 1));
            let skipped = if is_article && is_alphanumeric(self.at(at + 2)) { at + 2 } else { at };
            self.some_of(skipped, is_alphanumeric)
        };
        let mut end = part(at)?;
        while is_hyphen(self.at(end))
            && let Some(next) = part(end + 1)
        {
            end = next;
        }
        Some(end)
    }

    /// The end of a compound whose first part has points, `u.s.-based`.
    fn pointed_compound_end(&self, at: usize) -> Option<usize> {
        let first =
            is_alphanumeric(self.at(at)).then(|| self.run_of(at, |c| is_alphanumeric(c) || matches!(c, '.' | ',')))?;
        let part = |at: usize| {
            let plain = self.some_of(at, is_alphanumeric)?;
            let decimals = if self.at(plain) == '.' { self.some_of(plain + 1, is_digit) } else { None };
            let acronym = self.acronym_end(at).filter(|end| *end > at + 1 && self.at(*end) == '.').map(|end| end + 1);
            Some(decimals.unwrap_or(plain).max(acronym.unwrap_or(plain)))
        };
        let mut end = first;
        while self.at(end) == '-'
            && let Some(next) = part(end + 1)
        {
            end = next;
        }
        (end > first).then_some(end)
    }

    /// `AT&T`.
    fn initials(&self, at: usize) -> Option<Found> {
        let part = |at: usize| {
            let length = self.text.iter().skip(at).take_while(|c| c.is_ascii_uppercase()).count();
            (length > 0).then_some(at + length)
        };
        let next = |end: usize| if matches!(self.at(end), '&' | '+') { part(end + 1) } else { None };
        let mut end = next(part(at)?)?;
        while let Some(further) = next(end) {
            end = further;
        }
        Some(Found::new(end, Form::Plain))
    }

    fn symbol(&self, at: usize) -> Option<Found> {
        let is_quote = |at: usize| matches!(self.at(at), '\'' | '`' | '‘' | '’');
        let is_twice = self.at(at) == self.at(at + 1) && matches!(self.at(at), '<' | '>');
        let superscripts = self.run_of(at, is_superscript).max(self.run_of(at, |c| ('₀'..='₉').contains(&c)));
        let length = if is_twice || (is_quote(at) && is_quote(at + 1)) { 2 } else { 1 };
        let end = superscripts.max(at + length);
        let dollar = at + self.text.iter().skip(at).take_while(|c| c.is_ascii_uppercase()).count();
        if self.at(dollar) == '$' {
            return Some(Found::new(dollar + 1, Form::Plain));
        }
        let form = match self.at(at) {
            '(' => Form::Text("-lrb-"),
            ')' => Form::Text("-rrb-"),
            '[' => Form::Text("-lsb-"),
            ']' => Form::Text("-rsb-"),
            '{' => Form::Text("-lcb-"),
            '}' => Form::Text("-rcb-"),
            '£' => Form::Text("#"),
            '€' | '¤' | '₠' => Form::Text("$"),
            '¢' => Form::Text("cents"),
            '…' => Form::Text("..."),
            c if is_dropped(c) => Form::Dropped,
            c if is_symbol(c) => Form::Plain,
            _ => return None,
        };
        Some(Found::new(end, form))
    }
}

fn is_line_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The first character of a character's lower case.
fn lower(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

fn is_letter(c: char) -> bool {
    c.is_alphabetic() || matches!(c, '\u{ad}' | '\u{300}'..='\u{36f}')
}

/// Whether a character is a digit of the Basic Multilingual Plane; others are no digits there.
fn is_digit(c: char) -> bool {
    c <= '\u{ffff}' && python_text::is_digit(c)
}

fn is_alphanumeric(c: char) -> bool {
    is_letter(c) || is_digit(c)
}

/// Apostrophes that may stand within a word, rightly or wrongly.
fn is_inner_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '’' | '´' | '`' | '‘' | '‛' | '\u{91}' | '\u{92}')
}

/// Quotes and dashes, which are dropped in all their forms.
fn is_dropped(c: char) -> bool {
    matches!(
        c,
        '"' | '\''
            | '`'
            | '´'
            | '\u{96}'
            | '\u{97}'
            | '–'
            | '—'
            | '―'
            | '‘'
            | '’'
            | '‛'
            | '“'
            | '”'
            | '‹'
            | '›'
            | '«'
            | '»'
    ) || matches!(c, '.' | ',' | ';' | ':')
}

/// Characters that are tokens of their own.
fn is_symbol(c: char) -> bool {
    let is_ascii =
        c.is_ascii_punctuation() || matches!(c, '\u{a7}'..='\u{ac}' | '\u{ae}'..='\u{b3}' | '\u{b5}'..='\u{ba}');
    is_ascii
        || matches!(c, '¡' | '¿' | '¦' | '×' | '÷' | '¥' | '‖'..='‗' | '‚' | '„' | '‟' | '†'..='‧' | '‰'..='‸' | '※'..='⁞')
        || matches!(c, '\u{2070}'..='\u{218f}' | '\u{2190}'..='\u{2bff}' | '\u{3001}'..='\u{3020}' | '・' | '！'..='･')
}

fn is_superscript(c: char) -> bool {
    matches!(c, '⁰' | '¹' | '²' | '³' | '⁴'..='⁹')
}

fn vulgar_fraction(c: char) -> Option<&'static str> {
    Some(match c {
        '¼' => "1/4",
        '½' => "1/2",
        '¾' => "3/4",
        '⅓' => "1/3",
        '⅔' => "2/3",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_separated_as_in_the_penn_treebank() {
        for (caption, tokens) in [
            ("A man's dog isn't here.", "a man 's dog is n't here"),
            ("They're 12-year-old T-shirts, aren't they?", "they 're 12-year-old t-shirts are n't they"),
            ("I cannot, won't and don't!", "i can not wo n't and do n't"),
            ("it's 3.5 of 1,000 at 10:30 a.m.", "it 's 3.5 of 1,000 at 10:30 a.m."),
            ("black/white and 1 1/2", "black/white and 1\u{a0}1/2"),
            ("\"Stop\" (a sign) [x]", "stop -lrb- a sign -rrb- -lsb- x -rsb-"),
            ("Main St. -- the U.S. flag...", "main st. the u.s. flag"),
            ("o'clock at the dogs' house", "o'clock at the dogs house"),
            ("$5 & 50%", "$ 5 & 50 %"),
            ("wow!! really?", "wow !! really"),
            ("www.example.com/ab or me@example.org.", "www.example.com/ab or me@example.org"),
            ("It isn’t the ’90s — “café”", "it is n't the ’90s café"),
            ("the letter A. The dog. C. Dog", "the letter a the dog c. dog"),
            ("dog., cat (555) :-)", "dog. cat -lrb- 555 -rrb- :--rrb-"),
            ("AT&T and b&b, US$5 or £6", "at&t and b & b us$ 5 or # 6"),
            ("they are ill. No. 5 in Ill. no. x", "they are ill no. 5 in ill. no x"),
            ("", ""),
            (" . ", ""),
        ] {
            assert_eq!(tokenize_caption(caption), tokens, "{caption}");
        }
    }

    #[test]
    fn the_next_caption_is_looked_at() {
        assert_eq!(tokenize_captions(["no.", "5 dogs", "no."]), ["no.", "5 dogs", "no"]);
        assert_eq!(tokenize_captions(["letter A.", "The dog's", "it's"]), ["letter a", "the dog 's", "it 's"]);
        assert_eq!(tokenize_captions(["they're", "they're"]), ["they 're", "they re"]);
        assert!(tokenize_captions::<&str>([]).is_empty());
    }

    #[test]
    fn any_text_ends() {
        for text in
            ["\u{0}\u{1}", "😀👍🏽", "''''", "-----", "日本語。", "a\nb\u{2028}c", "n't", "'", "@", "x'", "1/", ".,:"]
        {
            tokenize_caption(text);
        }
        assert_eq!(tokenize_caption("a\nb\u{2028}c"), "a b c");
        // Nothing is looked at again and again.
        for part in ["a,", "a.", "'", "1/", "a@", "-", "A&", " A. "] {
            tokenize_caption(&part.repeat(3000));
        }
    }
}
