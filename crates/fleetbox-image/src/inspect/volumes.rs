//! What each partition holds, and how roots and fstab(5) name them.

use std::io;

use super::disk::{Disk, Window};
use super::fs::{self, Btrfs, FileSystem, FsError, Holds, Subvolume};
use super::partition::{Partition, Table};

/// A partition and what it holds.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) partition: Partition,
    pub(super) holds: Holds,
    pub(super) uuid: Option<String>,
    pub(super) label: Option<String>,
    /// A file system that is known and cannot be read: why.
    pub(super) trouble: Option<String>,
    window: Window,
}

impl Volume {
    fn look(disk: &Disk, partition: Partition) -> io::Result<Self> {
        let window = Window::new(disk.clone(), partition.start, partition.len);
        let holds = fs::probe(&window)?;
        let mut volume = Self { partition, holds, uuid: None, label: None, trouble: None, window };
        match volume.open() {
            Some(Ok(fs)) => (volume.uuid, volume.label) = (fs.uuid(), fs.label()),
            Some(Err(e)) => volume.trouble = Some(e.text()),
            None => {}
        }
        Ok(volume)
    }

    /// In words.
    pub(super) fn place(&self) -> String {
        match self.partition.number {
            0 => "the disk".to_owned(),
            n => format!("partition {n}"),
        }
    }

    pub(super) fn open(&self) -> Option<Result<Box<dyn FileSystem>, FsError>> {
        fs::open(self.holds, &self.window)
    }

    /// The subvolumes of a btrfs that may be roots: the default one first, none that look like snapshots but it.
    pub(super) fn subvolumes(&self) -> Vec<Subvolume> {
        if self.holds != Holds::Btrfs || self.trouble.is_some() {
            return Vec::new();
        }
        let all = Btrfs::open(self.window.clone(), None).and_then(|fs| fs.subvolumes()).unwrap_or_default();
        all.into_iter().filter(|s| s.default || !s.path.contains("snapshot")).take(16).collect()
    }

    pub(super) fn open_subvolume(&self, id: u64) -> Result<Box<dyn FileSystem>, FsError> {
        Ok(Box::new(Btrfs::open(self.window.clone(), Some(id))?))
    }
}

/// All that a disk has.
pub(super) fn survey(disk: &Disk, table: &Table) -> io::Result<Vec<Volume>> {
    table.partitions.iter().map(|p| Volume::look(disk, p.clone())).collect()
}

/// The volume that a device specification means, such as `UUID=…`, `LABEL=…` or `/dev/vda1`; `None` when none does, or
/// more than one.
pub(super) fn identify(spec: &str, volumes: &[Volume]) -> Option<usize> {
    let spec = spec.trim_matches('"');
    let by = |matches: &dyn Fn(&Volume) -> bool| {
        let mut all = volumes.iter().enumerate().filter(|(_, v)| matches(v)).map(|(i, _)| i);
        let first = all.next()?;
        all.next().is_none().then_some(first)
    };
    let same = |have: &Option<String>, want: &str| {
        have.as_deref().is_some_and(|h| h.eq_ignore_ascii_case(want.trim_matches('"')))
    };
    let exact = |have: &Option<String>, want: &str| have.as_deref() == Some(want.trim_matches('"'));
    type Matches<'a> = &'a dyn Fn(&Volume, &str) -> bool;
    let forms: [(&str, Matches<'_>); 8] = [
        ("UUID=", &|v, w| same(&v.uuid, w)),
        ("PARTUUID=", &|v, w| same(&v.partition.uuid, w)),
        ("LABEL=", &|v, w| exact(&v.label, w)),
        ("PARTLABEL=", &|v, w| exact(&v.partition.label, w)),
        ("/dev/disk/by-uuid/", &|v, w| same(&v.uuid, w)),
        ("/dev/disk/by-partuuid/", &|v, w| same(&v.partition.uuid, w)),
        ("/dev/disk/by-label/", &|v, w| exact(&v.label, w)),
        ("/dev/disk/by-partlabel/", &|v, w| exact(&v.partition.label, w)),
    ];
    if let Some((prefix, matches)) = forms.iter().find(|(prefix, _)| spec.starts_with(prefix)) {
        return by(&|v| matches(v, &spec[prefix.len()..]));
    }
    // A name that the kernel gives: only its number says something, as the disk will have another name.
    let device = spec.strip_prefix("/dev/")?;
    let known = ["vd", "sd", "hd", "xvd", "nvme", "mmcblk"].iter().any(|p| device.starts_with(p));
    let digits = device.len() - device.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let number = if digits == 0 { 0 } else { device[device.len() - digits..].parse().ok()? };
    // `nvme0n1` and `mmcblk0` are whole disks.
    let whole = (device.starts_with("nvme") || device.starts_with("mmcblk")) && !device.contains('p');
    by(&|v| known && v.partition.number == if whole { 0 } else { number })
}

/// What fstab(5) mounts where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) spec: String,
    pub(super) at: String,
    pub(super) subvolume: Option<String>,
}

/// The lines of fstab(5) that name a mount point.
pub(super) fn fstab(text: &str) -> Vec<Mounted> {
    text.lines()
        .map(str::trim)
        .filter(|l| !l.starts_with('#'))
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (spec, at) = (fields.next()?, fields.next()?);
            let subvolume = fields
                .nth(1)
                .and_then(|options| options.split(',').find_map(|o| o.strip_prefix("subvol=")))
                .map(|s| s.trim_start_matches('/').to_owned());
            let at = if at == "/" { at } else { at.trim_end_matches('/') };
            at.starts_with('/').then(|| Mounted { spec: spec.to_owned(), at: at.to_owned(), subvolume })
        })
        .take(64)
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::partition::{Kind, Purpose};
    use super::*;
    use proptest::prelude::*;
    use std::rc::Rc;

    fn volumes() -> Vec<Volume> {
        let disk: Disk = Rc::new(vec![0u8; 4096]);
        let part = |number, uuid: &str| Partition {
            number,
            start: 0,
            len: 512,
            purpose: Purpose::Other,
            uuid: Some(uuid.into()),
            label: Some(format!("part{number}")),
        };
        let table =
            Table { kind: Kind::Gpt, partitions: vec![part(1, "p-1"), part(2, "p-2")], notes: vec![] };
        let mut all = survey(&disk, &table).unwrap();
        (all[0].uuid, all[0].label) = (Some("AB-CD".into()), Some("same".into()));
        (all[1].uuid, all[1].label) = (Some("11".into()), Some("same".into()));
        all
    }

    #[test]
    fn names_of_volumes() {
        let v = volumes();
        for (spec, want) in [
            ("UUID=ab-cd", Some(0)),
            ("UUID=\"11\"", Some(1)),
            ("PARTUUID=P-2", Some(1)),
            ("PARTLABEL=part1", Some(0)),
            ("/dev/disk/by-uuid/11", Some(1)),
            ("/dev/vda2", Some(1)),
            ("/dev/nvme0n1p1", Some(0)),
            ("/dev/sda", None),
            ("/dev/mapper/root2", None),
            ("LABEL=same", None),
            ("UUID=nobody", None),
            ("UUID=", None),
            ("", None),
        ] {
            assert_eq!(identify(spec, &v), want, "{spec}");
        }
    }

    #[test]
    fn lines_of_fstab() {
        let text = "# c\nUUID=1 / btrfs defaults,subvol=/@ 0 1\nLABEL=b /boot/ ext4\nproc /proc proc\nUUID=2 none swap sw 0 0\nbad\n";
        let at: Vec<_> = fstab(text).into_iter().map(|m| (m.spec, m.at, m.subvolume)).collect();
        assert_eq!(at[0], ("UUID=1".into(), "/".into(), Some("@".into())));
        assert_eq!(at[1], ("LABEL=b".into(), "/boot".into(), None));
        assert_eq!(at.len(), 3);
    }

    proptest! {
        #[test]
        fn no_specification_panics(spec in "(UUID=|/dev/|vd|nvme|p|[0-9]{0,30}|\\PC){0,5}", text in "\\PC{0,60}") {
            let _ = identify(&spec, &volumes());
            let _ = fstab(&text);
        }
    }
}
