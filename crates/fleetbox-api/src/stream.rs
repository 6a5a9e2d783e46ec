//! Lines out of chunks.

use std::collections::VecDeque;

/// The longest line a stream may carry, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// Cuts a stream of byte chunks into lines. Pure; bounded by [`MAX_LINE`].
#[derive(Debug, Default)]
pub struct LineDecoder {
    partial: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
}

impl LineDecoder {
    /// Takes a chunk.
    ///
    /// # Errors
    /// The length reached, when a line grows beyond [`MAX_LINE`].
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), usize> {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            self.partial.extend_from_slice(&rest[..end]);
            self.check()?;
            self.ready.push_back(std::mem::take(&mut self.partial));
            rest = &rest[end + 1..];
        }
        self.partial.extend_from_slice(rest);
        self.check()
    }

    fn check(&self) -> Result<(), usize> {
        if self.partial.len() > MAX_LINE { Err(self.partial.len()) } else { Ok(()) }
    }

    /// The next whole line, without its end.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunking_changes_nothing(text in "[a-c\n]{0,200}", cuts in proptest::collection::vec(1usize..9, 0..100)) {
            let mut d = LineDecoder::default();
            let (mut rest, mut cuts) = (text.as_bytes(), cuts.into_iter());
            while !rest.is_empty() {
                let n = cuts.next().unwrap_or(rest.len()).min(rest.len());
                d.feed(&rest[..n]).unwrap();
                rest = &rest[n..];
            }
            let lines: Vec<_> = std::iter::from_fn(|| d.line()).map(|l| String::from_utf8(l).unwrap()).collect();
            let mut want: Vec<_> = text.split('\n').map(str::to_owned).collect();
            want.pop();
            prop_assert_eq!(lines, want);
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut d = LineDecoder::default();
        let chunk = vec![b'x'; MAX_LINE / 2 + 1];
        d.feed(&chunk).unwrap();
        assert!(d.feed(&chunk).is_err());
    }
}
