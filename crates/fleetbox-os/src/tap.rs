//! Tap devices: a network link whose other end is a file descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
const IFF_TUN_EXCL: libc::c_int = 0x8000;

/// Makes a tap in the calling thread's network namespace and returns the descriptor that is its other end.
///
/// It is not persistent: the link goes with the last descriptor of it, so that no crash can leave it
/// behind. `vnet_hdr` lets a virtio device pass checksum and segmentation work on (both QEMU and
/// cloud-hypervisor do).
///
/// # Errors
/// `EBUSY` when a link of that name exists, `EPERM` without CAP_NET_ADMIN, `NotFound` without
/// `/dev/net/tun`, `InvalidInput` for a name longer than 15 bytes.
pub fn create(name: &str, vnet_hdr: bool) -> io::Result<OwnedFd> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no link name")));
    }
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is a plain C struct (an array and a union of plain members): all-zero is a valid value.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().zip(bytes) {
        // c_char is signed on some architectures and not on others; a name's bits are the same.
        *to = *from as libc::c_char;
    }
    let mut flags = IFF_TAP | IFF_NO_PI;
    if vnet_hdr {
        flags |= IFF_VNET_HDR;
    }
    // EXCL: never adopt somebody else's persistent tap of the same name. Bit 15 is the sign bit of the field's type.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the kernel reads the field's 16 bits as unsigned flags"
    )]
    let excl = IFF_TUN_EXCL as libc::c_short;
    req.ifr_ifru.ifru_flags = flags | excl;
    // SAFETY: TUNSETIFF reads and writes one ifreq; `req` is one and outlives the call.
    if unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, std::ptr::from_mut(&mut req)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun.into())
}
