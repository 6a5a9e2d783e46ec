//! GPT and MBR partition tables, read from foreign bytes.
//!
//! Layouts: UEFI specification 2.10, chapter 5; the MBR's extended partitions as in util-linux' libfdisk.
//!
//! Own code rather than a crate: those that exist want to write tables too, refuse what firmware accepts (or the other
//! way round), and bring serde formats along; all that is needed here is where partitions begin.

use std::io;

use super::bytes::{guid, le32, le64};
use super::disk::ReadAt;

/// Sectors of disk images; images made for 4096-byte sectors exist for special hardware only.
const SECTOR: u64 = 512;
/// Real tables have 128 entries of 128 bytes.
const MAX_ENTRIES: u32 = 1024;
const MAX_ENTRY_SIZE: u32 = 4096;
/// Logical partitions are a chain that may be circular.
const MAX_LOGICAL: u32 = 64;

/// What a partition is for, by the type in its table (the Discoverable Partitions Specification; MBR types).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A root file system of a processor architecture.
    Root,
    Usr,
    /// The EFI system partition.
    Esp,
    /// More boot loader entries.
    ExtendedBoot,
    Other,
}

/// A partition, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// From 1 up; 0: the whole disk.
    pub(super) number: u32,
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) purpose: Purpose,
    /// As `root=PARTUUID=` takes it.
    pub(super) uuid: Option<String>,
    /// As `root=PARTLABEL=` takes it.
    pub(super) label: Option<String>,
}

/// The kind of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No table; perhaps a file system on the bare disk.
    None,
    Gpt,
    Mbr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) kind: Kind,
    /// By number; without a table the whole disk as number 0.
    pub(super) partitions: Vec<Partition>,
    /// What is wrong with it without making it useless.
    pub(super) notes: Vec<String>,
}

impl Table {
    fn none(size: u64) -> Self {
        let whole =
            Partition { number: 0, start: 0, len: size, purpose: Purpose::Other, uuid: None, label: None };
        Self { kind: Kind::None, partitions: vec![whole], notes: Vec::new() }
    }
}

/// Reads the table of a disk. The inner error says in words how the table contradicts itself.
pub(super) fn read(disk: &dyn ReadAt) -> io::Result<Result<Table, String>> {
    let size = disk.size();
    let mut first = [0u8; 1024];
    if size < first.len() as u64 {
        return Ok(Ok(Table::none(size)));
    }
    disk.read_at(0, &mut first)?;
    let has_gpt = &first[512..520] == b"EFI PART";
    let protective = first[510..512] == [0x55, 0xaa] && (0..4).any(|i| entry(&first, i).0 == 0xee);
    if has_gpt || protective {
        let why = match gpt(disk, SECTOR, &first[512..])? {
            Ok(partitions) => return Ok(Ok(Table { kind: Kind::Gpt, partitions, notes: Vec::new() })),
            Err(why) => why,
        };
        // The firmware and the kernel take the copy in the last sector, too.
        let mut last = [0u8; 512];
        let at = size / SECTOR * SECTOR - SECTOR;
        disk.read_at(at, &mut last)?;
        if &last[..8] == b"EFI PART"
            && let Ok(partitions) = gpt(disk, at, &last)?
        {
            let notes =
                vec![format!("the first copy of the partition table is damaged ({why}); the second is used")];
            return Ok(Ok(Table { kind: Kind::Gpt, partitions, notes }));
        }
        return Ok(if has_gpt {
            Err(why)
        } else if large_sectors(disk)? {
            Err("it is made for sectors of 4096 bytes".to_owned())
        } else {
            Err("its GPT is missing (there is only the MBR that protects one)".to_owned())
        });
    }
    if first[510..512] != [0x55, 0xaa] {
        return Ok(Ok(Table::none(size)));
    }
    mbr(disk, &first[..512])
}

fn large_sectors(disk: &dyn ReadAt) -> io::Result<bool> {
    let mut at_4096 = [0u8; 8];
    if disk.size() < 8192 {
        return Ok(false);
    }
    disk.read_at(4096, &mut at_4096)?;
    Ok(&at_4096 == b"EFI PART")
}

fn gpt(disk: &dyn ReadAt, own_place: u64, header: &[u8]) -> io::Result<Result<Vec<Partition>, String>> {
    let size = disk.size();
    if &header[..8] != b"EFI PART" {
        return Ok(Err("its GPT header is missing".to_owned()));
    }
    let header_size = le32(header, 12) as usize;
    if !(92..=512).contains(&header_size) {
        return Ok(Err(format!("its GPT header claims to have {header_size} bytes")));
    }
    let mut summed = header[..header_size].to_vec();
    summed[16..20].fill(0);
    if crc32(&summed) != le32(header, 16) {
        return Ok(Err("its GPT header has a wrong checksum".to_owned()));
    }
    if le64(header, 24).checked_mul(SECTOR) != Some(own_place) {
        return Ok(Err("its GPT header is not where it says".to_owned()));
    }
    let (entries_lba, count, entry_size) = (le64(header, 72), le32(header, 80), le32(header, 84));
    if count > MAX_ENTRIES || !(128..=MAX_ENTRY_SIZE).contains(&entry_size) {
        return Ok(Err(format!("its GPT claims to have {count} entries of {entry_size} bytes")));
    }
    let bytes = u64::from(count) * u64::from(entry_size);
    let Some(at) =
        entries_lba.checked_mul(SECTOR).filter(|at| at.checked_add(bytes).is_some_and(|end| end <= size))
    else {
        return Ok(Err("its GPT's entries are beyond its end: is it cut short?".to_owned()));
    };
    let mut table = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
    disk.read_at(at, &mut table)?;
    if crc32(&table) != le32(header, 88) {
        return Ok(Err("its GPT's entries have a wrong checksum".to_owned()));
    }
    let mut all = Vec::new();
    for (number, entry) in (1u32..).zip(table.chunks_exact(entry_size as usize)) {
        if entry[..16].iter().all(|&b| b == 0) {
            continue;
        }
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        if first > last {
            return Ok(Err(format!("partition {number} ends before it starts")));
        }
        let Some(count) = (last - first).checked_add(1) else {
            return Ok(Err(format!("partition {number} reaches beyond its end: is it cut short?")));
        };
        match sectors(number, first, count, size) {
            Ok(mut partition) => {
                partition.purpose = purpose(&guid(&entry[..16]).unwrap_or_default());
                partition.uuid = guid(&entry[16..32]);
                let units: Vec<u16> = entry[56..128]
                    .chunks_exact(2)
                    .map(|c| u16::from_le_bytes([c[0], c[1]]))
                    .take_while(|&u| u != 0)
                    .collect();
                partition.label = String::from_utf16(&units).ok().filter(|l| !l.is_empty());
                all.push(partition);
            }
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(without_overlap(all))
}

/// By the Discoverable Partitions Specification.
fn purpose(type_id: &str) -> Purpose {
    match type_id {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => Purpose::Esp,
        "bc13c2ff-59e6-4262-a352-b275fd6f7172" => Purpose::ExtendedBoot,
        // x86-64, arm64.
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" | "b921b045-1df0-41c3-af44-4c6f280d3fae" => Purpose::Root,
        "8484680c-9521-48c6-9c11-b0720656f69e" | "b0e01050-ee5f-4390-949a-9101b17104e9" => Purpose::Usr,
        _ => Purpose::Other,
    }
}

fn sectors(number: u32, first: u64, count: u64, size: u64) -> Result<Partition, String> {
    let extent = first.checked_mul(SECTOR).zip(count.checked_mul(SECTOR));
    extent
        .filter(|(start, len)| start.checked_add(*len).is_some_and(|end| end <= size))
        .map(|(start, len)| Partition {
            number,
            start,
            len,
            purpose: Purpose::Other,
            uuid: None,
            label: None,
        })
        .ok_or_else(|| format!("partition {number} reaches beyond its end: is it cut short?"))
}

fn without_overlap(all: Vec<Partition>) -> Result<Vec<Partition>, String> {
    let mut sorted: Vec<&Partition> = all.iter().collect();
    sorted.sort_by_key(|e| e.start);
    match sorted.windows(2).find(|w| w[0].start + w[0].len > w[1].start) {
        Some(w) => Err(format!("partitions {} and {} overlap", w[0].number, w[1].number)),
        None => Ok(all),
    }
}

/// One of the four entries of an MBR or EBR: type, first sector (relative), sectors.
fn entry(sector: &[u8], i: usize) -> (u8, u64, u64) {
    let at = 446 + 16 * i;
    (sector[at + 4], u64::from(le32(sector, at + 8)), u64::from(le32(sector, at + 12)))
}

fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

/// `size` and the identity that partitions are named by.
struct Mbr {
    size: u64,
    signature: u32,
}

impl Mbr {
    fn partition(&self, number: u32, kind: u8, first: u64, count: u64) -> Result<Partition, String> {
        let mut partition = sectors(number, first, count, self.size)?;
        partition.purpose = match kind {
            0xef => Purpose::Esp,
            0xea => Purpose::ExtendedBoot,
            _ => Purpose::Other,
        };
        partition.uuid = (self.signature != 0).then(|| format!("{:08x}-{number:02x}", self.signature));
        Ok(partition)
    }
}

fn mbr(disk: &dyn ReadAt, sector: &[u8]) -> io::Result<Result<Table, String>> {
    let size = disk.size();
    // The boot sector of a FAT or NTFS has the signature too, and code where the entries would be.
    if (0..4).any(|i| !matches!(sector[446 + 16 * i], 0 | 0x80)) {
        return Ok(Ok(Table::none(size)));
    }
    let mbr = Mbr { size, signature: le32(sector, 440) };
    let mut all = Vec::new();
    for (number, i) in (1u32..).zip(0..4) {
        let (kind, first, count) = entry(sector, i);
        if kind == 0 || count == 0 {
            continue;
        }
        if is_extended(kind) {
            if let Err(why) = logical(disk, &mbr, first, &mut all)? {
                return Ok(Err(why));
            }
            continue;
        }
        match mbr.partition(number, kind, first, count) {
            Ok(partition) => all.push(partition),
            Err(why) => return Ok(Err(why)),
        }
    }
    if all.is_empty() {
        return Ok(Ok(Table::none(size)));
    }
    all.sort_by_key(|e| e.number);
    Ok(without_overlap(all).map(|partitions| Table { kind: Kind::Mbr, partitions, notes: Vec::new() }))
}

fn logical(
    disk: &dyn ReadAt,
    mbr: &Mbr,
    base: u64,
    all: &mut Vec<Partition>,
) -> io::Result<Result<(), String>> {
    let mut at = base;
    for number in 5..5 + MAX_LOGICAL {
        let Ok(extent) = sectors(number, at, 1, mbr.size) else {
            return Ok(Err("its extended partition reaches beyond its end: is it cut short?".to_owned()));
        };
        let mut sector = [0u8; 512];
        disk.read_at(extent.start, &mut sector)?;
        if sector[510..512] != [0x55, 0xaa] {
            return Ok(Ok(()));
        }
        let (kind, first, count) = entry(&sector, 0);
        if kind != 0 && count != 0 {
            match mbr.partition(number, kind, at + first, count) {
                Ok(partition) => all.push(partition),
                Err(why) => return Ok(Err(why)),
            }
        }
        let (next_kind, next, _) = entry(&sector, 1);
        if !is_extended(next_kind) || next == 0 {
            return Ok(Ok(()));
        }
        at = base + next;
    }
    Ok(Err(format!("its chain of logical partitions does not end after {MAX_LOGICAL}")))
}

/// CRC-32 as in GPT (polynomial 0xedb88320, reflected): over a few kilobytes, so without tables.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: u64 = 2048;

    fn place(contents: &[&[u8]]) -> (Vec<(u64, u64)>, Vec<u8>) {
        let (mut at, mut places) = (FIRST, Vec::new());
        for c in contents {
            let n = (c.len() as u64).div_ceil(SECTOR);
            places.push((at, n));
            at += n;
        }
        let mut disk = vec![0u8; ((at + 64) * SECTOR) as usize];
        for ((first, _), c) in places.iter().zip(contents) {
            disk[(first * SECTOR) as usize..][..c.len()].copy_from_slice(c);
        }
        (places, disk)
    }

    pub(in crate::inspect) fn gpt_disk(contents: &[&[u8]]) -> Vec<u8> {
        let (places, mut disk) = place(contents);
        let mut entries = vec![0u8; 128 * 128];
        for (i, (first, n)) in places.iter().enumerate() {
            let e = &mut entries[i * 128..][..128];
            e[..16].fill(0x11);
            e[16..32].fill(i as u8 + 1);
            e[32..40].copy_from_slice(&first.to_le_bytes());
            e[40..48].copy_from_slice(&(first + n - 1).to_le_bytes());
        }
        seal(&mut disk, entries);
        disk
    }

    fn seal(disk: &mut [u8], entries: Vec<u8>) {
        disk[1024..1024 + entries.len()].copy_from_slice(&entries);
        let mut h = vec![0u8; 92];
        h[..8].copy_from_slice(b"EFI PART");
        h[12..16].copy_from_slice(&92u32.to_le_bytes());
        h[24..32].copy_from_slice(&1u64.to_le_bytes());
        h[72..80].copy_from_slice(&2u64.to_le_bytes());
        h[80..84].copy_from_slice(&128u32.to_le_bytes());
        h[84..88].copy_from_slice(&128u32.to_le_bytes());
        h[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        let sum = crc32(&h);
        h[16..20].copy_from_slice(&sum.to_le_bytes());
        disk[512..604].copy_from_slice(&h);
    }

    pub(in crate::inspect) fn mbr_disk(contents: &[&[u8]]) -> Vec<u8> {
        let (places, mut disk) = place(contents);
        for (i, (first, n)) in places.iter().enumerate() {
            let e = &mut disk[446 + 16 * i..][..16];
            e[4] = 0x83;
            e[8..12].copy_from_slice(&(*first as u32).to_le_bytes());
            e[12..16].copy_from_slice(&(*n as u32).to_le_bytes());
        }
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    }

    fn table(bytes: &[u8]) -> Result<Table, String> {
        read(&bytes.to_vec()).unwrap()
    }

    fn places(table: &Table) -> Vec<(u32, u64, u64)> {
        table.partitions.iter().map(|p| (p.number, p.start, p.len)).collect()
    }

    #[test]
    fn crc_of_the_standard_check_text() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn both_tables_say_the_same() {
        let contents: &[&[u8]] = &[&[1; 512], &[2; 1024]];
        let want = [(1, FIRST * 512, 512), (2, FIRST * 512 + 512, 1024)];
        let (gpt, mut mbr) = (table(&gpt_disk(contents)).unwrap(), mbr_disk(contents));
        assert_eq!((gpt.kind, places(&gpt)), (Kind::Gpt, want.to_vec()));
        assert_eq!(gpt.partitions[1].uuid.as_deref(), Some("02020202-0202-0202-0202-020202020202"));
        mbr[440..444].copy_from_slice(&0xdead_beefu32.to_le_bytes());
        let mbr = table(&mbr).unwrap();
        assert_eq!((mbr.kind, places(&mbr)), (Kind::Mbr, want.to_vec()));
        assert_eq!(mbr.partitions[1].uuid.as_deref(), Some("deadbeef-02"));
        let none = table(&[0; 4096]).unwrap();
        assert_eq!((none.kind, places(&none)), (Kind::None, vec![(0, 0, 4096)]));
    }

    #[test]
    fn the_copy_at_the_end_of_the_disk_serves() {
        let mut disk = gpt_disk(&[&[1; 512]]);
        let last = disk.len() - 512;
        // Its own place and its entries, behind the last partition.
        let entries = disk[1024..1024 + 128 * 128].to_vec();
        let at = last - entries.len();
        disk[at..last].copy_from_slice(&entries);
        let mut h = disk[512..604].to_vec();
        h[24..32].copy_from_slice(&((last / 512) as u64).to_le_bytes());
        h[72..80].copy_from_slice(&((at / 512) as u64).to_le_bytes());
        h[16..20].fill(0);
        let sum = crc32(&h);
        h[16..20].copy_from_slice(&sum.to_le_bytes());
        disk[last..last + 92].copy_from_slice(&h);
        let good = table(&disk).unwrap();
        assert!(good.notes.is_empty());
        disk[513] ^= 1;
        // Without its mark, only the protective MBR tells that there is one.
        disk[446 + 4] = 0xee;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let copy = table(&disk).unwrap();
        assert_eq!(copy.partitions, good.partitions);
        assert!(copy.notes[0].contains("the second is used"), "{copy:?}");
        disk[last] ^= 1;
        assert!(table(&disk).unwrap_err().contains("GPT is missing"));
        disk[4096..4104].copy_from_slice(b"EFI PART");
        assert!(table(&disk).unwrap_err().contains("4096"));
    }

    #[test]
    fn purposes_of_the_discoverable_partitions_specification() {
        let mut disk = gpt_disk(&[&[1; 512]]);
        let mut entries = disk[1024..1024 + 128 * 128].to_vec();
        let esp =
            [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        entries[..16].copy_from_slice(&esp);
        entries[56..62].copy_from_slice(&[b'e', 0, b's', 0, b'p', 0]);
        seal(&mut disk, entries);
        let table = table(&disk).unwrap();
        assert_eq!(table.partitions[0].purpose, Purpose::Esp);
        assert_eq!(table.partitions[0].label.as_deref(), Some("esp"));
    }

    #[test]
    fn logical_partitions_are_followed_and_rings_left() {
        let mut disk = mbr_disk(&[&[0u8; 4096]]);
        disk[446 + 4] = 0x05;
        let ebr = (FIRST * 512) as usize;
        let put = |disk: &mut Vec<u8>, i: usize, kind: u8, first: u32, n: u32| {
            let e = &mut disk[ebr + 446 + 16 * i..][..16];
            e[4] = kind;
            e[8..12].copy_from_slice(&first.to_le_bytes());
            e[12..16].copy_from_slice(&n.to_le_bytes());
        };
        put(&mut disk, 0, 0x83, 2, 3);
        disk[ebr + 510..ebr + 512].copy_from_slice(&[0x55, 0xaa]);
        let want = vec![(5, (FIRST + 2) * 512, 3 * 512)];
        assert_eq!(places(&table(&disk).unwrap()), want);
        // The second entry leads to another EBR; this one's next is further on, and has no signature: the end.
        put(&mut disk, 1, 0x05, 6, 1);
        assert_eq!(places(&table(&disk).unwrap()), want);
        disk[ebr + 6 * 512..][..512].copy_within(0..0, 0);
        let copy = disk[ebr..ebr + 512].to_vec();
        disk[ebr + 6 * 512..ebr + 7 * 512].copy_from_slice(&copy);
        assert!(table(&disk).unwrap_err().contains("does not end"));
    }

    #[test]
    fn absurd_tables_say_what_is_absurd() {
        let good = gpt_disk(&[&[1; 512], &[2; 512]]);
        let entries = |f: &dyn Fn(&mut Vec<u8>)| {
            let mut disk = good.clone();
            let mut e = disk[1024..1024 + 128 * 128].to_vec();
            f(&mut e);
            seal(&mut disk, e);
            table(&disk).unwrap_err()
        };
        assert!(entries(&|e| e[160..168].copy_from_slice(&FIRST.to_le_bytes())).contains("overlap"));
        assert!(entries(&|e| e[40..48].copy_from_slice(&1u64.to_le_bytes())).contains("ends before"));
        assert!(entries(&|e| e[40..48].copy_from_slice(&u64::MAX.to_le_bytes())).contains("beyond"));
        let mut cut = good.clone();
        cut.truncate(((FIRST + 1) * 512) as usize);
        assert!(table(&cut).unwrap_err().contains("cut short"));
        let mut flipped = good;
        flipped[1024] ^= 1;
        assert!(table(&flipped).unwrap_err().contains("checksum"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000), kind in 0..4) {
            let mut disk = match kind { 0 => gpt_disk(&[&[1; 512]]), 1 => mbr_disk(&[&[1; 512]]), _ => vec![0; 8192] };
            let n = bytes.len().min(disk.len());
            match kind {
                // All but the signatures; a quarter with a sealed header over random entries.
                0 => { for (d, b) in disk[520..].iter_mut().zip(&bytes) { if *b % 3 == 0 { *d = *b } } }
                1 => { for (d, b) in disk[446..510].iter_mut().zip(&bytes) { if *b % 3 == 0 { *d = *b } } }
                2 => { let mut e = vec![0u8; 128 * 4]; for (d, b) in e.iter_mut().zip(&bytes) { *d = *b }
                       e.resize(128 * 50, 0); seal(&mut disk, e); }
                _ => disk[..n].copy_from_slice(&bytes[..n]),
            }
            if let Ok(table) = table(&disk) {
                for e in table.partitions { prop_assert!(e.start + e.len <= disk.len() as u64); }
            }
        }
    }
}
