//! What a line of a console says about the boot.
//!
//! Patterns are anchored: a kernel message counts at the start of its line, after the kernel's time stamp where the
//! kernel writes them, so that a program which merely prints such words does not count. Sources of the texts that
//! are not from our own boots stand at the head of `tests/console.rs`.

use fleetbox_spec::BootStage;

/// What one line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fact {
    /// The boot has come at least this far.
    Stage(BootStage),
    /// A boot begins, at this stage; where one was further already, the guest was reset.
    Begin(BootStage),
    Panic,
    EmergencyShell,
    OutOfMemory,
    RootMissing,
    NoBootDevice,
    InitFrozen,
    Login,
    Reboot,
    PowerOff,
    /// A unit failed.
    Failed(String),
    /// init waits for a job.
    Waiting(String),
    /// A likely cause of trouble, in words.
    Clue(&'static str),
    /// A service of OpenRC is being started; it has when `[ ok ]` follows.
    Pending(BootStage),
    /// What was pending has been done.
    Done,
}

/// What is known when a line arrives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    pub(super) stage: BootStage,
    /// This kernel's messages carry time stamps: a line without one is not the kernel's.
    pub(super) stamped: bool,
    /// Somebody can log in: what is printed from now on may be anybody's.
    pub(super) login: bool,
}

/// A kernel message without its time stamp `[    1.234567] ` and caller `[    T1] `.
pub(super) fn kernel_text(line: &str) -> Option<(&str, &str)> {
    let (stamp, rest) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, fraction) = stamp.trim_start_matches(' ').split_once('.')?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || fraction.len() != 6 || !digits(fraction) {
        return None;
    }
    let rest = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((caller, rest)) if caller.trim_start().starts_with(['T', 'C']) => rest,
        _ => rest,
    };
    Some((stamp, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// A kernel message that follows a prompt on its line: nobody ended the line when the kernel spoke.
///
/// Nothing but a prompt may stand before it: a line of a program that quotes the kernel's log is the program's.
pub(super) fn after_prompt(line: &str) -> Option<&str> {
    let at = line.find('[').filter(|&at| at > 0)?;
    let (prompt, rest) = line.split_at(at);
    (prompt.ends_with(" login: ") || prompt.ends_with("# ") || prompt.ends_with("$ ")).then_some(())?;
    kernel_text(rest).map(|_| rest)
}

fn any_prefix(text: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|p| text.starts_with(p))
}

fn any_within(text: &str, parts: &[&str]) -> bool {
    parts.iter().any(|p| text.contains(p))
}

/// Whether what systemd names in a status line is this unit: `ssh.service - Description`, or before systemd 249
/// the description alone.
fn is_unit(named: &str, ids: &[&str], descriptions: &[&str]) -> bool {
    let named = named.trim_end_matches('.');
    let id = named.split_once(" - ").map_or(named, |(id, _)| id);
    ids.contains(&id) || descriptions.contains(&named)
}

/// What the text of a prompt says, which no line feed ever ends.
pub(super) fn prompt(raw: &[u8], context: Context) -> Option<Fact> {
    let text = std::str::from_utf8(raw).ok()?;
    let early = context.stage < BootStage::Init;
    match text {
        "(initramfs) " | "dracut:/# " | "sh-5.2# " if early => Some(Fact::EmergencyShell),
        "grub> " | "grub rescue> " if context.stage <= BootStage::BootLoader => Some(Fact::EmergencyShell),
        _ => {
            let host = text.strip_suffix(" login: ")?;
            (!host.is_empty() && !host.contains(' ')).then_some(Fact::Login)
        }
    }
}

/// What a finished line, or an animation's frame, says.
pub(super) fn facts(line: &str, context: Context) -> Vec<Fact> {
    let mut out = Vec::new();
    let stamped = kernel_text(line);
    let text = stamped.map_or(line, |(_, text)| text);
    if stamped.is_some() || !context.stamped {
        kernel(text, stamped.map(|(stamp, _)| stamp), context, &mut out);
    }
    if stamped.is_none() {
        before_the_kernel(line, context, &mut out);
    }
    if context.stage < BootStage::Init {
        initramfs(text, context, &mut out);
    }
    if !context.login {
        emergency(text, context, &mut out);
    }
    // init and its services write to the console with and without a stamp.
    init(text, context, &mut out);
    out
}

fn before_the_kernel(line: &str, context: Context, out: &mut Vec<Fact>) {
    let line = line.trim_start();
    if any_prefix(line, &["SeaBIOS (version ", "UEFI firmware (version "]) {
        out.push(Fact::Begin(BootStage::Firmware));
    }
    if any_prefix(line, &["GRUB loading", "Welcome to GRUB!"]) {
        out.push(Fact::Begin(BootStage::BootLoader));
    }
    if line.starts_with("BdsDxe: ") {
        // Several of these come in one boot; after the boot loader the first of the next boot is among them.
        out.push(Fact::Begin(BootStage::Firmware));
    }
    if context.stage > BootStage::BootLoader {
        return;
    }
    if any_prefix(line, &["iPXE ", "Booting from ", "EDK II", "TianoCore"]) {
        out.push(Fact::Stage(BootStage::Firmware));
    }
    if line.contains("GNU GRUB  version")
        || any_prefix(
            line,
            &["Booting `", "Loading Linux ", "Loading initial ramdisk", "SYSLINUX ", "systemd-boot "],
        )
    {
        out.push(Fact::Stage(BootStage::BootLoader));
    }
    if any_prefix(line, &["EFI stub: ", "Decompressing Linux"]) {
        out.push(Fact::Stage(BootStage::Kernel));
    }
    if any_prefix(line, &["No bootable device", "BdsDxe: No bootable option", "UEFI Interactive Shell v"]) {
        out.push(Fact::NoBootDevice);
    }
}

fn kernel(text: &str, stamp: Option<&str>, context: Context, out: &mut Vec<Fact>) {
    if text.starts_with("Linux version ") && stamp.is_none_or(|s| s.trim_start() == "0.000000") {
        out.push(Fact::Begin(BootStage::Kernel));
    } else if stamp.is_some() || text.starts_with("Booting Linux on physical CPU") {
        out.push(Fact::Stage(BootStage::Kernel));
    }
    if any_prefix(text, &["Kernel panic - not syncing", "---[ end Kernel panic - not syncing"]) {
        if text.contains("VFS: Unable to mount root fs") {
            out.push(Fact::RootMissing);
        }
        if text.starts_with('K') && any_within(text, &["Out of memory", "deadlocked on memory"]) {
            out.push(Fact::OutOfMemory);
        }
        out.push(Fact::Panic);
    }
    // A container's limit (`Memory cgroup out of memory`) is not the machine's memory.
    if any_prefix(text, &["Out of memory: Kill", "Initramfs unpacking failed: write error"]) {
        out.push(Fact::OutOfMemory);
    }
    if text.starts_with("reboot: Restarting system") {
        out.push(Fact::Reboot);
    }
    if any_prefix(text, &["reboot: Power down", "reboot: System halted"]) {
        out.push(Fact::PowerOff);
    }
    if text.starts_with("sysrq: Trigger a crash") {
        out.push(Fact::Clue("a crash was asked for through sysrq"));
    }
    if text.starts_with("Waiting for root device ") {
        out.push(Fact::Clue("the kernel waits for the device that root= names (rootwait)"));
    }
    if text.starts_with("Run /init as init process") {
        out.push(Fact::Stage(BootStage::Initramfs));
    }
    if context.stage < BootStage::RootMounted && is_root_mount(text) {
        out.push(Fact::Stage(BootStage::RootMounted));
    }
    if any_prefix(
        text,
        &["Run /sbin/init as init process", "Run /etc/init as init process", "Run /bin/init as init"],
    ) {
        out.push(Fact::Stage(BootStage::Init));
    }
}

/// A file system that the kernel mounts before init runs is the root.
fn is_root_mount(text: &str) -> bool {
    text.starts_with("VFS: Mounted root (")
        || (text.starts_with("EXT4-fs (") && text.contains("): mounted filesystem"))
        || (text.starts_with("XFS (") && any_within(text, &["): Ending clean mount", "): Ending recovery"]))
        || (text.starts_with("BTRFS info (device ") && text.contains("using free space tree"))
        || (text.starts_with("BTRFS info (device ") && text.contains("disk space caching is enabled"))
}

fn initramfs(text: &str, context: Context, out: &mut Vec<Fact>) {
    let bare = text.trim_start();
    let star = bare.trim_start_matches("* ");
    // initramfs-tools, dracut, mkinitfs (Alpine)
    if any_prefix(
        bare,
        &["Loading, please wait...", "Starting systemd-udevd version ", "Starting version ", "Begin: "],
    ) || any_prefix(bare, &["dracut: ", "dracut-", "Alpine Init "])
        || any_prefix(star, &["Loading boot drivers", "Mounting boot media", "Mounting root"])
        || any_within(bare, &["(Initramfs)!", "Running in initrd", "Running in initial RAM disk"])
    {
        out.push(Fact::Stage(BootStage::Initramfs));
    }
    if any_prefix(bare, &["Begin: Running /scripts/local-bottom", "Begin: Running /scripts/init-bottom"])
        || (star.starts_with("Mounting root") && star.ends_with("ok."))
        || any_within(bare, &["] Mounted sysroot.mount - /sysroot", "] Mounted /sysroot", "Switching root."])
        || any_within(bare, &["Reached target initrd-switch-root.target", "Reached target Switch Root"])
    {
        out.push(Fact::Stage(BootStage::RootMounted));
    }
    if (bare.starts_with("ALERT!") && bare.contains("does not exist"))
        || (bare.contains("Warning: /dev/") && bare.contains(" does not exist"))
        || (star.starts_with("Mounting root") && star.ends_with("failed."))
        || (context.stage == BootStage::Initramfs && bare.contains("Timed out waiting for device "))
    {
        out.push(Fact::RootMissing);
    }
    if bare.starts_with("No init found. Try passing init= bootarg")
        || bare.contains("Target filesystem doesn't have requested")
    {
        out.push(Fact::Clue("the root file system has no init program, or not the one that init= names"));
    }
    if any_prefix(bare, &["run-init: ", "mount: mounting "]) && bare.contains("No such file or directory") {
        out.push(Fact::Clue(
            "what was mounted as the root is not the root file system of an installed system",
        ));
    }
}

fn emergency(text: &str, context: Context, out: &mut Vec<Fact>) {
    let bare = text.trim_start();
    let early = context.stage < BootStage::Init;
    if any_prefix(
        bare,
        &["You are in emergency mode", "You are in rescue mode", "Cannot open access to console, the root"],
    ) || any_prefix(bare, &["Press Enter for maintenance", "Give root password for maintenance"])
        || any_within(bare, &["] Reached target emergency.target", "] Reached target Emergency Mode"])
        || (early
            && any_prefix(bare, &["Entering emergency mode", "initramfs emergency recovery shell launched"]))
        || (early && bare.starts_with("BusyBox v") && bare.contains("built-in shell"))
    {
        out.push(Fact::EmergencyShell);
    }
    if bare.starts_with("systemd[1]: Freezing execution") || bare.starts_with("[!!!!!!] ") {
        out.push(Fact::InitFrozen);
    }
}

fn init(text: &str, context: Context, out: &mut Vec<Fact>) {
    let in_initramfs = context.stage == BootStage::Initramfs;
    let bare = text.trim_start();
    let star = bare.strip_prefix("* ");
    if context.stage < BootStage::Init {
        let welcome = bare.starts_with("Welcome to ") && bare.ends_with('!');
        let of_the_initramfs = any_within(bare, &["Initramfs", "dracut", "GRUB"]);
        let running = bare.starts_with("systemd[1]: systemd ") && bare.contains(" running in system mode");
        if (welcome && !of_the_initramfs)
            || (running && context.stage == BootStage::RootMounted)
            || any_prefix(bare, &["INIT: version ", "OpenRC "])
        {
            out.push(Fact::Stage(BootStage::Init));
        }
    }
    if let Some(job) = bare.split_once("] A start job is running for ").map(|(_, job)| job) {
        out.push(Fact::Waiting(job.to_owned()));
    }
    if let Some(unit) =
        bare.strip_prefix("[FAILED] Failed to ").or_else(|| bare.strip_prefix("[ TIME ] Timed out "))
    {
        out.push(Fact::Failed(unit.to_owned()));
    }
    if bare.contains("Not all expected physical devices present") {
        out.push(Fact::Clue("the network card that the seed names by its MAC address is not there"));
    }
    if bare.contains("Read-only file system") {
        out.push(Fact::Clue(
            "the root file system is read-only: the kernel was not given `rw` and nothing remounts it",
        ));
    }
    if any_within(bare, &["No space left on device"]) {
        out.push(Fact::Clue("the disk is full"));
    }
    if in_initramfs {
        // An initramfs of dracut has a network and targets of its own.
        return;
    }
    let done = bare.strip_prefix("[  OK  ] ").or_else(|| bare.strip_prefix("systemd[1]: "));
    if let Some(stage) = done.and_then(systemd) {
        out.push(Fact::Stage(stage));
    }
    // `         Starting cloud-final.service - …`
    if let Some(named) = bare.strip_prefix("systemd[1]: ").unwrap_or(bare).strip_prefix("Starting ")
        && is_unit(
            named.trim_end_matches('.'),
            &["cloud-final.service"],
            &["Execute cloud user/final scripts"],
        )
    {
        out.push(Fact::Stage(BootStage::CloudInit));
    }
    if let Some((_, said)) = bare.split_once("Cloud-init v. ") {
        cloud_init(said, out);
    }
    if let Some(service) = star.and_then(|s| s.strip_prefix("Starting ")) {
        let stage = match service.split([' ', '.']).next() {
            Some("networking") => Some(BootStage::Network),
            Some("sshd") => Some(BootStage::Sshd),
            Some("cloud-final") => Some(BootStage::CloudInit),
            _ => None,
        };
        if let Some(stage) = stage {
            out.push(if bare.ends_with("[ ok ]") { Fact::Stage(stage) } else { Fact::Pending(stage) });
        }
    } else if bare == "[ ok ]" {
        out.push(Fact::Done);
    } else if bare == "[ !! ]" {
        out.push(Fact::Failed("the service before it".to_owned()));
    }
}

/// The stage that a systemd message of something done proves.
fn systemd(done: &str) -> Option<BootStage> {
    if let Some(target) = done.strip_prefix("Reached target ") {
        if is_unit(target, &["network.target", "network-online.target"], &["Network", "Network is Online"]) {
            return Some(BootStage::Network);
        }
        return is_unit(target, &["cloud-init.target"], &["Cloud-init target"])
            .then_some(BootStage::CloudInit);
    }
    if let Some(socket) = done.strip_prefix("Listening on ") {
        const SOCKETS: &[&str] = &["OpenBSD Secure Shell server socket", "OpenSSH Server Socket"];
        return is_unit(socket, &["ssh.socket", "sshd.socket"], SOCKETS).then_some(BootStage::Sshd);
    }
    const SERVICES: &[&str] = &["OpenBSD Secure Shell server", "OpenSSH server daemon", "OpenSSH Daemon"];
    let started = done.strip_prefix("Started ")?;
    is_unit(started, &["ssh.service", "sshd.service"], SERVICES).then_some(BootStage::Sshd)
}

fn cloud_init(said: &str, out: &mut Vec<Fact>) {
    if said.contains(" running 'modules:final'") || said.contains(" finished at ") {
        out.push(Fact::Stage(BootStage::CloudInit));
    } else if said.contains(" running 'init'") || said.contains(" running 'modules:config'") {
        out.push(Fact::Stage(BootStage::Network));
    } else if said.contains(" running 'init-local'") {
        out.push(Fact::Stage(BootStage::Init));
    }
}
