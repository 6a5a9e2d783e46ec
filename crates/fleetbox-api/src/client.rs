//! Talks to a holder.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use fleetbox_spec::{Capabilities, Event, MachineInfo, MachineName, MachineSpec};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::{
    API_VERSION, ApiError, CloseRequest, HolderInfo, LineDecoder, StopRequest, StreamItem, StreamResult,
    VersionInfo, routes,
};

/// How long a stream may be silent. The holder writes an empty line every few seconds.
pub const STREAM_SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long a quick call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Why a call to a holder failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens: the holder has ended or was never there.
    #[error("no holder answers at {socket}")]
    NotThere {
        /// The socket.
        socket: PathBuf,
        /// What connecting answered.
        #[source]
        source: io::Error,
    },
    /// The socket belongs to another user.
    #[error("the holder at {socket} belongs to another user")]
    Denied {
        /// The socket.
        socket: PathBuf,
        /// What connecting answered.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or carried no HTTP.
    #[error("lost the connection to the holder at {socket} during {call}")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// The call.
        call: String,
        /// What was seen.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("the holder at {socket} was silent for {seconds} s during {call}")]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// The call.
        call: String,
        /// How long was waited.
        seconds: u64,
    },
    /// An answer that this version of the API does not know.
    #[error("the holder at {socket} gave an answer to {call} that is not in the API")]
    Unintelligible {
        /// The socket.
        socket: PathBuf,
        /// The call.
        call: String,
        /// Where it stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// The holder was built from another version.
    #[error(
        "the holder of pid {pid} speaks API version {theirs} (fleetbox {fleetbox_version}), this program version {ours}"
    )]
    Version {
        /// The holder's process.
        pid: u32,
        /// Its version.
        theirs: u32,
        /// This program's.
        ours: u32,
        /// Its release.
        fleetbox_version: String,
    },
    /// The holder carried out the call and says that it failed.
    #[error("{0}")]
    Api(ApiError),
}

/// A client of one holder. Each call is a connection of its own: they cost some 50 µs, and one that is
/// dropped tells the holder that its caller is gone.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for the holder at a socket. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for the holder's version and refuses another than this program's.
    ///
    /// # Errors
    /// [`ClientError::Version`], or that the holder cannot be reached.
    pub async fn handshake(&self) -> Result<VersionInfo, ClientError> {
        let info: VersionInfo = self.call(Method::GET, routes::VERSION, None::<&()>).await?;
        if info.api_version != API_VERSION {
            return Err(ClientError::Version {
                pid: info.pid,
                theirs: info.api_version,
                ours: API_VERSION,
                fleetbox_version: info.fleetbox_version,
            });
        }
        Ok(info)
    }

    /// The holder's state.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn holder(&self) -> Result<HolderInfo, ClientError> {
        self.call(Method::GET, routes::HOLDER, None::<&()>).await
    }

    /// All its machines.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn machines(&self) -> Result<Vec<MachineInfo>, ClientError> {
        self.call(Method::GET, routes::MACHINES, None::<&()>).await
    }

    /// One machine.
    ///
    /// # Errors
    /// [`ClientError::Api`] of kind `NotFound` when it has none of that name.
    pub async fn machine(&self, name: &MachineName) -> Result<MachineInfo, ClientError> {
        self.call(Method::GET, &routes::with_name(routes::MACHINE, name), None::<&()>).await
    }

    /// Starts a machine; dropping the future cancels the start.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn start(
        &self,
        spec: &MachineSpec,
        on_event: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<MachineInfo, ClientError> {
        self.machine_stream(routes::MACHINES, Some(spec), on_event).await
    }

    /// Stops a machine.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn stop(
        &self,
        name: &MachineName,
        how: &StopRequest,
        on_event: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<MachineInfo, ClientError> {
        self.machine_stream(&routes::with_name(routes::STOP, name), Some(how), on_event).await
    }

    /// Cuts a machine's power and boots it again.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn reset(
        &self,
        name: &MachineName,
        on_event: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<MachineInfo, ClientError> {
        self.machine_stream(&routes::with_name(routes::RESET, name), None::<&()>, on_event).await
    }

    /// Halts a machine's virtual CPUs.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn pause(&self, name: &MachineName) -> Result<MachineInfo, ClientError> {
        self.call(Method::POST, &routes::with_name(routes::PAUSE, name), None::<&()>).await
    }

    /// Lets a machine's virtual CPUs run again.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn resume(&self, name: &MachineName) -> Result<MachineInfo, ClientError> {
        self.call(Method::POST, &routes::with_name(routes::RESUME, name), None::<&()>).await
    }

    /// Stops a machine at once and deletes it, disk and all.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn destroy(&self, name: &MachineName) -> Result<(), ClientError> {
        let route = routes::with_name(routes::MACHINE, name);
        let call = format!("DELETE {route}");
        let response = self.request(Method::DELETE, &route, None::<&()>).await?;
        let response = self.check(response, &call).await?;
        self.follow(response, &call, &|_| {}).await.map(|_| ())
    }

    /// What the backend can do; the holder chooses it, if none was needed yet.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn capabilities(&self) -> Result<Capabilities, ClientError> {
        self.call(Method::GET, routes::CAPABILITIES, None::<&()>).await
    }

    /// Makes the network and keeps it while it is empty, until the cluster is closed.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn open_network(&self, on_event: &(dyn Fn(Event) + Send + Sync)) -> Result<(), ClientError> {
        let call = format!("POST {}", routes::NETWORK);
        let response = self.request(Method::POST, routes::NETWORK, None::<&()>).await?;
        let response = self.check(response, &call).await?;
        self.follow(response, &call, on_event).await.map(|_| ())
    }

    /// Lets the holder live until it is closed.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn detach(&self) -> Result<HolderInfo, ClientError> {
        self.call(Method::POST, routes::DETACH, None::<&()>).await
    }

    /// Releases the network and ends the holder.
    ///
    /// # Errors
    /// [`ClientError::Api`] of kind `Conflict` names members that still run.
    pub async fn close(
        &self,
        how: &CloseRequest,
        on_event: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<(), ClientError> {
        let call = format!("POST {}", routes::CLOSE);
        let response = self.request(Method::POST, routes::CLOSE, Some(how)).await?;
        let response = self.check(response, &call).await?;
        self.follow(response, &call, on_event).await.map(|_| ())
    }

    async fn machine_stream<B: Serialize>(
        &self,
        route: &str,
        body: Option<&B>,
        on_event: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<MachineInfo, ClientError> {
        let call = format!("POST {route}");
        let response = self.request(Method::POST, route, body).await?;
        let response = self.check(response, &call).await?;
        match self.follow(response, &call, on_event).await? {
            StreamResult::Machine(info) => Ok(*info),
            StreamResult::Nothing => Err(self.broken(&call, "it ended without the machine")),
        }
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        route: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let call = format!("{method} {route}");
        let work = async {
            let response = self.request(method, route, body).await?;
            let response = self.check(response, &call).await?;
            let bytes = response.into_body().collect().await.map_err(|e| self.broken(&call, e))?.to_bytes();
            self.parse(&bytes, &call)
        };
        match tokio::time::timeout(CALL_LIMIT, work).await {
            Ok(r) => r,
            Err(_) => {
                Err(ClientError::Silent { socket: self.socket.clone(), call, seconds: CALL_LIMIT.as_secs() })
            }
        }
    }

    async fn request<B: Serialize>(
        &self,
        method: Method,
        route: &str,
        body: Option<&B>,
    ) -> Result<Response<Incoming>, ClientError> {
        let call = format!("{method} {route}");
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let socket = self.socket.clone();
            match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::Denied { socket, source },
                _ => ClientError::NotThere { socket, source },
            }
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(&call, e))?;
        // Ends by itself when the response, or this call's future, is dropped.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let bytes = match body {
            Some(b) => Bytes::from(serde_json::to_vec(b).map_err(|e| self.unintelligible(&call, e))?),
            None => Bytes::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(route)
            .header("host", "fleetbox")
            .header("content-type", "application/json")
            .body(Full::new(bytes))
            .map_err(|e| self.broken(&call, e))?;
        sender.send_request(request).await.map_err(|e| self.broken(&call, e))
    }

    /// Turns an error status into the error its body tells.
    async fn check(
        &self,
        response: Response<Incoming>,
        call: &str,
    ) -> Result<Response<Incoming>, ClientError> {
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|e| self.broken(call, e))?.to_bytes();
        match serde_json::from_slice(&bytes) {
            Ok(error) => Err(ClientError::Api(error)),
            // Not one of our bodies: say what it was.
            Err(_) => Err(self.broken(call, format!("status {status}: {}", String::from_utf8_lossy(&bytes)))),
        }
    }

    async fn follow(
        &self,
        response: Response<Incoming>,
        call: &str,
        on_event: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<StreamResult, ClientError> {
        let mut body = response.into_body();
        let mut lines = LineDecoder::default();
        loop {
            while let Some(line) = lines.line() {
                if line.is_empty() {
                    continue;
                }
                match self.parse(&line, call)? {
                    StreamItem::Event(event) => on_event(event),
                    StreamItem::Done(result) => return Ok(result),
                    StreamItem::Failed(error) => return Err(ClientError::Api(error)),
                }
            }
            let frame = tokio::time::timeout(STREAM_SILENCE_LIMIT, body.frame()).await.map_err(|_| {
                ClientError::Silent {
                    socket: self.socket.clone(),
                    call: call.to_owned(),
                    seconds: STREAM_SILENCE_LIMIT.as_secs(),
                }
            })?;
            match frame {
                None => return Err(self.broken(call, "the stream ended without a result")),
                Some(Err(e)) => return Err(self.broken(call, e)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        lines
                            .feed(data)
                            .map_err(|n| self.broken(call, format!("a line of over {n} bytes")))?;
                    }
                }
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8], call: &str) -> Result<T, ClientError> {
        serde_json::from_slice(bytes).map_err(|e| self.unintelligible(call, e))
    }

    fn unintelligible(&self, call: &str, source: serde_json::Error) -> ClientError {
        ClientError::Unintelligible { socket: self.socket.clone(), call: call.to_owned(), source }
    }

    fn broken(&self, call: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), call: call.to_owned(), source: source.into() }
    }
}
