//! Free memory, asked before anything large is allocated: an allocation that fails ends the process.

use crate::files;

/// Whether the allocator grants so many bytes, and the machine has them where it says how much is free.
pub(crate) fn can_allocate(bytes: usize) -> bool {
    // Small requests are not worth the question.
    const SMALL: usize = 64 << 20;
    bytes < SMALL
        || Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
            && available_bytes().is_none_or(|free| bytes as f64 <= free)
}

/// Bytes that this process can still allocate, as far as the system says so (Linux); `None` elsewhere.
pub(crate) fn available_bytes() -> Option<f64> {
    let free = field_of("/proc/meminfo", "MemAvailable:", 1, 1024.0);
    let taken = field_of("/proc/self/status", "VmSize:", 1, 1024.0).unwrap_or(0.0);
    let address_space = field_of("/proc/self/limits", "Max address space", 3, 1.0).map(|limit| limit - taken);
    // Not what the group uses in all: its page cache can be given up.
    let group = |limit: &str, used: [&str; 2]| Some(field_of(limit, "", 0, 1.0)? - field_of(used[0], used[1], 1, 1.0)?);
    let groups = [
        group("/sys/fs/cgroup/memory.max", ["/sys/fs/cgroup/memory.stat", "anon "]),
        group("/sys/fs/cgroup/memory/memory.limit_in_bytes", ["/sys/fs/cgroup/memory/memory.stat", "total_rss "]),
    ];
    [free, address_space].into_iter().chain(groups).flatten().reduce(f64::min)
}

/// The number at word `at` of the line that begins with `prefix`, times `unit`.
fn field_of(path: &str, prefix: &str, at: usize, unit: f64) -> Option<f64> {
    let text = files::read_text(path, files::MAX_TEXT_BYTES).ok()?;
    let line = text.lines().find(|line| line.starts_with(prefix))?;
    line.split_whitespace().nth(at)?.parse::<f64>().ok().map(|value| value * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_beyond_any_machine_are_refused() {
        assert!(can_allocate(0) && can_allocate(1 << 20));
        assert!(!can_allocate(usize::MAX) && !can_allocate(1 << 50));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_how_much_memory_there_is() {
        assert!(available_bytes().is_some_and(|bytes| bytes > 1e6));
    }
}
