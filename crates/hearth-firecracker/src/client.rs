//! HTTP/1.1 over the API socket, one connection per request.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{
    Action, ActionRequest, Balloon, BalloonStatistics, BalloonStatisticsUpdate, BalloonUpdate, BootSource,
    CpuConfiguration, Drive, DriveUpdate, Entropy, InstanceInfo, LoadSnapshot, Logger, MachineConfiguration,
    MachineConfigurationUpdate, MetricsTarget, MmdsConfiguration, NetworkInterface, NetworkInterfaceUpdate,
    Snapshot, VersionReply, VmConfiguration, VmState, VmUpdate, Vsock,
};
use crate::socket;
use crate::version::{InvalidVersion, Version};

/// How long a request may take unless the client was told otherwise. Firecracker answers all but snapshots in
/// milliseconds; a host that is overloaded takes longer.
const DEADLINE: Duration = Duration::from_secs(10);

/// The longest reply that is read: metadata has 50 KiB unless Firecracker was told otherwise.
const REPLY_MAX: usize = 4 * 1024 * 1024;

/// Which request it was, as in `PUT /drives/rootfs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    method: Method,
    path: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Says why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("Firecracker does not answer on {}", socket.display())]
    Connect {
        /// The API socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke before the answer was complete; most often Firecracker has ended.
    #[error("Firecracker broke off `{request}`")]
    Connection {
        /// Which request.
        request: Endpoint,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// There was no answer in time.
    #[error("Firecracker did not answer `{request}` within {limit:?}")]
    Deadline {
        /// Which request.
        request: Endpoint,
        /// The time that it had.
        limit: Duration,
    },
    /// Firecracker refused, and said why.
    #[error("Firecracker refused `{request}` ({status}): {fault_message}")]
    Refused {
        /// Which request.
        request: Endpoint,
        /// The status of HTTP: 400 for what the caller can mend.
        status: u16,
        /// What Firecracker says.
        fault_message: String,
    },
    /// The answer is not what the API promises.
    #[error("the answer to `{request}` is not of Firecracker's API")]
    Malformed {
        /// Which request.
        request: Endpoint,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The answer is longer than any that the API promises.
    #[error("the answer to `{request}` is longer than {REPLY_MAX} bytes")]
    TooLong {
        /// Which request.
        request: Endpoint,
    },
    /// The request cannot be written as JSON: a path in it is not UTF-8.
    #[error("`{request}` cannot be written as JSON")]
    Unwritable {
        /// Which request.
        request: Endpoint,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Firecracker tells a version that is none.
    #[error("Firecracker does not tell its version")]
    Version(#[from] InvalidVersion),
}

impl ClientError {
    /// Returns what Firecracker said when it refused.
    pub fn fault_message(&self) -> Option<&str> {
        match self {
            Self::Refused { fault_message, .. } => Some(fault_message),
            _ => None,
        }
    }
}

/// What Firecracker says when it refuses.
#[derive(Debug, Deserialize)]
struct Fault {
    fault_message: String,
}

/// Speaks to the Firecracker behind one socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    deadline: Duration,
}

impl Client {
    /// Makes a client for an API socket; nothing is connected yet. The path may have any length, and its last name must be the socket
    /// itself: a symbolic link there is not followed, since the directory may belong to a Firecracker that was taken over.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            deadline: DEADLINE,
        }
    }

    /// Returns the same client with another deadline for each of its requests. A snapshot writes the guest's memory, so
    /// it wants more.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        Self {
            socket: self.socket.clone(),
            deadline,
        }
    }

    /// Returns the socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Describes the machine. Answers at any time, so it tells whether Firecracker is there.
    ///
    /// # Errors
    /// Returns [`ClientError`]; so do all requests below.
    pub async fn instance(&self) -> Result<InstanceInfo, ClientError> {
        self.get("/").await
    }

    /// Tells the version.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn version(&self) -> Result<Version, ClientError> {
        let reply: VersionReply = self.get("/version").await?;
        Ok(reply.firecracker_version.parse()?)
    }

    /// Tells everything that was configured.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn vm_configuration(&self) -> Result<VmConfiguration, ClientError> {
        self.get("/vm/config").await
    }

    /// Tells processors and memory.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn machine_configuration(&self) -> Result<MachineConfiguration, ClientError> {
        self.get("/machine-config").await
    }

    /// Sets processors and memory. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_machine_configuration(&self, to: &MachineConfiguration) -> Result<(), ClientError> {
        self.put("/machine-config", to).await
    }

    /// Changes some of that. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn update_machine_configuration(
        &self,
        by: &MachineConfigurationUpdate,
    ) -> Result<(), ClientError> {
        self.patch("/machine-config", by).await
    }

    /// Sets which flags of the processor the guest sees. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_cpu_configuration(&self, to: &CpuConfiguration) -> Result<(), ClientError> {
        self.put("/cpu-config", to).await
    }

    /// Sets kernel, initramfs and command line. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_boot_source(&self, to: &BootSource) -> Result<(), ClientError> {
        self.put("/boot-source", to).await
    }

    /// Adds a drive, or changes one of the same id. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_drive(&self, drive: &Drive) -> Result<(), ClientError> {
        self.put(&format!("/drives/{}", drive.id), drive).await
    }

    /// Changes a drive's file or limits. After the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn update_drive(&self, by: &DriveUpdate) -> Result<(), ClientError> {
        self.patch(&format!("/drives/{}", by.id), by).await
    }

    /// Adds a network interface. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_network_interface(&self, interface: &NetworkInterface) -> Result<(), ClientError> {
        self.put(&format!("/network-interfaces/{}", interface.id), interface)
            .await
    }

    /// Changes a network interface's limits. After the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn update_network_interface(&self, by: &NetworkInterfaceUpdate) -> Result<(), ClientError> {
        self.patch(&format!("/network-interfaces/{}", by.id), by).await
    }

    /// Adds the vsock device. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_vsock(&self, to: &Vsock) -> Result<(), ClientError> {
        self.put("/vsock", to).await
    }

    /// Adds the entropy device. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_entropy(&self, to: &Entropy) -> Result<(), ClientError> {
        self.put("/entropy", to).await
    }

    /// Tells the balloon's configuration.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn balloon(&self) -> Result<Balloon, ClientError> {
        self.get("/balloon").await
    }

    /// Adds the balloon. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_balloon(&self, to: &Balloon) -> Result<(), ClientError> {
        self.put("/balloon", to).await
    }

    /// Changes the balloon's size.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn update_balloon(&self, by: &BalloonUpdate) -> Result<(), ClientError> {
        self.patch("/balloon", by).await
    }

    /// Tells what the guest last said of its memory; refused when the balloon has no polling interval.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn balloon_statistics(&self) -> Result<BalloonStatistics, ClientError> {
        self.get("/balloon/statistics").await
    }

    /// Changes how often the guest is asked.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn update_balloon_statistics(&self, by: &BalloonStatisticsUpdate) -> Result<(), ClientError> {
        self.patch("/balloon/statistics", by).await
    }

    /// Sets where the log goes. Once.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_logger(&self, to: &Logger) -> Result<(), ClientError> {
        self.put("/logger", to).await
    }

    /// Sets where metrics go. Once.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_metrics(&self, to: &MetricsTarget) -> Result<(), ClientError> {
        self.put("/metrics", to).await
    }

    /// Tells the metadata, as the caller's type.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn metadata<M: DeserializeOwned>(&self) -> Result<M, ClientError> {
        self.get("/mmds").await
    }

    /// Sets the metadata: any type that is written as a JSON object.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_metadata<M: Serialize + Sync>(&self, to: &M) -> Result<(), ClientError> {
        self.put("/mmds", to).await
    }

    /// Merges into the metadata (RFC 7396).
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn update_metadata<M: Serialize + Sync>(&self, by: &M) -> Result<(), ClientError> {
        self.patch("/mmds", by).await
    }

    /// Sets how the guest gets at the metadata. Before the start.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_metadata_service(&self, to: &MmdsConfiguration) -> Result<(), ClientError> {
        self.put("/mmds/config", to).await
    }

    /// Starts the machine, presses Ctrl-Alt-Del, or has metrics written.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn act(&self, action: Action) -> Result<(), ClientError> {
        self.put("/actions", &ActionRequest { action_type: action }).await
    }

    /// Pauses the machine, or lets it go on.
    ///
    /// # Errors
    /// Returns [`ClientError`].
    pub async fn set_vm_state(&self, to: VmState) -> Result<(), ClientError> {
        self.patch("/vm", &VmUpdate { state: to }).await
    }

    /// Writes a snapshot of a machine that is paused.
    ///
    /// # Errors
    /// Returns [`ClientError`]. What was written so far stays: the files are the caller's.
    pub async fn create_snapshot(&self, snapshot: &Snapshot) -> Result<(), ClientError> {
        self.put("/snapshot/create", snapshot).await
    }

    /// Makes the machine of a snapshot, in a Firecracker that was told nothing yet but log and metrics.
    ///
    /// # Errors
    /// Returns [`ClientError`]. Firecracker ends when the snapshot is refused.
    pub async fn load_snapshot(&self, snapshot: &LoadSnapshot) -> Result<(), ClientError> {
        self.put("/snapshot/load", snapshot).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = endpoint(Method::GET, path);
        let reply = self.call(&request, Bytes::new()).await?;
        serde_json::from_slice(&reply).map_err(|source| ClientError::Malformed { request, source })
    }

    async fn put<B: Serialize>(&self, path: &str, body: &B) -> Result<(), ClientError> {
        self.send(endpoint(Method::PUT, path), body).await
    }

    async fn patch<B: Serialize>(&self, path: &str, body: &B) -> Result<(), ClientError> {
        self.send(endpoint(Method::PATCH, path), body).await
    }

    async fn send<B: Serialize>(&self, request: Endpoint, body: &B) -> Result<(), ClientError> {
        match serde_json::to_vec(body) {
            Ok(body) => self.call(&request, body.into()).await.map(drop),
            Err(source) => Err(ClientError::Unwritable { request, source }),
        }
    }

    async fn call(&self, request: &Endpoint, body: Bytes) -> Result<Bytes, ClientError> {
        match tokio::time::timeout(self.deadline, self.exchange(request, body)).await {
            Ok(reply) => reply,
            Err(_) => Err(ClientError::Deadline {
                request: request.clone(),
                limit: self.deadline,
            }),
        }
    }

    async fn exchange(&self, request: &Endpoint, body: Bytes) -> Result<Bytes, ClientError> {
        let connected = socket::connect(&self.socket).await;
        let stream = connected.map_err(|source| ClientError::Connect {
            socket: self.socket.clone(),
            source,
        })?;
        let broken = |source| ClientError::Connection {
            request: request.clone(),
            source,
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let reply = async {
            let response = sender
                .send_request(message(request, body))
                .await
                .map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), REPLY_MAX).collect().await;
            match body {
                Ok(body) => judge(request, status, body.to_bytes()),
                Err(error) => Err(match error.downcast::<hyper::Error>() {
                    Ok(source) => broken(*source),
                    Err(other) => {
                        debug_assert!(other.is::<LengthLimitError>());
                        ClientError::TooLong {
                            request: request.clone(),
                        }
                    }
                }),
            }
        };
        let mut reply = std::pin::pin!(reply);
        // The connection moves the bytes; when it ends first, the reply knows how.
        tokio::select! {
            reply = &mut reply => reply,
            _ = connection => reply.await,
        }
    }
}

fn endpoint(method: Method, path: &str) -> Endpoint {
    Endpoint {
        method,
        path: path.to_owned(),
    }
}

fn message(request: &Endpoint, body: Bytes) -> Request<Full<Bytes>> {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let mut message = Request::new(Full::new(body));
    *message.method_mut() = request.method.clone();
    // Ids are letters, digits and underscores, so a path always parses.
    *message.uri_mut() = request.path.parse().unwrap_or_default();
    let headers = message.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(ACCEPT, JSON);
    headers.insert(CONTENT_TYPE, JSON);
    message
}

fn judge(request: &Endpoint, status: StatusCode, body: Bytes) -> Result<Bytes, ClientError> {
    if status.is_success() {
        return Ok(body);
    }
    let fault = serde_json::from_slice::<Fault>(&body).map(|fault| fault.fault_message);
    Err(ClientError::Refused {
        request: request.clone(),
        status: status.as_u16(),
        // Some refusals of its HTTP server are no JSON.
        fault_message: fault.unwrap_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned()),
    })
}

#[cfg(test)]
mod tests;
