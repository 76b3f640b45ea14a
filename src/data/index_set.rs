//! A set of sample indices that is cheap to clone and compact in checkpoints.

use std::fmt::Write;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Hexadecimal digits of one 64-bit word.
const DIGITS: usize = 16;

/// Set of sample indices of one data set, as a bit set that ends at the largest index. Clones share memory until one of
/// them changes. Serialised as hexadecimal digits, 16 for each 64 indices, lowest indices first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexSet {
    words: Arc<Vec<u64>>,
    len: u64,
}

impl IndexSet {
    /// Adds an index; `false` if it is in the set already.
    pub fn insert(&mut self, index: usize) -> bool {
        if self.contains(index) {
            return false;
        }
        let words = Arc::make_mut(&mut self.words);
        if words.len() <= index / 64 {
            words.resize(index / 64 + 1, 0);
        }
        if let Some(word) = words.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
        self.len += 1;
        true
    }

    /// Whether the set contains an index.
    pub fn contains(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Number of indices.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no indices.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Indices that are at most this many; 0 for an empty set.
    pub(super) fn end(&self) -> usize {
        let last = self.words.last().map_or(0, |word| 64 - word.leading_zeros() as usize);
        self.words.len().saturating_sub(1) * 64 + last
    }
}

impl Serialize for IndexSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(self.words.len() * DIGITS);
        for word in self.words.iter() {
            // Writing to a string cannot fail.
            let _ = write!(text, "{word:016x}");
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for IndexSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected = || D::Error::custom("is not a set of indices: expected 16 hexadecimal digits for each 64");
        let word = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.len() == DIGITS)?;
            u64::from_str_radix(digits, 16).ok()
        };
        let words = text.as_bytes().chunks(DIGITS).map(|digits| word(digits).ok_or_else(expected));
        let mut words = words.collect::<Result<Vec<u64>, _>>()?;
        while words.last() == Some(&0) {
            words.pop();
        }
        let len = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Ok(Self { words: Arc::new(words), len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_counted_once_and_survive_serialisation() {
        let mut set = IndexSet::default();
        assert!(set.is_empty() && set.end() == 0 && !set.contains(9));
        for index in [3, 200, 3, 64, 63] {
            assert_eq!(set.insert(index), !(index == 3 && set.len() > 1), "{index}");
        }
        assert_eq!((set.len(), set.end()), (4, 201));
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(text.len(), 2 + 4 * DIGITS, "{text}");
        let read: IndexSet = serde_json::from_str(&text).unwrap();
        assert_eq!(read, set);
        assert!((0..300).filter(|index| read.contains(*index)).eq([3, 63, 64, 200]));
    }

    #[test]
    fn clones_do_not_change_with_the_original() {
        let mut set = IndexSet::default();
        set.insert(1);
        let before = set.clone();
        set.insert(70);
        assert_eq!((before.len(), set.len(), before.contains(70)), (1, 2, false));
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in ["\"12\"", "\"00000000000000zz\"", "\"000000000000000\u{e9}\"", "5"] {
            assert!(serde_json::from_str::<IndexSet>(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<IndexSet>("\"0000000000000000\"").unwrap().is_empty());
    }
}
