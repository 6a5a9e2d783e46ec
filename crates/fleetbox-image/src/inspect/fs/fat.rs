//! FAT12, FAT16 and FAT32 with long names, read only: EFI system partitions.
//!
//! Layout: "Microsoft Extensible Firmware Initiative FAT32 File System Specification", 1.03. There is no journal. Own
//! code: it is two hundred lines, and needs no writing.

use super::{FileSystem, FsError, Kind, MAX_ENTRIES, Piece, Pieces, ReadFile, Stat, components};
use crate::inspect::bytes::{field, le16, le32};
use crate::inspect::disk::Window;

/// 512 MiB in the smallest clusters.
const MAX_CHAIN: usize = 1 << 20;
/// A folder may have 65536 entries of 32 bytes.
const MAX_FOLDER: u64 = 2 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

#[derive(Debug)]
pub(super) struct Fat {
    window: Window,
    width: Width,
    cluster_size: u64,
    table: u64,
    /// Byte position of cluster 2.
    data: u64,
    clusters: u32,
    /// FAT12 and FAT16: the root folder's place and size.
    fixed_root: (u64, u64),
    root_cluster: u32,
    id: u32,
    label: Option<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    short: String,
    folder: bool,
    cluster: u32,
    stat: Stat,
}

impl Fat {
    pub(super) fn open(window: Window) -> Result<Self, FsError> {
        let b = window.bytes(0, 512)?;
        let damaged = |what| FsError::Damaged(what);
        let sector = u64::from(le16(&b, 11));
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
            return Err(damaged("its sector size is impossible"));
        }
        let per_cluster = u64::from(b[13]);
        if !per_cluster.is_power_of_two() {
            return Err(damaged("its cluster size is impossible"));
        }
        let (reserved, tables) = (u64::from(le16(&b, 14)), u64::from(b[16]));
        let root_bytes = u64::from(le16(&b, 17)) * 32;
        let or = |small: u16, large: u32| if small != 0 { u64::from(small) } else { u64::from(large) };
        let (sectors, table_sectors) = (or(le16(&b, 19), le32(&b, 32)), or(le16(&b, 22), le32(&b, 36)));
        let root_start = reserved + tables * table_sectors;
        let data_start = root_start + root_bytes.div_ceil(sector);
        if reserved == 0 || tables == 0 || table_sectors == 0 {
            return Err(damaged("its tables are impossible"));
        }
        let clusters = sectors.checked_sub(data_start).ok_or(damaged("it is too small for its tables"))?;
        let clusters =
            u32::try_from(clusters / per_cluster).map_err(|_| damaged("it has too many clusters"))?;
        let width = match clusters {
            0..4085 => Width::Twelve,
            4085..65525 => Width::Sixteen,
            _ => Width::ThirtyTwo,
        };
        // FAT32 is what has no fixed root folder, whatever its size: mkfs.vfat -F 32 makes small ones.
        let width = if le16(&b, 22) == 0 { Width::ThirtyTwo } else { width };
        let (id, label) = if width == Width::ThirtyTwo { (67, 71) } else { (39, 43) };
        Ok(Self {
            window,
            width,
            cluster_size: sector * per_cluster,
            table: reserved * sector,
            data: data_start * sector,
            clusters,
            fixed_root: (root_start * sector, root_bytes),
            root_cluster: le32(&b, 44),
            id: le32(&b, id),
            label: field(&b[label..label + 11]).filter(|l| l != "NO NAME"),
        })
    }

    /// The cluster after one; `None` at the end of a chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>, FsError> {
        let n = u64::from(cluster);
        let mut raw = [0u8; 4];
        let (at, len) = match self.width {
            Width::Twelve => (n + n / 2, 2),
            Width::Sixteen => (n * 2, 2),
            Width::ThirtyTwo => (n * 4, 4),
        };
        self.window.read(self.table + at, &mut raw[..len])?;
        let value = u32::from_le_bytes(raw);
        let (next, end) = match self.width {
            Width::Twelve if n % 2 == 1 => (value >> 4, 0xff8),
            Width::Twelve => (value & 0xfff, 0xff8),
            Width::Sixteen => (value, 0xfff8),
            Width::ThirtyTwo => (value & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((next < end).then_some(next))
    }

    fn chain(&self, first: u32, len: u64) -> Result<Vec<Piece>, FsError> {
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut at, mut cluster) = (0, Some(first));
        // Never longer than the file: a ring ends there, too.
        while at < len {
            let Some(c) = cluster else { break };
            let index = c.checked_sub(2).filter(|&i| i < self.clusters);
            let index = u64::from(index.ok_or(FsError::Damaged("a cluster is beyond its end"))?);
            let disk = self.data + index * self.cluster_size;
            match pieces.last_mut() {
                Some(p) if p.disk.map(|d| d + p.len) == Some(disk) => p.len += self.cluster_size,
                _ => pieces.push(Piece { at, len: self.cluster_size, disk: Some(disk) }),
            }
            if pieces.len() > MAX_CHAIN {
                return Err(FsError::Unsupported("so scattered a file".to_owned()));
            }
            at += self.cluster_size;
            cluster = self.next(c)?;
        }
        Ok(pieces)
    }

    fn folder(&self, cluster: Option<u32>) -> Result<Vec<Entry>, FsError> {
        let pieces = match cluster {
            Some(cluster) => self.chain(cluster, MAX_FOLDER)?,
            None => vec![Piece { at: 0, len: self.fixed_root.1, disk: Some(self.fixed_root.0) }],
        };
        let len = pieces.iter().map(|p| p.len).sum();
        let mut file = Pieces::new(self.window.clone(), pieces, len)?;
        let (mut entries, mut long, mut raw) = (Vec::new(), Vec::<(u8, [u16; 13])>::new(), [0u8; 32]);
        while entries.len() < MAX_ENTRIES {
            let mut done = 0;
            while done < raw.len() {
                match file.read(&mut raw[done..])? {
                    0 => return Ok(entries),
                    n => done += n,
                }
            }
            match (raw[0], raw[11]) {
                (0, _) => break,
                (0xe5, _) => long.clear(),
                (order, 0x0f) => {
                    let mut part = [0u16; 13];
                    for (i, p) in part.iter_mut().enumerate() {
                        *p = le16(&raw, [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30][i]);
                    }
                    long.push((order & 0x3f, part));
                    // 255 characters at most.
                    long.truncate(20);
                }
                // A label of the volume.
                (_, attributes) if attributes & 0x08 != 0 => long.clear(),
                (_, attributes) => {
                    let short = short_name(&raw);
                    let name = long_name(&mut long).unwrap_or_else(|| short.clone());
                    long.clear();
                    if short == "." || short == ".." {
                        continue;
                    }
                    let folder = attributes & 0x10 != 0;
                    let stat = Stat {
                        kind: if folder { Kind::Folder } else { Kind::File },
                        len: u64::from(le32(&raw, 28)),
                        // Not a time of the clock, but it tells a change.
                        mtime: (i64::from(le32(&raw, 22)), 0),
                    };
                    let cluster = u32::from(le16(&raw, 20)) << 16 | u32::from(le16(&raw, 26));
                    entries.push(Entry { name, short, folder, cluster, stat });
                }
            }
        }
        Ok(entries)
    }

    fn entries(&self, path: &str) -> Result<Vec<Entry>, FsError> {
        let root = (self.width == Width::ThirtyTwo).then_some(self.root_cluster);
        let mut entries = self.folder(root)?;
        for name in components(path) {
            let entry = pick(&entries, name)?;
            if !entry.folder {
                return Err(FsError::NotAFolder);
            }
            entries = self.folder(Some(entry.cluster))?;
        }
        Ok(entries)
    }

    fn find(&self, path: &str) -> Result<Option<Entry>, FsError> {
        let path = path.trim_end_matches('/');
        let Some((parent, name)) = path.rsplit_once('/') else { return Ok(None) };
        Ok(Some(pick(&self.entries(parent)?, name)?.clone()))
    }
}

fn pick<'a>(entries: &'a [Entry], name: &str) -> Result<&'a Entry, FsError> {
    let same = |e: &&Entry| e.name.eq_ignore_ascii_case(name) || e.short.eq_ignore_ascii_case(name);
    entries.iter().find(same).ok_or(FsError::NotFound)
}

fn short_name(raw: &[u8; 32]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (mut name, mut extension) = (text(&raw[..8]), text(&raw[8..11]));
    // Windows NT's and Linux' mark for names in lower case.
    if raw[12] & 0x08 != 0 {
        name.make_ascii_lowercase();
    }
    if raw[12] & 0x10 != 0 {
        extension.make_ascii_lowercase();
    }
    if extension.is_empty() { name } else { format!("{name}.{extension}") }
}

fn long_name(parts: &mut [(u8, [u16; 13])]) -> Option<String> {
    if parts.is_empty() {
        return None;
    }
    parts.sort_by_key(|p| p.0);
    let units: Vec<u16> = parts.iter().flat_map(|p| p.1).take_while(|&u| u != 0 && u != 0xffff).collect();
    String::from_utf16(&units).ok()
}

impl FileSystem for Fat {
    fn name(&self) -> &'static str {
        "vfat"
    }

    fn uuid(&self) -> Option<String> {
        Some(format!("{:04X}-{:04X}", self.id >> 16, self.id & 0xffff))
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn stat(&self, path: &str) -> Result<Stat, FsError> {
        let root = Stat { kind: Kind::Folder, len: 0, mtime: (0, 0) };
        Ok(self.find(path)?.map_or(root, |e| e.stat))
    }

    fn read_link(&self, _: &str) -> Result<String, FsError> {
        Err(FsError::NotAFile)
    }

    fn list(&self, path: &str) -> Result<Vec<String>, FsError> {
        Ok(self.entries(path)?.into_iter().map(|e| e.name).collect())
    }

    fn open(&self, path: &str) -> Result<Box<dyn ReadFile>, FsError> {
        let entry = self.find(path)?.filter(|e| !e.folder).ok_or(FsError::NotAFile)?;
        let pieces =
            if entry.stat.len == 0 { Vec::new() } else { self.chain(entry.cluster, entry.stat.len)? };
        Ok(Box::new(Pieces::new(self.window.clone(), pieces, entry.stat.len)?))
    }
}
