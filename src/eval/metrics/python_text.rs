//! White space, digits and numbers of texts as Python sees them, since the benchmarks' scorers are written in it.

/// The digit zero of each script, and of each style of mathematical letters; nine more digits follow each.
const ZEROS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0,
    0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620,
    0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0,
    0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60,
    0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// Whether `\d` matches a character: a decimal digit of any script.
pub(super) fn is_digit(c: char) -> bool {
    digit(c).is_some()
}

/// The value of a decimal digit of any script.
fn digit(c: char) -> Option<u32> {
    let value = |zero: &u32| u32::from(c).checked_sub(*zero).filter(|value| *value < 10);
    if c.is_ascii() { c.to_digit(10) } else { ZEROS.iter().find_map(value) }
}

/// Whether a character separates words: Unicode's white space, and the four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Words of a text, like `str.split()`.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// A text without white space around it, like `str.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Number of a text, like `float()`, also in digits of other scripts; `None` if it is none.
pub(super) fn float(text: &str) -> Option<f64> {
    let plain = |c: char| digit(c).and_then(|value| char::from_digit(value, 10)).unwrap_or(c);
    let text = String::from_iter(strip(text).chars().map(plain));
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let stray = |(at, byte): (usize, &u8)| *byte == b'_' && !(is_digit(at.checked_sub(1)) && is_digit(Some(at + 1)));
    if bytes.iter().enumerate().any(stray) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_split_and_parsed_as_python_does() {
        assert_eq!(Vec::from_iter(words(" a\u{a0}b\u{1c}c\u{3000}\n")), ["a", "b", "c"]);
        assert!(is_digit('5') && is_digit('٣') && is_digit('９') && !is_digit('²') && !is_digit('½'));
        let read = [" 1_000 ", "+.5", "1e3", "5.", "-inf"].map(float);
        assert_eq!(read, [Some(1000.0), Some(0.5), Some(1000.0), Some(5.0), Some(f64::NEG_INFINITY)]);
        assert_eq!(["３", "-٣.٥", "1𝟏"].map(float), [Some(3.0), Some(-3.5), Some(11.0)]);
        assert!(ZEROS.windows(2).all(|pair| pair[0] + 10 <= pair[1]));
        assert!(float("nan").is_some_and(f64::is_nan));
        assert_eq!(["", "_1", "1__0", "1_", "1,000", "0x10", "5 %", "1 2"].map(float), [None; 8]);
    }
}
