//! btrfs on one device, read only, with its subvolumes.
//!
//! Layout: btrfs.readthedocs.io "On-disk Format" and Linux' include/uapi/linux/btrfs_tree.h. The log tree (what was
//! fsynced since the last commit) is not replayed; a clean unmount leaves none.
//!
//! Own code, because the crate that exists wants the whole disk in memory as one slice.

mod file;
mod tree;

use std::ops::ControlFlow;
use std::rc::Rc;

use super::{FileSystem, FsError, Kind, ReadFile, Stat, components};
use crate::inspect::bytes::{field, le16, le32, le64, uuid};
use crate::inspect::disk::Window;

use tree::{Key, Root, Trees};

/// Features that change where things are: zoned devices, extent tree v2, RAID stripe tree, remap tree.
const UNREADABLE: u64 = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;
const FIRST_INODE: u64 = 256;
const TOP_LEVEL: u64 = 5;
const ROOT_TREE_DIR: u64 = 6;
/// Subvolumes that are looked at; snapshots can be many.
const MAX_SUBVOLUMES: usize = 256;

const INODE_ITEM: u8 = 1;
const INODE_REF: u8 = 12;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
const EXTENT_DATA: u8 = 108;
const ROOT_ITEM: u8 = 132;
const ROOT_BACKREF: u8 = 144;

/// A subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::inspect) struct Subvolume {
    pub(in crate::inspect) id: u64,
    /// Its path from the top level, without a slash in front; empty for the top level itself.
    pub(in crate::inspect) path: String,
    /// It is mounted when no subvolume is named.
    pub(in crate::inspect) default: bool,
}

/// A subvolume as a file system.
pub(in crate::inspect) struct Btrfs {
    trees: Rc<Trees>,
    top: Root,
    uuid: Option<String>,
    label: Option<String>,
    has_log: bool,
}

/// An inode of a subvolume.
#[derive(Debug, Clone, Copy)]
struct Node {
    root: Root,
    inode: u64,
}

#[derive(Debug)]
struct Entry {
    name: Vec<u8>,
    target: Key,
}

impl Btrfs {
    /// The subvolume of an id; `None`: the default one.
    pub(in crate::inspect) fn open(window: Window, subvolume: Option<u64>) -> Result<Self, FsError> {
        let sb = window.bytes(64 << 10, 4096)?;
        if &sb[64..72] != b"_BHRfS_M" {
            return Err(FsError::Damaged("it has no btrfs magic"));
        }
        let incompat = le64(&sb, 188);
        if incompat & UNREADABLE != 0 {
            let bits = incompat & UNREADABLE;
            return Err(FsError::Unsupported(format!("btrfs with the incompatible features {bits:#x}")));
        }
        if le64(&sb, 136) != 1 {
            return Err(FsError::Unsupported("btrfs on more than one device".to_owned()));
        }
        let trees = Rc::new(Trees::open(window, &sb)?);
        let mut fs = Self {
            top: trees.root_tree,
            trees,
            uuid: uuid(&sb[32..48]),
            label: field(&sb[299..555]),
            has_log: le64(&sb, 96) != 0,
        };
        fs.top = fs.subvolume_root(match subvolume {
            Some(id) => id,
            None => fs.default_id()?,
        })?;
        Ok(fs)
    }

    fn subvolume_root(&self, id: u64) -> Result<Root, FsError> {
        let mut root = None;
        self.trees.range(
            self.trees.root_tree,
            Key(id, ROOT_ITEM, 0),
            Key(id, ROOT_ITEM, u64::MAX),
            &mut |_, item| {
                if item.len() >= 239 {
                    root = Some(Root { at: le64(item, 176), level: item[238] });
                }
                Ok(ControlFlow::Continue(()))
            },
        )?;
        root.ok_or(FsError::Damaged("a subvolume has no root"))
    }

    fn default_id(&self) -> Result<u64, FsError> {
        let mut id = TOP_LEVEL;
        let dir = (Key(ROOT_TREE_DIR, DIR_ITEM, 0), Key(ROOT_TREE_DIR, DIR_ITEM, u64::MAX));
        self.trees.range(self.trees.root_tree, dir.0, dir.1, &mut |_, item| {
            for entry in entries(item)? {
                if entry.name == b"default" && entry.target.1 == ROOT_ITEM {
                    id = entry.target.0;
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(id)
    }

    /// All subvolumes, the default one first, then by id.
    pub(in crate::inspect) fn subvolumes(&self) -> Result<Vec<Subvolume>, FsError> {
        let default = self.default_id()?;
        let mut parents: Vec<(u64, u64, u64, Vec<u8>)> = Vec::new();
        let all = (Key(FIRST_INODE, 0, 0), Key(u64::MAX, u8::MAX, u64::MAX));
        self.trees.range(self.trees.root_tree, all.0, all.1, &mut |key, item| {
            if key.1 == ROOT_BACKREF {
                let name = item.get(18..18 + usize::from(le16(item, 16)));
                let name = name.ok_or(FsError::Damaged("a subvolume's name is cut short"))?;
                parents.push((key.0, key.2, le64(item, 0), name.to_vec()));
            }
            Ok(if parents.len() < MAX_SUBVOLUMES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        let mut found = vec![Subvolume { id: TOP_LEVEL, path: String::new(), default: default == TOP_LEVEL }];
        for (id, ..) in &parents {
            if let Some(path) = self.path_of(*id, &parents)? {
                found.push(Subvolume { id: *id, path, default: *id == default });
            }
        }
        found.sort_by_key(|s| (!s.default, s.id));
        found.dedup_by_key(|s| s.id);
        Ok(found)
    }

    /// `None` when it is not reachable from the top level, or its name is not text.
    fn path_of(&self, mut id: u64, parents: &[(u64, u64, u64, Vec<u8>)]) -> Result<Option<String>, FsError> {
        let mut names = Vec::new();
        while id != TOP_LEVEL {
            let Some((_, parent, folder, name)) = parents.iter().find(|p| p.0 == id) else { return Ok(None) };
            names.push(name.clone());
            let (root, mut inode) = (self.subvolume_root(*parent)?, *folder);
            while inode != FIRST_INODE {
                let Some((above, name)) = self.parent(root, inode)? else { return Ok(None) };
                names.push(name);
                inode = above;
                if names.len() > 64 {
                    return Err(FsError::Damaged("its folders form a ring"));
                }
            }
            id = *parent;
            if names.len() > 64 {
                return Err(FsError::Damaged("its subvolumes form a ring"));
            }
        }
        names.reverse();
        Ok(String::from_utf8(names.join(&b'/')).ok())
    }

    fn parent(&self, root: Root, inode: u64) -> Result<Option<(u64, Vec<u8>)>, FsError> {
        let mut found = None;
        let range = (Key(inode, INODE_REF, 0), Key(inode, INODE_REF, u64::MAX));
        self.trees.range(root, range.0, range.1, &mut |key, item| {
            let name = item.get(10..10 + usize::from(le16(item, 8)));
            found = name.map(|n| (key.2, n.to_vec()));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    fn find(&self, path: &str) -> Result<Node, FsError> {
        let mut node = Node { root: self.top, inode: FIRST_INODE };
        for name in components(path) {
            if self.inode(node)?.kind != Kind::Folder {
                return Err(FsError::NotAFolder);
            }
            let mut target = None;
            self.each_entry(node, &mut |entry| {
                if entry.name == name.as_bytes() {
                    target = Some(entry.target);
                }
                target.is_none()
            })?;
            node = match target.ok_or(FsError::NotFound)? {
                Key(inode, INODE_ITEM, _) => Node { root: node.root, inode },
                // A subvolume inside of this one is seen as a folder.
                Key(id, ROOT_ITEM, _) => Node { root: self.subvolume_root(id)?, inode: FIRST_INODE },
                _ => return Err(FsError::Damaged("an entry of a folder leads nowhere")),
            };
        }
        Ok(node)
    }

    fn each_entry(&self, node: Node, each: &mut dyn FnMut(Entry) -> bool) -> Result<(), FsError> {
        let range = (Key(node.inode, DIR_INDEX, 0), Key(node.inode, DIR_INDEX, u64::MAX));
        self.trees.range(node.root, range.0, range.1, &mut |_, item| {
            for entry in entries(item)? {
                if !each(entry) {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn inode(&self, node: Node) -> Result<Stat, FsError> {
        let mut stat = None;
        let key = Key(node.inode, INODE_ITEM, 0);
        self.trees.range(node.root, key, key, &mut |_, item| {
            if item.len() < 160 {
                return Err(FsError::Damaged("an inode is cut short"));
            }
            let kind = match le32(item, 52) & 0xf000 {
                0x8000 => Kind::File,
                0x4000 => Kind::Folder,
                0xa000 => Kind::Link,
                _ => Kind::Other,
            };
            let mtime = (le64(item, 136).cast_signed(), le32(item, 144));
            stat = Some(Stat { kind, len: le64(item, 16), mtime });
            Ok(ControlFlow::Break(()))
        })?;
        stat.ok_or(FsError::Damaged("an entry of a folder leads to no inode"))
    }
}

/// The entries in a DIR_ITEM or DIR_INDEX: several when their names' hashes are equal.
fn entries(mut item: &[u8]) -> Result<Vec<Entry>, FsError> {
    let mut found = Vec::new();
    while !item.is_empty() {
        let (data_len, name_len) = (usize::from(le16(item, 25)), usize::from(le16(item, 27)));
        let name =
            item.get(30..30 + name_len).ok_or(FsError::Damaged("an entry of a folder is cut short"))?;
        found.push(Entry { name: name.to_vec(), target: Key(le64(item, 0), item[8], le64(item, 9)) });
        item = item.get(30 + name_len + data_len..).unwrap_or_default();
    }
    Ok(found)
}

impl FileSystem for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn unreplayed(&self) -> Option<&'static str> {
        self.has_log.then_some(
            "the log of its btrfs was not replayed: what was written in the last seconds before a crash is not seen",
        )
    }

    fn stat(&self, path: &str) -> Result<Stat, FsError> {
        self.inode(self.find(path)?)
    }

    fn read_link(&self, path: &str) -> Result<String, FsError> {
        let node = self.find(path)?;
        let stat = self.inode(node)?;
        if stat.kind != Kind::Link {
            return Err(FsError::NotAFile);
        }
        if stat.len > 4096 {
            return Err(FsError::TooLarge { len: stat.len, max: 4096 });
        }
        let mut file = file::open(&self.trees, node, stat.len)?;
        let mut target = vec![0; stat.len as usize];
        let mut done = 0;
        while done < target.len() {
            match file.read(&mut target[done..])? {
                0 => return Err(FsError::Damaged("a link is cut short")),
                n => done += n,
            }
        }
        String::from_utf8(target).map_err(|_| FsError::Damaged("a link is not text"))
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        let node = self.find(path)?;
        if self.inode(node)?.kind != Kind::Folder {
            return Err(FsError::NotAFolder);
        }
        let mut names = Vec::new();
        self.each_entry(node, &mut |entry| {
            names.extend(String::from_utf8(entry.name));
            names.len() < super::MAX_ENTRIES
        })?;
        Ok(names)
    }

    fn open(&self, path: &str) -> Result<Box<dyn ReadFile>, FsError> {
        let node = self.find(path)?;
        let stat = self.inode(node)?;
        if stat.kind != Kind::File {
            return Err(FsError::NotAFile);
        }
        Ok(Box::new(file::open(&self.trees, node, stat.len)?))
    }
}
