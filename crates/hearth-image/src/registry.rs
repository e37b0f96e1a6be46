//! Speaks to a registry (OCI distribution specification): manifests and blobs, checked as they come.
//!
//! `oci-client` does authentication and blobs. Manifests are fetched here: it reads them into memory without a
//! bound, whoever sends them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use oci_client::RegistryOperation;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol, SizedStream};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use reqwest::StatusCode;
use tokio::sync::mpsc;

use crate::manifest::{ACCEPTED, Blob};
use crate::reference::RegistryReference;
use crate::store::{BlobError, BlobSink, Blobs, StoreError};
use crate::{Digest, ProgressSink};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without a byte after which a connection counts as dead.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for one manifest, authentication included.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Times that a broken download is taken up again.
const ATTEMPTS: u32 = 4;
/// Waited before the second attempt, and doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(250);
/// Pieces of up to some 64 KiB between network and disk.
const QUEUE: usize = 64;
const USER_AGENT: &str = concat!("hearth/", env!("CARGO_PKG_VERSION"));

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular.
    Anonymous,
    /// A user with a password, or a token in its place.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
}

/// Knows the credentials for registries.
pub trait CredentialSource: Send + Sync {
    /// Returns the credentials for a registry, named as in references: `docker.io`, `localhost:5000`.
    fn credentials(&self, registry: &str) -> Credentials;
}

/// Knows no credentials.
#[derive(Debug, Clone, Copy)]
pub struct Anonymous;

impl CredentialSource for Anonymous {
    fn credentials(&self, _registry: &str) -> Credentials {
        Credentials::Anonymous
    }
}

/// Says why a registry did not serve.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection.
    #[error("the registry {registry} cannot be reached")]
    Unreachable {
        /// Its host and port.
        registry: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("the registry {registry} did not answer within {} s", after.as_secs())]
    Timeout {
        /// Its host and port.
        registry: String,
        /// How long it had.
        after: Duration,
    },
    /// No such image.
    #[error("the registry {registry} does not know it")]
    Unknown {
        /// Its host and port.
        registry: String,
    },
    /// Not for us. Some registries say so of what they do not have, too.
    #[error("the registry {registry} refuses access: it is private, or does not exist")]
    Denied {
        /// Its host and port.
        registry: String,
    },
    /// Too many pulls.
    #[error("the registry {registry} limits the rate of pulls")]
    RateLimited {
        /// Its host and port.
        registry: String,
    },
    /// Another answer than expected.
    #[error("the registry {registry} answered with HTTP status {status}")]
    Status {
        /// Its host and port.
        registry: String,
        /// The status.
        status: u16,
    },
    /// The exchange failed otherwise.
    #[error("the exchange with the registry {registry} failed")]
    Exchange {
        /// Its host and port.
        registry: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A manifest that does not end.
    #[error("the manifest is longer than {0} bytes")]
    ManifestTooLong(u64),
    /// Another manifest than was asked for.
    #[error("the manifest of {expected} has the digest {actual}")]
    WrongManifest {
        /// The digest it was asked for by.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// Certificates.
    #[error("this host has no certificates of authorities, so no registry can be trusted")]
    NoCertificates,
    /// A blob.
    #[error("a blob is not usable")]
    Blob(#[source] BlobError),
}

impl RegistryError {
    /// Says what the user can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => {
                "check the registry's name and port, and this host's network and proxy"
            }
            Self::Unknown { .. } => "check the image's name and tag",
            Self::Denied { .. } => "check the image's name; only public images can be pulled",
            Self::RateLimited { .. } => "wait, or use a mirror",
            Self::Status { .. } | Self::Exchange { .. } => "try again later, or ask the registry's operator",
            Self::ManifestTooLong(_) | Self::WrongManifest { .. } => {
                "do not trust this registry's copy of the image"
            }
            Self::NoCertificates => "install them, on Debian with apt-get install ca-certificates",
            Self::Blob(_) => "pull again; if it stays so, push the image anew",
        }
    }
}

/// A connection to a registry for one image.
pub(crate) struct Registry {
    name: String,
    scheme: &'static str,
    image: oci_client::Reference,
    auth: RegistryAuth,
    client: oci_client::Client,
    http: reqwest::Client,
    manifest_limit: u64,
}

impl Registry {
    /// Makes the clients; nothing is sent yet.
    pub(crate) async fn connect(
        reference: &RegistryReference,
        credentials: Arc<dyn CredentialSource>,
        manifest_limit: u64,
    ) -> Result<Self, RegistryError> {
        let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
        let auth = match credentials.credentials(&registry) {
            Credentials::Anonymous => RegistryAuth::Anonymous,
            Credentials::Basic { user, password } => RegistryAuth::Basic(user, password),
        };
        let tag = reference.tag().unwrap_or("latest").to_owned();
        let image = oci_client::Reference::with_tag(registry.clone(), repository, tag);
        let loopback = reference.is_loopback();
        // Reading the system's certificates takes some 10 ms of file IO.
        let (name, host) = (registry.clone(), image.resolve_registry().to_owned());
        let made = tokio::task::spawn_blocking(move || clients(&registry, &host, loopback)).await;
        let (client, http) = made.map_err(|_| RegistryError::Blob(StoreError::Cancelled.into()))??;
        let scheme = if loopback { "http" } else { "https" };
        Ok(Self {
            name,
            scheme,
            image,
            auth,
            client,
            http,
            manifest_limit,
        })
    }

    /// Fetches a manifest or index, by digest or else by tag, and checks the digest.
    pub(crate) async fn manifest(&self, digest: Option<Digest>) -> Result<Vec<u8>, RegistryError> {
        let fetched = tokio::time::timeout(MANIFEST_TIMEOUT, self.fetch_manifest(digest)).await;
        let json = fetched.map_err(|_| self.timeout(MANIFEST_TIMEOUT))??;
        let actual = Digest::of(&json);
        match digest {
            Some(expected) if expected != actual => Err(RegistryError::WrongManifest { expected, actual }),
            _ => Ok(json),
        }
    }

    async fn fetch_manifest(&self, digest: Option<Digest>) -> Result<Vec<u8>, RegistryError> {
        let token = self
            .client
            .auth(&self.image, &self.auth, RegistryOperation::Pull)
            .await;
        let token = token.map_err(|error| self.client_error(error))?;
        let name = digest.map_or_else(
            || self.image.tag().unwrap_or("latest").to_owned(),
            |digest| digest.to_string(),
        );
        let (host, repository) = (self.image.resolve_registry(), self.image.repository());
        let url = format!("{}://{host}/v2/{repository}/manifests/{name}", self.scheme);
        let mut request = self
            .http
            .get(url)
            .header(reqwest::header::ACCEPT, ACCEPTED.join(", "));
        request = match (token, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, _) => request,
        };
        let mut response = request.send().await.map_err(|error| self.exchange(error))?;
        self.check_status(response.status())?;
        let mut json = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.exchange(error))? {
            if (json.len() + piece.len()) as u64 > self.manifest_limit {
                return Err(RegistryError::ManifestTooLong(self.manifest_limit));
            }
            json.extend_from_slice(&piece);
        }
        Ok(json)
    }

    /// Fetches a blob into the store. A broken download goes on where it broke.
    pub(crate) async fn blob(
        &self,
        blob: &Blob,
        blobs: &Blobs,
        progress: &ProgressSink,
    ) -> Result<(), RegistryError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (blobs, wanted, progress) = (blobs.clone(), blob.clone(), progress.clone());
        let written = tokio::task::spawn_blocking(move || write_blob(&blobs, wanted, progress, receiver));
        let sent = self.send_blob(blob, sender).await;
        let written = written.await.unwrap_or(Err(StoreError::Cancelled.into()));
        match (sent, written) {
            // A failed download shows as a truncated blob as well: the download's own error says more.
            (Err(error), Err(BlobError::Truncated { .. })) => Err(error),
            (_, Err(error)) => Err(RegistryError::Blob(error)),
            (_, Ok(())) => Ok(()),
        }
    }

    async fn send_blob(&self, blob: &Blob, sender: mpsc::Sender<Bytes>) -> Result<(), RegistryError> {
        let mut done = 0;
        let mut attempt = 1;
        loop {
            let error = match self.send_from(blob, &mut done, &sender).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let lasting = !matches!(
                error,
                RegistryError::Exchange { .. } | RegistryError::Timeout { .. }
            );
            if lasting || attempt == ATTEMPTS || sender.is_closed() {
                return Err(error);
            }
            tracing::debug!(digest = %blob.digest, done, attempt, %error, "download broke; it goes on");
            tokio::time::sleep(BACKOFF * 2u32.pow(attempt - 1)).await;
            attempt += 1;
        }
    }

    /// Sends the bytes from `done` on, and counts them.
    async fn send_from(
        &self,
        blob: &Blob,
        done: &mut u64,
        sender: &mpsc::Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        let digest = blob.digest.to_string();
        // A range, even the whole one, keeps the client from hashing what the store hashes anyway.
        let response = self
            .client
            .pull_blob_stream_partial(&self.image, digest.as_str(), *done, None)
            .await;
        let (SizedStream { mut stream, .. }, mut skip) = match response {
            Ok(BlobResponse::Partial(stream)) => (stream, 0),
            Ok(BlobResponse::Full(stream)) => (stream, *done),
            Err(error) => return Err(self.client_error(error)),
        };
        while let Some(piece) = stream.next().await {
            let mut piece = piece.map_err(|error| self.exchange(error))?;
            let skipped = skip.min(piece.len() as u64);
            let piece = piece.split_off(skipped as usize);
            skip -= skipped;
            *done += piece.len() as u64;
            // The store stops listening when it has found a fault, and reports it.
            if *done > blob.size || sender.send(piece).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn check_status(&self, status: StatusCode) -> Result<(), RegistryError> {
        let registry = self.name.clone();
        match status {
            StatusCode::OK => Ok(()),
            StatusCode::NOT_FOUND => Err(RegistryError::Unknown { registry }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(RegistryError::Denied { registry }),
            StatusCode::TOO_MANY_REQUESTS => Err(RegistryError::RateLimited { registry }),
            status => Err(RegistryError::Status {
                registry,
                status: status.as_u16(),
            }),
        }
    }

    fn client_error(&self, error: OciDistributionError) -> RegistryError {
        let registry = self.name.clone();
        match error {
            OciDistributionError::RequestError(error) => self.exchange(error),
            OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. } => RegistryError::Denied { registry },
            OciDistributionError::ServerError { code, .. } => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                self.check_status(status).err().unwrap_or(RegistryError::Status {
                    registry,
                    status: code,
                })
            }
            OciDistributionError::RegistryError { .. } => RegistryError::Unknown { registry },
            error => RegistryError::Exchange {
                registry,
                source: error.into(),
            },
        }
    }

    fn exchange(&self, error: impl std::error::Error + Send + Sync + 'static) -> RegistryError {
        let registry = self.name.clone();
        let request = (&error as &dyn std::any::Any).downcast_ref::<reqwest::Error>();
        if request.is_some_and(reqwest::Error::is_connect) {
            return RegistryError::Unreachable {
                registry,
                source: error.into(),
            };
        }
        if request.is_some_and(reqwest::Error::is_timeout) {
            return self.timeout(READ_TIMEOUT);
        }
        RegistryError::Exchange {
            registry,
            source: error.into(),
        }
    }

    fn timeout(&self, after: Duration) -> RegistryError {
        RegistryError::Timeout {
            registry: self.name.clone(),
            after,
        }
    }
}

fn write_blob(
    blobs: &Blobs,
    blob: Blob,
    progress: ProgressSink,
    mut pieces: mpsc::Receiver<Bytes>,
) -> Result<(), BlobError> {
    let mut sink = BlobSink::new(blobs, blob, progress)?;
    while let Some(piece) = pieces.blocking_recv() {
        sink.write(&piece)?;
    }
    sink.finish()
}

fn clients(
    registry: &str,
    host: &str,
    loopback: bool,
) -> Result<(oci_client::Client, reqwest::Client), RegistryError> {
    // A second installation is refused, and the first one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Without any, oci-client would panic.
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return Err(RegistryError::NoCertificates);
    }
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| RegistryError::Exchange {
        registry: registry.to_owned(),
        source,
    };
    let mut config = ClientConfig {
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: USER_AGENT,
        ..ClientConfig::default()
    };
    let mut http = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(USER_AGENT);
    if loopback {
        config.protocol = ClientProtocol::HttpsExcept(vec![host.to_owned()]);
        // No proxy stands before this host. The client knows no other way to say so than a proxy for nobody.
        config.http_proxy = Some(format!("http://{host}"));
        config.no_proxy = Some("*".to_owned());
        http = http.no_proxy();
    }
    let client = oci_client::Client::try_from(config).map_err(|error| failed(error.into()))?;
    let http = http.build().map_err(|error| failed(error.into()))?;
    Ok((client, http))
}
