//! Counters, gauges and histograms of the engine.

use std::time::Duration;

/// Counters, gauges and histograms of an engine at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Metrics {
    /// Requests by outcome.
    pub requests: RequestCounts,
    /// Prompt tokens of all requests that started.
    pub prompt_tokens: u64,
    /// Those of them that were in the prefix cache.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub new_tokens: u64,
    /// Decode steps.
    pub decode_steps: u64,
    /// The prefix cache.
    pub prefix_cache: PrefixCacheMetrics,
    /// Bytes that keys and values may take in all.
    pub kv_budget_bytes: usize,
    /// Bytes reserved for requests under way: the worst case of their positions that no other request shares.
    pub kv_reserved_bytes: usize,
    /// Requests that wait now.
    pub waiting: usize,
    /// Requests that are prefilled or decoded now.
    pub running: usize,
    /// Sequences of the last decode step; 0 while none is decoded.
    pub batch_size: usize,
    /// Seconds from submission to the start of the prefill.
    pub queue_seconds: Histogram,
    /// Seconds from submission to the first token.
    pub first_token_seconds: Histogram,
    /// Seconds between a request's tokens.
    pub inter_token_seconds: Histogram,
    /// Seconds from submission to the end, of requests that started.
    pub request_seconds: Histogram,
    /// Mean seconds from the start of the prefill to the end, of the last requests: each new one counts an eighth.
    pub recent_run_seconds: f64,
}

impl Metrics {
    /// Time until the requests that wait now have started, as far as that can be known from how long the last ones ran.
    pub fn expected_wait(&self) -> Duration {
        let turns = self.waiting as f64 / self.running.max(1) as f64;
        Duration::try_from_secs_f64(turns * self.recent_run_seconds).unwrap_or(Duration::MAX)
    }

    /// Counts a request that ended so long after its start.
    pub(super) fn count_run(&mut self, run: Duration) {
        let (seconds, is_first) = (run.as_secs_f64(), self.request_seconds.count() == 0);
        self.recent_run_seconds += (seconds - self.recent_run_seconds) * if is_first { 1.0 } else { 0.125 };
    }
}

/// Numbers of requests by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestCounts {
    /// Accepted into the queue.
    pub accepted: u64,
    /// Not accepted: the queue was full.
    pub queue_full: u64,
    /// Not accepted for another reason: invalid, too large, or after the shutdown.
    pub refused: u64,
    /// Ended by an end token or a stop string.
    pub stopped: u64,
    /// Ended by the limit of tokens.
    pub length: u64,
    /// Cancelled by the caller or by the end of the engine.
    pub cancelled: u64,
    /// Ended by the time limit.
    pub timed_out: u64,
    /// Ended by an error.
    pub failed: u64,
}

impl RequestCounts {
    /// Number of accepted requests that have ended.
    pub fn ended(&self) -> u64 {
        self.stopped + self.length + self.cancelled + self.timed_out + self.failed
    }
}

/// Counters and gauges of the prefix cache. It holds chunks of prompts: up to 128 tokens of text, or an image or video
/// with the text before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrefixCacheMetrics {
    /// Chunks of prompts that were found.
    pub hits: u64,
    /// Chunks of prompts that were not found, and prefilled.
    pub misses: u64,
    /// Chunks removed to make room.
    pub evictions: u64,
    /// Chunks held now.
    pub chunks: usize,
    /// Bytes of the chunks held now.
    pub bytes: usize,
}

/// Upper bounds of the buckets of a [`Histogram`] in seconds; a last bucket takes everything above.
const BOUNDS: [f64; 18] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0];

/// A histogram of seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    /// Adds a value.
    pub(super) fn record(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        self.counts[BOUNDS.partition_point(|bound| *bound < seconds)] += 1;
        self.sum += seconds;
    }

    /// Upper bound of each bucket in seconds, infinity for the last, and the number of values up to that bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of the values in seconds.
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_wait_follows_the_last_requests_and_the_queue() {
        let mut metrics = Metrics::default();
        assert_eq!(metrics.expected_wait(), Duration::ZERO);
        for _ in 0..2 {
            metrics.count_run(Duration::from_secs(2));
            metrics.request_seconds.record(Duration::from_secs(3));
        }
        (metrics.waiting, metrics.running) = (12, 4);
        assert_eq!(metrics.expected_wait(), Duration::from_secs(6));
        metrics.count_run(Duration::from_secs(10));
        assert_eq!(metrics.expected_wait(), Duration::from_secs(9));
    }

    #[test]
    fn a_histogram_counts_each_value_in_the_buckets_above_it() {
        let mut histogram = Histogram::default();
        for milliseconds in [1, 3, 3, 400_000] {
            histogram.record(Duration::from_millis(milliseconds));
        }
        let buckets = Vec::from_iter(histogram.cumulative());
        assert_eq!(buckets[..4], [(0.000_5, 0), (0.001, 1), (0.002_5, 1), (0.005, 3)]);
        assert_eq!(buckets[17..], [(250.0, 3), (f64::INFINITY, 4)]);
        assert_eq!(histogram.count(), 4);
        assert!((histogram.sum() - 400.007).abs() < 1e-9);
    }
}
