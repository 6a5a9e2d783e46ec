//! The boot classifier: what a guest's serial console says about how far its boot has come.
//!
//! Pure: bytes in, [`Signal`]s out. It feeds the progress display, fails a start at once on a kernel panic or an
//! emergency shell, and explains a timeout in words ([`Classifier::explain`]).
//!
//! ```text
//!  power-on -> firmware -> boot loader -> kernel -> initramfs -> root mounted -> init -> network -> sshd -> cloud-init
//!      ^                                                                                                     |
//!      +------------- the guest was reset: a new generation (firmware's or kernel's first line) <------------+
//! ```
//!
//! # Invariants
//! - Within a generation the stage only rises. Stages may be skipped: `quiet` leaves out most lines.
//! - The result does not depend on how the bytes are split into chunks.
//! - Memory is bounded whatever the guest writes: some lines of at most 512 bytes are kept.
//! - Lines are matched where they start. What a program prints after the boot is not taken for the kernel's.
//! - It only watches: that a machine is ready is proved by a login, that it has panicked also by the VMM's events.

mod explain;
mod patterns;
mod text;

use std::collections::VecDeque;

use fleetbox_spec::BootStage;

pub use explain::Explanation;
use patterns::{Context, Fact};
use text::{Event, Lines};

/// The lines that are kept for [`Classifier::tail`] unless told otherwise.
pub const DEFAULT_TAIL_LINES: usize = 60;

/// How many failed units are remembered.
const MAX_FAILED: usize = 8;

/// Something that the console told. Each comes once in a generation, but for [`Signal::OutOfMemory`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// The boot has reached a stage.
    Stage(BootStage),
    /// The kernel has panicked.
    Panic {
        /// The kernel's line, without its time stamp.
        line: String,
    },
    /// The boot has ended in an emergency or rescue shell, in the initramfs or later, or in the boot loader's.
    EmergencyShell {
        /// The line that tells.
        line: String,
    },
    /// The kernel has killed a process, or cannot even unpack its initramfs, for lack of memory.
    OutOfMemory {
        /// The kernel's line.
        line: String,
    },
    /// The device of the root file system is not there.
    RootMissing {
        /// The line that tells, which usually names the device.
        line: String,
    },
    /// The firmware finds nothing to boot.
    NoBootDevice {
        /// The firmware's line.
        line: String,
    },
    /// init gave up and only waits from here on.
    InitFrozen {
        /// init's line.
        line: String,
    },
    /// There is a login prompt on the console.
    Login,
    /// The kernel reboots the machine, as somebody inside asked it to.
    Reboot {
        /// The kernel's line.
        line: String,
    },
    /// The kernel powers the machine off or halts it.
    PowerOff {
        /// The kernel's line.
        line: String,
    },
    /// A new boot began after this one had come further: the guest was reset.
    Restarted {
        /// The boot's number, from 1 for the first.
        generation: u32,
    },
}

impl Signal {
    /// Whether no login can come of this boot any more.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Panic { .. }
                | Self::EmergencyShell { .. }
                | Self::RootMissing { .. }
                | Self::NoBootDevice { .. }
                | Self::InitFrozen { .. }
        )
    }
}

/// What is known of the boot that runs.
#[derive(Debug, Clone)]
struct Boot {
    stage: BootStage,
    /// The signals given that are given once; never more than there are kinds.
    told: Vec<Signal>,
    /// The last line that told why something is wrong, and why.
    clue: Option<(&'static str, String)>,
    failed: VecDeque<String>,
    waiting: Option<String>,
    pending: Option<BootStage>,
}

impl Boot {
    fn new() -> Self {
        Self {
            stage: BootStage::PowerOn,
            told: Vec::new(),
            clue: None,
            failed: VecDeque::new(),
            waiting: None,
            pending: None,
        }
    }

    fn has_told(&self, kind: impl Fn(&Signal) -> bool) -> bool {
        self.told.iter().any(kind)
    }
}

/// Reads a console as it grows.
///
/// ```
/// use fleetbox_spec::BootStage;
/// use fleetbox_vmm::console::{Classifier, Signal};
///
/// let mut console = Classifier::new();
/// console.feed(b"[    0.000000] Linux version 6.1.0-56-cloud-amd64\r\n");
/// assert_eq!(console.stage(), BootStage::Kernel);
/// let signals = console.feed(b"[    2.500000] Kernel panic - not syncing: Attempted to kill init!\r\n");
/// assert!(signals.iter().any(Signal::is_fatal));
/// ```
#[derive(Debug, Clone)]
pub struct Classifier {
    lines: Lines,
    tail: VecDeque<String>,
    keep: usize,
    boot: Boot,
    generation: u32,
    stamped: bool,
}

impl Default for Classifier {
    fn default() -> Self {
        Self::new()
    }
}

impl Classifier {
    /// A classifier that keeps the last [`DEFAULT_TAIL_LINES`] lines.
    #[must_use]
    pub fn new() -> Self {
        Self::with_tail_lines(DEFAULT_TAIL_LINES)
    }

    /// A classifier that keeps the last `lines` lines.
    #[must_use]
    pub fn with_tail_lines(lines: usize) -> Self {
        Self {
            lines: Lines::new(),
            tail: VecDeque::new(),
            keep: lines,
            boot: Boot::new(),
            generation: 1,
            stamped: false,
        }
    }

    /// How far this boot has come.
    #[must_use]
    pub fn stage(&self) -> BootStage {
        self.boot.stage
    }

    /// The number of this boot, from 1; each reset of the guest adds 1.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The last `n` lines as text, the unfinished one included, joined by line feeds; blank lines are not kept.
    #[must_use]
    pub fn tail(&self, n: usize) -> String {
        let current = self.lines.current();
        let mut lines: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        if !current.trim().is_empty() {
            lines.push(&current);
        }
        lines[lines.len().saturating_sub(n)..].join("\n")
    }

    /// Where the boot stands, in words.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        explain::explain(&self.boot, self.generation)
    }

    /// Says that the VMM reset the guest, where the console may not tell (a kernel with `quiet` has no banner).
    /// Does nothing where the console has shown nothing of this boot yet.
    pub fn note_reset(&mut self) -> Option<Signal> {
        (self.boot.stage > BootStage::PowerOn).then(|| self.restart())
    }

    /// Takes the console's next bytes, split anywhere, and gives what they told.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Signal> {
        let mut signals = Vec::new();
        for &byte in bytes {
            if self.lines.ends_frame(byte) {
                // What an animation overwrites is looked at, but not kept: it would fill the tail.
                self.classify(&self.lines.current(), &mut signals);
            }
            match self.lines.push(byte) {
                Event::Line => {
                    let line = self.lines.take();
                    self.classify(&line, &mut signals);
                    self.keep_line(line);
                }
                Event::MaybePrompt => {
                    if let Some(fact) = patterns::prompt(self.lines.raw(), self.context()) {
                        let line = self.lines.current();
                        self.apply(fact, &line, &mut signals);
                    }
                }
                Event::None => {}
            }
        }
        signals
    }

    fn context(&self) -> Context {
        Context {
            // After the kernel's goodbye the next line of a boot is the next boot's, whose banner `quiet` may hide.
            stage: if self.has_ended() { BootStage::PowerOn } else { self.boot.stage },
            stamped: self.stamped,
            login: self.boot.has_told(|s| matches!(s, Signal::Login)),
        }
    }

    fn has_ended(&self) -> bool {
        self.boot.has_told(|s| matches!(s, Signal::Reboot { .. } | Signal::PowerOff { .. }))
    }

    fn keep_line(&mut self, line: String) {
        if line.trim().is_empty() || self.keep == 0 {
            return;
        }
        if self.tail.len() >= self.keep {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn classify(&mut self, line: &str, signals: &mut Vec<Signal>) {
        let line = patterns::after_prompt(line).unwrap_or(line);
        for fact in patterns::facts(line, self.context()) {
            self.apply(fact, line, signals);
        }
        self.stamped |= patterns::kernel_text(line).is_some();
    }

    fn restart(&mut self) -> Signal {
        self.generation = self.generation.saturating_add(1);
        self.boot = Boot::new();
        Signal::Restarted { generation: self.generation }
    }

    fn reach(&mut self, stage: BootStage, signals: &mut Vec<Signal>) {
        if stage > self.boot.stage {
            self.boot.stage = stage;
            self.boot.waiting = None;
            signals.push(Signal::Stage(stage));
        }
    }

    fn apply(&mut self, fact: Fact, line: &str, signals: &mut Vec<Signal>) {
        let text = patterns::kernel_text(line).map_or(line, |(_, text)| text).trim().to_owned();
        // What a message at this place proves about the boot, beyond itself.
        match &fact {
            Fact::EmergencyShell | Fact::RootMissing
                if self.boot.stage == BootStage::Kernel && !line.starts_with('[') =>
            {
                self.reach(BootStage::Initramfs, signals);
            }
            Fact::Login => self.reach(BootStage::Init, signals),
            _ => {}
        }
        match fact {
            Fact::Stage(stage) => {
                if self.has_ended() && stage > BootStage::Kernel && stage <= BootStage::Init {
                    signals.push(self.restart());
                }
                self.reach(stage, signals);
            }
            Fact::Begin(stage) => {
                // Firmware hands over to a boot loader and that to a kernel; the same line twice is one boot (the
                // kernel repeats its log when the real console takes over from an early one).
                if self.boot.stage > stage.max(BootStage::BootLoader) {
                    signals.push(self.restart());
                }
                self.reach(stage, signals);
            }
            Fact::OutOfMemory => {
                self.boot.clue = Some(("the machine has too little memory", text.clone()));
                signals.push(Signal::OutOfMemory { line: text });
            }
            Fact::Panic => self.tell(Signal::Panic { line: text }, signals),
            Fact::EmergencyShell => self.tell(Signal::EmergencyShell { line: text }, signals),
            Fact::RootMissing => self.tell(Signal::RootMissing { line: text }, signals),
            Fact::NoBootDevice => self.tell(Signal::NoBootDevice { line: text }, signals),
            Fact::InitFrozen => self.tell(Signal::InitFrozen { line: text }, signals),
            Fact::Login => self.tell(Signal::Login, signals),
            Fact::Reboot => self.tell(Signal::Reboot { line: text }, signals),
            Fact::PowerOff => self.tell(Signal::PowerOff { line: text }, signals),
            Fact::Failed(unit) => {
                if self.boot.failed.len() >= MAX_FAILED {
                    self.boot.failed.pop_front();
                }
                self.boot.failed.push_back(unit);
            }
            Fact::Waiting(job) => self.boot.waiting = Some(job),
            Fact::Clue(why) => self.boot.clue = Some((why, text)),
            Fact::Pending(stage) => self.boot.pending = Some(stage),
            Fact::Done => {
                if let Some(stage) = self.boot.pending.take() {
                    self.reach(stage, signals);
                }
            }
        }
    }

    fn tell(&mut self, signal: Signal, signals: &mut Vec<Signal>) {
        let kind = std::mem::discriminant(&signal);
        if !self.boot.has_told(|s| std::mem::discriminant(s) == kind) {
            self.boot.told.push(signal.clone());
            signals.push(signal);
        }
    }
}
