//! What the programs and tests of this package share: the demonstration and the benchmark on real machines, and the
//! disk images that the tests boot.
//!
//! The tests are in `tests/`.
#![warn(missing_docs)]

pub mod images;
mod traces;

pub use traces::Traces;

/// An error with its causes and, where a boot is what failed, the console.
#[must_use]
pub fn story(e: &(dyn std::error::Error + 'static)) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    if let Some(console) = e.downcast_ref::<fleetbox::Error>().and_then(fleetbox::Error::console) {
        text.push_str("\nthe console's last lines:\n");
        text.push_str(console);
    }
    text
}

/// Ends when this process is asked to end by Ctrl-C, SIGTERM or a hang-up; tells by which.
///
/// # Errors
/// When a signal cannot be listened for.
pub async fn interrupted() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}
