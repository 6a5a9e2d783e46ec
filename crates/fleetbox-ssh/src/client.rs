//! The client of one machine.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::command::Command;
use crate::error::{Error, Result};
use crate::io;
use crate::keys::KeyPair;
use crate::output::{Output, Stream};
use crate::pool::Pool;
use crate::run::{self, Job, Sink, Stdin};
use crate::session::Session;
use crate::target::{Options, Target};

/// Runs commands on one machine over kept connections. Cheap to clone; usable from any thread and any
/// tokio runtime, and connections outlive the runtime that asked for them.
///
/// ```no_run
/// # async fn example(target: fleetbox_ssh::Target, key: fleetbox_ssh::KeyPair) -> fleetbox_ssh::Result<()> {
/// use fleetbox_ssh::{Client, Options};
///
/// let client = Client::new(target, key, Options::default());
/// let output = client.exec("uname -a").await?;
/// assert!(output.status.success());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) pool: Arc<Pool>,
}

impl Client {
    /// Makes a client. Connects with the first command.
    #[must_use]
    pub fn new(target: Target, key: KeyPair, options: Options) -> Self {
        Self { pool: Pool::new(target, key, options) }
    }

    /// The machine's sshd.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.pool.target
    }

    /// Runs a command and collects its output. A command that ends with a non-zero status is not an error
    /// here: look at [`Output::status`].
    ///
    /// As with `ssh`, it has ended when its output is closed: a background process that inherits it
    /// (`daemon &`) keeps the call waiting, one with its output redirected does not.
    ///
    /// Dropping the future kills the command's session on the machine, as a time limit does.
    ///
    /// # Errors
    /// What [`Error`] lists for connecting and running; [`Error::is_transient`] tells what may be repeated.
    pub async fn exec(&self, command: impl Into<Command>) -> Result<Output> {
        let command = command.into();
        // Never used: an executed command is killed by dropping the call.
        let (_kills, kill_requests) = mpsc::channel(1);
        let stdin = Stdin::Bytes(command.stdin.clone().unwrap_or_default());
        let job = Job::new(&command, stdin, kill_requests)?;
        let pool = self.pool.clone();
        let lost = Error::ConnectionLost {
            addr: pool.target.addr,
            command: job.label.clone(),
            dispatched: true,
            source: None,
        };
        let (answer, result) = oneshot::channel();
        let mut collect = Collect { stdout: Vec::new(), stderr: Vec::new(), limit: job.output_limit, answer };
        io::handle()?.spawn(async move {
            let status = run::run(pool, job, &mut collect).await;
            let Collect { stdout, stderr, answer, .. } = collect;
            let _ = answer.send(status.map(|status| Output { status, stdout, stderr }));
        });
        // The task always answers unless it panicked.
        result.await.unwrap_or(Err(lost))
    }

    /// Starts a command and returns when it has been sent; its output comes as events.
    ///
    /// # Errors
    /// As [`exec`](Self::exec), for what happens before the command is sent.
    pub async fn spawn(&self, command: impl Into<Command>) -> Result<Session> {
        Session::start(self.pool.clone(), command.into()).await
    }

    /// Closes the kept connections, each when its last command has ended. The next command opens a new
    /// one. For a machine that was stopped or reset, so that no command meets a dead connection.
    pub fn disconnect(&self) {
        let pool = self.pool.clone();
        match io::handle() {
            Ok(handle) => drop(handle.spawn(async move { pool.clear() })),
            Err(error) => tracing::warn!(%error, "ssh disconnect"),
        }
    }

    /// Number of open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pool.len()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("target", self.target()).finish_non_exhaustive()
    }
}

struct Collect {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    limit: usize,
    answer: oneshot::Sender<Result<Output>>,
}

impl Sink for Collect {
    fn push(&mut self, stream: Stream, data: Bytes) -> bool {
        let buffer = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let fits = buffer.len() + data.len() <= self.limit;
        if fits {
            buffer.extend_from_slice(&data);
        }
        fits
    }

    async fn abandoned(&mut self) {
        self.answer.closed().await;
    }

    fn collected(&mut self) -> (Vec<u8>, Vec<u8>) {
        (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr))
    }
}
