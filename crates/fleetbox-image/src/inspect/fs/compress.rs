//! Unpacking of small pieces whose size is bounded by the caller.

use std::io::Read;

use super::FsError;
use crate::inspect::bytes::le32;

/// How something is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::inspect) enum Unpack {
    Zlib,
    Zstd,
    /// btrfs' own wrapping of LZO1X: segments that each hold one sector.
    BtrfsLzo {
        sector: usize,
    },
}

/// Unpacks at most `max` bytes.
pub(in crate::inspect) fn unpack(how: Unpack, packed: &[u8], max: usize) -> Result<Vec<u8>, FsError> {
    let mut out = Vec::new();
    let limit = max as u64;
    match how {
        Unpack::Zlib => flate2::read::ZlibDecoder::new(packed)
            .take(limit)
            .read_to_end(&mut out)
            .map_err(|_| FsError::Damaged("its zlib data cannot be unpacked"))?,
        Unpack::Zstd => {
            let bad = || FsError::Damaged("its zstd data cannot be unpacked");
            let decoder = ruzstd::decoding::StreamingDecoder::new(packed).map_err(|_| bad())?;
            decoder.take(limit).read_to_end(&mut out).map_err(|_| bad())?
        }
        Unpack::BtrfsLzo { sector } => {
            btrfs_lzo(packed, sector, max, &mut out)
                .ok_or(FsError::Damaged("its LZO data cannot be unpacked"))?;
            out.len()
        }
    };
    Ok(out)
}

/// The whole length, then segments: their length and data, of which no length is split between two sectors.
/// Linux: fs/btrfs/lzo.c.
fn btrfs_lzo(packed: &[u8], sector: usize, max: usize, out: &mut Vec<u8>) -> Option<()> {
    let packed = packed.get(..le32(packed, 0) as usize)?;
    let mut at = 4;
    while at < packed.len() && out.len() < max {
        let left = sector - at % sector;
        if left < 4 {
            at += left;
            continue;
        }
        let len = le32(packed, at) as usize;
        let segment = packed.get(at + 4..(at + 4).checked_add(len)?)?;
        lzo1x(segment, sector.min(max - out.len()), out)?;
        at += 4 + len;
    }
    Some(())
}

/// LZO1X of at most `max` bytes, appended to `out`. Linux: Documentation/staging/lzo.rst.
fn lzo1x(mut input: &[u8], max: usize, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    let end = start + max;
    fn next(input: &mut &[u8]) -> Option<usize> {
        let (&first, rest) = input.split_first()?;
        *input = rest;
        Some(usize::from(first))
    }
    // A length of zero in the instruction: it goes on in the bytes that follow.
    fn length(input: &mut &[u8], bits: usize, most: usize) -> Option<usize> {
        if bits != 0 {
            return Some(bits);
        }
        let mut len = most;
        loop {
            match next(input)? {
                0 => len = len.checked_add(255)?,
                n => return len.checked_add(n),
            }
        }
    }
    let literals = |input: &mut &[u8], n: usize, out: &mut Vec<u8>| {
        let (now, rest) = input.split_at_checked(n)?;
        if out.len() + n > end {
            return None;
        }
        out.extend_from_slice(now);
        *input = rest;
        Some(())
    };
    // Literals copied by the instruction before; 4 and more are all one.
    let mut state = 0;
    if input.first().is_some_and(|&b| b > 17) {
        let n = next(&mut input)? - 17;
        literals(&mut input, n, out)?;
        state = n.min(4);
    }
    loop {
        let t = next(&mut input)?;
        let (len, distance, after) = if t >= 64 {
            let high = next(&mut input)?;
            ((t >> 5) + 1, (high << 3) + ((t >> 2) & 7) + 1, t & 3)
        } else if t >= 16 {
            let (bits, most) = if t >= 32 { (t & 31, 31) } else { (t & 7, 7) };
            let len = 2 + length(&mut input, bits, most)?;
            let low = next(&mut input)?;
            let v = low | next(&mut input)? << 8;
            let far = if t >= 32 { 1 } else { 16384 + ((t & 8) << 11) };
            let distance = far + (v >> 2);
            if t < 32 && distance == 16384 {
                return Some(());
            }
            (len, distance, v & 3)
        } else if state == 0 {
            let n = 3 + length(&mut input, t, 15)?;
            literals(&mut input, n, out)?;
            state = 4;
            continue;
        } else {
            let high = next(&mut input)?;
            let (len, near) = if state == 4 { (3, 2049) } else { (2, 1) };
            (len, near + (high << 2) + (t >> 2), t & 3)
        };
        let from = out.len().checked_sub(distance).filter(|&f| f >= start)?;
        if out.len() + len > end {
            return None;
        }
        for i in 0..len {
            out.push(out[from + i]);
        }
        literals(&mut input, after, out)?;
        state = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[test]
    fn zlib_and_its_limit() {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&[7; 5000]).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(unpack(Unpack::Zlib, &packed, 9000).unwrap(), vec![7; 5000]);
        assert_eq!(unpack(Unpack::Zlib, &packed, 100).unwrap(), vec![7; 100]);
        assert!(unpack(Unpack::Zlib, &packed[..4], 100).is_err());
    }

    #[test]
    fn lzo_by_hand() {
        let mut out = Vec::new();
        // Four literals "abcd"; then 8 bytes from a distance of 4 (t = 0b111_011_00, high 0); then the end.
        let packed = [21, b'a', b'b', b'c', b'd', 0b1110_1100, 0, 0x11, 0, 0];
        lzo1x(&packed, 100, &mut out).unwrap();
        assert_eq!(out, b"abcdabcdabcd");
        // More than it may be.
        assert!(lzo1x(&packed, 11, &mut Vec::new()).is_none());
        // From before its own beginning.
        assert!(lzo1x(&[18, b'a', 0b1110_1100, 9, 0x11, 0, 0], 100, &mut out).is_none());
        let mut wrapped = (8 + packed.len() as u32).to_le_bytes().to_vec();
        wrapped.extend((packed.len() as u32).to_le_bytes());
        wrapped.extend(packed);
        assert_eq!(unpack(Unpack::BtrfsLzo { sector: 4096 }, &wrapped, 4096).unwrap(), b"abcdabcdabcd");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_exceed_the_limit(bytes in proptest::collection::vec(any::<u8>(), 0..300), max in 0usize..500) {
            for how in [Unpack::Zlib, Unpack::Zstd, Unpack::BtrfsLzo { sector: 4096 }] {
                if let Ok(out) = unpack(how, &bytes, max) {
                    prop_assert!(out.len() <= max);
                }
            }
            let mut out = Vec::new();
            let _ = lzo1x(&bytes, max, &mut out);
            prop_assert!(out.len() <= max);
        }
    }
}
