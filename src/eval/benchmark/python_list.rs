//! Lists in Python's notation, as tables written by pandas have them.

/// The texts of a list such as `['a', "b's", 3]`; `None` for any other text. Numbers and names are read as texts.
pub(super) fn python_list(text: &str) -> Option<Vec<String>> {
    let inside = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let (mut items, mut chars) = (Vec::new(), inside.chars().peekable());
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(&first) = chars.peek() else { return Some(items) };
        items.push(if matches!(first, '\'' | '"') { quoted(&mut chars)? } else { bare(&mut chars)? });
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if !matches!(chars.next(), None | Some(',')) {
            return None;
        }
    }
}

fn bare(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let mut text = String::new();
    while let Some(c) = chars.next_if(|c| *c != ',') {
        text.push(c);
    }
    let text = text.trim();
    let is_plain = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "+-._".contains(c));
    is_plain.then(|| text.to_owned())
}

fn quoted(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let quote = chars.next()?;
    let mut text = String::new();
    loop {
        match chars.next()? {
            '\\' => text.extend(escaped(chars)?),
            c if c == quote => return Some(text),
            c => text.push(c),
        }
    }
}

/// What an escape stands for; one that Python does not know stays as it is.
fn escaped(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Vec<char>> {
    let code = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>, digits: usize| {
        let digits = String::from_iter(chars.by_ref().take(digits));
        u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32)
    };
    Some(vec![match chars.next()? {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'x' => code(chars, 2)?,
        'u' => code(chars, 4)?,
        'U' => code(chars, 8)?,
        c @ ('\\' | '\'' | '"') => c,
        other => return Some(vec!['\\', other]),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_texts_and_numbers_are_read() {
        assert_eq!(python_list(r#"['a', "b's", 'c\'d', 3, 'é\xe9\n', ]"#).unwrap(), ["a", "b's", "c'd", "3", "éé\n"]);
        assert_eq!(python_list(r#" ["x,y", 'a\d'] "#).unwrap(), ["x,y", r"a\d"]);
        assert_eq!(python_list("[]").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn other_texts_are_no_lists() {
        for text in ["", "a", "[", "['a'", "['a' 'b']", "['a]", "[(1, 2)]", r"['\x']", "[a b]", "[,]"] {
            assert_eq!(python_list(text), None, "{text}");
        }
    }
}
