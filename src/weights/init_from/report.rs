//! Report of an initialisation.

use std::collections::BTreeSet;
use std::fmt;

use super::RowCounts;

/// Names listed of each kind; the rest is only counted.
const LISTED: usize = 20;

/// Outcome of an initialisation for every parameter of the model and every tensor of the source; names are sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InitReport {
    /// Parameters copied or computed from the source.
    pub copied: Vec<String>,
    /// Parameters without a counterpart in the source, set so that they have no effect: zero biases, and the constant
    /// `up_proj` that turns a gated MLP into a plain one.
    pub zero_filled: Vec<String>,
    /// Parameters that keep their previous values.
    pub fresh: Vec<String>,
    /// Tensors of the source that were not used.
    pub unused: Vec<String>,
    /// Tensors of the source that hold nothing of their own: buffers such as RoPE frequencies and position ids, and a head
    /// that is tied to the embedding table.
    pub ignored: Vec<String>,
    /// Names of a larger model's tensors, and the names under which they were read.
    pub renamed: Vec<String>,
    /// Rows of the vocabulary, for each source with an embedding table, in the order of the sources.
    pub rows: Vec<RowCounts>,
}

impl InitReport {
    /// The report of this initialisation followed by `later` on the same model.
    pub fn merge(self, later: Self) -> Self {
        let union = |a: Vec<String>, b: Vec<String>| -> BTreeSet<String> { a.into_iter().chain(b).collect() };
        let copied = union(self.copied, later.copied);
        let zero_filled = union(self.zero_filled, later.zero_filled);
        let fresh = union(self.fresh, later.fresh);
        let is_fresh = |name: &String| !copied.contains(name) && !zero_filled.contains(name);
        Self {
            fresh: fresh.into_iter().filter(is_fresh).collect(),
            unused: union(self.unused, later.unused).into_iter().collect(),
            ignored: union(self.ignored, later.ignored).into_iter().collect(),
            renamed: union(self.renamed, later.renamed).into_iter().collect(),
            copied: copied.into_iter().collect(),
            zero_filled: zero_filled.into_iter().collect(),
            rows: self.rows.into_iter().chain(later.rows).collect(),
        }
    }
}

impl fmt::Display for InitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} parameters copied", self.copied.len())?;
        for renaming in &self.renamed {
            write!(f, "\ntensors {renaming}")?;
        }
        for rows in &self.rows {
            write!(f, "\nvocabulary: {rows}")?;
        }
        if !self.ignored.is_empty() {
            write!(f, "\n{} buffers and tied heads of the source ignored", self.ignored.len())?;
        }
        let kinds = [
            ("parameters zero-filled", &self.zero_filled),
            ("parameters fresh", &self.fresh),
            ("tensors of the source unused", &self.unused),
        ];
        for (kind, names) in kinds {
            write!(f, "\n{} {kind}", names.len())?;
            for name in names.iter().take(LISTED) {
                write!(f, "\n  {name}")?;
            }
            if names.len() > LISTED {
                write!(f, "\n  and {} more", names.len() - LISTED)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn merged_reports_list_as_fresh_only_parameters_untouched_by_both() {
        let first = InitReport { copied: names(&["a"]), fresh: names(&["b", "c"]), ..Default::default() };
        let later = InitReport {
            copied: names(&["b"]),
            fresh: names(&["a", "c"]),
            unused: names(&["x"]),
            ..Default::default()
        };
        let both = first.merge(later);
        assert_eq!((both.copied, both.fresh, both.unused), (names(&["a", "b"]), names(&["c"]), names(&["x"])));
    }

    #[test]
    fn long_lists_are_truncated() {
        let fresh = (0..30).map(|i| format!("p{i:02}")).collect();
        let text = InitReport { fresh, ..Default::default() }.to_string();
        assert!(text.contains("30 parameters fresh") && text.contains("p19") && text.contains("and 10 more"), "{text}");
        assert!(!text.contains("p20"));
    }
}
