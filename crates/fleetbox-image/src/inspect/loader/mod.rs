//! What an image's own boot loader would boot: the I/O around the pure readers of each loader's configuration.

mod args;
mod bls;
mod default_grub;
mod extlinux;
mod grub;

use std::collections::BTreeMap;

use super::extract;
use super::kernel::{self, Form};
use super::tree::Tree;
use super::version;

pub(super) use args::Args;

#[cfg(feature = "fuzzing")]
pub(super) mod pure {
    pub(in crate::inspect) use super::bls::{BlsFile, grubenv, parse as bls};
    pub(in crate::inspect) use super::extlinux::parse as extlinux;
    pub(in crate::inspect) use super::grub::run as grub;
}

/// Configurations are a few kilobytes.
const MAX_CONFIG: u64 = 1 << 20;
/// Files in `loader/entries` that are read.
const MAX_BLS: usize = 64;
/// Entries that are worth a try.
const MAX_TRIED: usize = 8;

/// Which loader's configuration an entry is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    BootLoaderSpec,
    Unified,
    Grub,
    Extlinux,
    Files,
}

/// Something to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) title: String,
    /// As the configuration says it, which may be relative to some file system.
    pub(super) kernel: String,
    pub(super) initrds: Vec<String>,
    pub(super) args: String,
    pub(super) origin: Origin,
    /// The configuration's own path; empty for mere files.
    pub(super) config: String,
}

/// Something to boot, found in the tree.
#[derive(Debug, Clone)]
pub(super) struct Located {
    pub(super) entry: Entry,
    pub(super) kernel: extract::Source,
    pub(super) initrds: Vec<extract::Source>,
    pub(super) version: Option<String>,
}

/// What was found, the best first, and what was wrong with the rest.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) located: Vec<Located>,
    pub(super) notes: Vec<String>,
}

/// Looks for all loaders. `subvolume`: the root's path in its btrfs, which GRUB puts before its paths.
pub(super) fn find(tree: &Tree, subvolume: &str) -> Entries {
    let mut entries = Vec::new();
    grub_and_bls(tree, &mut entries);
    unified(tree, &mut entries);
    extlinux(tree, &mut entries);
    files(tree, &mut entries);
    let mut found = Entries::default();
    for entry in entries {
        if found.located.len() >= MAX_TRIED {
            break;
        }
        match locate(tree, subvolume, entry) {
            Ok(located) => found.located.push(located),
            Err(why) if found.notes.len() < MAX_TRIED => found.notes.push(why),
            Err(_) => {}
        }
    }
    found
}

fn config(tree: &Tree, path: &str) -> Option<String> {
    tree.is_file(path).then(|| tree.text(path, MAX_CONFIG).ok())?
}

fn grubenv(tree: &Tree) -> BTreeMap<String, String> {
    ["/boot/grub2/grubenv", "/boot/grub/grubenv", "/boot/efi/EFI/fedora/grubenv"]
        .iter()
        .find_map(|p| config(tree, p))
        .map(|t| bls::grubenv(&t))
        .unwrap_or_default()
}

fn grub_and_bls(tree: &Tree, entries: &mut Vec<Entry>) {
    let mut env = grubenv(tree);
    // grub-reboot's choice for one boot. GRUB would strike it off; nothing does here, so it would stay for ever.
    env.remove("next_entry");
    let cfg = ["/boot/grub2/grub.cfg", "/boot/grub/grub.cfg"]
        .into_iter()
        .find_map(|path| Some((path, grub::run(&config(tree, path)?, &env))));
    let default =
        cfg.as_ref().and_then(|(_, c)| c.default.clone()).or_else(|| env.get("saved_entry").cloned());
    // Debian's GRUB does not read them: there, entries are systemd-boot's, if there are any.
    let bls_first = cfg.as_ref().is_none_or(|(_, c)| c.bls || c.entries.is_empty());
    let bls = bls(tree, default.as_deref(), &env);
    let grub = cfg.map(|(path, c)| {
        c.entries.into_iter().map(move |e| Entry { config: path.to_owned(), ..e }).collect::<Vec<_>>()
    });
    let grub = grub.unwrap_or_default();
    let (first, then) = if bls_first { (bls, grub) } else { (grub, bls) };
    entries.extend(first);
    entries.extend(then);
}

fn bls(tree: &Tree, default: Option<&str>, env: &BTreeMap<String, String>) -> Vec<Entry> {
    let mut all = Vec::new();
    for base in ["/boot", "/efi", "/boot/efi"] {
        let folder = format!("{base}/loader/entries");
        let names = tree.list(&folder);
        let files: Vec<bls::BlsFile> = names
            .iter()
            .filter_map(|n| n.strip_suffix(".conf"))
            .take(MAX_BLS)
            .filter_map(|name| {
                let text = config(tree, &format!("{folder}/{name}.conf"))?;
                Some(bls::BlsFile { name: name.to_owned(), text })
            })
            .collect();
        if files.is_empty() {
            continue;
        }
        let own = config(tree, &format!("{base}/loader/loader.conf")).and_then(|t| bls::loader_conf(&t));
        let parsed = bls::parse(&files, own.as_deref().or(default), env);
        all.extend(parsed.into_iter().map(|e| Entry { config: folder.clone(), ..e }));
    }
    all
}

/// Unified kernel images where the Boot Loader Specification (type 2) has them, the newest first.
fn unified(tree: &Tree, entries: &mut Vec<Entry>) {
    for folder in ["/boot/efi/EFI/Linux", "/efi/EFI/Linux", "/boot/EFI/Linux"] {
        let mut names = tree.list(folder);
        names.retain(|n| n.to_ascii_lowercase().ends_with(".efi"));
        names.sort_by(|a, b| version::compare(b, a));
        entries.extend(names.into_iter().take(MAX_TRIED).map(|name| Entry {
            kernel: format!("{folder}/{name}"),
            title: name,
            initrds: Vec::new(),
            args: String::new(),
            origin: Origin::Unified,
            config: folder.to_owned(),
        }));
    }
}

fn extlinux(tree: &Tree, entries: &mut Vec<Entry>) {
    let places = [
        "/boot/extlinux/extlinux.conf",
        "/boot/extlinux.conf",
        "/boot/syslinux/syslinux.cfg",
        "/extlinux.conf",
    ];
    for path in places {
        if let Some(text) = config(tree, path) {
            let folder = path.rsplit_once('/').map_or("/", |(f, _)| f);
            let parsed = extlinux::parse(&text, folder);
            entries.extend(parsed.into_iter().map(|e| Entry { config: path.to_owned(), ..e }));
            return;
        }
    }
}

/// Kernels that no configuration names, as in images that were bootstrapped without a loader.
fn files(tree: &Tree, entries: &mut Vec<Entry>) {
    let mut texts: Vec<String> = config(tree, "/etc/default/grub").into_iter().collect();
    for name in tree.list("/etc/default/grub.d").iter().filter(|n| n.ends_with(".cfg")).take(16) {
        texts.extend(config(tree, &format!("/etc/default/grub.d/{name}")));
    }
    let args = config(tree, "/etc/kernel/cmdline").unwrap_or_else(|| default_grub::arguments(&texts));
    let mut add = |kernel: String, initrd: Option<String>| {
        entries.push(Entry {
            title: kernel.clone(),
            kernel,
            initrds: initrd.into_iter().collect(),
            args: args.clone(),
            origin: Origin::Files,
            config: String::new(),
        });
    };
    // Plain files only: a link of any kind is tried after them.
    let names: Vec<String> =
        tree.list("/boot").into_iter().filter(|n| tree.is_file(&format!("/boot/{n}"))).collect();
    for choice in version::choose(&names).into_iter().take(3) {
        add(format!("/boot/{}", choice.kernel), choice.initrd.map(|i| format!("/boot/{i}")));
    }
    for (kernel, initrd) in [
        ("/boot/vmlinuz", "/boot/initrd.img"),
        ("/boot/vmlinuz", "/boot/initrd"),
        ("/boot/Image", "/boot/initrd"),
        ("/vmlinuz", "/initrd.img"),
    ] {
        if tree.is_file(kernel) {
            add(kernel.to_owned(), tree.is_file(initrd).then(|| initrd.to_owned()));
        }
    }
    // Where kernel-install and new Debian packages keep a kernel that no loader's folder has.
    for name in tree.list("/usr/lib/modules").iter().rev().take(3) {
        let kernel = format!("/usr/lib/modules/{name}/vmlinuz");
        if tree.is_file(&kernel) {
            add(kernel, None);
        }
    }
}

/// The file that a configuration means: relative to the file system that it is on, to the root, or to /boot.
fn place(tree: &Tree, entry: &Entry, subvolume: &str, path: &str) -> Option<String> {
    // GRUB's way to say a device, such as `($root)` or `(hd0,gpt2)`.
    let path = match path.strip_prefix('(').and_then(|p| p.split_once(')')) {
        Some((_, path)) => path,
        None => path,
    };
    let path = format!("/{}", path.trim_start_matches('/'));
    let own = match entry.config.as_str() {
        "" => "",
        config => tree.resolve(config).map_or("", |f| tree.mount_of(&f.path)),
    };
    let inside = path.strip_prefix(&format!("/{subvolume}/")).filter(|_| !subvolume.is_empty());
    [
        Some(format!("{own}{path}")),
        Some(path.clone()),
        Some(format!("/boot{path}")),
        inside.map(|p| format!("/{p}")),
    ]
    .into_iter()
    .flatten()
    .find(|p| tree.is_file(p))
}

fn locate(tree: &Tree, subvolume: &str, mut entry: Entry) -> Result<Located, String> {
    let missing = |what: &str| match entry.config.as_str() {
        "" => format!("{what} cannot be found"),
        config => format!("{what}, which {config} names, cannot be found"),
    };
    let kernel = place(tree, &entry, subvolume, &entry.kernel).ok_or_else(|| missing(&entry.kernel))?;
    let mut initrds = Vec::new();
    for initrd in &entry.initrds {
        let path = place(tree, &entry, subvolume, initrd).ok_or_else(|| missing(initrd))?;
        initrds.push(extract::Source::file(&path));
    }
    let name = kernel.rsplit('/').next().unwrap_or_default();
    let mut version = version::of_kernel(name).map(str::to_owned);
    // Ubuntu tries without one first, which spares a second and needs the right drivers in the kernel.
    if initrds.is_empty()
        && entry.origin != Origin::Unified
        && let Some(version) = &version
        && let Some((folder, _)) = kernel.rsplit_once('/')
        && let Some(initrd) = version::initrd_of(version, &tree.list(folder))
    {
        initrds.push(extract::Source::file(&format!("{folder}/{initrd}")));
    }
    let mut source = extract::Source::file(&kernel);
    if entry.origin == Origin::Unified || kernel.to_ascii_lowercase().ends_with(".efi") {
        let len = tree.resolve(&kernel).map_err(|e| e.text())?.stat.len;
        let head =
            tree.head(&kernel, kernel::HEAD).map_err(|e| format!("{kernel} cannot be read: {}", e.text()))?;
        match kernel::recognize(&head, len) {
            Form::Unified(unified) => {
                entry.origin = Origin::Unified;
                source.range = Some(unified.linux);
                initrds = unified
                    .initrd
                    .map(|r| extract::Source { path: kernel.clone(), range: Some(r) })
                    .into_iter()
                    .collect();
                if let Some(text) = unified.cmdline.and_then(|r| extract::text(tree, &kernel, r)) {
                    // An entry of type 1 that names one may add to it.
                    entry.args = format!("{text} {}", entry.args);
                }
                version = unified.uname.and_then(|r| extract::text(tree, &kernel, r)).or(version);
            }
            _ if entry.origin == Origin::Unified => {
                return Err(format!("{kernel} is no unified kernel image"));
            }
            _ => {}
        }
    }
    Ok(Located { entry, kernel: source, initrds, version })
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::fake_uki;
    use super::super::tree::tests::Fake;
    use super::*;

    fn paths(located: &Located) -> (String, Vec<String>) {
        (located.kernel.path.clone(), located.initrds.iter().map(|s| s.path.clone()).collect())
    }

    #[test]
    fn paths_are_relative_to_where_the_configuration_is() {
        let cfg = "menuentry x {\n linux /vmlinuz-1 root=UUID=a\n initrd /initrd.img-1\n}\n";
        let mut tree = Fake::default().file("/etc/os-release", "").tree();
        let boot =
            Fake::default().file("/grub/grub.cfg", cfg).file("/vmlinuz-1", "").file("/initrd.img-1", "");
        tree.mount("/boot", Box::new(boot));
        let found = find(&tree, "");
        assert_eq!(paths(&found.located[0]), ("/boot/vmlinuz-1".into(), vec!["/boot/initrd.img-1".into()]));
        assert_eq!(found.located[0].entry.origin, Origin::Grub);

        // On btrfs, GRUB's paths begin at the top level.
        let cfg = "menuentry x {\n linux ($root)/@/boot/vmlinuz-1 root=UUID=a rootflags=subvol=@\n}\n";
        let tree = Fake::default()
            .file("/boot/grub/grub.cfg", cfg)
            .file("/boot/vmlinuz-1", "")
            .file("/boot/initrd.img-1", "")
            .tree();
        // And the initramfs of the same version, though the entry has none.
        assert_eq!(
            paths(&find(&tree, "@").located[0]),
            ("/boot/vmlinuz-1".into(), vec!["/boot/initrd.img-1".into()])
        );
    }

    #[test]
    fn what_is_missing_is_named_and_the_next_is_taken() {
        let cfg = "menuentry x {\n linux /boot/vmlinuz-2\n}\nmenuentry y {\n linux /boot/vmlinuz-1\n}\n";
        let tree = Fake::default().file("/boot/grub/grub.cfg", cfg).file("/boot/vmlinuz-1", "").tree();
        let found = find(&tree, "");
        assert_eq!(found.located[0].kernel.path, "/boot/vmlinuz-1");
        assert_eq!(found.notes, ["/boot/vmlinuz-2, which /boot/grub/grub.cfg names, cannot be found"]);
    }

    #[test]
    fn without_a_loader_the_newest_file() {
        let tree = Fake::default()
            .file("/boot/vmlinuz-6.1.0-9", "")
            .file("/boot/vmlinuz-6.1.0-10", "")
            .file("/boot/initrd.img-6.1.0-10", "")
            .file("/etc/default/grub", "GRUB_CMDLINE_LINUX='a=b'")
            .link("/vmlinuz", "boot/vmlinuz-6.1.0-9")
            .tree();
        let found = find(&tree, "");
        assert_eq!(
            paths(&found.located[0]),
            ("/boot/vmlinuz-6.1.0-10".into(), vec!["/boot/initrd.img-6.1.0-10".into()])
        );
        assert_eq!(
            (found.located[0].entry.origin, found.located[0].entry.args.as_str()),
            (Origin::Files, "a=b")
        );
        assert_eq!(found.located.last().unwrap().kernel.path, "/vmlinuz");
    }

    #[test]
    fn a_unified_kernel_image_on_the_esp() {
        let uki = fake_uki(
            0x8664,
            &[
                (".linux", b"kernel"),
                (".initrd", b"ii"),
                (".cmdline", b"root=UUID=a ro\0"),
                (".uname", b"6.9\n"),
            ],
        );
        let mut tree = Fake::default().file("/etc/os-release", "").tree();
        let esp = Fake::default().file("/EFI/Linux/x-6.8.efi", "no").file("/EFI/Linux/x-6.9.efi", &uki);
        tree.mount("/boot/efi", Box::new(esp));
        let found = find(&tree, "");
        let first = &found.located[0];
        assert_eq!((first.entry.args.trim(), first.version.as_deref()), ("root=UUID=a ro", Some("6.9")));
        assert_eq!(first.kernel.range.unwrap().len, 6);
        assert_eq!(first.initrds[0].range.unwrap().len, 2);
        assert!(found.notes[0].contains("x-6.8.efi is no unified"), "{:?}", found.notes);
    }
}
