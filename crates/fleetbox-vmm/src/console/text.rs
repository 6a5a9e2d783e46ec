//! A serial console's bytes as lines of plain text.
//!
//! ```text
//!            ESC            [                 letter @..~
//!   Ground ------> Escape -----> Control -------------------> Ground     colours, cursor moves
//!                    |  ]
//!                    +---------> Command -------------------> Ground     window titles; ended by BEL or ESC \
//! ```
//! A line feed always leads back to `Ground`, so that a sequence that was cut off (a guest that was reset while
//! it wrote one) costs at most one line.

/// The longest line kept, in bytes; what is beyond is dropped.
const MAX_LINE: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ground,
    Escape,
    Control,
    Command,
    CommandEscape,
}

/// What a byte has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing of interest.
    None,
    /// The line is finished; take it with [`Lines::take`].
    Line,
    /// A blank was written: the line may be a prompt, which nothing ever finishes.
    MaybePrompt,
}

/// Cuts a byte stream into lines, one byte at a time, so that how it is split into chunks cannot matter.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    state: State,
    line: Vec<u8>,
    cut: bool,
    /// A carriage return was seen; whether it ends the line or a frame depends on the next byte.
    returned: bool,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self { state: State::Ground, line: Vec::new(), cut: false, returned: false }
    }

    /// The unfinished line.
    pub(super) fn current(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        if self.cut {
            text.push('…');
        }
        text
    }

    /// The bytes of the unfinished line, trailing blanks included.
    pub(super) fn raw(&self) -> &[u8] {
        &self.line
    }

    /// The line, of which nothing is left behind.
    pub(super) fn take(&mut self) -> String {
        let text = self.current();
        self.line.clear();
        self.cut = false;
        text
    }

    /// Whether `byte` ends an animation's frame, to be looked at before [`push`](Self::push) starts the next.
    pub(super) fn ends_frame(&self, byte: u8) -> bool {
        self.returned && !matches!(byte, b'\r' | b'\n') && !self.line.is_empty()
    }

    /// Takes one byte.
    pub(super) fn push(&mut self, byte: u8) -> Event {
        if byte == b'\n' {
            self.state = State::Ground;
            self.returned = false;
            return Event::Line;
        }
        match self.state {
            State::Ground => self.ground(byte),
            State::Escape => {
                self.state = match byte {
                    b'[' => State::Control,
                    b']' | b'P' | b'X' | b'^' | b'_' => State::Command,
                    // Character sets and the like have intermediate bytes before the last one.
                    0x20..=0x2f | 0x1b => State::Escape,
                    _ => State::Ground,
                };
                Event::None
            }
            State::Control => {
                match byte {
                    0x1b => self.state = State::Escape,
                    0x18 | 0x1a => self.state = State::Ground,
                    0x40..=0x7e => {
                        self.state = State::Ground;
                        // Menus and firmware screens move the cursor where others write a line feed.
                        if matches!(byte, b'H' | b'f' | b'J') && !self.line.is_empty() {
                            return Event::Line;
                        }
                    }
                    _ => {}
                }
                Event::None
            }
            State::Command => {
                match byte {
                    0x07 | 0x18 | 0x1a => self.state = State::Ground,
                    0x1b => self.state = State::CommandEscape,
                    _ => {}
                }
                Event::None
            }
            State::CommandEscape => {
                self.state = if byte == 0x1b { State::CommandEscape } else { State::Ground };
                Event::None
            }
        }
    }

    fn ground(&mut self, byte: u8) -> Event {
        match byte {
            0x1b => self.state = State::Escape,
            b'\r' => self.returned = true,
            b'\t' => return self.print(b' '),
            0..0x20 | 0x7f => {}
            _ => return self.print(byte),
        }
        Event::None
    }

    fn print(&mut self, byte: u8) -> Event {
        if self.returned {
            self.returned = false;
            self.line.clear();
            self.cut = false;
        }
        if self.line.len() < MAX_LINE {
            self.line.push(byte);
        } else {
            self.cut = true;
        }
        if byte == b' ' { Event::MaybePrompt } else { Event::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let mut l = Lines::new();
        let mut out = Vec::new();
        for &b in bytes {
            if l.push(b) == Event::Line {
                out.push(l.take());
            }
        }
        out.push(l.current());
        out
    }

    #[test]
    fn escapes_are_stripped() {
        assert_eq!(
            lines(b"[\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mx\x1b[0m.\r\n"),
            ["[  OK  ] Started x.", ""]
        );
        assert_eq!(lines(b"\x1b]0;title\x07a\x1b]2;t\x1b\\b\x1b(Bc\n"), ["abc", ""]);
        assert_eq!(lines(b"one\x1b[2;1Htwo\x1b[2J\x1b[Hthree"), ["one", "two", "three"]);
    }

    #[test]
    fn a_cut_escape_costs_one_line_at_most() {
        assert_eq!(lines(b"\x1b]0;never ended\nnext\n"), ["", "next", ""]);
        assert_eq!(lines(b"\x1b[12;\nnext\n"), ["", "next", ""]);
    }

    #[test]
    fn carriage_returns_overwrite() {
        assert_eq!(lines(b"frame 1\rframe 2\r\nx\r\r\n"), ["frame 2", "x", ""]);
        assert_eq!(lines(b"\n\rSeaBIOS\r\n"), ["", "SeaBIOS", ""]);
    }

    #[test]
    fn long_lines_and_odd_bytes() {
        let long = lines(&vec![b'x'; 10_000]);
        assert_eq!(long[0].chars().count(), MAX_LINE + 1);
        assert!(long[0].ends_with('…'));
        assert_eq!(lines(b"a\xff\x00\x08b\n"), ["a\u{fffd}b", ""]);
    }
}
