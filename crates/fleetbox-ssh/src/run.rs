//! One command from its place on a connection to its end. Runs on the SSH thread.
//!
//! ```text
//! waiting ──channel──▶ sending ──exec request handed over──▶ running ──close──▶ ended
//!    │                    │                                    │
//!    └── stopped: nothing was sent, nothing to kill            └── stopped ─▶ killing ─▶ ended
//! ```
//! *Stopped* is: its time limit passed, the caller went away, its output is too large. Killing needs the
//! session id, which the command itself reports first (`marker.rs`); the channel is read throughout, for
//! russh stops reading the whole connection when one channel is not read.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::command::Command;
use crate::error::{Error, Result};
use crate::keys;
use crate::kill;
use crate::marker::MarkerFilter;
use crate::output::{ExitStatus, Output, Stream};
use crate::pool::{Lease, Pool};

/// How long the channel may stay open after its session was killed: something that left the session may
/// hold the pipes, and that may be never.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// SSH's number of the stderr stream (RFC 4254, 5.2).
const STDERR: u32 = 1;

/// Who gets the output.
pub(crate) trait Sink: Send {
    /// Takes output; false if it is more than allowed.
    fn push(&mut self, stream: Stream, data: Bytes) -> bool;
    /// The command was handed to the connection.
    fn dispatched(&mut self) {}
    /// Resolves when nobody wants the result any more.
    fn abandoned(&mut self) -> impl Future<Output = ()> + Send;
    /// What was collected, for a timeout's error.
    fn collected(&mut self) -> (Vec<u8>, Vec<u8>) {
        Default::default()
    }
}

/// Where the command's standard input comes from.
pub(crate) enum Stdin {
    /// These bytes, then end of file.
    Bytes(Bytes),
    /// From a session's writer; end of file when that is dropped.
    Channel(mpsc::Receiver<Bytes>),
}

/// A request to kill the command's session; answered with whether nothing of it is left.
pub(crate) type KillRequest = oneshot::Sender<bool>;

/// A command, ready to be sent.
pub(crate) struct Job {
    pub(crate) line: Vec<u8>,
    pub(crate) label: String,
    pub(crate) nonce: String,
    pub(crate) stdin: Stdin,
    pub(crate) timeout: Option<Duration>,
    pub(crate) output_limit: usize,
    pub(crate) kills: mpsc::Receiver<KillRequest>,
}

impl Job {
    pub(crate) fn new(command: &Command, stdin: Stdin, kills: mpsc::Receiver<KillRequest>) -> Result<Self> {
        let nonce = keys::nonce();
        let line = command.line(&nonce)?;
        let (timeout, output_limit) = (command.timeout, command.output_limit);
        Ok(Self { line, label: command.label(), nonce, stdin, timeout, output_limit, kills })
    }
}

/// Why a command was stopped.
enum Stop {
    Timeout,
    Abandoned,
    TooLarge(Stream),
}

/// Runs a command. The result of an abandoned one is of no interest to anybody.
pub(crate) async fn run(pool: Arc<Pool>, mut job: Job, sink: &mut impl Sink) -> Result<ExitStatus> {
    let deadline = job.timeout.and_then(|limit| Instant::now().checked_add(limit));
    let (lease, channel) = tokio::select! {
        opened = pool.channel() => opened?,
        () = sink.abandoned() => return Err(lost(&pool, &job.label, false, None)),
        () = until(deadline) => return Err(timed_out(&job, sink, false, false, None)),
        // A closed request channel is a dropped session, which `abandoned` reports.
        Some(asker) = job.kills.recv() => {
            let _ = asker.send(true);
            return Err(lost(&pool, &job.label, false, None));
        }
    };
    let (read, write) = channel.split();
    let filter = MarkerFilter::new(&job.nonce);
    let stdin = std::mem::replace(&mut job.stdin, Stdin::Bytes(Bytes::new()));
    let line = std::mem::take(&mut job.line);
    let dispatched = AtomicBool::new(false);
    let mut running = Running {
        pool: &pool,
        lease: &lease,
        read,
        filter,
        dispatched: &dispatched,
        sid: None,
        status: None,
        closed: false,
        stop: None,
        killing: None,
        killed: None,
        end_by: None,
    };
    let result = {
        let mut writer = pin!(send(&write, line, stdin, &dispatched));
        running.drive(&mut job, sink, deadline, writer.as_mut()).await
    };
    if !running.closed {
        // In a task of its own, since a stuck connection takes no message. The place on the connection
        // stays taken until the close is on its way, so that the server sees it before the next open.
        tokio::spawn(async move {
            let _ = write.close().await;
            drop(lease);
        });
    }
    result
}

/// Hands the command over, then its input. Waits for no answer in between: one round trip less.
async fn send(write: &ChannelWriteHalf<Msg>, line: Vec<u8>, stdin: Stdin, dispatched: &AtomicBool) {
    // Errors mean that the connection is gone; the reading side sees that too, and reports it.
    if write.exec(true, line).await.is_err() {
        return;
    }
    dispatched.store(true, Ordering::Relaxed);
    let sent = match stdin {
        Stdin::Bytes(bytes) => write.data_bytes(bytes).await,
        Stdin::Channel(mut chunks) => loop {
            match chunks.recv().await {
                None => break Ok(()),
                Some(chunk) => match write.data_bytes(chunk).await {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
            }
        },
    };
    if sent.is_ok() {
        let _ = write.eof().await;
    }
}

struct Running<'a> {
    pool: &'a Arc<Pool>,
    lease: &'a Lease,
    read: ChannelReadHalf,
    filter: MarkerFilter,
    dispatched: &'a AtomicBool,
    /// The command's session on the machine.
    sid: Option<u32>,
    status: Option<ExitStatus>,
    /// The server closed the channel.
    closed: bool,
    stop: Option<Stop>,
    killing: Option<JoinHandle<bool>>,
    killed: Option<bool>,
    /// When the channel is closed from this side, come what may.
    end_by: Option<Instant>,
}

impl Running<'_> {
    /// Whether the command was handed to the connection.
    fn sent(&self) -> bool {
        self.dispatched.load(Ordering::Relaxed)
    }

    async fn drive(
        &mut self,
        job: &mut Job,
        sink: &mut impl Sink,
        deadline: Option<Instant>,
        mut writer: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<ExitStatus> {
        let mut writing = true;
        let mut askers: Vec<KillRequest> = Vec::new();
        loop {
            if self.sent() {
                sink.dispatched();
            }
            let wanted = self.stop.is_some() || !askers.is_empty();
            if wanted {
                if !self.sent() {
                    answer(&mut askers, true);
                    return self.outcome(job, sink);
                }
                self.start_killing();
            }
            if let Some(killed) = self.killed {
                answer(&mut askers, killed);
            }
            // A stopped command whose channel has closed may have left children: they are killed first.
            if self.closed && self.killing.is_none() {
                answer(&mut askers, self.killed.unwrap_or(false));
                return self.outcome(job, sink);
            }
            let stopped = self.stop.is_some();
            tokio::select! {
                // Output last: a command that never stops writing must not keep the others waiting.
                biased;
                killed = finished(&mut self.killing) => {
                    self.killing = None;
                    self.killed = Some(killed);
                    self.end_by = Some(Instant::now() + CLOSE_GRACE);
                }
                () = until(self.end_by) => {
                    answer(&mut askers, self.killed.unwrap_or(false));
                    return self.outcome(job, sink);
                }
                () = until(deadline), if !stopped => self.stop = Some(Stop::Timeout),
                () = sink.abandoned(), if !stopped => self.stop = Some(Stop::Abandoned),
                Some(asker) = job.kills.recv() => askers.push(asker),
                () = &mut writer, if writing => writing = false,
                message = self.read.wait(), if !self.closed => match message {
                    Some(message) => self.message(message, job, sink)?,
                    None => return Err(self.connection_lost(job, sink)),
                },
            }
        }
    }

    fn message(&mut self, message: ChannelMsg, job: &Job, sink: &mut impl Sink) -> Result<()> {
        match message {
            ChannelMsg::Data { data } => self.pass(sink, Stream::Stdout, data),
            ChannelMsg::ExtendedData { data, ext: STDERR } => {
                let (pass, sid) = self.filter.push(data);
                self.sid = self.sid.or(sid);
                self.pass(sink, Stream::Stderr, pass);
            }
            ChannelMsg::ExitStatus { exit_status } => self.status = Some(ExitStatus::Code(exit_status)),
            ChannelMsg::ExitSignal { signal_name, core_dumped, .. } => {
                self.status = Some(ExitStatus::Signal { name: signal(&signal_name), core_dumped });
            }
            ChannelMsg::Close => {
                self.closed = true;
                let rest = self.filter.finish();
                self.pass(sink, Stream::Stderr, rest);
            }
            ChannelMsg::Failure => {
                return Err(Error::ExecRefused { addr: self.pool.target.addr, command: job.label.clone() });
            }
            _ => {}
        }
        Ok(())
    }

    fn pass(&mut self, sink: &mut impl Sink, stream: Stream, data: Bytes) {
        let overflown = matches!(self.stop, Some(Stop::TooLarge(_)));
        if !data.is_empty() && !overflown && !sink.push(stream, data) && self.stop.is_none() {
            self.stop = Some(Stop::TooLarge(stream));
        }
    }

    /// Starts killing as soon as the session id is known, once.
    fn start_killing(&mut self) {
        let limit = self.pool.options.kill_timeout;
        if self.end_by.is_none() {
            self.end_by = Some(Instant::now() + limit);
        }
        if let (Some(sid), None, None) = (self.sid, &self.killing, self.killed) {
            self.killing = Some(tokio::spawn(kill::session(self.lease.connection.clone(), sid, limit)));
        }
    }

    fn outcome(&mut self, job: &Job, sink: &mut impl Sink) -> Result<ExitStatus> {
        let addr = self.pool.target.addr;
        let (sent, killed) = (self.sent(), self.killed.unwrap_or(false));
        match self.stop.take() {
            None if !sent => Err(lost(self.pool, &job.label, false, None)),
            None => {
                self.status.take().ok_or_else(|| Error::NoExitStatus { addr, command: job.label.clone() })
            }
            Some(Stop::Abandoned) => {
                if sent && !killed {
                    tracing::warn!(%addr, command = %job.label, "killing an abandoned command is not confirmed");
                }
                Err(lost(self.pool, &job.label, sent, None))
            }
            Some(Stop::Timeout) => Err(timed_out(job, sink, sent, killed, self.status.take())),
            Some(Stop::TooLarge(stream)) => {
                let (command, limit) = (job.label.clone(), job.output_limit);
                Err(Error::OutputTooLarge { command, stream, limit, killed })
            }
        }
    }

    fn connection_lost(&mut self, job: &Job, sink: &mut impl Sink) -> Error {
        // Not left to the task that watches the connection: the next command may come first.
        self.pool.discard(self.lease.connection.id);
        let sent = self.sent();
        if let Some(Stop::Timeout) = self.stop {
            return timed_out(job, sink, sent, false, None);
        }
        lost(self.pool, &job.label, sent, self.lease.connection.cause())
    }
}

fn answer(askers: &mut Vec<KillRequest>, killed: bool) {
    for asker in askers.drain(..) {
        // Whoever asked may have gone.
        let _ = asker.send(killed);
    }
}

/// Pending while nothing is being killed. A kill that panicked has confirmed nothing.
async fn finished(killing: &mut Option<JoinHandle<bool>>) -> bool {
    match killing {
        Some(task) => task.await.unwrap_or(false),
        None => std::future::pending().await,
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn lost(pool: &Pool, command: &str, dispatched: bool, source: Option<Arc<russh::Error>>) -> Error {
    Error::ConnectionLost { addr: pool.target.addr, command: command.to_owned(), dispatched, source }
}

fn timed_out(
    job: &Job,
    sink: &mut impl Sink,
    dispatched: bool,
    killed: bool,
    status: Option<ExitStatus>,
) -> Error {
    let (stdout, stderr) = sink.collected();
    let output = Arc::new(Output { status: status.unwrap_or(ExitStatus::Code(255)), stdout, stderr });
    let (command, after) = (job.label.clone(), job.timeout.unwrap_or_default());
    Error::Timeout { command, after, dispatched, killed, output }
}

/// The signal's name as it was sent.
fn signal(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.clone(),
        known => format!("{known:?}"),
    }
}
