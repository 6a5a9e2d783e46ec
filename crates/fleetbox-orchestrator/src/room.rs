//! Room on this host: memory for machines, and turns to boot, shared by all holders whatever their FLEETBOX_HOME.
//!
//! What is taken is an abstract unix socket (unix(7)) whose name says what it stands for. It exists as long as the
//! process that has it, so nothing of a killed holder counts, there is no file to clean up, and
//! `/proc/net/unix` is the list. Like the locks of the host network it exists once in each network namespace.
//!
//! | Name | What it stands for |
//! |---|---|
//! | `fleetbox/memory/<MiB>/<pid>/<machine>` | memory that a running machine may come to use |
//! | `fleetbox/boot/<n>` | a turn to boot, `n` below the number of CPUs |
//! | `fleetbox/room` | held for the moment between looking at the list and adding to it |
//!
//! Who waits is served in no particular order.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use fleetbox_spec::MachineName;

use crate::error::step_error;
use crate::{OrchestratorError, Result};

/// How much memory all machines of this host may have together, in MiB.
pub const MEMORY_VARIABLE: &str = "FLEETBOX_MEMORY";
/// How many machines of this host may boot at the same time.
pub const BOOTS_VARIABLE: &str = "FLEETBOX_BOOTS";

/// What is kept for the host itself: a sixteenth of its memory, and this at the least, in MiB.
const HOST_SHARE_MIB: u64 = 512;
/// How long a turn to boot is waited for. Each boot before it has a deadline of its own, so it comes.
const TURN_LIMIT: Duration = Duration::from_secs(3600);
/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

const LOCK: &str = "fleetbox/room";
const MEMORY: &str = "fleetbox/memory";
const BOOT: &str = "fleetbox/boot";

/// How much may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Memory of all machines together, in MiB.
    pub(crate) memory_mib: u64,
    /// Machines that boot at the same time.
    pub(crate) boots: u32,
}

impl Limits {
    /// This host's: by the environment, else by its memory and CPUs.
    pub(crate) fn of_host() -> Result<Self> {
        let memory_mib = match from_environment(MEMORY_VARIABLE)? {
            Some(mib) => mib,
            // Where that cannot be read, nothing is known that could bound it.
            None => fleetbox_os::host::memory().map_or(u64::MAX, |m| for_machines(m.total_mib)),
        };
        let cpus = || std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let boots = from_environment(BOOTS_VARIABLE)?.unwrap_or_else(cpus);
        Ok(Self { memory_mib, boots: u32::try_from(boots).unwrap_or(u32::MAX) })
    }
}

fn from_environment(variable: &'static str) -> Result<Option<u64>> {
    let Some(value) = std::env::var_os(variable).filter(|v| !v.is_empty()) else { return Ok(None) };
    match value.to_str().and_then(|v| v.parse().ok()) {
        Some(number) if number > 0 => Ok(Some(number)),
        _ => Err(OrchestratorError::BadLimit { variable, value: value.to_string_lossy().into_owned() }),
    }
}

fn for_machines(total_mib: u64) -> u64 {
    total_mib.saturating_sub((total_mib / 16).max(HOST_SHARE_MIB))
}

/// Something that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    _socket: UnixDatagram,
}

fn take(name: &str) -> io::Result<Taken> {
    Ok(Taken { _socket: UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)? })
}

/// Takes what the name stands for, unless somebody has it.
fn try_take(name: &str) -> io::Result<Option<Taken>> {
    match take(name) {
        Ok(taken) => Ok(Some(taken)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(e) => Err(e),
    }
}

/// Memory that a machine has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    mib: u64,
    pid: u32,
    machine: String,
}

/// The shares in the text of `/proc/net/unix`, largest first.
fn shares(list: &str) -> Vec<Share> {
    let share = |line: &str| {
        // The path is the last field; an abstract name is shown behind an `@`.
        let name = line.rsplit_once('@')?.1;
        let mut fields = name.strip_prefix(MEMORY)?.strip_prefix('/')?.splitn(3, '/');
        let (mib, pid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Share { mib, pid, machine: fields.next()?.to_owned() })
    };
    let mut all: Vec<_> = list.lines().filter_map(share).collect();
    all.sort_by(|a, b| b.mib.cmp(&a.mib).then_with(|| a.machine.cmp(&b.machine)));
    all
}

/// Who has how much, in words, the largest few by name.
fn told(shares: &[Share]) -> String {
    const NAMED: usize = 4;
    let sum: u64 = shares.iter().map(|s| s.mib).sum();
    let named: Vec<_> = shares
        .iter()
        .take(NAMED)
        .map(|s| format!("{} ({} MiB, holder {})", s.machine, s.mib, s.pid))
        .collect();
    let others = match shares.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!("{sum} MiB are held by {}{others}", named.join(", "))
}

/// Takes memory for a machine, waiting until there is room. `tell` is given what is waited for whenever that changes.
pub(crate) async fn memory(
    machine: &MachineName,
    mib: u64,
    budget_mib: u64,
    limit: Duration,
    mut tell: impl FnMut(String),
) -> Result<Taken> {
    let began = Instant::now();
    let name = format!("{MEMORY}/{mib}/{}/{machine}", std::process::id());
    let failed = |e: io::Error| step_error("reserve the memory", machine)(e);
    let mut pause = Duration::from_millis(5);
    let mut last = String::new();
    loop {
        let held = match try_take(LOCK).map_err(failed)? {
            Some(_lock) => {
                let held = shares(&std::fs::read_to_string("/proc/thread-self/net/unix").map_err(failed)?);
                if held.iter().map(|s| s.mib).sum::<u64>().saturating_add(mib) <= budget_mib {
                    // Its own from before a moment ago is in the way only while that one is being dropped.
                    if let Some(taken) = try_take(&name).map_err(failed)? {
                        return Ok(taken);
                    }
                }
                told(&held)
            }
            // Held for microseconds, unless its process is stopped in there.
            None => "another machine is at its reservation".to_owned(),
        };
        if began.elapsed() >= limit {
            let (name, seconds) = (machine.clone(), limit.as_secs());
            return Err(OrchestratorError::NoMemory { name, asked_mib: mib, budget_mib, seconds, held });
        }
        // The lock alone is nothing worth a word.
        if last != held && pause > Duration::from_millis(20) {
            tell(format!("waiting for {mib} MiB of memory: of {budget_mib} MiB for machines, {held}"));
            last = held;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Takes a turn to boot, waiting for one.
pub(crate) async fn turn(machine: &MachineName, boots: u32, mut tell: impl FnMut(String)) -> Result<Taken> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(10);
    let mut silent = true;
    loop {
        for n in 0..boots {
            let taken = try_take(&format!("{BOOT}/{n}"));
            if let Some(taken) = taken.map_err(|e| step_error("reserve a turn to boot", machine)(e))? {
                return Ok(taken);
            }
        }
        if began.elapsed() >= TURN_LIMIT {
            let (name, seconds) = (machine.clone(), TURN_LIMIT.as_secs());
            return Err(OrchestratorError::NoTurn { name, boots, seconds });
        }
        if std::mem::take(&mut silent) {
            tell(format!("waiting for its turn to boot: at most {boots} machines boot at once on this host"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Runs a test where no other machine of this host is seen.
    fn alone(test: impl Future<Output = ()> + Send) {
        std::thread::scope(|s| {
            let run = || {
                if fleetbox_os::netns::enter_new().is_err() {
                    return false;
                }
                let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                rt.block_on(test);
                true
            };
            let ran = s.spawn(run).join().unwrap_or_else(|e| std::panic::resume_unwind(e));
            if !ran {
                fleetbox_testkit::report_skip("needs root for a network namespace of its own");
            }
        });
    }

    fn machine(name: &str) -> MachineName {
        MachineName::new(name).unwrap()
    }

    #[test]
    fn reads_the_kernels_list() {
        let list = "\
Num       RefCount Protocol Flags    Type St Inode Path
ffff88:   00000002 00000000 00000000 0002 01 26001 @fleetbox/memory/512/41/web
ffff89:   00000002 00000000 00010000 0001 01 26002 @fleetbox/subnet
ffff8a:   00000002 00000000 00000000 0002 01 26003 @fleetbox/memory/2048/42/db-1
ffff8b:   00000003 00000000 00000000 0001 03 26004 /run/systemd/journal/stdout
ffff8c:   00000002 00000000 00000000 0002 01 26005 @fleetbox/memory/much/42/x
ffff8d:   00000003 00000000 00000000 0001 03 26004
";
        let all = shares(list);
        assert_eq!(
            all,
            [
                Share { mib: 2048, pid: 42, machine: "db-1".into() },
                Share { mib: 512, pid: 41, machine: "web".into() }
            ]
        );
        assert_eq!(told(&all), "2560 MiB are held by db-1 (2048 MiB, holder 42), web (512 MiB, holder 41)");
        let many: Vec<_> = (0..6).map(|n| Share { mib: 1, pid: 1, machine: format!("m{n}") }).collect();
        assert!(told(&many).ends_with("m3 (1 MiB, holder 1) and 2 more"));
    }

    #[test]
    fn the_host_keeps_a_share() {
        assert_eq!([for_machines(400), for_machines(4096), for_machines(65_536)], [0, 3584, 61_440]);
    }

    #[test]
    fn a_third_machine_waits_for_the_memory_of_another_and_says_whose() {
        alone(async {
            let no_wait = |m: &str| panic!("{m}");
            let a = memory(&machine("a"), 400, 1000, Duration::from_secs(60), |m| no_wait(&m)).await.unwrap();
            let _b =
                memory(&machine("b"), 500, 1000, Duration::from_secs(60), |m| no_wait(&m)).await.unwrap();
            let error = memory(&machine("c"), 200, 1000, Duration::ZERO, |_| {}).await.unwrap_err();
            assert!(error.to_string().contains("held by b (500 MiB"), "{error}");
            assert_eq!(error.kind(), fleetbox_spec::ErrorKind::Resources);
            let (said, mut a) = (Arc::new(Mutex::new(Vec::new())), Some(a));
            let name = machine("c");
            let c = memory(&name, 200, 1000, Duration::from_secs(60), |m| {
                said.lock().unwrap().push(m);
                a.take();
            });
            c.await.unwrap();
            let said = said.lock().unwrap().clone();
            assert!(said[0].starts_with("waiting for 200 MiB of memory: of 1000 MiB"), "{said:?}");
        });
    }

    #[test]
    fn as_many_boots_as_there_are_turns() {
        alone(async {
            let mut turns = Vec::new();
            for _ in 0..2 {
                turns.push(turn(&machine("a"), 2, |m| panic!("{m}")).await.unwrap());
            }
            let mut said = 0;
            turn(&machine("b"), 2, |_| {
                said += 1;
                turns.pop();
            })
            .await
            .unwrap();
            assert_eq!(said, 1);
        });
    }
}
