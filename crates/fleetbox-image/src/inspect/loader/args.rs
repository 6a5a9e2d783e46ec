//! Kernel arguments of an image's boot loader, sorted into those that find the root file system and those that the
//! image wants besides. Pure.
//!
//! Left out is what would hurt a machine whose console a program reads and whose reset another program drives:
//! - `quiet`, `splash`, `rhgb`, `loglevel=`, `vt.handoff=`: they hide what tells how far a boot has come;
//! - `console=`: the caller adds the one that it reads, and the last one given is where init writes;
//! - `panic=`: a machine that resets at once takes its last words with it;
//! - `crashkernel=`, `resume=`, `noresume`: memory set aside for dumps, and swap that fixtures do not have;
//! - `ds=`, `cloud-init=`: the caller says where the seed is;
//! - `BOOT_IMAGE=`, `initrd=`: written by the loader for itself;
//! - all from `--` on: it is init's, and the caller adds arguments of the kernel behind it.

/// Arguments in their two groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::inspect) struct Args {
    /// The value of `root=`, without what stands before it.
    pub(in crate::inspect) root: Option<String>,
    /// `rootflags=`'s value.
    pub(in crate::inspect) root_flags: Option<String>,
    /// `rootfstype=…`, `rootwait`, `rootdelay=…`, `ro`, `rw`: in order, whole.
    pub(in crate::inspect) root_others: Vec<String>,
    pub(in crate::inspect) extra: Vec<String>,
}

/// The longest command line that a kernel takes is 4096 bytes (arm64: 2048); foreign text has no say in more.
const MAX_LEN: usize = 4096;

impl Args {
    pub(in crate::inspect) fn parse(line: &str) -> Self {
        let mut args = Self::default();
        for word in words(line) {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, Some(value.trim_matches('"'))),
                None => (word.as_str(), None),
            };
            // A variable that the loader did not know, or a control character.
            if word.contains('$') || word.chars().any(char::is_control) {
                continue;
            }
            match (key, value) {
                ("--" | "---", None) => break,
                ("root", Some(v)) => args.root = Some(v.to_owned()),
                ("rootflags", Some(v)) => args.root_flags = Some(v.to_owned()),
                ("rootfstype" | "rootdelay", Some(_)) | ("ro" | "rw" | "rootwait", None) => {
                    args.root_others.push(word);
                }
                (
                    "quiet" | "splash" | "rhgb" | "loglevel" | "vt.handoff" | "console" | "panic"
                    | "crashkernel" | "resume" | "noresume" | "ds" | "cloud-init" | "BOOT_IMAGE" | "initrd",
                    _,
                ) => {}
                _ => args.extra.push(word),
            }
        }
        let mut len = 0;
        args.extra.retain(|w| {
            len += w.len() + 1;
            len <= MAX_LEN / 2
        });
        args
    }

    /// The subvolume that `rootflags=` names, without a slash in front.
    pub(in crate::inspect) fn subvolume(&self) -> Option<&str> {
        let flags = self.root_flags.as_deref()?;
        flags.split(',').find_map(|f| f.strip_prefix("subvol=")).map(|s| s.trim_start_matches('/'))
    }
}

/// Splits at blanks outside of double quotes, as the kernel does (lib/cmdline.c, next_arg).
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars().take(MAX_LEN) {
        match c {
            '"' => {
                quoted = !quoted;
                word.push(c);
            }
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sorted_and_cleaned() {
        let args = Args::parse(
            "BOOT_IMAGE=/boot/vmlinuz root=UUID=1-2 ro rootflags=noatime,subvol=/@ rootfstype=btrfs quiet splash \
             console=tty1 console=ttyS0,115200n8 panic=-1 net.ifnames=0 dyndbg=\"file a b\" $vt_handoff crashkernel=auto -- x",
        );
        assert_eq!(args.root.as_deref(), Some("UUID=1-2"));
        assert_eq!(args.subvolume(), Some("@"));
        assert_eq!(args.root_others, ["ro", "rootfstype=btrfs"]);
        assert_eq!(args.extra, ["net.ifnames=0", "dyndbg=\"file a b\""]);
    }

    #[test]
    fn quotes_around_a_root() {
        assert_eq!(Args::parse("root=\"UUID=1-2\"").root.as_deref(), Some("UUID=1-2"));
        assert_eq!(Args::parse("").root, None);
    }

    proptest! {
        #[test]
        fn never_more_than_was_given(line in "\\PC{0,200}") {
            let args = Args::parse(&line);
            let len: usize = args.extra.iter().map(|w| w.len()).sum();
            prop_assert!(len <= line.len());
            prop_assert!(args.extra.iter().all(|w| w != "quiet" && !w.starts_with("console=")));
        }
    }
}
