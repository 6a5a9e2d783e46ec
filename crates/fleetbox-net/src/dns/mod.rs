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
