//! Speaks to registries (OCI distribution specification): manifests and blobs, checked as they come.
//!
//! ```text
//! Registry   an image's mirrors, then its registry: the first that serves
//!   Endpoint   one host: authorization, redirections, patience
//!     challenge, token   what a 401 asks for, and where that is had
//!   blob       one blob from one endpoint, from where an earlier attempt ended
//! backoff    whether and when something is tried again
//! settings, credentials   what the caller knows of registries, and who asks
//! ```

mod backoff;
mod blob;
mod challenge;
mod credentials;
mod endpoint;
mod error;
mod settings;
mod token;

use std::sync::atomic::Ordering;
use std::time::Instant;

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};

use crate::Digest;
use crate::manifest::ACCEPTED;
use crate::reference::{RegistryReference, is_loopback};
use crate::store::Download;
use backoff::Backoff;
use endpoint::{Address, Endpoint, Pace, Role};

pub use credentials::Credentials;
pub use error::{RegistryError, TokenError};
pub use settings::{InvalidMirror, Mirror, Registries, RegistrySettings};

/// Who asks registries, and how they are reached.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Who we are to the image's own registry; its mirrors are asked as nobody.
    pub credentials: Credentials,
    /// How registries are reached.
    pub registries: Registries,
}

/// An image's registry, with its mirrors.
pub(crate) struct Registry {
    tag: String,
    /// The registry itself is the last one.
    endpoints: Vec<Endpoint>,
    manifest_limit: u64,
}

impl Registry {
    /// Makes the clients; nothing is sent yet.
    pub(crate) async fn connect(
        reference: &RegistryReference,
        access: &Access,
        manifest_limit: u64,
    ) -> Result<Self, RegistryError> {
        let tag = reference.tag().unwrap_or("latest").to_owned();
        let (reference, access) = (reference.clone(), access.clone());
        // Reading the system's certificates is file IO.
        let made = tokio::task::spawn_blocking(move || endpoints(&reference, &access)).await;
        let endpoints = made.map_err(|error| RegistryError::Client(error.into()))??;
        Ok(Self {
            tag,
            endpoints,
            manifest_limit,
        })
    }

    /// Fetches a manifest or index, by digest or else by tag, and checks the digest.
    pub(crate) async fn manifest(&self, digest: Option<Digest>) -> Result<Vec<u8>, RegistryError> {
        let mut failures = Failures::default();
        for endpoint in self.willing() {
            match self.manifest_from(endpoint, digest).await {
                Ok(json) => return Ok(json),
                Err(error) => failures.add(endpoint, error)?,
            }
        }
        Err(failures.into_error())
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        digest: Option<Digest>,
    ) -> Result<Vec<u8>, RegistryError> {
        let name = digest.map_or_else(|| self.tag.clone(), |digest| digest.to_string());
        let mut headers = HeaderMap::new();
        // All of it is ASCII.
        headers.extend(HeaderValue::try_from(ACCEPTED.join(", ")).map(|value| (ACCEPT, value)));
        let mut backoff = endpoint.backoff();
        let path = format!("manifests/{name}");
        let json = loop {
            match self.read_manifest(endpoint, &path, &headers).await {
                Ok(json) => break json,
                Err(error) => endpoint.wait(error, &mut backoff).await?,
            }
        };
        let actual = Digest::of(&json);
        match digest {
            Some(expected) if expected != actual => Err(RegistryError::WrongManifest { expected, actual }),
            _ => Ok(json),
        }
    }

    async fn read_manifest(
        &self,
        endpoint: &Endpoint,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut answer = endpoint.get(path, headers).await?;
        let (mut json, mut pace) = (Vec::new(), Pace::new(Instant::now()));
        while let Some(piece) = endpoint.piece(&mut answer, &mut pace).await? {
            if (json.len() + piece.len()) as u64 > self.manifest_limit {
                return Err(RegistryError::ManifestTooLong(self.manifest_limit));
            }
            json.extend_from_slice(&piece);
        }
        Ok(json)
    }

    /// Fetches a blob into the store, from where an earlier attempt ended. `elsewhere` are addresses that the manifest
    /// names for a blob that the registry may not pass on.
    pub(crate) async fn blob(&self, download: Download, elsewhere: &[String]) -> Result<(), RegistryError> {
        let (mut failures, mut next) = (Failures::default(), Some(download));
        for endpoint in self.willing() {
            let Some(download) = next.take() else { break };
            match blob::fetch(endpoint, download, elsewhere).await {
                Ok(()) => return Ok(()),
                Err(broken) => {
                    next = broken.download;
                    failures.add(endpoint, broken.error)?;
                }
            }
        }
        Err(failures.into_error())
    }

    /// Returns who is asked, in this order: not a mirror that has failed already.
    fn willing(&self) -> impl Iterator<Item = &Endpoint> {
        let last = self.endpoints.len().saturating_sub(1);
        let endpoints = self.endpoints.iter().enumerate();
        let willing =
            endpoints.filter(move |(at, endpoint)| *at == last || !endpoint.down.load(Ordering::Relaxed));
        willing.map(|(_, endpoint)| endpoint)
    }
}

/// What went wrong with those that were asked so far.
#[derive(Default)]
struct Failures {
    earlier: Vec<String>,
    last: Option<RegistryError>,
}

impl Failures {
    /// Notes a failure; it is returned when nobody else need be asked.
    fn add(&mut self, endpoint: &Endpoint, error: RegistryError) -> Result<(), RegistryError> {
        if error.is_ours() {
            return Err(error);
        }
        tracing::debug!(registry = endpoint.name, %error, "does not serve");
        // A mirror need not have everything, and may have something damaged; whatever else is wrong stays wrong.
        let only_this = matches!(
            error,
            RegistryError::Unknown { .. } | RegistryError::Blob(_) | RegistryError::WrongManifest { .. }
        );
        endpoint.down.store(!only_this, Ordering::Relaxed);
        self.earlier
            .extend(self.last.take().map(|error| error.to_string()));
        self.last = Some(error);
        Ok(())
    }

    fn into_error(self) -> RegistryError {
        match self.last {
            Some(error) if self.earlier.is_empty() => error,
            Some(error) => RegistryError::AfterMirrors {
                mirrors: self.earlier.join("; "),
                source: Box::new(error),
            },
            None => RegistryError::Client("nobody was asked".into()),
        }
    }
}

fn endpoints(reference: &RegistryReference, access: &Access) -> Result<Vec<Endpoint>, RegistryError> {
    let none = RegistrySettings::default();
    let settings = |name: &str| access.registries.get(name).unwrap_or(&none);
    let own = settings(reference.registry());
    let mut endpoints = Vec::with_capacity(own.mirrors.len() + 1);
    for mirror in &own.mirrors {
        let (host, theirs) = (mirror.host.as_str(), settings(&mirror.host));
        let loopback = is_loopback(host);
        endpoints.push(Endpoint::new(Address {
            name: host,
            role: Role::Mirror,
            repository: &format!("{}{}", mirror.prefix, reference.repository()),
            plain_http: mirror.plain_http.or(theirs.plain_http).unwrap_or(loopback),
            loopback,
            settings: theirs,
            credentials: Credentials::Anonymous,
        })?);
    }
    let loopback = reference.is_loopback();
    endpoints.push(Endpoint::new(Address {
        name: reference.registry(),
        role: Role::Registry,
        repository: reference.repository(),
        plain_http: own.plain_http.unwrap_or(loopback),
        loopback,
        settings: own,
        credentials: access.credentials.clone(),
    })?);
    Ok(endpoints)
}
