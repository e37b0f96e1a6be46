//! Why a registry did not serve: what, why, and what to do.

use std::path::PathBuf;
use std::time::Duration;

use crate::Digest;
use crate::store::BlobError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Says why a registry did not serve.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection.
    #[error("the registry {registry} cannot be reached")]
    Unreachable {
        /// Its host and port.
        registry: String,
        /// It has never answered.
        stranger: bool,
        /// Why.
        #[source]
        source: Source,
    },
    /// The other end cannot be trusted, or speaks no TLS.
    #[error("no trusted connection to the registry {registry} is possible")]
    Certificate {
        /// Its host and port.
        registry: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// It took too long.
    #[error("the registry {registry} sent next to nothing within {} s", after.as_secs())]
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
    /// Not for strangers. Some registries say so of what they do not have, too.
    #[error("the registry {registry} refuses access without a login: it is private, or does not exist")]
    Denied {
        /// Its host and port.
        registry: String,
    },
    /// Not for this user.
    #[error("the registry {registry} knows the user and refuses access: it is private, or does not exist")]
    Forbidden {
        /// Its host and port.
        registry: String,
    },
    /// Credentials that do not count.
    #[error("the registry {registry} does not accept the user and password, or token, that were sent")]
    WrongPassword {
        /// Its host and port.
        registry: String,
    },
    /// A way to say who asks that we do not know.
    #[error("the registry {registry} asks for an authentication that is not known: {challenge:?}")]
    Challenge {
        /// Its host and port.
        registry: String,
        /// What it said.
        challenge: String,
    },
    /// The server that gives tokens for the registry.
    #[error("the token server {server} of the registry {registry} does not serve")]
    TokenServer {
        /// Host and port of the registry.
        registry: String,
        /// Of the token server.
        server: String,
        /// Why.
        #[source]
        source: TokenError,
    },
    /// Too many pulls.
    #[error("the registry {registry} limits the rate of pulls{}", wait(*after))]
    RateLimited {
        /// Its host and port.
        registry: String,
        /// How long it wants us to wait.
        after: Option<Duration>,
    },
    /// It cannot just now.
    #[error("the registry {registry} is out of order: HTTP status {status}{}", wait(*after))]
    Unavailable {
        /// Its host and port.
        registry: String,
        /// The status.
        status: u16,
        /// How long it wants us to wait.
        after: Option<Duration>,
    },
    /// Another answer than expected.
    #[error("the registry {registry} answered with HTTP status {status}{}", said(detail))]
    Status {
        /// Its host and port.
        registry: String,
        /// The status.
        status: u16,
        /// What it says about it; hostile text, shortened.
        detail: String,
    },
    /// A redirection that is not followed.
    #[error("the registry {registry} redirects in a way that is not followed")]
    Redirect {
        /// Its host and port.
        registry: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// The exchange failed otherwise.
    #[error("the exchange with the registry {registry} failed")]
    Exchange {
        /// Its host and port.
        registry: String,
        /// Why.
        #[source]
        source: Source,
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
    /// Certificates that the configuration names.
    #[error("the certificates {} of the configuration cannot be used", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Source,
    },
    /// The HTTP client cannot be made.
    #[error("connections cannot be set up")]
    Client(#[source] Source),
    /// A blob.
    #[error("a blob is not usable")]
    Blob(#[source] BlobError),
    /// The registry, after its mirrors.
    #[error("its mirrors do not serve ({mirrors}), and neither does the registry")]
    AfterMirrors {
        /// Which, and why.
        mirrors: String,
        /// The registry's own failure.
        #[source]
        source: Box<RegistryError>,
    },
}

/// Says why a token server gave no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Another place than a web server, or one without TLS for a registry that has it.
    #[error("{0:?} is no place for a token server of this registry")]
    Realm(String),
    /// No connection, or one that broke.
    #[error("it cannot be reached")]
    Exchange(#[source] Source),
    /// It took too long.
    #[error("it did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Another answer than a token.
    #[error("it answered with HTTP status {0}")]
    Status(u16),
    /// No token in its answer.
    #[error("its answer holds no token")]
    Answer,
}

impl TokenError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Exchange(_) | Self::Timeout(_) => true,
            Self::Status(status) => *status == 408 || *status == 429 || *status >= 500,
            Self::Realm(_) | Self::Answer => false,
        }
    }
}

fn wait(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| {
        format!(", and wants us to wait {} s", after.as_secs())
    })
}

fn said(detail: &str) -> String {
    match detail {
        "" => String::new(),
        detail => format!(": {detail}"),
    }
}

impl RegistryError {
    /// Tells whether the same request may succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::Exchange { .. }
            | Self::Blob(BlobError::Truncated { .. }) => true,
            Self::TokenServer { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// Returns how long the registry wants us to wait.
    pub(super) fn asked_to_wait(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { after, .. } | Self::Unavailable { after, .. } => *after,
            _ => None,
        }
    }

    /// Tells whether the fault is this host's own, so that asking another registry is in vain.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Blob(BlobError::Store(_)) | Self::Client(_))
    }

    /// Says what the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => {
                "check the registry's name and port, and this host's network and proxy".to_owned()
            }
            Self::Certificate { registry, .. } => format!(
                "if an authority of your own has signed it: ca = \"FILE\" below [registry.\"{registry}\"] in hearth.toml; \
                 if it speaks plain HTTP: plain-http = true"
            ),
            Self::Unknown { .. } => "check the image's name and tag".to_owned(),
            Self::Denied { registry } => {
                format!("check the image's name; if it is private: `docker login {registry}`")
            }
            Self::Forbidden { registry } => format!(
                "check the image's name; ask its owner for access, or log in as another user: `docker login {registry}`"
            ),
            Self::WrongPassword { registry } => format!("log in again: `docker login {registry}`"),
            Self::RateLimited { registry, .. } => {
                format!("wait; log in (`docker login {registry}`), or set up a mirror in hearth.toml")
            }
            Self::TokenServer { .. } => {
                "try again later; check this host's network and proxy, or ask the registry's operator"
                    .to_owned()
            }
            Self::Unavailable { .. } | Self::Status { .. } | Self::Exchange { .. } => {
                "try again later, or ask the registry's operator".to_owned()
            }
            Self::Challenge { .. } | Self::Redirect { .. } => "ask the registry's operator".to_owned(),
            Self::ManifestTooLong(_) | Self::WrongManifest { .. } => {
                "do not trust this registry's copy of the image".to_owned()
            }
            Self::NoCertificates => "install them, on Debian with apt-get install ca-certificates".to_owned(),
            Self::Authorities { .. } => "name a file of certificates in PEM form in hearth.toml".to_owned(),
            Self::Client(_) => "see the node's log; `hearth node status` names the directory".to_owned(),
            Self::Blob(_) => "pull again; if it stays so, push the image anew".to_owned(),
            Self::AfterMirrors { source, .. } => source.remedy(),
        }
    }
}
