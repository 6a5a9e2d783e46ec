//! Finding the line that tells a command's session id in the stream of its standard error.

use bytes::{Bytes, BytesMut};

/// Ends the marker, and begins it: a byte that no sane start-up file of a shell prints.
const FENCE: u8 = 0x1e;
/// Digits of the largest process id, and room.
const MAX_DIGITS: usize = 10;

/// The shell command that prints the marker, without a newline.
pub(crate) fn announce(nonce: &str) -> String {
    format!("printf '\\036fleetbox:{nonce}:%d\\036' $$ >&2")
}

/// Takes the marker out of the stream and passes everything else on unchanged. Text that comes before it
/// (a shell's start-up files may write there) passes as well.
#[derive(Debug)]
pub(crate) struct MarkerFilter {
    needle: Vec<u8>,
    held: BytesMut,
    found: bool,
}

impl MarkerFilter {
    pub(crate) fn new(nonce: &str) -> Self {
        let mut needle = vec![FENCE];
        needle.extend_from_slice(format!("fleetbox:{nonce}:").as_bytes());
        Self { needle, held: BytesMut::new(), found: false }
    }

    /// Returns what to pass on, and the session id if the marker ended in `data`.
    pub(crate) fn push(&mut self, data: Bytes) -> (Bytes, Option<u32>) {
        if self.found {
            return (data, None);
        }
        self.held.extend_from_slice(&data);
        let mut from = 0;
        while let Some(at) = find(&self.held[from..], &self.needle).map(|at| from + at) {
            let digits = &self.held[at + self.needle.len()..];
            let len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
            if len == digits.len() && len <= MAX_DIGITS {
                return (self.held.split_to(at).freeze(), None);
            }
            let number = std::str::from_utf8(&digits[..len]).ok().and_then(|text| text.parse::<u32>().ok());
            match number {
                // 0 and 1 are nobody's session of ours; as the target of a kill they would be a disaster.
                Some(sid) if sid > 1 && digits.get(len) == Some(&FENCE) => {
                    let rest = self.held.split_off(at + self.needle.len() + len + 1);
                    self.held.truncate(at);
                    self.held.unsplit(rest);
                    self.found = true;
                    return (self.held.split().freeze(), Some(sid));
                }
                _ => from = at + 1,
            }
        }
        let keep = (0..self.needle.len().min(self.held.len() + 1))
            .rev()
            .find(|&n| self.held.ends_with(&self.needle[..n]))
            .unwrap_or(0);
        let pass = self.held.len() - keep;
        (self.held.split_to(pass).freeze(), None)
    }

    /// What was held back because it might have become the marker.
    pub(crate) fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(filter: &mut MarkerFilter, stream: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<u32>) {
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (stream.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(stream.len());
        let (mut out, mut sid, mut start) = (Vec::new(), None, 0);
        for cut in cuts {
            let (pass, found) = filter.push(Bytes::copy_from_slice(&stream[start..cut]));
            out.extend_from_slice(&pass);
            sid = sid.or(found);
            start = cut;
        }
        out.extend_from_slice(&filter.finish());
        (out, sid)
    }

    fn marker(sid: u32) -> Vec<u8> {
        format!("\x1efleetbox:n0nce:{sid}\x1e").into_bytes()
    }

    /// Bytes that look like pieces of a marker often enough to matter.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"\x1e".to_vec()),
            Just(b"\x1efleetbox:".to_vec()),
            Just(b"\x1efleetbox:n0nce".to_vec()),
            Just(b"\x1efleetbox:n0nce:x".to_vec()),
            Just(b"\x1efleetbox:n0nce:1\x1e".to_vec()),
            Just(b"\x1efleetbox:n0nce:99999999999".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..9),
        ];
        proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn marker_is_taken_out_wherever_packets_are_cut(
            before in proptest::collection::vec(any::<u8>().prop_filter("fence", |b| *b != FENCE), 0..40),
            after in noise(), sid in 2u32.., cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let stream = [before.clone(), marker(sid), after.clone()].concat();
            let (out, found) = run(&mut MarkerFilter::new("n0nce"), &stream, &cuts);
            prop_assert_eq!(found, Some(sid));
            prop_assert_eq!(out, [before, after].concat());
        }

        #[test]
        fn without_a_marker_nothing_is_lost(
            stream in noise(), cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let (out, found) = run(&mut MarkerFilter::new("an0ther"), &stream, &cuts);
            prop_assert_eq!(found, None);
            prop_assert_eq!(out, stream);
        }

        #[test]
        fn false_starts_before_the_marker_pass(
            before in noise(), sid in 2u32.., cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            // A false start whose digits run into the marker's own fence is still no marker.
            let stream = [before.clone(), b"|".to_vec(), marker(sid)].concat();
            let (out, found) = run(&mut MarkerFilter::new("n0nce"), &stream, &cuts);
            prop_assert_eq!(found, Some(sid));
            prop_assert_eq!(out, [before, b"|".to_vec()].concat());
        }
    }
}
