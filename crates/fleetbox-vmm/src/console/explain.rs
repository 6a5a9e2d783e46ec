//! Where a boot stands, in words.

use std::fmt;

use fleetbox_spec::BootStage;

use super::{Boot, Signal};

/// Where a boot stands and, if it looks stuck, why it may be.
///
/// Its [`Display`](fmt::Display) is one line: the summary, the likely cause and the line that tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explanation {
    /// How far the boot has come.
    pub stage: BootStage,
    /// The number of this boot, from 1; above 1, the guest was reset.
    pub generation: u32,
    /// What the guest is doing, or what ended the boot.
    pub summary: String,
    /// Why, where the console gives a reason to believe so.
    pub cause: Option<String>,
    /// The console's line that summary or cause were taken from.
    pub evidence: Option<String>,
    /// Units that failed, the last few.
    pub failed_units: Vec<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.summary)?;
        if self.generation > 1 {
            write!(f, " (boot {} of this machine: it was reset)", self.generation)?;
        }
        if let Some(evidence) = &self.evidence {
            write!(f, ": {evidence}")?;
        }
        if let Some(cause) = &self.cause {
            write!(f, "; likely cause: {cause}")?;
        }
        if !self.failed_units.is_empty() {
            write!(f, "; failed: {}", self.failed_units.join(", "))?;
        }
        Ok(())
    }
}

/// What the guest is doing at a stage, and what usually keeps it there.
fn waiting_at(stage: BootStage) -> (&'static str, Option<&'static str>) {
    match stage {
        BootStage::PowerOn => (
            "nothing has been written to the serial console",
            Some("guest code is not being executed, or the kernel was not told console="),
        ),
        BootStage::Firmware => ("in the firmware", Some("it finds no disk that it can boot from")),
        BootStage::BootLoader => {
            ("in the boot loader", Some("its menu waits, or its kernel does not write to the serial console"))
        }
        BootStage::Kernel => ("in the kernel, before the initramfs", None),
        BootStage::Initramfs => (
            "in the initramfs, which waits for the root device or checks it",
            Some("root= names a device that the disk does not have, or its driver is missing"),
        ),
        BootStage::RootMounted => ("the root file system is mounted, init has not come up", None),
        BootStage::Init => ("init runs, the network is not up", None),
        BootStage::Network => ("the network is up, sshd has not been started", None),
        BootStage::Sshd => (
            "sshd has been started",
            Some(
                "its port cannot be reached from the host, or it refuses the key: see the address and the seed",
            ),
        ),
        BootStage::CloudInit => (
            "cloud-init is at or past its last stage",
            Some("it runs the seed's commands, or sshd cannot be reached at the machine's address"),
        ),
        _ => ("booting", None),
    }
}

fn panic_cause(line: &str) -> Option<&'static str> {
    const CAUSES: &[(&str, &str)] = &[
        (
            "Unable to mount root fs",
            "the kernel has no driver for the disk or the file system and was given no initrd, or root= is wrong",
        ),
        ("No working init found", "the root file system has no init program"),
        ("Requested init", "the program that init= names cannot be run"),
        ("Attempted to kill init", "init itself ended: a library is missing, or the initramfs gave up"),
        ("Out of memory", "the machine has too little memory"),
        ("deadlocked on memory", "the machine has too little memory"),
    ];
    CAUSES.iter().find(|(text, _)| line.contains(text)).map(|&(_, why)| why)
}

/// What ended the boot, the reason before what came of it.
fn end(boot: &Boot) -> Option<(String, Option<&'static str>, &str)> {
    let find = |f: fn(&Signal) -> Option<&String>| boot.told.iter().find_map(f);
    let panic = find(|s| if let Signal::Panic { line } = s { Some(line) } else { None });
    let root = find(|s| if let Signal::RootMissing { line } = s { Some(line) } else { None });
    if let Some(line) = root.filter(|_| panic.is_none()) {
        let cause = "root= names a device that the disk does not have, or its driver is missing";
        return Some(("waiting for the root device in the initramfs".to_owned(), Some(cause), line));
    }
    if let Some(line) = panic {
        return Some(("the kernel panicked".to_owned(), panic_cause(line), line));
    }
    if let Some(line) = find(|s| if let Signal::NoBootDevice { line } = s { Some(line) } else { None }) {
        let cause = "the disk holds no boot loader for this firmware";
        return Some(("the firmware finds nothing to boot".to_owned(), Some(cause), line));
    }
    if let Some(line) = find(|s| if let Signal::InitFrozen { line } = s { Some(line) } else { None }) {
        return Some(("init gave up".to_owned(), None, line));
    }
    if let Some(line) = find(|s| if let Signal::EmergencyShell { line } = s { Some(line) } else { None }) {
        let summary = match boot.stage {
            BootStage::Initramfs | BootStage::RootMounted => "in an emergency shell of the initramfs",
            BootStage::PowerOn | BootStage::Firmware | BootStage::BootLoader => {
                "at the boot loader's own prompt"
            }
            _ => "in an emergency or rescue shell",
        };
        return Some((summary.to_owned(), None, line));
    }
    if let Some(line) = find(|s| if let Signal::PowerOff { line } = s { Some(line) } else { None }) {
        return Some(("the guest powered itself off".to_owned(), None, line));
    }
    let line = find(|s| if let Signal::Reboot { line } = s { Some(line) } else { None })?;
    Some(("the guest reboots".to_owned(), None, line))
}

pub(super) fn explain(boot: &Boot, generation: u32) -> Explanation {
    let mut explanation = Explanation {
        stage: boot.stage,
        generation,
        summary: String::new(),
        cause: None,
        evidence: None,
        failed_units: boot.failed.iter().cloned().collect(),
    };
    if let Some((summary, cause, line)) = end(boot) {
        explanation.summary = summary;
        explanation.evidence = Some(line.to_owned());
        explanation.cause = cause.or(boot.clue.as_ref().map(|&(why, _)| why)).map(str::to_owned);
        return explanation;
    }
    let (summary, cause) = waiting_at(boot.stage);
    explanation.summary = summary.to_owned();
    explanation.cause = cause.map(str::to_owned);
    if let Some(job) = &boot.waiting {
        explanation.summary = format!("{summary}; init waits for {job}");
        explanation.cause = None;
    }
    if let Some((why, line)) = &boot.clue {
        explanation.cause = Some((*why).to_owned());
        explanation.evidence = Some(line.clone());
    }
    explanation
}
