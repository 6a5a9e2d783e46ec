//! The parsers of foreign bytes, for `fuzz/`. Not part of the API.

use crate::qmp::codec::{Decoder, Malformed, Message};

/// What a VMM says on its control channel, in one piece and in pieces of `step` bytes.
pub fn qmp(bytes: &[u8], step: usize) {
    let whole = messages(bytes, bytes.len());
    let pieces = messages(bytes, step);
    assert_eq!(whole, pieces, "what is said depends on how it is cut");
}

fn messages(bytes: &[u8], step: usize) -> Vec<Result<Message, Malformed>> {
    let (mut decoder, mut all) = (Decoder::default(), Vec::new());
    for piece in bytes.chunks(step.max(1)) {
        decoder.feed(piece);
        while let Some(message) = decoder.next() {
            let ended = message.is_err();
            all.push(message);
            // The connection is of no use afterwards.
            if ended {
                return all;
            }
        }
    }
    all
}
