//! Descriptors that cross an exec.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

/// A pipe whose ends close on exec: read end, write end.
///
/// # Errors
/// When the process is out of descriptors.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// A connected pair of stream sockets that close on exec.
///
/// # Errors
/// When the process is out of descriptors.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes ownership of a descriptor that this process inherited under a number its parent told it.
///
/// Each number can be taken once; standard streams cannot be taken.
///
/// # Errors
/// `InvalidInput` for a standard stream or a number taken before, `EBADF` when it is not open.
pub fn take_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "standard streams cannot be taken"));
    }
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if taken.contains(&fd) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {fd} was taken before")));
    }
    // SAFETY: fcntl(F_SETFD) on any number is memory-safe; it fails with EBADF when the descriptor is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    taken.push(fd);
    // SAFETY: the descriptor is open (checked above), and TAKEN makes this the only OwnedFd made of it. The parent
    // placed it at this number for us, before any code of ours could open a descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
