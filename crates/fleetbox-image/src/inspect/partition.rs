//! GPT and MBR partition tables, read from foreign bytes.
//!
//! Layouts: UEFI specification 2.10, chapter 5; the MBR's extended partitions as in util-linux' libfdisk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Sectors of disk images; images made for 4096-byte sectors exist for special hardware only.
const SECTOR: u64 = 512;
/// Real tables have 128 entries of 128 bytes.
const MAX_ENTRIES: u32 = 1024;
const MAX_ENTRY_SIZE: u32 = 4096;
/// Logical partitions are a chain that may be circular.
const MAX_LOGICAL: u32 = 64;

/// Where a partition is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// From 1 up; 0: the whole disk.
    pub(super) number: u32,
    pub(super) start: u64,
    pub(super) len: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Table {
    /// No table; perhaps a file system on the bare disk.
    None,
    /// By number.
    Partitions(Vec<Extent>),
}

/// Reads the table of a disk of `size` bytes. The inner error says in words how the table contradicts itself.
pub(super) fn read(disk: &File, size: u64) -> io::Result<Result<Table, String>> {
    let mut first = [0u8; 1024];
    if size < first.len() as u64 {
        return Ok(Ok(Table::None));
    }
    disk.read_exact_at(&mut first, 0)?;
    if &first[512..520] == b"EFI PART" {
        return gpt(disk, size, &first[512..]);
    }
    if first[510..512] != [0x55, 0xaa] {
        return Ok(Ok(Table::None));
    }
    mbr(disk, size, &first[..512])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn gpt(disk: &File, size: u64, header: &[u8]) -> io::Result<Result<Table, String>> {
    let header_size = le32(header, 12) as usize;
    if !(92..=512).contains(&header_size) {
        return Ok(Err(format!("its GPT header claims to have {header_size} bytes")));
    }
    let mut summed = header[..header_size].to_vec();
    summed[16..20].fill(0);
    if crc32(&summed) != le32(header, 16) {
        return Ok(Err("its GPT header has a wrong checksum".to_owned()));
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
    disk.read_exact_at(&mut table, at)?;
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
        match sectors(number, first, last - first + 1, size) {
            Ok(extent) => all.push(extent),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(without_overlap(all))
}

fn sectors(number: u32, first: u64, count: u64, size: u64) -> Result<Extent, String> {
    let extent = first.checked_mul(SECTOR).zip(count.checked_mul(SECTOR));
    extent
        .filter(|(start, len)| start.checked_add(*len).is_some_and(|end| end <= size))
        .map(|(start, len)| Extent { number, start, len })
        .ok_or_else(|| format!("partition {number} reaches beyond its end: is it cut short?"))
}

fn without_overlap(all: Vec<Extent>) -> Result<Table, String> {
    let mut sorted = all.clone();
    sorted.sort_by_key(|e| e.start);
    match sorted.windows(2).find(|w| w[0].start + w[0].len > w[1].start) {
        Some(w) => Err(format!("partitions {} and {} overlap", w[0].number, w[1].number)),
        None => Ok(Table::Partitions(all)),
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

fn mbr(disk: &File, size: u64, sector: &[u8]) -> io::Result<Result<Table, String>> {
    // The boot sector of a FAT or NTFS has the signature too, and code where the entries would be.
    if (0..4).any(|i| !matches!(sector[446 + 16 * i], 0 | 0x80)) {
        return Ok(Ok(Table::None));
    }
    let mut all = Vec::new();
    for (number, i) in (1u32..).zip(0..4) {
        let (kind, first, count) = entry(sector, i);
        if kind == 0 || count == 0 {
            continue;
        }
        if is_extended(kind) {
            if let Err(why) = logical(disk, size, first, &mut all)? {
                return Ok(Err(why));
            }
            continue;
        }
        match sectors(number, first, count, size) {
            Ok(extent) => all.push(extent),
            Err(why) => return Ok(Err(why)),
        }
    }
    if all.is_empty() {
        return Ok(Ok(Table::None));
    }
    all.sort_by_key(|e| e.number);
    Ok(without_overlap(all))
}

fn logical(disk: &File, size: u64, base: u64, all: &mut Vec<Extent>) -> io::Result<Result<(), String>> {
    let mut at = base;
    for number in 5..5 + MAX_LOGICAL {
        let Ok(extent) = sectors(number, at, 1, size) else {
            return Ok(Err("its extended partition reaches beyond its end: is it cut short?".to_owned()));
        };
        let mut sector = [0u8; 512];
        disk.read_exact_at(&mut sector, extent.start)?;
        if sector[510..512] != [0x55, 0xaa] {
            return Ok(Ok(()));
        }
        let (kind, first, count) = entry(&sector, 0);
        if kind != 0 && count != 0 {
            match sectors(number, at + first, count, size) {
                Ok(extent) => all.push(extent),
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
        let tmp = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(tmp.path(), bytes).unwrap();
        read(&File::open(tmp.path()).unwrap(), bytes.len() as u64).unwrap()
    }

    #[test]
    fn crc_of_the_standard_check_text() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn both_tables_say_the_same() {
        let contents: &[&[u8]] = &[&[1; 512], &[2; 1024]];
        let want = Table::Partitions(vec![
            Extent { number: 1, start: FIRST * 512, len: 512 },
            Extent { number: 2, start: FIRST * 512 + 512, len: 1024 },
        ]);
        assert_eq!(table(&gpt_disk(contents)).unwrap(), want);
        assert_eq!(table(&mbr_disk(contents)).unwrap(), want);
        assert_eq!(table(&[0; 4096]).unwrap(), Table::None);
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
        let want = Extent { number: 5, start: (FIRST + 2) * 512, len: 3 * 512 };
        assert_eq!(table(&disk).unwrap(), Table::Partitions(vec![want]));
        // The second entry leads to another EBR; this one's next is further on, and has no signature: the end.
        put(&mut disk, 1, 0x05, 6, 1);
        assert_eq!(table(&disk).unwrap(), Table::Partitions(vec![want]));
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
            if let Ok(Table::Partitions(all)) = table(&disk) {
                for e in all { prop_assert!(e.start + e.len <= disk.len() as u64); }
            }
        }
    }
}
