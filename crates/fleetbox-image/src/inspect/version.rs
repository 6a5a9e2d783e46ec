//! Which kernel of a `/boot` folder to boot. Pure.

use std::cmp::Ordering;

/// A kernel and its initramfs, by file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) kernel: String,
    pub(super) initrd: Option<String>,
}

/// The version in a kernel's file name.
pub(super) fn of_kernel(name: &str) -> Option<&str> {
    ["vmlinuz-", "vmlinux-", "Image-", "kernel-"].iter().find_map(|p| name.strip_prefix(p))
}

/// The name of the initramfs for a version: Debian and Ubuntu; Fedora and its kin; openSUSE; Alpine.
pub(super) fn initrd_of(version: &str, files: &[String]) -> Option<String> {
    [
        format!("initrd.img-{version}"),
        format!("initramfs-{version}.img"),
        format!("initrd-{version}"),
        format!("initramfs-{version}"),
    ]
    .into_iter()
    .find(|name| files.contains(name))
}

/// The kernels in a folder: those that have an initramfs, then the others, each the newest first.
pub(super) fn choose(files: &[String]) -> Vec<Choice> {
    let mut kernels: Vec<(&str, Choice)> = files
        .iter()
        .filter_map(|f| Some((f, of_kernel(f)?)))
        // Fedora's rescue kernel is versioned by machine id; dpkg and editors leave the others.
        .filter(|(_, v)| {
            !v.contains("rescue")
                && ![".old", ".bak", ".dpkg-tmp", ".dpkg-new"].iter().any(|s| v.ends_with(s))
        })
        .map(|(f, v)| (v, Choice { kernel: f.clone(), initrd: initrd_of(v, files) }))
        .collect();
    kernels.sort_by(|(a_version, a), (b_version, b)| {
        (a.initrd.is_none().cmp(&b.initrd.is_none()))
            .then_with(|| compare(b_version, a_version))
            .then_with(|| a.kernel.cmp(&b.kernel))
    });
    kernels.into_iter().map(|(_, c)| c).collect()
}

/// Order of versions as in Debian (deb-version(7)): digits by number, letters before the rest, `~` before the end.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let text = |s: &[u8]| s.iter().position(u8::is_ascii_digit).unwrap_or(s.len());
        let ((at, a_rest), (bt, b_rest)) = (a.split_at(text(a)), b.split_at(text(b)));
        let rank = |c: Option<&u8>| match c {
            Some(b'~') => -1,
            None => 0,
            Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
            Some(c) => i32::from(*c) + 256,
        };
        for i in 0..at.len().max(bt.len()) {
            match rank(at.get(i)).cmp(&rank(bt.get(i))) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        let number = |s: &[u8]| s.iter().position(|c| !c.is_ascii_digit()).unwrap_or(s.len());
        let ((an, a_rest), (bn, b_rest)) = (a_rest.split_at(number(a_rest)), b_rest.split_at(number(b_rest)));
        // Any length, so not as integers.
        let significant = |n: &'_ [u8]| n.iter().position(|&c| c != b'0').unwrap_or(n.len());
        let (an, bn) = (&an[significant(an)..], &bn[significant(bn)..]);
        match an.len().cmp(&bn.len()).then_with(|| an.cmp(bn)) {
            Ordering::Equal if a_rest.is_empty() && b_rest.is_empty() => return Ordering::Equal,
            Ordering::Equal => (a, b) = (a_rest, b_rest),
            unequal => return unequal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_in_order() {
        let sorted = [
            "5.10.0-9-amd64",
            "5.10.0-28-amd64",
            "6.1~rc1",
            "6.1",
            "6.1.0-9-cloud-amd64",
            "6.1.0-10-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.12.48+deb13-cloud-amd64",
        ];
        for w in sorted.windows(2) {
            assert_eq!(compare(w[0], w[1]), Ordering::Less, "{w:?}");
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }

    fn choice(files: &[&str]) -> Option<(String, Option<String>)> {
        let files: Vec<String> = files.iter().map(|&f| f.to_owned()).collect();
        choose(&files).into_iter().next().map(|c| (c.kernel, c.initrd))
    }

    #[test]
    fn the_newest_that_can_boot() {
        let pair = |k: &str, i: &str| Some((k.to_owned(), Some(i.to_owned())));
        assert_eq!(
            choice(&[
                "vmlinuz-6.1.0-9-amd64",
                "initrd.img-6.1.0-9-amd64",
                "vmlinuz-6.1.0-10-amd64",
                "initrd.img-6.1.0-10-amd64",
                "config-6.1.0-10-amd64"
            ]),
            pair("vmlinuz-6.1.0-10-amd64", "initrd.img-6.1.0-10-amd64")
        );
        // An upgrade cut short has left a kernel without its initramfs.
        assert_eq!(
            choice(&["vmlinuz-6.2", "vmlinuz-6.1", "initrd.img-6.1"]),
            pair("vmlinuz-6.1", "initrd.img-6.1")
        );
        assert_eq!(
            choice(&[
                "vmlinuz-0-rescue-0123",
                "initramfs-0-rescue-0123.img",
                "vmlinuz-6.9.fc40",
                "initramfs-6.9.fc40.img"
            ]),
            pair("vmlinuz-6.9.fc40", "initramfs-6.9.fc40.img")
        );
        assert_eq!(choice(&["vmlinuz-virt", "initramfs-virt"]), pair("vmlinuz-virt", "initramfs-virt"));
        assert_eq!(choice(&["vmlinuz-6.1"]), Some(("vmlinuz-6.1".into(), None)));
        assert_eq!(choice(&["grub", "vmlinuz", "vmlinuz-6.1.old"]), None);
    }

    proptest! {
        #[test]
        fn a_total_order(a in "[0-2a~.+-]{0,8}", b in "[0-2a~.+-]{0,8}", c in "[0-2a~.+-]{0,8}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le());
            }
        }
    }
}
