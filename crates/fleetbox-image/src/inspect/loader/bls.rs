//! Entries of the Boot Loader Specification (type 1), as systemd-boot and the GRUB of Fedora and its kin read them. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::{Entry, Origin};
use crate::inspect::version;

/// A file in `loader/entries`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::inspect) struct BlsFile {
    /// Without `.conf`.
    pub(in crate::inspect) name: String,
    pub(in crate::inspect) text: String,
}

/// The entries that boot a kernel, the best first: the default that was chosen, then the newest; rescue entries last.
pub(in crate::inspect) fn parse(
    files: &[BlsFile],
    default: Option<&str>,
    vars: &BTreeMap<String, String>,
) -> Vec<Entry> {
    let mut all: Vec<(&BlsFile, Fields)> =
        files.iter().map(|f| (f, Fields::parse(&f.text, vars))).filter(|(_, f)| f.kernel.is_some()).collect();
    let is_default = |file: &BlsFile| default.is_some_and(|d| matches(d, &file.name));
    let is_rescue = |(file, fields): &(&BlsFile, Fields)| {
        file.name.contains("rescue") || fields.version.contains("rescue") || fields.title.contains("rescue")
    };
    all.sort_by(|a, b| {
        let key = |e: &(&BlsFile, Fields)| (!is_default(e.0), is_rescue(e));
        key(a).cmp(&key(b)).then_with(|| newest_first(a, b))
    });
    all.into_iter()
        .filter_map(|(file, fields)| {
            Some(Entry {
                title: if fields.title.is_empty() { file.name.clone() } else { fields.title },
                kernel: fields.kernel?,
                initrds: fields.initrds,
                args: fields.options.join(" "),
                origin: if fields.unified { Origin::Unified } else { Origin::BootLoaderSpec },
                config: String::new(),
            })
        })
        .collect()
}

fn newest_first(a: &(&BlsFile, Fields), b: &(&BlsFile, Fields)) -> Ordering {
    version::compare(&b.1.version, &a.1.version)
        .then_with(|| version::compare(stem(&b.0.name), stem(&a.0.name)))
}

/// Without the tries left that systemd-boot counts in the name (`+3-1`).
fn stem(name: &str) -> &str {
    match name.rsplit_once('+') {
        Some((stem, tries)) if tries.chars().all(|c| c.is_ascii_digit() || c == '-') => stem,
        _ => name,
    }
}

/// `default` of loader.conf may be a pattern; only a star is in use.
fn matches(pattern: &str, name: &str) -> bool {
    let pattern = pattern.trim_end_matches(".conf");
    match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => pattern == name || pattern == stem(name),
    }
}

#[derive(Debug, Default)]
struct Fields {
    title: String,
    version: String,
    kernel: Option<String>,
    unified: bool,
    initrds: Vec<String>,
    options: Vec<String>,
}

impl Fields {
    fn parse(text: &str, vars: &BTreeMap<String, String>) -> Self {
        let mut fields = Self::default();
        for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
            let Some((key, value)) = line.split_once(char::is_whitespace) else { continue };
            let value = expand(value.trim(), vars);
            match key {
                "title" => fields.title = value,
                "version" => fields.version = value,
                "linux" => fields.kernel = Some(value),
                "efi" | "uki" => {
                    fields.kernel = Some(value);
                    fields.unified = true;
                }
                // Fedora's GRUB takes several on one line; `$tuned_initrd` is mostly empty.
                "initrd" => fields.initrds.extend(value.split_whitespace().take(8).map(str::to_owned)),
                "options" if !value.is_empty() => fields.options.push(value),
                _ => {}
            }
        }
        fields
    }
}

/// Variables of GRUB's environment, such as `$kernelopts`; unknown ones are empty.
fn expand(value: &str, vars: &BTreeMap<String, String>) -> String {
    let (mut out, mut rest) = (String::new(), value);
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let name_len = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
        out.push_str(vars.get(&after[..name_len]).map_or("", String::as_str));
        rest = &after[name_len..];
    }
    out + rest
}

/// GRUB's environment block: `name=value` lines after a header, filled up with `#`.
pub(in crate::inspect) fn grubenv(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split_once('='))
        .map(|(k, v)| (k.trim().to_owned(), v.to_owned()))
        .collect()
}

/// `default` of systemd-boot's loader.conf.
pub(in crate::inspect) fn loader_conf(text: &str) -> Option<String> {
    text.lines().find_map(|l| {
        let (key, value) = l.trim().split_once(char::is_whitespace)?;
        (key == "default" && !value.trim().starts_with('@')).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(name: &str, text: &str) -> BlsFile {
        BlsFile { name: name.into(), text: text.into() }
    }

    /// Fedora Cloud 40: /boot on its own partition, root on btrfs.
    const FEDORA: &str = "title Fedora Linux (6.8.5-301.fc40.x86_64) 40 (Cloud Edition)
version 6.8.5-301.fc40.x86_64
linux /vmlinuz-6.8.5-301.fc40.x86_64
initrd /initramfs-6.8.5-301.fc40.x86_64.img $tuned_initrd
options root=UUID=7f5a8b0c-6e6d-4d36-8d53-5ed0f1c6a4f1 rootflags=subvol=root no_timer_check console=tty1 console=ttyS0,115200n8
grub_users $grub_users
grub_arg --unrestricted
grub_class fedora
";

    /// AlmaLinux 8: the arguments are in GRUB's environment.
    const ALMA8: &str = "title AlmaLinux (4.18.0-553.el8_10.x86_64) 8.10 (Cerulean Leopard)
version 4.18.0-553.el8_10.x86_64
linux /boot/vmlinuz-4.18.0-553.el8_10.x86_64
initrd /boot/initramfs-4.18.0-553.el8_10.x86_64.img $tuned_initrd
options $kernelopts $tuned_params
id almalinux-20240524-4.18.0-553.el8_10.x86_64
grub_users $grub_users
grub_arg --unrestricted
grub_class kernel
";

    #[test]
    fn of_fedora_and_alma() {
        let entry = &parse(&[file("0123-6.8.5-301.fc40.x86_64", FEDORA)], None, &BTreeMap::new())[0];
        assert_eq!(entry.kernel, "/vmlinuz-6.8.5-301.fc40.x86_64");
        assert_eq!(entry.initrds, ["/initramfs-6.8.5-301.fc40.x86_64.img"]);
        assert!(
            entry.args.starts_with("root=UUID=7f5a8b0c-6e6d-4d36-8d53-5ed0f1c6a4f1 rootflags=subvol=root")
        );
        let vars =
            grubenv("# GRUB Environment Block\nsaved_entry=x\nkernelopts=root=UUID=aa ro console=tty0\n####");
        let entry = &parse(&[file("x", ALMA8)], None, &vars)[0];
        assert_eq!(entry.args, "root=UUID=aa ro console=tty0 ");
        assert_eq!(parse(&[file("x", ALMA8)], None, &BTreeMap::new())[0].args, " ");
    }

    #[test]
    fn the_default_then_the_newest_then_rescue() {
        let entry = |v: &str| format!("title {v}\nversion {v}\nlinux /vmlinuz-{v}\n");
        let files = [
            file("m-0-rescue", &entry("0-rescue-ab")),
            file("m-6.9.1", &entry("6.9.1")),
            file("m-6.10.1+3-0", &entry("6.10.1")),
            file("nothing", "title x\n"),
        ];
        let order = |default| {
            parse(&files, default, &BTreeMap::new()).into_iter().map(|e| e.title).collect::<Vec<_>>()
        };
        assert_eq!(order(None), ["6.10.1", "6.9.1", "0-rescue-ab"]);
        assert_eq!(order(Some("m-6.9.1")), ["6.9.1", "6.10.1", "0-rescue-ab"]);
        assert_eq!(order(Some("m-6.10.1.conf"))[0], "6.10.1");
        assert_eq!(order(Some("m-0*"))[0], "0-rescue-ab");
        assert_eq!(loader_conf("timeout 3\ndefault  m-*\n").as_deref(), Some("m-*"));
        assert_eq!(loader_conf("default @saved"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(title|linux|initrd|options|\\PC| |\\$|\n){0,40}", name in "[a-z+0-9-]{0,10}", d in "[a-z*]{0,4}") {
            let _ = parse(&[file(&name, &text)], Some(&d), &grubenv(&text));
            let _ = loader_conf(&text);
        }
    }
}
