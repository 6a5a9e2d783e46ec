//! Exit codes.

use fleetbox::ErrorKind;

/// How the command ends. The numbers are part of its interface and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It did what was asked for.
    Ok = 0,
    /// It failed in a way that has no code of its own.
    Failure = 1,
    /// The arguments make no sense: an unknown option, an invalid name or size.
    Usage = 2,
    /// There is no such machine, cluster or image.
    NotFound = 3,
    /// It contradicts what is there: the machine runs or does not run, has another image, or another process
    /// holds it.
    Conflict = 4,
    /// Root is needed.
    NotRoot = 5,
    /// This host lacks something that it takes: a working VMM, memory, disk space, a program.
    Host = 6,
    /// The guest did not come up: its time was over, or it panicked.
    Guest = 7,
    /// A file of fleetbox's could not be read or written, or is damaged.
    Store = 8,
    /// The image could not be had.
    Image = 9,
    /// The host's network could not be set up or taken down.
    Network = 10,
    /// Interrupted with Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// All of them, for the reference.
    pub(crate) const ALL: [Self; 12] = [
        Self::Ok,
        Self::Failure,
        Self::Usage,
        Self::NotFound,
        Self::Conflict,
        Self::NotRoot,
        Self::Host,
        Self::Guest,
        Self::Store,
        Self::Image,
        Self::Network,
        Self::Interrupted,
    ];

    /// The number.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// What it means, for the reference.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "It did what was asked for.",
            Self::Failure => "It failed in a way that has no code of its own.",
            Self::Usage => "The arguments make no sense: an unknown option, an invalid name or size.",
            Self::NotFound => "There is no such machine, cluster or image.",
            Self::Conflict => {
                "It contradicts what is there: the machine runs or does not run, has another image, or another process holds it."
            }
            Self::NotRoot => "Root is needed.",
            Self::Host => {
                "This host lacks something that it takes: a working VMM, memory, disk space, a program."
            }
            Self::Guest => "The guest did not come up: its time was over, or it panicked.",
            Self::Store => "A file of fleetbox's could not be read or written, or is damaged.",
            Self::Image => "The image could not be had.",
            Self::Network => "The host's network could not be set up or taken down.",
            Self::Interrupted => "Interrupted with Ctrl-C.",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidInput => Self::Usage,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict | ErrorKind::Held => Self::Conflict,
            ErrorKind::NotRoot => Self::NotRoot,
            ErrorKind::Vmm | ErrorKind::Resources | ErrorKind::Unsupported => Self::Host,
            ErrorKind::BootTimeout | ErrorKind::GuestFailed => Self::Guest,
            ErrorKind::Store => Self::Store,
            ErrorKind::Image => Self::Image,
            ErrorKind::Network => Self::Network,
            ErrorKind::Cancelled => Self::Interrupted,
            // Ssh, CommandFailed, Timeout, Holder, and kinds that a later library may have.
            _ => Self::Failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_that_scripts_know() {
        let codes = Exit::ALL.map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130]);
    }

    #[test]
    fn kinds_have_their_codes() {
        for (kind, code) in [
            (ErrorKind::InvalidInput, 2),
            (ErrorKind::NotFound, 3),
            (ErrorKind::Conflict, 4),
            (ErrorKind::Held, 4),
            (ErrorKind::NotRoot, 5),
            (ErrorKind::Vmm, 6),
            (ErrorKind::Resources, 6),
            (ErrorKind::BootTimeout, 7),
            (ErrorKind::GuestFailed, 7),
            (ErrorKind::Store, 8),
            (ErrorKind::Image, 9),
            (ErrorKind::Network, 10),
            (ErrorKind::Cancelled, 130),
            (ErrorKind::Ssh, 1),
            (ErrorKind::Holder, 1),
        ] {
            assert_eq!(Exit::from(kind).code(), code, "{kind}");
        }
    }
}
