//! A typed client: HTTP/1.1 over the node's Unix socket, one connection per request.

use std::error::Error as _;
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http_body_util::{BodyExt, BodyStream, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::endpoint::path;
use crate::stream;
use crate::v1::{self, ErrorBody};

mod networks;
mod policies;
mod snapshots;

/// The bytes of an upgraded connection; [`crate::stream`] reads and writes them.
pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// A body that is sent piece by piece.
pub type BodyPieces = BoxStream<'static, std::io::Result<Bytes>>;

type Body =
    Either<Full<Bytes>, StreamBody<futures_util::stream::BoxStream<'static, std::io::Result<Frame<Bytes>>>>>;

/// Says why a request had no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket: nobody listens, or who did has ended before it had read the request.
    #[error("no node answers on {}", socket.display())]
    NoNode {
        /// The socket's path.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke before the answer was complete.
    #[error("the connection to the node broke")]
    Connection(#[from] hyper::Error),
    /// The answer's stream broke or makes no sense.
    #[error("the node's answer cannot be read")]
    Stream(#[from] stream::StreamError),
    /// The answer is not what this version of the contract says.
    #[error("the node's answer is not of this API's version")]
    Malformed(#[from] serde_json::Error),
    /// The node refused, and says why.
    #[error("{}", .0.message)]
    Refused(Box<ErrorBody>),
    /// The node closed the stream without saying how it ended.
    #[error("the node went away")]
    Gone,
}

/// Speaks to the node behind one socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Percent-encodes a value for a path or a query: all but RFC 3986's unreserved characters.
pub fn encode(text: &str) -> String {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let one = |b: u8| {
        if unreserved(b) {
            char::from(b).to_string()
        } else {
            format!("%{b:02X}")
        }
    };
    text.bytes().map(one).collect()
}

/// Puts values into a path's braces, in order, and a query behind it.
fn uri(path: &str, parameters: &[&str], query: &[(&str, String)]) -> String {
    let mut values = parameters.iter();
    let mut fill = |part: &str| match part.starts_with('{').then(|| values.next()).flatten() {
        Some(value) => encode(value),
        None => part.to_owned(),
    };
    let filled: Vec<_> = path.split('/').map(&mut fill).collect();
    let query: Vec<_> = query
        .iter()
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{}{mark}{}", filled.join("/"), query.join("&"))
}

fn json(body: &impl Serialize) -> Result<Body, ClientError> {
    Ok(Either::Left(Full::new(Bytes::from(serde_json::to_vec(body)?))))
}

/// Filters as a query has them: one JSON array, since a query has a name once.
fn filter(filters: &[String]) -> Result<Option<(&'static str, String)>, ClientError> {
    if filters.is_empty() {
        return Ok(None);
    }
    Ok(Some(("filter", serde_json::to_string(filters)?)))
}

fn pieces(body: BodyPieces) -> Body {
    use futures_util::StreamExt as _;
    Either::Right(StreamBody::new(body.map(|piece| piece.map(Frame::data)).boxed()))
}

/// Tells how a request failed that nobody has read to its end, and so nobody has acted upon. A Unix socket says that it was reset when its
/// other end was closed before it was accepted or read to the end, and that it is broken when that was so before the request was written.
fn unread(error: &hyper::Error) -> Option<ErrorKind> {
    if error.is_canceled() {
        return Some(ErrorKind::ConnectionReset);
    }
    let mut cause = error.source()?;
    let kind = loop {
        match cause.downcast_ref::<std::io::Error>() {
            Some(error) => break error.kind(),
            None => cause = cause.source()?,
        }
    };
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe).then_some(kind)
}

fn empty() -> Body {
    Either::Left(Full::new(Bytes::new()))
}

impl Client {
    /// Makes a client for the node behind `socket`; nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Returns the socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let nobody = |source| ClientError::NoNode {
            socket: self.socket.clone(),
            source,
        };
        let io = UnixStream::connect(&self.socket).await.map_err(nobody)?;
        let at_once = matches!(request.body(), Either::Left(_));
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        // Ends with the request's last byte, or when the response's body is dropped.
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| match unread(&error) {
            // Of a body that goes piece by piece, the node may have used what it had read.
            Some(kind) if at_once => nobody(kind.into()),
            _ => ClientError::Connection(error),
        })?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Err(ClientError::Refused(Box::new(
            serde_json::from_slice(&body).unwrap_or_else(|_| unexplained(status)),
        )))
    }

    fn request(&self, method: Method, uri: &str, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        // A URI of encoded parts always parses; the root is what a mistake here would ask for.
        *request.uri_mut() = uri.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(
            hyper::header::HOST,
            hyper::header::HeaderValue::from_static("hearth"),
        );
        headers.insert(
            CONTENT_TYPE,
            hyper::header::HeaderValue::from_static("application/json"),
        );
        request
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        body: Body,
    ) -> Result<T, ClientError> {
        let response = self.send(self.request(method, uri, body)).await?;
        let body = response.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(if body.is_empty() {
            b"null"
        } else {
            &body
        })?)
    }

    async fn lines<T: DeserializeOwned>(
        &self,
        uri: &str,
        body: Body,
        progress: &mut (dyn FnMut(v1::Progress) + Send),
    ) -> Result<T, ClientError> {
        let response = self.send(self.request(Method::POST, uri, body)).await?;
        let (mut body, mut rest) = (response.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                rest.extend_from_slice(&data);
            }
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let line = serde_json::from_slice(&rest[..end])?;
                rest.drain(..=end);
                match line {
                    v1::ProgressLine::Progress(step) => progress(step),
                    v1::ProgressLine::Result(result) => return Ok(result),
                    v1::ProgressLine::Error(error) => return Err(ClientError::Refused(Box::new(error))),
                }
            }
        }
        Err(ClientError::Gone)
    }

    async fn upgrade(&self, uri: &str, body: Body) -> Result<Upgraded, ClientError> {
        let mut request = self.request(Method::POST, uri, body);
        let headers = request.headers_mut();
        headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, hyper::header::HeaderValue::from_static(stream::UPGRADE));
        let response = self.send(request).await?;
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }

    async fn bytes(&self, uri: &str) -> Result<Incoming, ClientError> {
        Ok(self
            .send(self.request(Method::GET, uri, empty()))
            .await?
            .into_body())
    }

    /// Tells which node answers.
    pub async fn node_status(&self) -> Result<v1::NodeStatus, ClientError> {
        self.call(Method::GET, path::NODE, empty()).await
    }

    /// Ends the node.
    pub async fn node_stop(&self, request: &v1::StopNode) -> Result<(), ClientError> {
        self.call(Method::POST, path::NODE_STOP, json(request)?).await
    }

    /// Examines the host.
    pub async fn doctor(&self) -> Result<v1::DoctorReport, ClientError> {
        self.call(Method::GET, path::DOCTOR, empty()).await
    }

    /// Lists artefacts.
    pub async fn setup_list(&self) -> Result<v1::SetupReport, ClientError> {
        self.call(Method::GET, path::SETUP, empty()).await
    }

    /// Prepares kernel, agent and initramfs.
    pub async fn setup(
        &self,
        request: &v1::SetupRequest,
        progress: &mut (dyn FnMut(v1::Progress) + Send),
    ) -> Result<v1::SetupReport, ClientError> {
        self.lines(path::SETUP, json(request)?, progress).await
    }

    /// Lists machines; `all` includes those that do not run, `filters` are `KEY=VALUE`.
    pub async fn machines(&self, all: bool, filters: &[String]) -> Result<Vec<v1::Machine>, ClientError> {
        let mut query = vec![("all", all.to_string())];
        query.extend(filter(filters)?);
        self.call(Method::GET, &uri(path::MACHINES, &[], &query), empty())
            .await
    }

    /// Removes machines that have ended, or were never started.
    pub async fn prune(&self, request: &v1::PruneMachines) -> Result<v1::Pruned, ClientError> {
        self.call(Method::POST, path::MACHINES_PRUNE, json(request)?)
            .await
    }

    /// Tells what happens to machines, as it happens.
    pub async fn events(&self, options: &EventOptions) -> Result<Lines<v1::EventLine>, ClientError> {
        let mut query = Vec::new();
        query.extend(options.since.clone().map(|time| ("since", time)));
        query.extend(options.until.clone().map(|time| ("until", time)));
        query.extend(filter(&options.filters)?);
        Ok(Lines::new(self.bytes(&uri(path::EVENTS, &[], &query)).await?))
    }

    /// Lists pools.
    pub async fn pools(&self) -> Result<Vec<v1::Pool>, ClientError> {
        self.call(Method::GET, path::POOLS, empty()).await
    }

    /// Creates a pool.
    pub async fn pool_create(&self, request: &v1::CreatePool) -> Result<v1::Pool, ClientError> {
        self.call(Method::POST, path::POOLS, json(request)?).await
    }

    /// Tells everything about a pool.
    pub async fn pool(&self, pool: &str) -> Result<v1::Pool, ClientError> {
        self.call(Method::GET, &uri(path::POOL, &[pool], &[]), empty())
            .await
    }

    /// Changes a pool's size.
    pub async fn pool_resize(&self, pool: &str, request: &v1::ResizePool) -> Result<v1::Pool, ClientError> {
        self.call(Method::PATCH, &uri(path::POOL, &[pool], &[]), json(request)?)
            .await
    }

    /// Removes a pool; `force` ends leases of its machines.
    pub async fn pool_remove(&self, pool: &str, force: bool) -> Result<(), ClientError> {
        let query = [("force", force.to_string())];
        self.call(Method::DELETE, &uri(path::POOL, &[pool], &query), empty())
            .await
    }

    /// Acquires a machine of a pool.
    pub async fn pool_acquire(
        &self,
        pool: &str,
        request: &v1::AcquireMachine,
    ) -> Result<v1::Lease, ClientError> {
        let uri = uri(path::POOL_ACQUIRE, &[pool], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Lets a lease last longer.
    pub async fn lease_extend(
        &self,
        lease: &str,
        request: &v1::ExtendLease,
    ) -> Result<v1::Lease, ClientError> {
        let uri = uri(path::LEASE_EXTEND, &[lease], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Gives a machine back.
    pub async fn lease_release(&self, lease: &str, request: &v1::ReleaseMachine) -> Result<(), ClientError> {
        let uri = uri(path::LEASE_RELEASE, &[lease], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Runs code once; `hear` gets the lines before the result as they come.
    pub async fn execute(
        &self,
        request: &v1::ExecuteRequest,
        hear: &mut (dyn FnMut(v1::ExecuteLine) + Send),
    ) -> Result<v1::ExecuteResult, ClientError> {
        let request = self.request(Method::POST, path::EXECUTE, json(request)?);
        let (mut body, mut rest) = (self.send(request).await?.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            // Only what is new can hold the end of a line: a result may be long.
            let mut from = rest.len();
            rest.extend_from_slice(&data);
            while let Some(end) = rest[from..].iter().position(|&byte| byte == b'\n') {
                let line = serde_json::from_slice(&rest[..from + end])?;
                rest.drain(..=from + end);
                from = 0;
                match line {
                    v1::ExecuteLine::Result(result) => return Ok(*result),
                    v1::ExecuteLine::Error(error) => return Err(ClientError::Refused(Box::new(error))),
                    line => hear(line),
                }
            }
        }
        Err(ClientError::Gone)
    }

    /// Lists the processes of a machine.
    pub async fn top(&self, machine: &str) -> Result<v1::ProcessList, ClientError> {
        self.call(Method::GET, &uri(path::MACHINE_TOP, &[machine], &[]), empty())
            .await
    }

    /// Stops a machine and starts it again.
    pub async fn restart(
        &self,
        machine: &str,
        request: &v1::StopMachine,
    ) -> Result<v1::Machine, ClientError> {
        let uri = uri(path::MACHINE_RESTART, &[machine], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Gives a machine another name.
    pub async fn rename(
        &self,
        machine: &str,
        request: &v1::RenameMachine,
    ) -> Result<v1::Machine, ClientError> {
        let uri = uri(path::MACHINE_RENAME, &[machine], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Changes a machine.
    pub async fn update(
        &self,
        machine: &str,
        request: &v1::UpdateMachine,
    ) -> Result<v1::Machine, ClientError> {
        let uri = uri(path::MACHINE, &[machine], &[]);
        self.call(Method::PATCH, &uri, json(request)?).await
    }

    /// Creates a machine.
    pub async fn create(&self, request: &v1::CreateMachine) -> Result<v1::Machine, ClientError> {
        self.call(Method::POST, path::MACHINES, json(request)?).await
    }

    /// Tells everything about a machine.
    pub async fn inspect(&self, machine: &str) -> Result<v1::Machine, ClientError> {
        self.call(Method::GET, &uri(path::MACHINE, &[machine], &[]), empty())
            .await
    }

    /// Removes a machine; `force` kills it first.
    pub async fn remove(&self, machine: &str, force: bool) -> Result<(), ClientError> {
        let query = [("force", force.to_string())];
        self.call(Method::DELETE, &uri(path::MACHINE, &[machine], &query), empty())
            .await
    }

    /// Starts a machine.
    pub async fn start(&self, machine: &str) -> Result<v1::Machine, ClientError> {
        self.call(Method::POST, &uri(path::MACHINE_START, &[machine], &[]), empty())
            .await
    }

    /// Stops a machine.
    pub async fn stop(&self, machine: &str, request: &v1::StopMachine) -> Result<v1::Machine, ClientError> {
        self.call(
            Method::POST,
            &uri(path::MACHINE_STOP, &[machine], &[]),
            json(request)?,
        )
        .await
    }

    /// Stops a machine's virtual processors.
    pub async fn pause(&self, machine: &str) -> Result<v1::Machine, ClientError> {
        self.call(Method::POST, &uri(path::MACHINE_PAUSE, &[machine], &[]), empty())
            .await
    }

    /// Lets a paused machine go on.
    pub async fn resume(&self, machine: &str) -> Result<v1::Machine, ClientError> {
        self.call(Method::POST, &uri(path::MACHINE_RESUME, &[machine], &[]), empty())
            .await
    }

    /// Sends a signal, by name or number.
    pub async fn kill(&self, machine: &str, signal: &str) -> Result<(), ClientError> {
        let query = [("signal", signal.to_owned())];
        self.call(
            Method::POST,
            &uri(path::MACHINE_KILL, &[machine], &query),
            empty(),
        )
        .await
    }

    /// Waits for a machine's end.
    pub async fn wait(&self, machine: &str) -> Result<v1::ExitStatus, ClientError> {
        self.call(Method::POST, &uri(path::MACHINE_WAIT, &[machine], &[]), empty())
            .await
    }

    /// Connects to a machine's workload.
    pub async fn attach(&self, machine: &str, options: &AttachOptions) -> Result<Upgraded, ClientError> {
        let mut query = vec![
            ("start", options.start.to_string()),
            ("stdin", options.stdin.to_string()),
        ];
        if let Some((rows, columns)) = options.terminal {
            query.extend([("rows", rows.to_string()), ("columns", columns.to_string())]);
        }
        self.upgrade(&uri(path::MACHINE_ATTACH, &[machine], &query), empty())
            .await
    }

    /// Runs a process beside the workload.
    pub async fn exec(&self, machine: &str, request: &v1::ExecRequest) -> Result<Upgraded, ClientError> {
        self.upgrade(&uri(path::MACHINE_EXEC, &[machine], &[]), json(request)?)
            .await
    }

    /// Returns what a workload printed, as [`crate::stream`] frames.
    pub async fn logs(&self, machine: &str, options: &LogOptions) -> Result<Incoming, ClientError> {
        let mut query = vec![
            ("follow", options.follow.to_string()),
            ("timestamps", options.timestamps.to_string()),
        ];
        query.extend(options.tail.map(|lines| ("tail", lines.to_string())));
        query.extend(options.since.clone().map(|time| ("since", time)));
        query.extend(options.until.clone().map(|time| ("until", time)));
        self.bytes(&uri(path::MACHINE_LOGS, &[machine], &query)).await
    }

    /// Returns what machines use, a line of JSON ([`v1::StatsSample`]) for each look; all that run when none is named, one look
    /// unless `stream`. [`reader`] reads it.
    pub async fn stats(&self, machines: &[String], stream: bool) -> Result<Incoming, ClientError> {
        let mut query = vec![("stream", stream.to_string())];
        query.extend((!machines.is_empty()).then(|| ("machines", machines.join(","))));
        self.bytes(&uri(path::STATS, &[], &query)).await
    }

    /// Returns a machine's serial console.
    pub async fn console(&self, machine: &str, follow: bool) -> Result<Incoming, ClientError> {
        self.bytes(&uri(
            path::MACHINE_CONSOLE,
            &[machine],
            &[("follow", follow.to_string())],
        ))
        .await
    }

    /// Returns a file or tree of a machine as a tar archive.
    pub async fn file_get(&self, machine: &str, file: &str) -> Result<Incoming, ClientError> {
        self.bytes(&uri(
            path::MACHINE_FILES,
            &[machine],
            &[("path", file.to_owned())],
        ))
        .await
    }

    /// Unpacks a tar archive into a directory of a machine.
    pub async fn file_put(
        &self,
        machine: &str,
        directory: &str,
        keep_owners: bool,
        archive: BodyPieces,
    ) -> Result<(), ClientError> {
        let query = [
            ("path", directory.to_owned()),
            ("keep_owners", keep_owners.to_string()),
        ];
        self.call(
            Method::PUT,
            &uri(path::MACHINE_FILES, &[machine], &query),
            pieces(archive),
        )
        .await
    }

    /// Tells what a path in a machine is.
    pub async fn file_stat(&self, machine: &str, file: &str) -> Result<v1::FileStat, ClientError> {
        let query = [("path", file.to_owned())];
        self.call(
            Method::GET,
            &uri(path::MACHINE_FILE_STAT, &[machine], &query),
            empty(),
        )
        .await
    }

    /// Lists images.
    pub async fn images(&self) -> Result<Vec<v1::Image>, ClientError> {
        self.call(Method::GET, path::IMAGES, empty()).await
    }

    /// Tells everything about an image.
    pub async fn image(&self, reference: &str) -> Result<v1::Image, ClientError> {
        let query = [("reference", reference.to_owned())];
        self.call(Method::GET, &uri(path::IMAGE, &[], &query), empty())
            .await
    }

    /// Removes an image; `force` does so while machines are made of it.
    pub async fn image_remove(&self, reference: &str, force: bool) -> Result<(), ClientError> {
        let query = [("reference", reference.to_owned()), ("force", force.to_string())];
        self.call(Method::DELETE, &uri(path::IMAGES, &[], &query), empty())
            .await
    }

    /// Lists templates.
    pub async fn templates(&self) -> Result<Vec<v1::Template>, ClientError> {
        self.call(Method::GET, path::TEMPLATES, empty()).await
    }

    /// Removes a template.
    pub async fn template_remove(&self, template: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &uri(path::TEMPLATE, &[template], &[]), empty())
            .await
    }

    /// Removes templates of no use.
    pub async fn template_prune(
        &self,
        request: &v1::PruneTemplates,
    ) -> Result<v1::PrunedTemplates, ClientError> {
        self.call(Method::POST, path::TEMPLATES_PRUNE, json(request)?)
            .await
    }

    /// Fetches an image.
    pub async fn image_pull(
        &self,
        request: &v1::PullImage,
        progress: &mut (dyn FnMut(v1::Progress) + Send),
    ) -> Result<v1::Image, ClientError> {
        self.lines(path::IMAGES_PULL, json(request)?, progress).await
    }

    /// Makes an image of packages.
    pub async fn image_build(
        &self,
        request: &v1::BuildImage,
        progress: &mut (dyn FnMut(v1::Progress) + Send),
    ) -> Result<v1::Image, ClientError> {
        self.lines(path::IMAGES_BUILD, json(request)?, progress).await
    }

    /// Gives an image one more name.
    pub async fn image_tag(&self, request: &v1::TagImage) -> Result<v1::Image, ClientError> {
        self.call(Method::POST, path::IMAGES_TAG, json(request)?).await
    }

    /// Deletes what nothing needs.
    pub async fn image_prune(&self, request: &v1::PruneImages) -> Result<v1::PrunedImages, ClientError> {
        self.call(Method::POST, path::IMAGES_PRUNE, json(request)?).await
    }

    /// Returns images as a tar archive.
    pub async fn image_save(&self, request: &v1::SaveImages) -> Result<Incoming, ClientError> {
        let request = self.request(Method::POST, path::IMAGES_SAVE, json(request)?);
        Ok(self.send(request).await?.into_body())
    }

    /// Takes the images of a tar archive; `reference` names the one of an archive with one.
    pub async fn image_load(
        &self,
        reference: Option<&str>,
        archive: BodyPieces,
    ) -> Result<Vec<v1::Image>, ClientError> {
        let query: Vec<_> = reference
            .map(|reference| ("reference", reference.to_owned()))
            .into_iter()
            .collect();
        self.call(
            Method::POST,
            &uri(path::IMAGES_LOAD, &[], &query),
            pieces(archive),
        )
        .await
    }
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct EventOptions {
    /// RFC 3339: begins with what has happened since.
    pub since: Option<String>,
    /// RFC 3339: ends there.
    pub until: Option<String>,
    /// `KEY=VALUE`.
    pub filters: Vec<String>,
}

/// Lines of JSON on their way from the node.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    rest: Vec<u8>,
    line: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            rest: Vec::new(),
            line: PhantomData,
        }
    }

    /// Waits for the next line; `None` at the end.
    ///
    /// # Errors
    /// Returns [`ClientError`] when the connection breaks, or what comes is something else.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let line = serde_json::from_slice(&self.rest[..end])?;
                self.rest.drain(..=end);
                return Ok(Some(line));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

/// Returns a body as a reader of bytes.
pub fn reader(body: Incoming) -> impl tokio::io::AsyncRead + Unpin + Send {
    use futures_util::TryStreamExt as _;
    let pieces = BodyStream::new(body).try_filter_map(|frame| async move { Ok(frame.into_data().ok()) });
    tokio_util::io::StreamReader::new(Box::pin(pieces.map_err(std::io::Error::other)))
}

fn unexplained(status: StatusCode) -> ErrorBody {
    ErrorBody {
        code: v1::ErrorCode::Internal,
        message: format!("the node answered {status} without an explanation"),
        cause: None,
        remediation: Some("see the node's log; `hearth node status` names its version".to_owned()),
    }
}

/// How to connect to a workload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttachOptions {
    /// Starts the machine, so that nothing it prints is missed.
    pub start: bool,
    /// This client's input is the workload's.
    pub stdin: bool,
    /// Rows and columns of the client's terminal.
    pub terminal: Option<(u16, u16)>,
}

/// Which of a machine's output to return.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Goes on until the machine ends.
    pub follow: bool,
    /// Only so many of the last lines.
    pub tail: Option<u64>,
    /// RFC 3339 before each line.
    pub timestamps: bool,
    /// Only what was printed at this time (RFC 3339) or later.
    pub since: Option<String>,
    /// Only what was printed at this time (RFC 3339) or before.
    pub until: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_uri_cannot_leave_its_place() {
        let query = [("path", "/a b&c=d?#%".to_owned())];
        assert_eq!(
            uri(path::MACHINE_FILES, &["../x/y"], &query),
            "/v1/machines/..%2Fx%2Fy/files?path=%2Fa%20b%26c%3Dd%3F%23%25"
        );
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_named() {
        let error = Client::new("/nonexistent/node.sock")
            .node_status()
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "no node answers on /nonexistent/node.sock");
    }
}
