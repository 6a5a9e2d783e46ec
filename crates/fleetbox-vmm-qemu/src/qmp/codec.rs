//! The QEMU Machine Protocol as bytes: one JSON object to a line, both ways.
//!
//! Source: QEMU's `docs/interop/qmp-spec.rst`. No I/O here.

use serde_json::{Map, Value, json};

/// The longest line taken from a VMM. The longest answers asked for here are far below 1 KiB.
pub(crate) const MAX_LINE: usize = 1024 * 1024;

/// What the VMM says by itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub(crate) name: String,
    /// Its data; `null` where it has none.
    pub(crate) data: Value,
}

/// The VMM's refusal of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) String);

/// One line from the VMM.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// The first line of a connection.
    Greeting,
    /// The answer to the command of this id.
    Reply {
        /// Of the command.
        id: u64,
        /// What it returned, or why it was refused.
        result: Result<Value, Refusal>,
    },
    /// An event.
    Event(Event),
}

/// A line that is not the protocol's, cut short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) String);

/// A command as a line.
pub(crate) fn encode(id: u64, command: &str) -> Vec<u8> {
    let mut line = json!({ "execute": command, "id": id }).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Puts lines together from whatever pieces the socket gives.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
    /// So many bytes of the buffer are known to hold no line end.
    scanned: usize,
}

impl Decoder {
    /// Takes in what was read.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if a whole line of it is there.
    ///
    /// # Errors
    /// [`Malformed`] for a line that is no message or that is too long. The connection is of no use afterwards.
    pub(crate) fn next(&mut self) -> Option<Result<Message, Malformed>> {
        loop {
            let Some(end) = self.buffer[self.scanned..].iter().position(|&b| b == b'\n') else {
                self.scanned = self.buffer.len();
                if self.scanned <= MAX_LINE {
                    return None;
                }
                let what = excerpt(&self.buffer);
                self.buffer = Vec::new();
                self.scanned = 0;
                return Some(Err(Malformed(format!("a line without end: {what}"))));
            };
            let line: Vec<u8> = self.buffer.drain(..=self.scanned + end).collect();
            self.scanned = 0;
            let line = line.trim_ascii();
            if !line.is_empty() {
                return Some(parse(line));
            }
        }
    }
}

fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

fn parse(line: &[u8]) -> Result<Message, Malformed> {
    let malformed = || Malformed(excerpt(line));
    let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|_| malformed())?;
    if object.contains_key("QMP") {
        return Ok(Message::Greeting);
    }
    if let Some(Value::String(name)) = object.remove("event") {
        let data = object.remove("data").unwrap_or(Value::Null);
        return Ok(Message::Event(Event { name, data }));
    }
    // An error without an id means that the VMM could not read a command of ours: nobody's answer.
    let id = object.get("id").and_then(Value::as_u64).ok_or_else(malformed)?;
    if let Some(value) = object.remove("return") {
        return Ok(Message::Reply { id, result: Ok(value) });
    }
    let error = object.get("error").ok_or_else(malformed)?;
    let text = error.get("desc").and_then(Value::as_str).ok_or_else(malformed)?;
    Ok(Message::Reply { id, result: Err(Refusal(text.to_owned())) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(pieces: &[&[u8]]) -> Vec<Result<Message, Malformed>> {
        let mut decoder = Decoder::default();
        let mut all = Vec::new();
        for piece in pieces {
            decoder.feed(piece);
            all.extend(std::iter::from_fn(|| decoder.next()));
        }
        all
    }

    // As QEMU 10.0.2 sent them.
    const SESSION: &str = concat!(
        r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#,
        "\r\n",
        r#"{"return": {}, "id": 1}"#,
        "\r\n",
        r#"{"timestamp": {"seconds": 1795441086, "microseconds": 838156}, "event": "STOP"}"#,
        "\r\n",
        r#"{"id": 2, "error": {"class": "GenericError", "desc": "Resetting the Virtual Machine is required"}}"#,
        "\r\n",
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#,
        "\r\n",
    );

    fn session() -> Vec<Result<Message, Malformed>> {
        vec![
            Ok(Message::Greeting),
            Ok(Message::Reply { id: 1, result: Ok(json!({})) }),
            Ok(Message::Event(Event { name: "STOP".into(), data: Value::Null })),
            Ok(Message::Reply {
                id: 2,
                result: Err(Refusal("Resetting the Virtual Machine is required".into())),
            }),
            Ok(Message::Event(Event {
                name: "SHUTDOWN".into(),
                data: json!({"guest": true, "reason": "guest-reset"}),
            })),
        ]
    }

    #[test]
    fn what_is_not_the_protocol_is_named() {
        let bad = |text: &str| match decode(&[text.as_bytes()]).as_slice() {
            [Err(Malformed(what))] => what.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(bad("hello\n"), "hello");
        assert_eq!(bad("[1]\n"), "[1]");
        assert_eq!(bad("{\"return\": {}}\n"), "{\"return\": {}}");
        assert_eq!(bad("{\"error\": {\"desc\": \"x\"}}\n"), "{\"error\": {\"desc\": \"x\"}}");
        assert_eq!(decode(&[b"\n\r\n  \n"]), []);
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let piece = vec![b'x'; 64 * 1024];
        let pieces = vec![piece.as_slice(); MAX_LINE / piece.len() + 1];
        assert!(matches!(decode(&pieces).as_slice(), [Err(Malformed(what))] if what.len() < 300));
    }

    #[test]
    fn commands_are_lines() {
        let line = encode(7, "system_powerdown");
        assert_eq!(line.last(), Some(&b'\n'));
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value, json!({"execute": "system_powerdown", "id": 7}));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            decode(&pieces);
        }

        #[test]
        fn no_json_panics(text in r#"\{"(event|return|error|id|QMP|data)": ?(\{\}|"[a-z]{0,3}"|[0-9]{0,22}|null|\[\])(, ?"(id|data|desc)": ?(-?[0-9]{1,22}|null))?\}\n"#) {
            prop_assert!(decode(&[text.as_bytes()]).len() == 1);
        }

        #[test]
        fn pieces_do_not_matter(cuts in proptest::collection::vec(0..SESSION.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.extend([0, SESSION.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &SESSION.as_bytes()[w[0]..w[1]]).collect();
            prop_assert_eq!(decode(&pieces), session());
        }
    }
}
