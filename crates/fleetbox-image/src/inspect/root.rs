//! Which file system is the root, what is mounted below it, and the kernel arguments that name it.

use super::fs::{Holds, Subvolume};
use super::loader::{Args, Located, Origin};
use super::partition::Purpose;
use super::system;
use super::tree::Tree;
use super::volumes::{Volume, fstab, identify};

const MAX_FSTAB: u64 = 64 << 10;

/// A root file system with what belongs below it.
pub(super) struct Root {
    /// Its place among the volumes.
    pub(super) volume: usize,
    /// On btrfs.
    pub(super) subvolume: Option<Subvolume>,
    pub(super) tree: Tree,
    /// The volume that is /boot.
    pub(super) boot: Option<usize>,
    pub(super) notes: Vec<String>,
}

impl Root {
    /// Empty without a subvolume, and for the top level.
    pub(super) fn subvolume_path(&self) -> &str {
        self.subvolume.as_ref().map_or("", |s| &s.path)
    }
}

/// A root by its place: a volume, and on btrfs a subvolume's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    volume: usize,
    subvolume: Option<String>,
}

struct Candidate {
    volume: usize,
    subvolume: Option<Subvolume>,
    tree: Tree,
    score: u32,
}

/// Finds the root: the one that is named, else the likeliest.
pub(super) fn find(volumes: &[Volume], named: Option<Named>, notes: &mut Vec<String>) -> Option<Root> {
    let mut all = candidates(volumes);
    let best = match &named {
        Some(named) => all.iter().position(|c| is(c, named))?,
        // The first of the likeliest.
        None => {
            let top = all.iter().map(|c| c.score).max()?;
            all.iter().position(|c| c.score == top)?
        }
    };
    let chosen = all.swap_remove(best);
    if named.is_none() {
        let mut others: Vec<usize> = all.iter().map(|c| c.volume).filter(|&v| v != chosen.volume).collect();
        others.sort_unstable();
        others.dedup();
        for other in others {
            let (other, place) = (volumes[other].place(), volumes[chosen.volume].place());
            notes.push(format!("{other} holds another system; that of {place} is booted"));
        }
    }
    let Candidate { volume, subvolume, tree, .. } = chosen;
    let mut root = Root { volume, subvolume, tree, boot: None, notes: Vec::new() };
    mount(&mut root, volumes);
    Some(root)
}

fn is(candidate: &Candidate, named: &Named) -> bool {
    candidate.volume == named.volume
        && named
            .subvolume
            .as_ref()
            .is_none_or(|path| candidate.subvolume.as_ref().is_some_and(|s| s.path == *path))
}

fn candidates(volumes: &[Volume]) -> Vec<Candidate> {
    let mut all = Vec::new();
    for (volume, v) in volumes.iter().enumerate() {
        let subvolumes = v.subvolumes();
        let file_systems: Vec<_> = match subvolumes.is_empty() {
            true => v.open().and_then(Result::ok).map(|fs| (None, fs)).into_iter().collect(),
            false => subvolumes
                .into_iter()
                .filter_map(|s| Some((Some(s.clone()), v.open_subvolume(s.id).ok()?)))
                .collect(),
        };
        for (subvolume, fs) in file_systems {
            let mut tree = Tree::new(fs);
            let table = tree.text("/etc/fstab", MAX_FSTAB).unwrap_or_default();
            let table = fstab(&table);
            // os-release lives in /usr, which may be a file system of its own.
            if let Some(usr) = table.iter().find(|m| m.at == "/usr")
                && let Some(Ok(fs)) = identify(&usr.spec, volumes).and_then(|i| volumes[i].open())
            {
                tree.mount("/usr", fs);
            }
            if !system::is_system(&tree) {
                continue;
            }
            let own = table.iter().find(|m| m.at == "/");
            let says_so = own.is_some_and(|m| identify(&m.spec, volumes) == Some(volume));
            let same_subvolume = match (&subvolume, own.and_then(|m| m.subvolume.as_ref())) {
                (Some(s), Some(path)) => s.path == *path,
                _ => false,
            };
            let score = 4 * u32::from(system::has_init(&tree))
                + 3 * u32::from(says_so)
                + 2 * u32::from(v.partition.purpose == Purpose::Root)
                + 2 * u32::from(same_subvolume)
                + u32::from(subvolume.as_ref().is_some_and(|s| s.default));
            all.push(Candidate { volume, subvolume, tree, score });
        }
    }
    all
}

/// Mounts what fstab(5) says, and what it does not say and yet is there: /boot and the EFI system partition.
fn mount(root: &mut Root, volumes: &[Volume]) {
    let text = root.tree.text("/etc/fstab", MAX_FSTAB).unwrap_or_default();
    let mut table = fstab(&text);
    table.retain(|m| matches!(m.at.as_str(), "/boot" | "/boot/efi" | "/efi"));
    table.sort_by_key(|m| m.at.len());
    let mut mounted = vec![root.volume];
    for entry in table {
        let Some(index) = identify(&entry.spec, volumes) else {
            root.notes.push(format!("{} of /etc/fstab, for {}, is not in the image", entry.spec, entry.at));
            continue;
        };
        let volume = &volumes[index];
        let fs = match &entry.subvolume {
            Some(path) => {
                volume.subvolumes().iter().find(|s| s.path == *path).map(|s| volume.open_subvolume(s.id))
            }
            None if index == root.volume => continue,
            None => volume.open(),
        };
        match fs {
            Some(Ok(fs)) => {
                if entry.at == "/boot" && index != root.volume {
                    root.boot = Some(index);
                }
                root.tree.mount(&entry.at, fs);
                mounted.push(index);
            }
            Some(Err(e)) => root.notes.push(format!("{} cannot be read ({})", entry.at, e.text())),
            None => root.notes.push(format!("{} is {}, which is not read", entry.at, volume.holds.name())),
        }
    }
    let free = |mounted: &[usize], i: &usize| !mounted.contains(i);
    if root.boot.is_none() && !has_boot_files(&root.tree, "/boot") {
        let boot = (0..volumes.len())
            .filter(|i| free(&mounted, i))
            .find(|&i| volumes[i].partition.purpose == Purpose::ExtendedBoot || looks_like_boot(&volumes[i]));
        if let Some((i, Some(Ok(fs)))) = boot.map(|i| (i, volumes[i].open())) {
            root.tree.mount("/boot", fs);
            root.boot = Some(i);
            mounted.push(i);
        }
    }
    let esp = (0..volumes.len())
        .filter(|i| free(&mounted, i))
        .find(|&i| volumes[i].partition.purpose == Purpose::Esp && volumes[i].holds == Holds::Fat);
    if let Some(Some(Ok(fs))) = esp.map(|i| volumes[i].open()) {
        root.tree.mount("/boot/efi", fs);
    }
}

fn has_boot_files(tree: &Tree, folder: &str) -> bool {
    tree.list(folder).iter().any(|n| n.starts_with("vmlinu") || n.starts_with("initr") || n == "loader")
}

fn looks_like_boot(volume: &Volume) -> bool {
    let Some(Ok(fs)) = volume.open() else { return false };
    let tree = Tree::new(fs);
    !system::is_system(&tree) && has_boot_files(&tree, "/") && volume.partition.purpose != Purpose::Esp
}

/// The loader of Windows, on an EFI system partition.
pub(super) fn has_windows_loader(volume: &Volume) -> bool {
    let Some(Ok(fs)) = volume.open().filter(|_| volume.holds == Holds::Fat) else { return false };
    Tree::new(fs).exists("/EFI/Microsoft/Boot/bootmgfw.efi")
}

/// The root that the loader names, where that is another than the one at hand.
pub(super) fn named_by(args: &Args, volumes: &[Volume], root: &Root) -> Option<Named> {
    let volume = match &args.root {
        Some(spec) => identify(spec, volumes)?,
        None => root.volume,
    };
    let subvolume = args.subvolume().map(str::to_owned).filter(|_| volumes[volume].holds == Holds::Btrfs);
    let same = volume == root.volume && subvolume.as_deref().is_none_or(|s| s == root.subvolume_path());
    (!same).then_some(Named { volume, subvolume })
}

/// The arguments that name the root: the loader's own where they are true, else by the file system's UUID. With them
/// comes a note where the loader's were not.
pub(super) fn arguments(
    args: &Args,
    root: &Root,
    volumes: &[Volume],
    located: &Located,
) -> Result<(String, Option<String>), String> {
    let volume = &volumes[root.volume];
    let mut note = None;
    let own = args.root.as_deref().filter(|spec| {
        let true_name = identify(spec, volumes) == Some(root.volume);
        if !true_name {
            note = Some(format!(
                "its loader's root={spec} is not in the image; the root file system that was found is used"
            ));
        }
        true_name && !spec.starts_with("/dev/")
    });
    let name = if located.initrds.is_empty() {
        // The kernel alone knows partitions, not file systems; and a loader that gives no initramfs must mean it.
        match &volume.partition.uuid {
            Some(uuid) if located.entry.origin != Origin::Files => format!("PARTUUID={uuid}"),
            _ => {
                let kernel = located.kernel.path.rsplit('/').next().unwrap_or_default();
                return Err(format!("kernel {kernel} has no initramfs"));
            }
        }
    } else {
        match (own, root.tree.root().uuid(), &volume.partition.uuid) {
            (Some(spec), ..) => spec.to_owned(),
            (None, Some(uuid), _) => format!("UUID={uuid}"),
            (None, None, Some(uuid)) => format!("PARTUUID={uuid}"),
            (None, None, None) => return Err("its root file system has no UUID to name it by".to_owned()),
        }
    };
    let mut words = vec![format!("root={name}")];
    let subvolume = root.subvolume.as_ref().filter(|s| !s.default);
    match (&args.root_flags, subvolume) {
        (Some(flags), _) => words.push(format!("rootflags={flags}")),
        (None, Some(s)) => words.push(format!("rootflags=subvol={}", s.path)),
        (None, None) => {}
    }
    if !args.root_others.iter().any(|w| w == "ro" || w == "rw") {
        words.push("ro".to_owned());
    }
    words.extend(args.root_others.iter().cloned());
    if located.initrds.is_empty() && !words.iter().any(|w| w == "rootwait") {
        words.push("rootwait".to_owned());
    }
    Ok((words.join(" "), note))
}
