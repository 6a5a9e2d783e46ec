//! The smallest ISO 9660 volume that holds a few files under their real names.
//!
//! ISO 9660 itself knows upper-case 8.3 names only. The real names are Rock Ridge `NM` entries, which every Linux
//! kernel with ISO 9660 reads (`fs/isofs/rock.c` is always built in; Joliet is an option), and which carry modes
//! and owners, so that only root reads the private host key.
//!
//! ```text
//!  sector  0..16  system area, zeros
//!         16      primary volume descriptor        (ECMA-119 §8.4)
//!         17      volume descriptor set terminator (§8.3)
//!         18, 19  path tables, little and big endian (§9.4)
//!         20      root directory                   (§9.1; SUSP and RRIP entries in its system use areas)
//!         21..    file contents, each from a sector's start
//! ```
//! No clock is read: every time stamp is [`EPOCH`].

use crate::SeedError;

const SECTOR: usize = 2048;
const PATH_TABLE_LE: u32 = 18;
const PATH_TABLE_BE: u32 = 19;
const ROOT: u32 = 20;
const FIRST_DATA: u32 = 21;
/// 1 January 1980, 00:00:00 UTC as a directory record has it (§9.1.5).
const EPOCH: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];
/// The same as a volume descriptor has it (§8.4.26.1).
const EPOCH_LONG: &[u8; 17] = b"1980010100000000\0";
const FLAG_DIRECTORY: u8 = 2;
/// Plenty for a seed, and far from every 32-bit bound of the format.
const MAX_FILE: usize = 16 << 20;

/// One file of the volume.
pub(crate) struct File<'a> {
    /// Its ISO 9660 name with version, such as `USERDATA.;1`. Files are given in the order of these.
    pub(crate) iso_name: &'static str,
    /// Its real name.
    pub(crate) name: &'static str,
    /// Its contents.
    pub(crate) data: &'a [u8],
}

/// Both byte orders, one after the other (§7.3.3).
fn both32(n: u32) -> [u8; 8] {
    let (le, be) = (n.to_le_bytes(), n.to_be_bytes());
    [le[0], le[1], le[2], le[3], be[0], be[1], be[2], be[3]]
}

fn both16(n: u16) -> [u8; 4] {
    let (le, be) = (n.to_le_bytes(), n.to_be_bytes());
    [le[0], le[1], be[0], be[1]]
}

/// A POSIX mode, as the Rock Ridge `PX` entry has it, with owner and group root.
fn posix_attributes(mode: u32, links: u32) -> Vec<u8> {
    let mut px = vec![b'P', b'X', 36, 1];
    for n in [mode, links, 0, 0] {
        px.extend(both32(n));
    }
    px
}

/// The name that Linux shows.
fn alternate_name(name: &str) -> Vec<u8> {
    // The names are our own constants, far below the 255 bytes of an entry.
    let mut nm = vec![b'N', b'M', (5 + name.len()) as u8, 1, 0];
    nm.extend(name.as_bytes());
    nm
}

/// What the root's own record begins with: "SUSP is used here" and "by Rock Ridge".
fn extension_marks() -> Vec<u8> {
    const ID: &[u8] = b"RRIP_1991A";
    let mut marks = vec![b'S', b'P', 7, 1, 0xbe, 0xef, 0];
    marks.extend([b'E', b'R', (8 + ID.len()) as u8, 1, ID.len() as u8, 0, 0, 1]);
    marks.extend(ID);
    marks
}

/// A directory record (§9.1) with its system use area.
fn record(id: &[u8], extent: u32, len: u32, flags: u8, system_use: &[u8]) -> Vec<u8> {
    let mut r = vec![0, 0];
    r.extend(both32(extent));
    r.extend(both32(len));
    r.extend(EPOCH);
    r.extend([flags, 0, 0]);
    r.extend(both16(1));
    r.push(id.len() as u8);
    r.extend(id);
    if r.len() % 2 == 1 {
        r.push(0);
    }
    r.extend(system_use);
    if r.len() % 2 == 1 {
        r.push(0);
    }
    r[0] = r.len() as u8;
    r
}

fn padded(text: &str, len: usize) -> Vec<u8> {
    let mut field = text.as_bytes().to_vec();
    field.resize(len, b' ');
    field
}

fn primary_descriptor(label: &str, sectors: u32, path_table_len: u32, root: &[u8]) -> Vec<u8> {
    let mut d = Vec::with_capacity(SECTOR);
    d.extend(b"\x01CD001\x01\0");
    d.extend(padded("", 32)); // system identifier
    d.extend(padded(label, 32));
    d.extend([0; 8]);
    d.extend(both32(sectors));
    d.extend([0; 32]);
    d.extend(both16(1)); // volumes in the set
    d.extend(both16(1)); // this volume's number
    d.extend(both16(SECTOR as u16));
    d.extend(both32(path_table_len));
    d.extend(PATH_TABLE_LE.to_le_bytes());
    d.extend([0; 4]);
    d.extend(PATH_TABLE_BE.to_be_bytes());
    d.extend([0; 4]);
    d.extend(root);
    d.extend(padded("", 4 * 128 + 3 * 37)); // set, publisher, preparer, application; three file names
    d.extend(EPOCH_LONG); // created
    d.extend(EPOCH_LONG); // modified
    d.extend(b"0000000000000000\0"); // never expires
    d.extend(b"0000000000000000\0"); // effective at once
    d.push(1);
    d
}

/// The path table of a volume whose only directory is its root (§9.4).
fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    let mut t = vec![1, 0];
    t.extend(root);
    t.extend(parent);
    t.extend([0, 0]); // the root's name, and a byte to make it even
    t
}

fn put(image: &mut [u8], sector: u32, bytes: &[u8]) {
    let at = sector as usize * SECTOR;
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A volume with these files in its root directory.
pub(crate) fn volume(label: &str, files: &[File<'_>]) -> Result<Vec<u8>, SeedError> {
    let mut next = FIRST_DATA;
    let mut entries = Vec::new();
    for file in files {
        if file.data.len() > MAX_FILE {
            return Err(SeedError::TooLarge { file: file.name, len: file.data.len(), max: MAX_FILE });
        }
        let mut system_use = alternate_name(file.name);
        system_use.extend(posix_attributes(0o100_400, 1));
        entries.push(record(file.iso_name.as_bytes(), next, file.data.len() as u32, 0, &system_use));
        next += file.data.len().div_ceil(SECTOR) as u32;
    }

    // Three entries of about 100 bytes: the directory always fits one sector.
    let directory =
        |id: &[u8], system_use: &[u8]| record(id, ROOT, SECTOR as u32, FLAG_DIRECTORY, system_use);
    let attributes = posix_attributes(0o040_500, 2);
    let mut root = directory(&[0], &[extension_marks(), attributes.clone()].concat());
    root.extend(directory(&[1], &attributes));
    root.extend(entries.concat());

    let mut image = vec![0; next as usize * SECTOR];
    let le = path_table(ROOT.to_le_bytes(), 1u16.to_le_bytes());
    let be = path_table(ROOT.to_be_bytes(), 1u16.to_be_bytes());
    put(&mut image, 16, &primary_descriptor(label, next, le.len() as u32, &directory(&[0], &[])));
    put(&mut image, 17, b"\xffCD001\x01");
    put(&mut image, PATH_TABLE_LE, &le);
    put(&mut image, PATH_TABLE_BE, &be);
    put(&mut image, ROOT, &root);
    let mut at = FIRST_DATA;
    for file in files {
        put(&mut image, at, file.data);
        at += file.data.len().div_ceil(SECTOR) as u32;
    }
    Ok(image)
}
