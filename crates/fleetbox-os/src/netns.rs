//! Network namespaces, one thread at a time.

use std::io;

/// Moves the calling thread, and it alone, into a new and empty network namespace.
///
/// The namespace goes with the last thread, process or descriptor in it. Threads started afterwards by
/// this one are in it too; those that exist already are not. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// `EPERM` without the capability.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET changes only the network namespace of the calling thread; no memory, descriptor table
    // or file system attribute becomes unshared.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The calling thread's network namespace as a descriptor, to come back to or to enter from elsewhere.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn current() -> io::Result<std::os::fd::OwnedFd> {
    Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
}

/// Moves the calling thread into the network namespace of that descriptor.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `EINVAL` when it is no network namespace.
pub fn enter(ns: &impl std::os::fd::AsFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: setns with CLONE_NEWNET changes only the calling thread's network namespace.
    if unsafe { libc::setns(ns.as_fd().as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
