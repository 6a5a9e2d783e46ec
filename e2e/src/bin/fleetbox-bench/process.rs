//! What a process costs, from /proc (proc(5)).

use std::fs;
use std::io;
use std::time::Duration;

/// CPU time of a process, user and system together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuTime {
    /// All its threads, those that have ended included.
    pub(crate) own: Duration,
    /// The children that it has waited for.
    pub(crate) children: Duration,
}

/// CPU time of this process, to the nanosecond.
pub(crate) fn own_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// CPU time of another process, in steps of a clock tick (10 ms as a rule).
pub(crate) fn cpu(pid: u32) -> io::Result<CpuTime> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let [user, system, children_user, children_system] =
        ticks(&text).ok_or_else(|| unreadable("/proc/<pid>/stat"))?;
    let per_second = rustix::param::clock_ticks_per_second();
    let time = |ticks: u64| Duration::from_nanos(ticks * 1_000_000_000 / per_second);
    Ok(CpuTime { own: time(user + system), children: time(children_user + children_system) })
}

/// Fields 14 to 17.
fn ticks(stat: &str) -> Option<[u64; 4]> {
    // The name, field 2, is in parentheses and may hold anything.
    let rest = stat.get(stat.rfind(')')? + 1..)?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let mut all = [0; 4];
    for (ticks, field) in all.iter_mut().zip(fields.get(11..15)?) {
        *ticks = field.parse().ok()?;
    }
    Some(all)
}

/// How often any thread of a process has gone to sleep, and so has been woken.
pub(crate) fn sleeps(pid: u32) -> io::Result<u64> {
    let mut all = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("status"))?;
        all += field(&text, "voluntary_ctxt_switches").ok_or_else(|| unreadable("/proc/<pid>/status"))?;
    }
    Ok(all)
}

/// Memory of a process in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) rss_kib: u64,
    /// Resident, what is shared with others divided among them.
    pub(crate) pss_kib: u64,
    /// Resident and not backed by a file: heap, stacks, written data.
    pub(crate) anonymous_kib: u64,
}

pub(crate) fn memory(pid: u32) -> io::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name| field(&text, name).ok_or_else(|| unreadable("/proc/<pid>/smaps_rollup"));
    Ok(Memory { rss_kib: field("Rss")?, pss_kib: field("Pss")?, anonymous_kib: field("Anonymous")? })
}

/// The number on the line of that name, whatever unit follows it.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

fn unreadable(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unreadable {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 10 5 7 8 20 0 1 0 12345 1 1";
        assert_eq!(ticks(stat), Some([10, 5, 7, 8]));
        assert_eq!(ticks("42 (short) S 1"), None);
        let rollup = "00400000-7ffd [rollup]\nRss:            1234 kB\nPss:    99 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(
            (field(rollup, "Rss"), field(rollup, "Pss"), field(rollup, "Swap")),
            (Some(1234), Some(99), None)
        );
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        cpu(pid).unwrap();
        sleeps(pid).unwrap();
        let memory = memory(pid).unwrap();
        assert!(memory.rss_kib >= memory.pss_kib && memory.pss_kib > 0);
        assert!(own_cpu() > Duration::ZERO);
    }
}
