//! Owners of parameters among ranks.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Deals whole parameters to ranks: the owner of a parameter sums its gradients, keeps its moments and its EMA, and updates
/// it. Largest first, each to the rank with the fewest elements so far, so that ranks differ by at most the largest
/// parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shards {
    owners: BTreeMap<String, usize>,
    elements: Vec<usize>,
}

impl Shards {
    /// Deals parameters, given by name and number of elements, to `ranks` ranks.
    pub fn new(parameters: impl IntoIterator<Item = (String, usize)>, ranks: usize) -> Self {
        let mut parameters: Vec<_> = parameters.into_iter().collect();
        parameters.sort_by(|a, b| (Reverse(a.1), &a.0).cmp(&(Reverse(b.1), &b.0)));
        let (mut owners, mut elements) = (BTreeMap::new(), vec![0; ranks.max(1)]);
        for (name, count) in parameters {
            let (owner, sum) = elements.iter().copied().enumerate().min_by_key(|(_, sum)| *sum).unwrap_or_default();
            elements[owner] = sum + count;
            owners.insert(name, owner);
        }
        Self { owners, elements }
    }

    /// The rank that owns a parameter; 0 for one that was not dealt.
    pub fn owner(&self, name: &str) -> usize {
        self.owners.get(name).copied().unwrap_or_default()
    }

    /// Number of elements that each rank owns.
    pub fn elements(&self) -> &[usize] {
        &self.elements
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_own_about_the_same_number_of_elements() {
        let sizes =
            [("a", 50), ("b", 30), ("c", 20), ("d", 60), ("e", 40)].map(|(name, size)| (name.to_string(), size));
        let shards = Shards::new(sizes.clone(), 2);
        assert_eq!(shards.elements(), [110, 90]);
        assert_eq!((shards.owner("d"), shards.owner("a"), shards.owner("none")), (0, 1, 0));
        assert_eq!(Shards::new(sizes.clone(), 1).elements(), [200]);
        assert_eq!(Shards::new(sizes, 9).elements().iter().filter(|count| **count == 0).count(), 4);
    }
}
