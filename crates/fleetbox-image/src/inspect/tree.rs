//! The file systems of an image as one tree, with links that never lead out of it.

use super::fs::{FileSystem, FsError, Kind, ReadFile, Stat};

/// As in Linux (MAXSYMLINKS).
const MAX_LINKS: usize = 40;
/// As in Linux (PATH_MAX); also what links may grow a path to.
const MAX_PATH: usize = 4096;

/// File systems at their mount points; the first is the root.
pub(super) struct Tree {
    mounts: Vec<Mount>,
}

struct Mount {
    /// Free of links; without a slash at its end, so the root's is empty.
    at: String,
    fs: Box<dyn FileSystem>,
}

/// A path without links, `.` and `..`, and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: String,
    pub(super) stat: Stat,
}

impl Tree {
    pub(super) fn new(root: Box<dyn FileSystem>) -> Self {
        Self { mounts: vec![Mount { at: String::new(), fs: root }] }
    }

    /// Mounts a file system on a folder, which need not exist: an ESP is read even where nothing is prepared for it.
    pub(super) fn mount(&mut self, at: &str, fs: Box<dyn FileSystem>) {
        let at = self.resolve(at).map_or_else(|_| at.to_owned(), |f| f.path);
        self.mounts.push(Mount { at: at.trim_end_matches('/').to_owned(), fs });
    }

    pub(super) fn root(&self) -> &dyn FileSystem {
        self.mounts[0].fs.as_ref()
    }

    pub(super) fn file_systems(&self) -> impl Iterator<Item = &dyn FileSystem> {
        self.mounts.iter().map(|m| m.fs.as_ref())
    }

    /// Where the file system that holds a folder is mounted; empty for the root.
    pub(super) fn mount_of(&self, path: &str) -> &str {
        &self.place(path).0.at
    }

    /// The mount that a resolved path is in, and the path inside of it.
    fn place<'p>(&self, path: &'p str) -> (&Mount, &'p str) {
        self.mounts
            .iter()
            .filter_map(|m| {
                let inside = path.strip_prefix(m.at.as_str())?;
                (inside.is_empty() || inside.starts_with('/')).then_some((m, inside))
            })
            .max_by_key(|(m, _)| m.at.len())
            .map_or((&self.mounts[0], path), |(m, inside)| (m, if inside.is_empty() { "/" } else { inside }))
    }

    fn look(&self, path: &str) -> Result<Stat, FsError> {
        let (mount, inside) = self.place(path);
        mount.fs.stat(inside)
    }

    /// Follows all links, absolute ones from the image's root, `..` never above it.
    pub(super) fn resolve(&self, path: &str) -> Result<Found, FsError> {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done = String::new();
        let mut links = 0;
        let root = Stat { kind: Kind::Folder, len: 0, mtime: (0, 0) };
        let mut stat = root;
        while let Some(name) = todo.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    done.truncate(done.rfind('/').unwrap_or(0));
                    stat = root;
                    continue;
                }
                _ if stat.kind != Kind::Folder => return Err(FsError::NotAFolder),
                _ => {}
            }
            let next = format!("{done}/{name}");
            if next.len() > MAX_PATH {
                return Err(FsError::TooManyLinks);
            }
            let found = match self.look(&next) {
                _ if self.mounts.iter().any(|m| m.at == next) => root,
                // On the way to where something is mounted that the image has no folder for.
                Err(FsError::NotFound)
                    if self.mounts.iter().any(|m| m.at.starts_with(&format!("{next}/"))) =>
                {
                    root
                }
                found => found?,
            };
            if found.kind != Kind::Link {
                (done, stat) = (next, found);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(FsError::TooManyLinks);
            }
            let (mount, inside) = self.place(&next);
            let target = mount.fs.read_link(inside)?;
            if target.len() > MAX_PATH || todo.len() > MAX_PATH {
                return Err(FsError::TooManyLinks);
            }
            if target.starts_with('/') {
                done.clear();
            }
            stat = root;
            todo.extend(target.split('/').rev().map(str::to_owned));
        }
        if done.is_empty() {
            done.push('/');
        }
        Ok(Found { path: done, stat })
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.resolve(path).is_ok()
    }

    pub(super) fn is_file(&self, path: &str) -> bool {
        self.resolve(path).is_ok_and(|f| f.stat.kind == Kind::File)
    }

    /// Names in a folder, sorted; none when there is no such folder.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let Ok(found) = self.resolve(path) else { return Vec::new() };
        let (mount, inside) = self.place(&found.path);
        let mut names = mount.fs.list(inside).unwrap_or_default();
        names.sort();
        names
    }

    /// A plain file, by a path that may have links.
    pub(super) fn open(&self, path: &str) -> Result<(Found, Box<dyn ReadFile>), FsError> {
        let found = self.resolve(path)?;
        if found.stat.kind != Kind::File {
            return Err(FsError::NotAFile);
        }
        let (mount, inside) = self.place(&found.path);
        let file = mount.fs.open(inside)?;
        Ok((found, file))
    }

    /// The first bytes of a file, at most `max`.
    pub(super) fn head(&self, path: &str, max: usize) -> Result<Vec<u8>, FsError> {
        let (found, mut file) = self.open(path)?;
        let len = usize::try_from(found.stat.len).unwrap_or(usize::MAX).min(max);
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            match file.read(&mut bytes[done..])? {
                0 => break,
                n => done += n,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    /// A text file of at most `max` bytes; what is no UTF-8 is replaced.
    pub(super) fn text(&self, path: &str, max: u64) -> Result<String, FsError> {
        let len = self.resolve(path)?.stat.len;
        if len > max {
            return Err(FsError::TooLarge { len, max });
        }
        Ok(String::from_utf8_lossy(&self.head(path, len as usize)?).into_owned())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A tree in memory: a fake beside the real readers.
    #[derive(Debug, Default, Clone)]
    pub(in crate::inspect) struct Fake(pub(in crate::inspect) BTreeMap<String, What>);

    #[derive(Debug, Clone)]
    pub(in crate::inspect) enum What {
        File(Vec<u8>),
        Link(String),
    }

    impl Fake {
        pub(in crate::inspect) fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
            self.0.insert(path.into(), What::File(content.as_ref().to_vec()));
            self
        }

        pub(in crate::inspect) fn link(mut self, path: &str, to: &str) -> Self {
            self.0.insert(path.into(), What::Link(to.into()));
            self
        }

        pub(in crate::inspect) fn tree(self) -> Tree {
            Tree::new(Box::new(self))
        }
    }

    struct Content(Vec<u8>, usize);

    impl ReadFile for Content {
        fn read(&mut self, to: &mut [u8]) -> Result<usize, FsError> {
            let n = to.len().min(self.0.len() - self.1).min(7);
            to[..n].copy_from_slice(&self.0[self.1..self.1 + n]);
            self.1 += n;
            Ok(n)
        }
    }

    impl FileSystem for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }
        fn uuid(&self) -> Option<String> {
            Some("0000-FAKE".into())
        }
        fn label(&self) -> Option<String> {
            None
        }
        fn stat(&self, path: &str) -> Result<Stat, FsError> {
            let (kind, len) = match self.0.get(path) {
                Some(What::File(content)) => (Kind::File, content.len() as u64),
                Some(What::Link(to)) => (Kind::Link, to.len() as u64),
                None if self.0.keys().any(|k| k.starts_with(&format!("{path}/"))) => (Kind::Folder, 0),
                None => return Err(FsError::NotFound),
            };
            Ok(Stat { kind, len, mtime: (1, 2) })
        }
        fn read_link(&self, path: &str) -> Result<String, FsError> {
            match self.0.get(path) {
                Some(What::Link(to)) => Ok(to.clone()),
                _ => Err(FsError::NotAFile),
            }
        }
        fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
            let prefix = format!("{}/", path.trim_end_matches('/'));
            let mut names: Vec<String> = self
                .0
                .keys()
                .filter_map(|k| k.strip_prefix(&prefix)?.split('/').next().map(str::to_owned))
                .collect();
            names.dedup();
            Ok(names)
        }
        fn open(&self, path: &str) -> Result<Box<dyn ReadFile>, FsError> {
            match self.0.get(path) {
                Some(What::File(content)) => Ok(Box::new(Content(content.clone(), 0))),
                _ => Err(FsError::NotAFile),
            }
        }
    }

    #[test]
    fn links_stay_inside() {
        let tree = Fake::default()
            .file("/usr/lib/os-release", "ID=x")
            .file("/boot/vmlinuz-1", "kernel")
            .link("/etc/os-release", "../usr/lib/os-release")
            .link("/vmlinuz", "boot/vmlinuz-1")
            .link("/boot/up", "../../../../boot/./vmlinuz-1")
            .link("/lib", "/usr/lib")
            .link("/a", "b")
            .link("/b", "/a")
            .link("/dangling", "/nowhere/x")
            .link("/through", "/boot/vmlinuz-1/x")
            .tree();
        let path = |p: &str| tree.resolve(p).map(|f| f.path);
        assert_eq!(path("/etc/os-release").unwrap(), "/usr/lib/os-release");
        assert_eq!(path("/vmlinuz").unwrap(), "/boot/vmlinuz-1");
        assert_eq!(path("/boot/up").unwrap(), "/boot/vmlinuz-1");
        assert_eq!(path("/lib/../lib/os-release").unwrap(), "/usr/lib/os-release");
        assert_eq!(path("/..").unwrap(), "/");
        assert!(matches!(path("/a"), Err(FsError::TooManyLinks)));
        assert!(matches!(path("/dangling"), Err(FsError::NotFound)));
        assert!(matches!(path("/through"), Err(FsError::NotAFolder)));
        assert!(matches!(tree.open("/usr/lib"), Err(FsError::NotAFile)));
        assert_eq!(tree.text("/etc/os-release", 10).unwrap(), "ID=x");
        assert!(matches!(tree.text("/etc/os-release", 3), Err(FsError::TooLarge { len: 4, max: 3 })));
    }

    #[test]
    fn mounts_cover_what_is_below() {
        let mut tree = Fake::default().file("/boot/hidden", "").file("/etc/x", "").tree();
        tree.mount(
            "/boot",
            Box::new(Fake::default().file("/vmlinuz-1", "k").link("/self", "/boot/vmlinuz-1")),
        );
        tree.mount("/boot/efi", Box::new(Fake::default().file("/EFI/x.efi", "")));
        assert!(!tree.exists("/boot/hidden"));
        assert!(
            tree.is_file("/boot/vmlinuz-1")
                && tree.is_file("/boot/self")
                && tree.is_file("/boot/efi/EFI/x.efi")
        );
        assert_eq!(
            (tree.mount_of("/boot/vmlinuz-1"), tree.mount_of("/bootx"), tree.mount_of("/boot/efi/EFI")),
            ("/boot", "", "/boot/efi")
        );
        assert_eq!(tree.list("/boot"), ["self", "vmlinuz-1"]);
    }

    proptest! {
        #[test]
        fn any_links_end(links in proptest::collection::btree_map("/[ab](/[ab]){0,2}", "(/|(\\.\\./){0,3})[ab](/[ab.]){0,3}", 0..8), path in "(/[ab.]){0,5}") {
            let tree = Fake(links.into_iter().map(|(k, v)| (k, What::Link(v))).collect()).tree();
            if let Ok(found) = tree.resolve(&path) {
                prop_assert!(found.path.starts_with('/') && !found.path.contains("/.."));
            }
        }
    }
}
