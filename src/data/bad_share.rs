//! The decision that too many samples of a data set are bad.

/// Largest probability, as a natural logarithm, with which a data set below the limit is given up before all its
/// samples have been seen: 1e-15.
const CERTAIN: f64 = -34.5;

/// Whether the share of bad samples is above `limit` for certain, given that `bad` of `seen` different samples are bad
/// in a data set of `samples`.
///
/// It is certain once there are more bad samples than the whole data set may have. In `random` order, `seen` is a random
/// part of the data set, and the decision is also made early, when a share of at most `limit` would give so many bad
/// samples with a probability below 1e-15 (Hoeffding 1963, theorem 1, which also holds for drawing without replacement).
pub(super) fn is_above(limit: f64, bad: u64, seen: u64, samples: u64, random: bool) -> bool {
    // The quotient is rounded as the limit was when it was read, so that exactly the limit is allowed.
    if bad as f64 / samples.max(1) as f64 > limit {
        return true;
    }
    let (share, seen) = (bad as f64 / seen.max(1) as f64, seen as f64);
    random && share > limit && -seen * divergence(share, limit) < CERTAIN
}

/// Kullback-Leibler divergence of Bernoulli distributions in nats.
fn divergence(p: f64, q: f64) -> f64 {
    let term = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    term(p, q) + term(1.0 - p, 1.0 - q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_limit_is_allowed() {
        for percent in 1..100 {
            let limit: f64 = format!("0.{percent:02}").parse().unwrap();
            assert!(!is_above(limit, percent, 100, 100, true), "{percent}");
            assert!(is_above(limit, percent + 1, 100, 100, true), "{percent}");
        }
        assert!(!is_above(0.0, 0, 100, 100, true) && is_above(0.0, 1, 1, 1_000_000, true));
    }

    #[test]
    fn in_random_order_the_decision_comes_early() {
        let first =
            |bad_of: u64, random| (1..).find(|seen| is_above(0.01, seen / bad_of, *seen, 1_000_000, random)).unwrap();
        assert!(first(1, true) < 10, "{}", first(1, true));
        assert!(first(2, true) < 30 && first(10, true) < 300, "{} {}", first(2, true), first(10, true));
        assert_eq!(first(1, false), 10_001);
        assert!(!is_above(0.01, 9_100, 900_000, 1_000_000, true));
    }
}
