//! The DNS server on a network's gateway.
//!
//! It answers for the members of its cluster (`node-2`, `node-2.<cluster>.test`, and the reverse) and passes
//! everything else on to the host's resolvers. Only the question of a message is read and only answers of one
//! shape are written, so the wire format (RFC 1035 §4) is a page of code here rather than a library in every user's build.

mod server;
mod upstream;
mod wire;
mod zone;

pub(crate) use server::Server;
pub use upstream::ResolvConf;
pub(crate) use zone::Zone;

/// What a message gets that is not passed on.
#[cfg(feature = "fuzzing")]
pub(crate) fn message(zone: &Zone, bytes: &[u8]) -> Option<Vec<u8>> {
    match wire::parse(bytes) {
        Ok(query) => match zone.decide(&query) {
            zone::Verdict::Here(code, records) => Some(wire::answer(&query, code, true, &records)),
            zone::Verdict::Forward => Some(wire::answer(&query, wire::SERVER_FAILURE, false, &[])),
        },
        Err(wire::Refusal::Code(code)) => wire::refuse(bytes, code),
        Err(wire::Refusal::Silence) => None,
    }
}
