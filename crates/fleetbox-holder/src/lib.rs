//! The holder: a process that owns one network and its machines, and serves them over a unix socket.
//!
//! ```text
//! owner process --fork, exec of itself--> holder --spawns--> VMMs (die with the holder)
//!      |  owner pipe (write end) ............ | read end: EOF means that the owner is dead
//!      |  <----------- ready pipe ----------- | one line of JSON: serving, or why not
//!      |  -------- HTTP, unix socket -------> |
//! ```
//! Teardown order, written once in `process.rs`: VMMs, then network, then journal, then socket, then the
//! cluster's lock with the process itself.
//!
//! A holder never returns into the program it was started from: see [`enter_if_asked`].
#![warn(missing_docs)]

mod config;
mod process;
mod routes;
mod socket;
mod stream;

pub use config::{HolderConfig, Ready, VARIABLE};
pub use fleetbox_orchestrator::{host, image, undo_dead_owners};

/// What the backend can do that machines of this store would have here, without a holder.
///
/// # Errors
/// When no backend works on this host.
pub async fn capabilities(
    store: &fleetbox_store::Store,
) -> Result<fleetbox_spec::Capabilities, fleetbox_api::ApiError> {
    let chosen = fleetbox_orchestrator::backends::choose(store).await;
    chosen.map(|c| c.backend.capabilities().clone()).map_err(|e| stream::to_api(&e))
}
pub use process::enter_if_asked;
