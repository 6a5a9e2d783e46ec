//! Waiting until a machine accepts a login.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::io;
use crate::pool::Pool;

/// Between two attempts while nothing answers: a thirtieth of the time waited so far, within these limits.
/// So the wait is at most 2 % longer than necessary on average, and makes some 220 connects in a minute.
const TCP_INTERVALS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));
/// Limit of one TCP attempt: a fresh one is quicker than the kernel's own repetition (after 1 s, 3 s, 7 s)
/// once the guest's network comes up.
const TCP_LIMIT: Duration = Duration::from_millis(700);
/// After an attempt that reached sshd and failed. Each one costs a guest under emulation half a second of
/// CPU, so the interval doubles up to the second value.
const LOGIN_INTERVALS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// A wrong host key is reported after this time: an image may start its sshd with a key of its own shortly
/// before cloud-init replaces it. Nothing is sent to it meanwhile.
const WRONG_KEY_GRACE: Duration = Duration::from_secs(10);
/// Limit of asking a kept connection for a sign of life.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// How far an attempt to log in got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// No TCP connection.
    Unreachable,
    /// TCP answered, the SSH handshake did not complete.
    Tcp,
    /// sshd answered with the wrong host key.
    WrongHostKey,
    /// sshd answered with the right host key and rejected the login.
    Login,
    /// Logged in.
    Ready,
}

/// One attempt to log in, for progress displays.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// Since the wait began.
    pub elapsed: Duration,
    /// How far it got.
    pub stage: Stage,
    /// Why it got no further; `None` when ready.
    pub error: Option<Error>,
}

impl Client {
    /// Waits until the machine accepts a verified login, and keeps that connection for the commands that
    /// follow. `observer` is told of each attempt. A rejected login and a broken handshake count as "not
    /// yet": a booting machine shows both.
    ///
    /// # Errors
    /// [`Error::NotReady`] at the deadline, with the last attempt's error as its source;
    /// [`Error::HostKeyMismatch`] as soon as a wrong key was shown for 10 s.
    pub async fn wait_ready(&self, deadline: Instant, mut observer: impl FnMut(Attempt)) -> Result<()> {
        let (report, mut attempts) = mpsc::unbounded_channel();
        // All of it on the SSH thread: an attempt wakes the caller once.
        let mut wait = pin!(io::run(wait(self.pool.clone(), deadline, report)));
        loop {
            tokio::select! {
                // Attempts first, so that all of them are seen before the result.
                biased;
                Some(attempt) = attempts.recv() => observer(attempt),
                result = &mut wait => {
                    while let Ok(attempt) = attempts.try_recv() {
                        observer(attempt);
                    }
                    return result?;
                }
            }
        }
    }
}

async fn wait(pool: Arc<Pool>, deadline: Instant, report: mpsc::UnboundedSender<Attempt>) -> Result<()> {
    let start = Instant::now();
    let (mut number, mut last, mut wrong_since) = (0, None, None);
    let mut login_interval = LOGIN_INTERVALS.0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let addr = pool.target.addr;
            return Err(Error::NotReady { addr, waited: start.elapsed(), attempts: number, source: last });
        }
        let error = match login(&pool, left).await {
            Ok(None) => continue,
            Ok(Some(())) => None,
            Err(error) => Some(error),
        };
        number += 1;
        let stage = stage(error.as_ref());
        // Nobody there: this task is about to be aborted.
        let _ = report.send(Attempt { number, elapsed: start.elapsed(), stage, error: error.clone() });
        let Some(error) = error else { return Ok(()) };
        if stage == Stage::WrongHostKey {
            let since: &mut Instant = wrong_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= WRONG_KEY_GRACE {
                return Err(error);
            }
        } else {
            wrong_since = None;
        }
        last = Some(Box::new(error));
        let interval = if stage == Stage::Unreachable {
            (start.elapsed() / 30).clamp(TCP_INTERVALS.0, TCP_INTERVALS.1)
        } else {
            let interval = login_interval;
            login_interval = (login_interval * 2).min(LOGIN_INTERVALS.1);
            interval
        };
        tokio::time::sleep(interval.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
}

/// One attempt within `left`; `None` if it says nothing about the machine.
async fn login(pool: &Arc<Pool>, left: Duration) -> Result<Option<()>> {
    if let Some(connection) = pool.kept() {
        if connection.ping(PING_LIMIT.min(left)).await {
            return Ok(Some(()));
        }
        pool.discard(connection.id);
        return Ok(None);
    }
    let handshake = pool.options.handshake_timeout.min(left);
    if pool.attempt(TCP_LIMIT.min(left), handshake).await? {
        return Ok(Some(()));
    }
    // A command of somebody else is connecting: its attempt is as good as ours.
    tokio::time::sleep(TCP_INTERVALS.0.min(left)).await;
    Ok(None)
}

fn stage(error: Option<&Error>) -> Stage {
    match error {
        None => Stage::Ready,
        Some(Error::HostKeyMismatch { .. }) => Stage::WrongHostKey,
        Some(Error::AuthRejected { .. }) => Stage::Login,
        Some(Error::Handshake { .. }) => Stage::Tcp,
        Some(Error::ConnectTimeout { stage, .. }) if *stage != "TCP connection" => Stage::Tcp,
        Some(_) => Stage::Unreachable,
    }
}
