//! Whether there is memory for a tensor, asked before it is taken.

use std::fs;

/// Whether so many bytes can be had: the allocator grants them, and the machine has them where it says how much is free.
pub(super) fn can_allocate(bytes: usize) -> bool {
    // Small requests are not worth the question.
    const SMALL: usize = 64 << 20;
    bytes < SMALL || Vec::<u8>::new().try_reserve_exact(bytes).is_ok() && available().is_none_or(|free| bytes <= free)
}

/// Bytes that can be used without swapping, where the system says so (Linux).
fn available() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused() {
        assert!(can_allocate(0) && can_allocate(1 << 20));
        assert!(!can_allocate(usize::MAX) && !can_allocate(1 << 50));
    }
}
