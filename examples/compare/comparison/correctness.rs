//! Which questions of a test were answered correctly, in a form that is short enough to keep.

use std::collections::BTreeMap;

use haplovl::eval::{Accuracy, Tally};
use serde::{Deserialize, Serialize};

use super::exam::Answered;

/// Name of all kinds of questions together.
pub const ALL: &str = "all";

/// For each kind of question and each scene, whether the answer is correct. A file has a text for each kind with one
/// character for each scene: `1` correct, `0` wrong, `-` not asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Correctness(BTreeMap<String, Vec<Option<bool>>>);

impl Correctness {
    /// That of answers to questions about the first scenes of a split, at most one of a kind about each.
    pub fn new(answers: &[Answered], scenes: u64) -> Self {
        let mut kinds = BTreeMap::new();
        for Answered { scene, kind, right, .. } in answers {
            let of_kind = kinds.entry(kind.clone()).or_insert_with(|| vec![None; scenes as usize]);
            if let Some(of_scene) = of_kind.get_mut(*scene as usize) {
                *of_scene = Some(*right);
            }
        }
        Self(kinds)
    }

    /// Number of scenes.
    pub fn scenes(&self) -> usize {
        self.0.values().next().map_or(0, Vec::len)
    }

    /// Correct answers to questions of a kind, or of all, by scene.
    pub fn tallies(&self, kind: &str) -> Vec<Tally> {
        let mut tallies = vec![Tally::default(); self.scenes()];
        for (_, scenes) in self.0.iter().filter(|(name, _)| kind == ALL || *name == kind) {
            let asked = tallies.iter_mut().zip(scenes).filter_map(|(tally, right)| Some((tally, (*right)?)));
            asked.for_each(|(tally, right)| tally.add(right));
        }
        tallies
    }

    /// Accuracy by kind.
    pub fn accuracy(&self) -> Accuracy {
        let mut accuracy = Accuracy::default();
        for (kind, scenes) in &self.0 {
            scenes.iter().flatten().for_each(|right| accuracy.count(kind, *right));
        }
        accuracy
    }
}

impl From<Correctness> for BTreeMap<String, String> {
    fn from(correctness: Correctness) -> Self {
        let character = |right| match right {
            Some(true) => '1',
            Some(false) => '0',
            None => '-',
        };
        correctness.0.into_iter().map(|(kind, scenes)| (kind, scenes.into_iter().map(character).collect())).collect()
    }
}

impl TryFrom<BTreeMap<String, String>> for Correctness {
    type Error = String;

    fn try_from(texts: BTreeMap<String, String>) -> Result<Self, String> {
        let right = |character| match character {
            '1' => Ok(Some(true)),
            '0' => Ok(Some(false)),
            '-' => Ok(None),
            other => Err(format!("an answer is {other:?}, expected 1, 0 or -")),
        };
        let scenes =
            |(kind, text): (String, String)| Ok((kind, text.chars().map(right).collect::<Result<_, String>>()?));
        let kinds = Self(texts.into_iter().map(scenes).collect::<Result<_, String>>()?);
        match kinds.0.iter().find(|(_, of_kind)| of_kind.len() != kinds.scenes()) {
            Some((kind, of_kind)) => {
                let (found, expected) = (of_kind.len(), kinds.scenes());
                let kind: String = format!("{kind:?}").chars().take(60).collect();
                Err(format!("{found} answers of kind {kind}, expected one for each of {expected} scenes"))
            }
            None => Ok(kinds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correctness_comes_back_from_a_file_and_broken_ones_are_refused() {
        let answered = |scene, kind: &str, right| Answered {
            scene,
            kind: kind.into(),
            question: String::new(),
            answer: String::new(),
            given: String::new(),
            right,
        };
        let answers = [answered(0, "size", true), answered(2, "size", false), answered(2, "shape", true)];
        let correctness = Correctness::new(&answers, 3);
        let json = serde_json::to_string(&correctness).unwrap();
        assert_eq!(json, r#"{"shape":"--1","size":"1-0"}"#);
        assert_eq!(serde_json::from_str::<Correctness>(&json).unwrap(), correctness);
        let [size, all] =
            ["size", ALL].map(|kind| correctness.tallies(kind).iter().map(|t| (t.right, t.total)).collect());
        assert_eq!((size, all), (vec![(1, 1), (0, 0), (0, 1)], vec![(1, 1), (0, 0), (1, 2)]));
        assert_eq!(correctness.accuracy().overall(), Tally { right: 2, total: 3 });
        let error = |json| serde_json::from_str::<Correctness>(json).unwrap_err().to_string();
        assert!(error(r#"{"size":"1x"}"#).contains("an answer is 'x', expected 1, 0 or -"));
        assert!(
            error(r#"{"shape":"--1","size":"1"}"#)
                .contains(r#"1 answers of kind "size", expected one for each of 3 scenes"#)
        );
    }
}
