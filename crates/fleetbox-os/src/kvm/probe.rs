//! The probe itself, the same on every architecture: run slices of the guest's loop until it is done or late.

use std::io;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use rustix::time::{ClockId, clock_gettime};

use super::{KvmVerdict, LIMIT, LOOP_ITERATIONS, guest};

/// Iterations between two looks at the clock: enough that the exits cost a good host little (some µs each), few
/// enough that one slice takes milliseconds on a host that emulates.
pub(super) const SLICE: u64 = 4_000;

/// Give up after this much wall-clock time, however little CPU time was got.
const HARD_LIMIT: Duration = Duration::from_millis(600);

/// KVM's one stable API version (KVM_GET_API_VERSION in the kernel's Documentation/virt/kvm/api.rst).
const API_VERSION: i32 = 12;

pub(super) fn probe() -> KvmVerdict {
    let clock = Clock::start();
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => return KvmVerdict::Absent { why: format!("opening /dev/kvm: {}", io::Error::from(e)) },
    };
    match run(&kvm, &clock) {
        Ok(loop_time) => KvmVerdict::Usable { micros: micros(loop_time) },
        Err(why) => KvmVerdict::Unusable { micros: micros(clock.wall.elapsed()), why },
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// Runs the loop to its end; how long that took, or why not.
fn run(kvm: &Kvm, clock: &Clock) -> Result<Duration, String> {
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(format!("KVM API version {version} instead of {API_VERSION}"));
    }
    // Declared before the VM, and so dropped after it: the VM must not outlive the memory it maps.
    let mut memory = Memory::new(guest::MEMORY_BYTES).map_err(|e| format!("guest memory: {e}"))?;
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    guest::load(memory.bytes());
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: guest::MEMORY_START,
        memory_size: guest::MEMORY_BYTES as u64,
        userspace_addr: memory.address(),
    };
    // SAFETY: the region is exactly the mapping that `memory` owns, which nothing else touches from here on and
    // which is unmapped only after `vm` and `vcpu` are closed (drop order, see above).
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
    guest::prepare(kvm, &vm, &vcpu)?;

    let started = Instant::now();
    let mut done = 0;
    while done < LOOP_ITERATIONS {
        if clock.is_late() {
            return Err(format!(
                "guest code is emulated: {done} of {LOOP_ITERATIONS} iterations of a counting loop within {} ms",
                clock.wall.elapsed().as_millis()
            ));
        }
        match vcpu.run() {
            Ok(exit) => {
                let counted = guest::counter(&exit)
                    .ok_or_else(|| format!("guest code does not run: unexpected exit {exit:?}"))?;
                done += SLICE;
                if u64::from(counted) != done {
                    return Err(format!("guest code runs wrong: it counted {counted} instead of {done}"));
                }
            }
            // A signal for this thread; whoever sent it is served by its own handler.
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return Err(failed("KVM_RUN")(e)),
        }
    }
    if clock.is_late() {
        return Err(format!("guest code is slow: the probe took {} ms", clock.wall.elapsed().as_millis()));
    }
    Ok(started.elapsed())
}

/// For `map_err`: which ioctl failed, and how.
pub(super) fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> String {
    move |e| format!("{what}: {}", io::Error::from(e))
}

/// Both clocks of the probe, from its start.
struct Clock {
    wall: Instant,
    cpu: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { wall: Instant::now(), cpu: cpu_time() }
    }

    fn is_late(&self) -> bool {
        cpu_time().saturating_sub(self.cpu) > LIMIT || self.wall.elapsed() > HARD_LIMIT
    }
}

/// CPU time of this thread so far, guest code it ran included.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// Zeroed, page-aligned memory for the guest, unmapped on drop.
struct Memory {
    start: NonNull<u8>,
    len: usize,
}

impl Memory {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new private anonymous mapping wherever the kernel likes; no existing memory is affected.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, len })
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` readable and writable bytes, zeroed by the kernel, owned by self and borrowed
        // mutably here; no guest runs while this slice lives, for `run` loads before it maps the memory into the VM.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and nothing refers to it any more (see `run`).
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the process holds: its descriptors, and how many mappings and threads it has.
    fn held() -> (Vec<String>, usize) {
        let mut fds: Vec<String> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
            .map(|p| p.to_string_lossy().into_owned())
            .filter(|t| t.contains("kvm"))
            .collect();
        fds.sort();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        (fds, maps.lines().filter(|l| l.contains("kvm")).count())
    }

    #[test]
    fn gives_a_verdict_and_leaves_nothing() {
        let verdict = probe();
        match &verdict {
            KvmVerdict::Usable { micros } => assert!(*micros > 0),
            KvmVerdict::Unusable { why, .. } | KvmVerdict::Absent { why } => assert!(!why.is_empty()),
        }
        assert_eq!(held(), (Vec::new(), 0), "{verdict:?}");
    }

    #[test]
    fn a_busy_host_is_not_late() {
        let mut clock = Clock::start();
        assert!(!clock.is_late());
        // Much wall-clock time went by, hardly any of it on the CPU.
        clock.wall = clock.wall.checked_sub(LIMIT * 2).unwrap();
        assert!(!clock.is_late());
        clock.wall = clock.wall.checked_sub(HARD_LIMIT).unwrap();
        assert!(clock.is_late());
    }

    #[test]
    fn the_slices_add_up_to_the_loop() {
        assert_eq!(LOOP_ITERATIONS % SLICE, 0);
        assert!(u32::try_from(LOOP_ITERATIONS).is_ok(), "the guest counts in 32 bits");
    }
}
