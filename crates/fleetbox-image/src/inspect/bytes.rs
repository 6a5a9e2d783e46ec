//! Integers out of foreign bytes. What lies beyond the end reads as zero: the callers judge values, not lengths.

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    at.checked_add(N).and_then(|end| bytes.get(at..end)).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// A UUID as udev writes it, from its bytes in network order; `None` when they are all zero or too few.
pub(super) fn uuid(bytes: &[u8]) -> Option<String> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    if bytes == [0; 16] {
        return None;
    }
    let mut text = String::with_capacity(36);
    for (i, b) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{b:02x}"));
    }
    Some(text)
}

/// A GUID, whose first three fields are little-endian (UEFI specification 2.10, appendix A).
pub(super) fn guid(bytes: &[u8]) -> Option<String> {
    let mut b: [u8; 16] = bytes.try_into().ok()?;
    b[..4].reverse();
    b[4..6].reverse();
    b[6..8].reverse();
    uuid(&b)
}

/// Text in a field that is filled up with zeros or spaces; `None` when there is none.
pub(super) fn field(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]);
    let text: String = text.trim_end().chars().filter(|c| !c.is_control()).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_as_udev_writes_them() {
        let esp =
            [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        assert_eq!(guid(&esp).unwrap(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(uuid(&[0x11; 16]).unwrap(), "11111111-1111-1111-1111-111111111111");
        assert_eq!(uuid(&[0; 16]), None);
        assert_eq!(uuid(&[1; 15]), None);
        assert_eq!(field(b"boot  \0x").unwrap(), "boot");
        assert_eq!(field(b"\0"), None);
    }

    #[test]
    fn beyond_the_end_is_zero() {
        assert_eq!((le16(&[1], 0), le32(&[], 9), be64(&[1; 8], usize::MAX)), (0, 0, 0));
        assert_eq!((be16(&[1, 2], 0), le16(&[1, 2], 0), be32(&[0, 0, 1, 0], 0)), (0x102, 0x201, 256));
    }
}
