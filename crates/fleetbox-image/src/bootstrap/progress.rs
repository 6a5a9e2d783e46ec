//! From the builder's output to progress. Pure.

use fleetbox_spec::Progress;

use crate::{ImageProgress, ImageStage};

/// Reads mmdebstrap's, apt's and dpkg's lines as they come.
#[derive(Debug, Default)]
pub(super) struct Parser {
    step: String,
    /// Packages announced so far; mmdebstrap installs in two rounds.
    announced: u64,
    /// Both rounds are announced, so that `announced` is the total.
    complete: bool,
    set_up: u64,
}

impl Parser {
    /// The step of build.sh that is being done.
    pub(super) fn step(&self) -> &str {
        if self.step.is_empty() { "start" } else { &self.step }
    }

    /// What a line tells, if it tells anything worth showing.
    pub(super) fn line(&mut self, line: &str) -> Option<ImageProgress> {
        if let Some(step) = line.strip_prefix("fleetbox:stage ") {
            self.step = step.to_owned();
            return match step {
                "finish" => self.tell(ImageStage::Finish, "building the initramfs"),
                "disk" => self.tell(ImageStage::Disk, "writing the disk image"),
                _ => None,
            };
        }
        if let Some(what) = line.strip_prefix("I: ") {
            // The hook for the merged /usr updates the lists before mmdebstrap would.
            if what.starts_with("running --setup-hook directly") && what.contains("merged-usr") {
                return self.tell(ImageStage::Fetch, "package lists");
            }
            return match what.trim_end_matches('.') {
                "running apt-get update" => self.tell(ImageStage::Fetch, "package lists"),
                "downloading packages with apt" => self.tell(ImageStage::Fetch, "packages"),
                "extracting archives" => self.tell(ImageStage::Install, "the essential packages"),
                "installing remaining packages inside the chroot" => {
                    self.complete = true;
                    None
                }
                _ => None,
            };
        }
        if let Some(n) = newly_installed(line) {
            self.announced = self.announced.saturating_add(n);
            return None;
        }
        if let Some(size) = line.strip_prefix("Need to get ") {
            let size = size.split(" of archives").next().unwrap_or(size);
            return self.tell(ImageStage::Fetch, &format!("{size} of packages"));
        }
        if let Some(rest) = line.strip_prefix("Unpacking ") {
            return self.tell(ImageStage::Install, &format!("unpacking {}", package(rest)?));
        }
        if let Some(rest) = line.strip_prefix("Setting up ") {
            let package = package(rest)?;
            // mmdebstrap's own stand-ins are set up without having been announced.
            self.set_up = (self.set_up + 1).min(self.announced);
            return self.tell(ImageStage::Install, &format!("setting up {package}"));
        }
        None
    }

    fn tell(&self, stage: ImageStage, detail: &str) -> Option<ImageProgress> {
        let progress = (stage == ImageStage::Install && self.announced > 0)
            .then(|| Progress::new(self.set_up, self.complete.then_some(self.announced), "packages"));
        Some(ImageProgress { stage, detail: detail.to_owned(), progress })
    }
}

/// `0 upgraded, 60 newly installed, 0 to remove and 1 not upgraded.`
fn newly_installed(line: &str) -> Option<u64> {
    line.split(", ").find_map(|part| part.strip_suffix(" newly installed")?.parse().ok())
}

/// `libfoo:amd64 (1.2-3) ...`
fn package(rest: &str) -> Option<&str> {
    let name = rest.split([' ', ':']).next()?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_recorded_build() {
        let text = "\
            fleetbox:pid 42\n\
            fleetbox:stage packages\n\
            I: running --setup-hook directly: /x/maybe-merged-usr/setup00.sh /y/work/root\n\
            Get:1 http://mirror.test/debian bookworm InRelease [151 kB]\n\
            I: downloading packages with apt...\n\
            0 upgraded, 2 newly installed, 0 to remove and 1 not upgraded.\n\
            Need to get 22.2 MB of archives.\n\
            I: extracting archives...\n\
            I: installing essential packages...\n\
            Unpacking libc6:amd64 (2.36-9+deb12u14) ...\n\
            Setting up libc6:amd64 (2.36-9+deb12u14) ...\n\
            Setting up bash (5.2.15-2+b13) ...\n\
            I: installing remaining packages inside the chroot...\n\
            0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.\n\
            Setting up udev (252.39-1~deb12u2) ...\n\
            fleetbox:stage finish\n\
            update-initramfs: Generating /boot/initrd.img-6.1.0-56-cloud-amd64\n\
            fleetbox:stage clean\n\
            fleetbox:stage disk\n\
            fleetbox:stage done\n";
        let mut parser = Parser::default();
        assert_eq!(parser.step(), "start");
        let seen: Vec<String> = text
            .lines()
            .filter_map(|l| parser.line(l))
            .map(|p| {
                let count = p.progress.map(|p| format!(" {}/{:?}", p.done, p.total)).unwrap_or_default();
                format!("{}: {}{count}", p.stage, p.detail)
            })
            .collect();
        assert_eq!(
            seen,
            [
                "fetching: package lists",
                "fetching: packages",
                "fetching: 22.2 MB of packages",
                "installing: the essential packages 0/None",
                "installing: unpacking libc6 0/None",
                "installing: setting up libc6 1/None",
                "installing: setting up bash 2/None",
                "installing: setting up udev 3/Some(3)",
                "finishing: building the initramfs",
                "writing the disk image: writing the disk image",
            ]
        );
        assert_eq!(parser.step(), "done");
    }

    proptest! {
        #[test]
        fn never_more_done_than_there_is(lines in proptest::collection::vec(
            prop_oneof![
                Just("Setting up x (1) ...".to_owned()), Just("I: installing remaining packages inside the chroot...".to_owned()),
                (0u64..200).prop_map(|n| format!("0 upgraded, {n} newly installed, 0 to remove")),
                ".{0,40}",
            ], 0..60)) {
            let mut parser = Parser::default();
            for p in lines.iter().filter_map(|l| parser.line(l)).filter_map(|p| p.progress) {
                prop_assert!(p.total.is_none_or(|t| p.done <= t));
            }
        }
    }
}
