//! Threads of a program that trains with parallel micro-batches.

/// Keeps candle from splitting element-wise operations over threads: its pool serves one caller at a time, so
/// micro-batches that are computed in parallel would wait for each other. candle reads the variable once, at its first
/// such operation, and has no other setting; setting it is safe only here, where no other thread runs yet, and not in a
/// library.
pub fn leave_to_micro_batches() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}
