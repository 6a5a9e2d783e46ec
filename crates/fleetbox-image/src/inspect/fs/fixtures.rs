//! The readers on file systems that Linux and mkfs wrote: testdata/make.sh.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::inspect::disk::ReadAt;
use crate::inspect::tree::Tree;

fn unpacked(packed: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut pieces = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(packed).unwrap().read_to_end(&mut pieces).unwrap();
    let (len, mut rest) = pieces.split_at(8);
    let mut disk = vec![0u8; u64::from_le_bytes(len.try_into().unwrap()) as usize];
    while let Some((head, tail)) = rest.split_at_checked(12) {
        let at = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
        let len = u32::from_le_bytes(head[8..].try_into().unwrap()) as usize;
        disk[at..at + len].copy_from_slice(&tail[..len]);
        rest = &tail[len..];
    }
    disk
}

pub(in crate::inspect) static XFS: LazyLock<Vec<u8>> =
    LazyLock::new(|| unpacked(include_bytes!("../testdata/xfs.zst")));
pub(in crate::inspect) static BTRFS: LazyLock<Vec<u8>> =
    LazyLock::new(|| unpacked(include_bytes!("../testdata/btrfs.zst")));
/// Shut down by force after a change, and not unmounted.
pub(in crate::inspect) static XFS_DIRTY: LazyLock<Vec<u8>> =
    LazyLock::new(|| unpacked(include_bytes!("../testdata/xfs-dirty.zst")));
static FAT: LazyLock<Vec<u8>> = LazyLock::new(|| unpacked(include_bytes!("../testdata/fat.zst")));

/// A disk with some bytes changed.
struct Changed(&'static [u8], BTreeMap<u64, u8>);

impl ReadAt for Changed {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let end = at + to.len() as u64;
        let from = self.0.get(at as usize..end as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        to.copy_from_slice(from);
        for (place, byte) in self.1.range(at..end) {
            to[(place - at) as usize] = *byte;
        }
        Ok(())
    }
}

fn window(disk: &'static [u8], changes: BTreeMap<u64, u8>) -> Window {
    Window::new(Rc::new(Changed(disk, changes)), 0, disk.len() as u64)
}

fn whole(tree: &Tree, path: &str) -> Vec<u8> {
    tree.head(path, 4 << 20).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 7 % 251) as u8).collect()
}

/// What `fill` of make.sh makes.
fn check_filled(tree: &Tree) {
    assert_eq!(tree.text("/etc/os-release", 1000).unwrap().lines().next(), Some("ID=test"));
    assert!(whole(tree, "/boot/data") == pattern(300_000));
    assert_eq!(whole(tree, "/boot/short"), b"short");
    let holes: Vec<u8> =
        (0..200u32).flat_map(|i| [vec![(i + 1) as u8; 4096], vec![0; 4096]].concat()).collect();
    assert!(whole(tree, "/boot/holes") == holes);
    // Through a folder that is not there, so it leads nowhere, as in Linux.
    assert!(matches!(tree.resolve("/boot/long-link"), Err(FsError::NotFound)));
    assert_eq!(tree.root().read_link("/boot/long-link").unwrap().len(), 1 + 600 + "/../boot/short".len());
    let mut want: Vec<String> = (1..=2000).map(|i| format!("a-rather-long-name-of-a-program-{i}")).collect();
    want.sort();
    assert_eq!(tree.list("/usr/bin"), want);
    assert!(tree.is_file("/usr/bin/a-rather-long-name-of-a-program-1999"));
    assert!(matches!(tree.resolve("/usr/bin/none"), Err(FsError::NotFound)));
    assert!(matches!(tree.resolve("/boot/short/x"), Err(FsError::NotAFolder)));
    let time = tree.resolve("/boot/data").unwrap().stat.mtime;
    assert!(time.0 > 1_700_000_000 && time.0 < 4_000_000_000 && time.1 < 1_000_000_000, "{time:?}");
}

#[test]
fn xfs() {
    let window = window(&XFS, BTreeMap::new());
    assert_eq!(probe(&window).unwrap(), Holds::Xfs);
    let tree = Tree::new(open(Holds::Xfs, &window).unwrap().unwrap());
    let fs = tree.root();
    assert_eq!(fs.uuid().as_deref(), Some("11111111-2222-4333-8444-555555555555"));
    assert_eq!(fs.label().as_deref(), Some("xfslabel"));
    assert_eq!(fs.unreplayed(), None, "it was unmounted");
    check_filled(&tree);
}

#[test]
fn btrfs_with_subvolumes_and_compression() {
    let window = window(&BTRFS, BTreeMap::new());
    assert_eq!(probe(&window).unwrap(), Holds::Btrfs);
    let default = Btrfs::open(window.clone(), None).unwrap();
    assert_eq!(default.uuid().as_deref(), Some("11111111-2222-4333-8444-666666666666"));
    assert_eq!(default.label().as_deref(), Some("btrfslabel"));
    assert_eq!(default.unreplayed(), None);
    let subvolumes = default.subvolumes().unwrap();
    let paths: Vec<(&str, bool)> = subvolumes.iter().map(|s| (s.path.as_str(), s.default)).collect();
    assert_eq!(paths, [("nested/default", true), ("", false), ("@", false), ("@home", false)]);
    assert_eq!(whole(&Tree::new(Box::new(default)), "/which"), b"default");
    let id = subvolumes.iter().find(|s| s.path == "@").unwrap().id;
    let tree = Tree::new(Box::new(Btrfs::open(window.clone(), Some(id)).unwrap()));
    check_filled(&tree);
    for how in ["zlib", "lzo", "zstd"] {
        assert!(whole(&tree, &format!("/boot/{how}")) == pattern(300_000), "{how}");
        let inline = whole(&tree, &format!("/boot/inline-{how}"));
        assert_eq!(String::from_utf8(inline).unwrap(), format!("inline {how} inline {how}"));
    }
    // From the top level, subvolumes are folders.
    let top = Tree::new(Box::new(Btrfs::open(window, Some(5)).unwrap()));
    assert_eq!(whole(&top, "/@/boot/short"), b"short");
    assert_eq!(whole(&top, "/nested/default/which"), b"default");
}

#[test]
fn fat() {
    let window = window(&FAT, BTreeMap::new());
    assert_eq!(probe(&window).unwrap(), Holds::Fat);
    let tree = Tree::new(open(Holds::Fat, &window).unwrap().unwrap());
    assert_eq!(tree.root().uuid().as_deref(), Some("ABCD-1234"));
    assert_eq!(tree.root().label().as_deref(), Some("ESP"));
    assert_eq!(tree.list("/EFI/Linux"), ["SHORT.EFI", "a-long-name-of-some-sort-6.1.efi"]);
    for name in ["a-long-name-of-some-sort-6.1.efi", "A-LONG-NAME-of-some-sort-6.1.EFI", "short.efi"] {
        assert!(whole(&tree, &format!("/efi/linux/{name}")) == pattern(30_000), "{name}");
    }
    assert!(tree.text("/loader/entries/x.conf", 100).unwrap().starts_with("title x"));
    assert!(matches!(tree.resolve("/EFI/none"), Err(FsError::NotFound)));
}

/// Reads whatever there is to read.
fn wander(fs: Result<Box<dyn FileSystem>, FsError>) {
    let Ok(fs) = fs else { return };
    let _ = (fs.uuid(), fs.label(), fs.unreplayed());
    let tree = Tree::new(fs);
    for folder in ["/", "/boot", "/etc", "/EFI/Linux", "/loader/entries"] {
        for name in tree.list(folder).iter().take(20) {
            let _ = tree.head(&format!("{folder}/{name}"), 400 << 10);
        }
    }
    let _ = tree.list("/usr/bin");
}

/// The places where a file system has anything at all.
fn full_places(disk: &'static [u8]) -> Vec<u64> {
    (0..disk.len())
        .step_by(512)
        .filter(|&at| disk[at..at + 512].iter().any(|&b| b != 0))
        .map(|at| at as u64)
        .collect()
}

fn changes(full: &[u64], damage: Vec<(prop::sample::Index, u16, u8)>) -> BTreeMap<u64, u8> {
    damage
        .into_iter()
        .map(|(sector, at, byte)| (full[sector.index(full.len())] + u64::from(at % 512), byte))
        .collect()
}

fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u16, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u16>(), any::<u8>()), 1..400)
}

static FULL: LazyLock<[Vec<u64>; 3]> =
    LazyLock::new(|| [full_places(&XFS), full_places(&BTRFS), full_places(&FAT)]);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn damage_never_panics(xfs in damage(), btrfs in damage(), fat in damage()) {
        wander(open(Holds::Xfs, &window(&XFS, changes(&FULL[0], xfs))).unwrap());
        wander(open(Holds::Fat, &window(&FAT, changes(&FULL[2], fat))).unwrap());
        let window = window(&BTRFS, changes(&FULL[1], btrfs));
        if let Ok(fs) = Btrfs::open(window.clone(), Some(5)) {
            if let Ok(all) = fs.subvolumes() {
                for s in all {
                    wander(Btrfs::open(window.clone(), Some(s.id)).map(|f| Box::new(f) as _));
                }
            }
            wander(Ok(Box::new(fs)));
        }
    }

    /// Damage where it hurts most: the superblocks, and in btrfs the trees' roots.
    #[test]
    fn damaged_superblocks_never_panic(bytes in proptest::collection::vec((0u64..512, any::<u8>()), 1..12)) {
        let at = |base: u64| bytes.iter().map(|&(i, b)| (base + i, b)).collect::<BTreeMap<_, _>>();
        wander(open(Holds::Xfs, &window(&XFS, at(0))).unwrap());
        wander(open(Holds::Fat, &window(&FAT, at(0))).unwrap());
        wander(open(Holds::Btrfs, &window(&BTRFS, at(64 << 10))).unwrap());
        wander(open(Holds::Btrfs, &window(&BTRFS, at((64 << 10) + 500))).unwrap());
    }
}
