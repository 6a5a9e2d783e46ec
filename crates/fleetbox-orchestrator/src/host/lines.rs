//! A report as lines to print.

use fleetbox_os::kvm::KvmVerdict;
use fleetbox_spec::Accel;

use super::HostReport;

/// What a line says about its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It is there and works.
    Good,
    /// Machines run, but something is worse than it could be.
    Warning,
    /// Machines cannot be run because of it.
    Bad,
    /// Neither good nor bad.
    Plain,
}

impl Mark {
    /// The mark as one character.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Warning => "!",
            Self::Bad => "✗",
            Self::Plain => "·",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportLine {
    /// How to mark it.
    pub mark: Mark,
    /// Its text, without the mark.
    pub text: String,
    /// What to do about it, to print below it.
    pub hint: Option<String>,
}

pub(super) fn lines(host: &HostReport) -> Vec<ReportLine> {
    let mut all = vec![plain(system(host)), kvm(host)];
    for vmm in &host.vmms {
        let version = vmm.version.as_deref().unwrap_or("of unknown version");
        let text = format!("{} {version} at {}", vmm.name, vmm.path.display());
        all.push(match &vmm.why_not {
            None => good(text),
            Some(why) => plain(format!("{text}: not used, {why}")),
        });
    }
    if host.root && host.lacking_capabilities.as_ref().is_none_or(Vec::is_empty) {
        all.push(good("root, with the capabilities needed".into()));
    }
    if let Some(version) = &host.nft {
        all.push(good(format!("nftables {version}")));
    }
    let there: Vec<&str> = host.tools.iter().filter(|t| t.path.is_some()).map(|t| t.name.as_str()).collect();
    if !there.is_empty() {
        all.push(good(there.join(", ")));
    }
    let mut network = Vec::new();
    if host.tun {
        network.push("taps");
    }
    if host.ipv6 {
        network.push("IPv6");
    }
    if !network.is_empty() {
        all.push(good(network.join(", ")));
    }
    if let Some(home) = &host.home {
        all.push(plain(store(host, &home.display().to_string())));
    }
    for m in &host.missing {
        all.push(ReportLine {
            mark: if m.blocks { Mark::Bad } else { Mark::Warning },
            text: format!("no {}: {}", m.what, m.costs),
            hint: Some(m.how.clone()),
        });
    }
    for left in &host.left {
        all.push(ReportLine {
            mark: Mark::Warning,
            text: format!("left behind: {}", left.what),
            hint: Some(left.how.clone()),
        });
    }
    all.push(verdict(host));
    all
}

fn good(text: String) -> ReportLine {
    ReportLine { mark: Mark::Good, text, hint: None }
}

fn plain(text: String) -> ReportLine {
    ReportLine { mark: Mark::Plain, text, hint: None }
}

fn system(host: &HostReport) -> String {
    let mut parts = vec![host.os.clone().unwrap_or_else(|| "an unnamed system".into())];
    parts.extend(host.kernel.as_ref().map(|k| format!("kernel {k}")));
    parts.extend(host.arch.map(|a| a.debian().to_owned()));
    parts.extend(host.cpus.map(|n| format!("{n} CPUs")));
    parts.extend(host.memory_mib.map(|total| match host.memory_available_mib {
        Some(available) => format!("{} of {} memory available", gib(available << 20), gib(total << 20)),
        None => format!("{} memory", gib(total << 20)),
    }));
    parts.join(", ")
}

fn kvm(host: &HostReport) -> ReportLine {
    let when = if host.kvm.cached { ", measured earlier in this boot" } else { "" };
    let millis = |micros: u64| format!("{}.{} ms", micros / 1000, micros % 1000 / 100);
    let (mark, text) = match &host.kvm.verdict {
        KvmVerdict::Usable { micros } => {
            (Mark::Good, format!("KVM runs guest code: test loop in {}{when}", millis(*micros)))
        }
        KvmVerdict::Unusable { micros, why } => {
            (Mark::Warning, format!("KVM is unusable: {why} (probe {}{when})", millis(*micros)))
        }
        KvmVerdict::Absent { why } => (Mark::Warning, format!("KVM is absent: {why}")),
        other => (Mark::Warning, format!("KVM: {other:?}")),
    };
    ReportLine { mark, text, hint: None }
}

fn store(host: &HostReport, home: &str) -> String {
    let mut text = format!("store {home}");
    if let Some(free) = host.disk_free_bytes {
        text.push_str(&format!(", {} free", gib(free)));
    }
    match host.reflink {
        Some(true) => text.push_str(", with reflinks"),
        Some(false) => text.push_str(", without reflinks"),
        None => {}
    }
    text
}

/// The conclusion.
fn verdict(host: &HostReport) -> ReportLine {
    match &host.would_use {
        Some(choice) if host.can_run_machines() => {
            let mark = if choice.accel == Accel::Tcg { Mark::Warning } else { Mark::Good };
            let text = format!("machines run with {} ({})", choice.backend, choice.accel);
            ReportLine { mark, text, hint: choice.warning.clone() }
        }
        _ => ReportLine { mark: Mark::Bad, text: "machines cannot be run here yet".into(), hint: None },
    }
}

fn gib(bytes: u64) -> String {
    let tenths = bytes / (1 << 30) * 10 + bytes % (1 << 30) * 10 / (1 << 30);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::super::Leftover;
    use super::super::tests::good_host;
    use super::*;

    fn text(host: &HostReport) -> String {
        let line = |l: &ReportLine| {
            let hint = l.hint.as_ref().map(|h| format!("\n    {h}")).unwrap_or_default();
            format!("{} {}{hint}\n", l.mark.symbol(), l.text)
        };
        lines(host).iter().map(line).collect()
    }

    #[test]
    fn a_good_host() {
        let expected = "\
· Debian GNU/Linux 12 (bookworm), kernel 6.1.0-9-amd64, amd64, 8 CPUs, 29.2 GiB of 32.0 GiB memory available
✓ KVM runs guest code: test loop in 1.2 ms
✓ qemu 10.0.2 at /usr/bin/qemu-system-x86_64
✓ root, with the capabilities needed
✓ nftables 1.0.6
✓ qemu-img, mmdebstrap, mke2fs, ssh
✓ taps, IPv6
· store /root/.fleetbox, 50.0 GiB free, with reflinks
✓ machines run with qemu (kvm)
";
        assert_eq!(text(&good_host()), expected);
    }

    #[test]
    fn a_host_that_emulates_and_one_that_cannot() {
        let mut host = good_host();
        host.kvm.verdict = KvmVerdict::Unusable { micros: 262_384, why: "guest code is emulated".into() };
        host.judge();
        let emulates = text(&host);
        assert!(
            emulates.contains("! KVM is unusable: guest code is emulated (probe 262.3 ms)"),
            "{emulates}"
        );
        assert!(emulates.contains("! machines run with qemu (tcg)\n    machines are emulated"), "{emulates}");
        host.left =
            vec![Leftover { what: "bridge fb01234567: of no record".into(), how: "ip link delete".into() }];
        assert!(text(&host).contains("! left behind: bridge fb01234567: of no record\n    ip link delete\n"));
        host.vmms.clear();
        host.judge();
        let cannot = text(&host);
        assert!(cannot.contains("✗ no QEMU: there is nothing to run machines with\n    apt-get"), "{cannot}");
        assert!(cannot.ends_with("✗ machines cannot be run here yet\n"), "{cannot}");
    }
}
