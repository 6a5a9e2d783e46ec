//! Reading the question of a DNS message and writing its answer (RFC 1035 §4). Pure; never panics on any bytes.

use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) const A: u16 = 1;
pub(crate) const PTR: u16 = 12;
pub(crate) const AAAA: u16 = 28;
const OPT: u16 = 41;
pub(crate) const ANY: u16 = 255;
pub(crate) const CLASS_IN: u16 = 1;

pub(crate) const NO_ERROR: u8 = 0;
pub(crate) const FORMAT_ERROR: u8 = 1;
pub(crate) const SERVER_FAILURE: u8 = 2;
pub(crate) const NAME_ERROR: u8 = 3;
pub(crate) const NOT_IMPLEMENTED: u8 = 4;

const HEADER: usize = 12;
/// What a member's address may be kept for, in seconds: a member that is destroyed and made anew must not be
/// sought at its old address.
const TTL: u32 = 1;
/// UDP payload that we take (RFC 6891), as the DNS flag day 2020 recommends.
const UDP_SIZE: u16 = 1232;

/// A query with one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) id: u16,
    /// The name in lower case, without the last dot; labels that hold dots or other bytes than printable ASCII are
    /// escaped, so that they equal no name of ours.
    pub(crate) name: String,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// Bits of the header that an answer repeats: opcode and "recursion desired".
    flags: u16,
    /// The question as it was sent: an answer repeats it, letter for letter.
    question: Vec<u8>,
    /// It came with an OPT record, so the answer gets one (RFC 6891 §6.1.1).
    edns: bool,
}

/// What a message that is not a query of one question gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nothing: too short to answer, or itself an answer (to answer those makes loops).
    Silence,
    /// An error code.
    Code(u8),
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A name from `at`, and where it ends. Compression has no place in a question.
fn name_at(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let start = at;
    let mut name = String::new();
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1;
        if len == 0 {
            return (at - start <= 255).then_some((name, at));
        }
        if len > 63 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for &b in bytes.get(at..at + len)? {
            match b {
                b'.' | b'\\' => name.extend(['\\', char::from(b)]),
                b'!'..=b'~' => name.push(char::from(b.to_ascii_lowercase())),
                _ => name.push_str(&format!("\\{b:03}")),
            }
        }
        at += len;
    }
}

/// Reads a query.
pub(crate) fn parse(message: &[u8]) -> Result<Query, Refusal> {
    let (Some(id), Some(flags)) = (u16_at(message, 0), u16_at(message, 2)) else {
        return Err(Refusal::Silence);
    };
    if message.len() < HEADER || flags & 0x8000 != 0 {
        return Err(Refusal::Silence);
    }
    if flags & 0x7800 != 0 {
        return Err(Refusal::Code(NOT_IMPLEMENTED));
    }
    let format_error = Refusal::Code(FORMAT_ERROR);
    if u16_at(message, 4) != Some(1) {
        return Err(format_error);
    }
    let (name, end) = name_at(message, HEADER).ok_or(format_error)?;
    let kind = u16_at(message, end).ok_or(format_error)?;
    let class = u16_at(message, end + 2).ok_or(format_error)?;
    let question = message.get(HEADER..end + 4).ok_or(format_error)?.to_vec();
    // Resolvers put OPT first, after no answers and no authorities: root name, then the type.
    let alone =
        u16_at(message, 6) == Some(0) && u16_at(message, 8) == Some(0) && u16_at(message, 10) != Some(0);
    let edns = alone && message.get(end + 4) == Some(&0) && u16_at(message, end + 5) == Some(OPT);
    Ok(Query { id, name, kind, class, flags: flags & 0x7900, question, edns })
}

/// A record to answer with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    /// A host name, in ASCII with dots.
    Ptr(String),
}

impl Record {
    pub(crate) fn kind(&self) -> u16 {
        match self {
            Self::A(_) => A,
            Self::Aaaa(_) => AAAA,
            Self::Ptr(_) => PTR,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::A(ip) => ip.octets().to_vec(),
            Self::Aaaa(ip) => ip.octets().to_vec(),
            Self::Ptr(name) => {
                let mut data = Vec::new();
                for label in name.split('.').filter(|l| !l.is_empty()) {
                    // Members' names are labels of at most 63 bytes.
                    data.push(u8::try_from(label.len()).unwrap_or(63));
                    data.extend(label.bytes().take(63));
                }
                data.push(0);
                data
            }
        }
    }
}

/// Writes an answer. `authoritative`: it is from our own zone.
pub(crate) fn answer(query: &Query, code: u8, authoritative: bool, records: &[Record]) -> Vec<u8> {
    // QR, opcode and RD as asked, AA, RA.
    let flags =
        0x8000 | query.flags | if authoritative { 0x0400 } else { 0 } | 0x0080 | u16::from(code & 0xf);
    let count = u16::try_from(records.len()).unwrap_or(0);
    let mut out = Vec::with_capacity(64);
    for n in [query.id, flags, 1, count, 0, u16::from(query.edns)] {
        out.extend(n.to_be_bytes());
    }
    out.extend(&query.question);
    for record in records {
        // The name is the question's, which stands right behind the header.
        out.extend([0xc0, 12]);
        out.extend(record.kind().to_be_bytes());
        out.extend(CLASS_IN.to_be_bytes());
        out.extend(TTL.to_be_bytes());
        let data = record.data();
        out.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
        out.extend(data);
    }
    if query.edns {
        out.push(0);
        out.extend(OPT.to_be_bytes());
        out.extend(UDP_SIZE.to_be_bytes());
        out.extend([0; 6]);
    }
    out
}

/// Writes an error to a message whose question could not be read.
pub(crate) fn refuse(message: &[u8], code: u8) -> Option<Vec<u8>> {
    let (id, flags) = (u16_at(message, 0)?, u16_at(message, 2)?);
    let flags = 0x8000 | (flags & 0x7900) | 0x0080 | u16::from(code & 0xf);
    Some([id, flags, 0, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect())
}

/// Whether a message is an answer to a query: same number, same question.
pub(crate) fn answers(query: &Query, message: &[u8]) -> bool {
    let is_answer = u16_at(message, 2).is_some_and(|f| f & 0x8000 != 0);
    let question = message.get(HEADER..HEADER + query.question.len());
    let same = match question {
        Some(q) => q.eq_ignore_ascii_case(&query.question),
        // Some servers leave the question out of an error.
        None => u16_at(message, 4) == Some(0),
    };
    is_answer && same && u16_at(message, 0) == Some(query.id) && message.len() >= HEADER
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|l| !l.is_empty()) {
            out.push(label.len() as u8);
            out.extend(label.bytes());
        }
        out.push(0);
        out.extend(kind.to_be_bytes());
        out.extend(CLASS_IN.to_be_bytes());
        out
    }

    #[test]
    fn a_query_is_read_and_answered_byte_for_byte() {
        let q = parse(&query("Node-2.Web.test", A)).unwrap();
        assert_eq!((q.name.as_str(), q.kind, q.class, q.edns), ("node-2.web.test", A, CLASS_IN, false));
        let out = answer(&q, NO_ERROR, true, &[Record::A(Ipv4Addr::new(10, 64, 3, 2))]);
        let mut want = vec![0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        want.extend(b"\x06Node-2\x03Web\x04test\x00\x00\x01\x00\x01");
        want.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04\x0a\x40\x03\x02");
        assert_eq!(out, want);
        assert!(answers(&q, &out) && !answers(&q, &query("node-2.web.test", A)));
        assert!(!answers(&Query { id: 1, ..q.clone() }, &out));
    }

    #[test]
    fn an_opt_record_is_met_with_one() {
        let mut bytes = query("a", AAAA);
        bytes[11] = 1;
        bytes.extend([0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 0]);
        let q = parse(&bytes).unwrap();
        assert!(q.edns);
        let out = answer(&q, NAME_ERROR, true, &[]);
        assert_eq!(&out[out.len() - 11..], [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        assert_eq!((out[3] & 0xf, out[11]), (NAME_ERROR, 1));
    }

    #[test]
    fn what_is_no_query_of_one_question_is_refused() {
        assert_eq!(parse(&[]), Err(Refusal::Silence));
        assert_eq!(parse(&query("a", A)[..11]), Err(Refusal::Silence));
        let with = |at: usize, value: u8| {
            let mut q = query("a.b", A);
            q[at] = value;
            parse(&q)
        };
        assert_eq!(with(2, 0x80), Err(Refusal::Silence));
        assert_eq!(with(2, 0x28), Err(Refusal::Code(NOT_IMPLEMENTED)));
        assert_eq!(with(5, 0), Err(Refusal::Code(FORMAT_ERROR)));
        assert_eq!(with(5, 2), Err(Refusal::Code(FORMAT_ERROR)));
        // A compression pointer, a label past the end.
        assert_eq!(with(12, 0xc0), Err(Refusal::Code(FORMAT_ERROR)));
        assert_eq!(with(12, 60), Err(Refusal::Code(FORMAT_ERROR)));
        assert_eq!(parse(&query(&"x.".repeat(130), A)), Err(Refusal::Code(FORMAT_ERROR)));
    }

    #[test]
    fn a_label_with_a_dot_is_not_two_labels() {
        let mut q = query("", A);
        q.splice(12..13, *b"\x03a.b\x02\x00\xff\x00");
        assert_eq!(parse(&q).unwrap().name, "a\\.b.\\000\\255");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(q) = parse(&bytes) {
                prop_assert!(answers(&q, &answer(&q, NO_ERROR, false, &[])));
            }
            let _ = refuse(&bytes, FORMAT_ERROR);
        }

        #[test]
        fn neither_does_a_damaged_query(at in 0usize..40, value in any::<u8>(), cut in 0usize..40) {
            let mut q = query("node-2.web.test", A);
            if let Some(b) = q.get_mut(at) {
                *b = value;
            }
            q.truncate(cut.max(2));
            let _ = parse(&q);
        }
    }
}
