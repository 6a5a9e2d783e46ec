//! The tiers, what belongs to each, and what each needs of the host.

use std::process::{Command, Stdio};

use crate::workspace::{find_program, is_root};

/// A tier of tests, by what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// No root, no machine.
    Unit,
    /// Real holder processes, bridges and taps, over the fake backend: root.
    Fake,
    /// Real links and rules in network namespaces: root.
    Net,
    /// Real machines: root and a virtual machine monitor.
    E2e,
}

/// Whether a tier can run on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it is.
    Yes,
    /// Built as this user, with the test programs run through sudo.
    WithSudo,
    /// It cannot, and why.
    No(String),
}

impl Tier {
    pub(super) const ALL: [Self; 4] = [Self::Unit, Self::Fake, Self::Net, Self::E2e];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Fake => "fake",
            Self::Net => "net",
            Self::E2e => "e2e",
        }
    }

    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Unit => "units, documentation examples, and programs of this host",
            Self::Fake => "real holder processes over the fake backend",
            Self::Net => "real bridges, taps and rules, in network namespaces",
            Self::E2e => "real machines",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// The tier of an integration test, by its package and its own name.
    pub(super) fn of(package: &str, target: &str) -> Self {
        let starts = |word: &str| target == word || target.starts_with(&format!("{word}_"));
        if package == "fleetbox-e2e" || starts("e2e") {
            Self::E2e
        } else if starts("fake") {
            Self::Fake
        } else if starts("net") {
            Self::Net
        } else {
            Self::Unit
        }
    }

    fn needs_root(self) -> bool {
        !matches!(self, Self::Unit)
    }

    /// Programs without which the tier makes no sense.
    fn programs(self) -> &'static [&'static str] {
        const QEMU: &str =
            if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };
        match self {
            Self::Unit | Self::Fake => &[],
            Self::Net => &["ip", "nft"],
            Self::E2e => &[QEMU, "qemu-img", "mmdebstrap", "mke2fs", "ip", "nft"],
        }
    }
}

/// Looks at this host.
pub(super) fn can_run(tier: Tier) -> Verdict {
    let missing: Vec<&str> = tier.programs().iter().copied().filter(|p| find_program(p).is_none()).collect();
    judge(tier, &missing, is_root(), sudo_works)
}

fn judge(tier: Tier, missing: &[&str], root: bool, sudo_works: impl FnOnce() -> bool) -> Verdict {
    if !missing.is_empty() {
        return Verdict::No(format!("there is no {} here (`cargo xtask setup`)", missing.join(", ")));
    }
    match () {
        () if root || !tier.needs_root() => Verdict::Yes,
        () if sudo_works() => Verdict::WithSudo,
        () => Verdict::No("needs root, and sudo does not give it without a password".into()),
    }
}

/// Whether sudo gives root without asking. A password prompt in the middle of a test run would be lost.
fn sudo_works() -> bool {
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sudo.status().is_ok_and(|s| s.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_find_their_tier() {
        for (package, target, tier) in [
            ("fleetbox-net", "net", Tier::Net),
            ("fleetbox-net", "net_journal", Tier::Net),
            ("fleetbox", "fake_holder", Tier::Fake),
            ("fleetbox-e2e", "lifecycle", Tier::E2e),
            ("fleetbox-ssh", "sshd", Tier::Unit),
            ("fleetbox-seed", "network", Tier::Unit),
        ] {
            assert_eq!(Tier::of(package, target), tier, "{package} {target}");
        }
    }

    #[test]
    fn what_each_needs() {
        assert_eq!(judge(Tier::Unit, &[], false, || false), Verdict::Yes);
        assert!(matches!(judge(Tier::Fake, &[], false, || false), Verdict::No(r) if r.contains("root")));
        assert_eq!(judge(Tier::Net, &[], true, || false), Verdict::Yes);
        assert_eq!(judge(Tier::Net, &[], false, || true), Verdict::WithSudo);
        assert!(matches!(judge(Tier::Net, &[], false, || false), Verdict::No(r) if r.contains("root")));
        assert!(
            matches!(judge(Tier::E2e, &["mke2fs"], true, || true), Verdict::No(r) if r.contains("mke2fs"))
        );
    }
}
