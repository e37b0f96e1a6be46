//! One host that serves images: requests with whatever authorization it asks for, and its answers judged.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Response, StatusCode, Url};
use tokio::sync::Mutex;
use url::Origin;

use super::challenge::{self, Challenge};
use super::settings::RegistrySettings;
use super::token::{self, Answer, Token, TokenRequest};
use super::{Backoff, Credentials, RegistryError, backoff};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("hearth/", env!("CARGO_PKG_VERSION"));
/// Redirections in a row; registries need one or two.
const REDIRECTIONS: usize = 10;
/// Bytes that must come within each time of patience, so that a host cannot hold us for ever byte by byte.
const LEAST: u64 = 16 << 10;
/// Bytes of an error's body that are looked at.
const DETAIL: usize = 4 << 10;

/// What an endpoint is to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Its registry; nobody else can be asked.
    Registry,
    /// Another place that may have it.
    Mirror,
}

/// A registry or a mirror, for one repository.
pub(super) struct Endpoint {
    /// Host and port as the user knows them.
    pub(super) name: String,
    role: Role,
    /// `https://HOST/v2/REPOSITORY`
    base: String,
    origin: Origin,
    /// What a token must allow, unless the registry names it.
    scope: String,
    plain_http: bool,
    patience: Duration,
    credentials: Credentials,
    http: reqwest::Client,
    /// What the host asks for, and the token it was given. A request that needs a new token fetches it while it holds the
    /// lock, so that others wait for that token instead of fetching their own.
    authorization: Mutex<Authorization>,
    /// It has answered once.
    met: AtomicBool,
    /// It failed in a way that would only repeat itself: it is not asked again.
    pub(super) down: AtomicBool,
}

#[derive(Default)]
struct Authorization {
    challenge: Option<Challenge>,
    token: Option<Token>,
}

/// Where an endpoint is, and who asks.
pub(super) struct Address<'a> {
    pub(super) name: &'a str,
    pub(super) role: Role,
    pub(super) repository: &'a str,
    pub(super) plain_http: bool,
    pub(super) loopback: bool,
    pub(super) settings: &'a RegistrySettings,
    pub(super) credentials: Credentials,
}

impl Endpoint {
    /// Makes the client; nothing is sent yet. Blocking: it reads the system's certificates, which takes some 10 ms.
    pub(super) fn new(address: Address<'_>) -> Result<Self, RegistryError> {
        let Address {
            name,
            repository,
            plain_http,
            settings,
            ..
        } = address;
        let scheme = if plain_http { "http" } else { "https" };
        // The name of Docker Hub is not that of its server.
        let host = if name == "docker.io" {
            "registry-1.docker.io"
        } else {
            name
        };
        let base = format!("{scheme}://{host}/v2/{repository}");
        // A reference's registry and repository always make an address.
        let origin = Url::parse(&base)
            .map_err(|error| RegistryError::Client(error.into()))?
            .origin();
        Ok(Self {
            http: client(&address)?,
            name: name.to_owned(),
            role: address.role,
            base,
            origin,
            scope: format!("repository:{repository}:pull"),
            plain_http,
            patience: settings.patience,
            credentials: address.credentials,
            authorization: Mutex::default(),
            met: AtomicBool::new(false),
            down: AtomicBool::new(false),
        })
    }

    /// Begins to count attempts at one thing.
    pub(super) fn backoff(&self) -> Backoff {
        match self.role {
            Role::Registry => Backoff::patient(),
            Role::Mirror => Backoff::of_a_mirror(),
        }
    }

    /// Gets what is below the repository, once; answers are whole (200) or a part (206).
    pub(super) async fn get(&self, path: &str, headers: &HeaderMap) -> Result<Response, RegistryError> {
        let url = &format!("{}/{path}", self.base);
        let known = self.authorization().await?;
        let response = self.send(url, headers, known.as_ref()).await?;
        // The challenge of a host that it was redirected to could send a password anywhere.
        if response.status() != StatusCode::UNAUTHORIZED || self.is_elsewhere(&response) {
            return self.judged(response).await;
        }
        let lines = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let lines: Vec<_> = lines.filter_map(|line| line.to_str().ok()).collect();
        let Some(challenge) = challenge::choose(lines.iter().copied()) else {
            return Err(match lines.first() {
                Some(line) => RegistryError::Challenge {
                    registry: self.name.clone(),
                    challenge: line.chars().take(200).collect(),
                },
                None => self.refused(),
            });
        };
        let by_token = matches!(challenge, Challenge::Bearer { .. }) && !self.credentials.is_anonymous();
        let renewed = self.authorize(challenge, known.as_ref()).await?;
        let response = self.send(url, headers, Some(&renewed)).await?;
        if response.status() == StatusCode::UNAUTHORIZED && by_token {
            // The token server has accepted who we are.
            let registry = self.name.clone();
            return Err(RegistryError::Forbidden { registry });
        }
        self.judged(response).await
    }

    /// Gets what lies elsewhere, without authorization.
    pub(super) async fn get_foreign(
        &self,
        url: &str,
        headers: &HeaderMap,
    ) -> Result<Response, RegistryError> {
        token::realm(url, self.plain_http).map_err(|error| self.redirect(error))?;
        let response = self.send(url, headers, None).await?;
        self.judged(response).await
    }

    /// Waits before another attempt, or returns the error when there is to be none.
    pub(super) async fn wait(
        &self,
        error: RegistryError,
        backoff: &mut Backoff,
    ) -> Result<(), RegistryError> {
        let text = error.to_string();
        let wait = backoff.after(error)?;
        tracing::debug!(registry = self.name, error = text, ?wait, "tried again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Returns what to send without being asked: what was asked for before.
    async fn authorization(&self) -> Result<Option<HeaderValue>, RegistryError> {
        let mut state = self.authorization.lock().await;
        match &state.challenge {
            None => Ok(None),
            Some(_) => self.current(&mut state).await.map(Some),
        }
    }

    /// Returns what the host asks for, other than what it has just refused.
    async fn authorize(
        &self,
        challenge: Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, RegistryError> {
        let mut state = self.authorization.lock().await;
        if state.challenge.as_ref() != Some(&challenge) {
            *state = Authorization {
                challenge: Some(challenge),
                token: None,
            };
        }
        let current = self.current(&mut state).await?;
        if refused != Some(&current) {
            return Ok(current);
        }
        if matches!(state.challenge, Some(Challenge::Basic)) {
            return Err(self.refused());
        }
        // It has expired before its time, or was revoked.
        state.token = None;
        self.current(&mut state).await
    }

    /// Returns the header for what is asked for; fetches a token when there is none that is good.
    async fn current(&self, state: &mut Authorization) -> Result<HeaderValue, RegistryError> {
        let text = match &state.challenge {
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => {
                let good = |token: &&Token| token.until > Instant::now();
                let token = match state.token.as_ref().filter(good) {
                    Some(token) => token.clone(),
                    None => {
                        let request = TokenRequest {
                            realm,
                            service: service.as_deref(),
                            scope: scope.as_deref().unwrap_or(&self.scope),
                            credentials: &self.credentials,
                            plain_http: self.plain_http,
                        };
                        self.fetch_token(&request).await?
                    }
                };
                let text = format!("Bearer {}", token.text);
                state.token = Some(token);
                text
            }
            _ => match &self.credentials {
                Credentials::Password { user, password } => basic(user, password),
                _ => return Err(self.refused()),
            },
        };
        let mut header = HeaderValue::try_from(text).map_err(|_| self.refused())?;
        header.set_sensitive(true);
        Ok(header)
    }

    async fn fetch_token(&self, request: &TokenRequest<'_>) -> Result<Token, RegistryError> {
        let failed = |source| RegistryError::TokenServer {
            registry: self.name.clone(),
            server: server(request.realm),
            source,
        };
        let timeout = |_| failed(super::TokenError::Timeout(self.patience));
        let asked = tokio::time::timeout(self.patience, token::ask(&self.http, request)).await;
        match asked.map_err(timeout)?.map_err(failed)? {
            Answer::Token(token) => Ok(token),
            Answer::Refused => Err(self.refused()),
        }
    }

    async fn send(
        &self,
        url: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut request = self.http.get(url).headers(headers.clone());
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let limit = CONNECT_TIMEOUT + self.patience;
        let sent = tokio::time::timeout(limit, request.send()).await;
        let response = sent.map_err(|_| self.timeout())?;
        let response = response.map_err(|error| self.exchange(error))?;
        self.met.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// Tells what another status than success means.
    async fn judged(&self, response: Response) -> Result<Response, RegistryError> {
        let registry = self.name.clone();
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        let after = after.and_then(|value| backoff::retry_after(value, SystemTime::now()));
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            status if status.is_client_error() && self.is_elsewhere(&response) => {
                Err(RegistryError::Status {
                    registry,
                    status: status.as_u16(),
                    detail: format!("said {}, where it redirects to", server(response.url().as_str())),
                })
            }
            StatusCode::NOT_FOUND => Err(RegistryError::Unknown { registry }),
            StatusCode::UNAUTHORIZED => Err(self.refused()),
            StatusCode::FORBIDDEN if self.credentials.is_anonymous() => Err(self.refused()),
            StatusCode::FORBIDDEN => Err(RegistryError::Forbidden { registry }),
            StatusCode::TOO_MANY_REQUESTS => Err(RegistryError::RateLimited { registry, after }),
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(RegistryError::Unavailable {
                registry,
                status: response.status().as_u16(),
                after,
            }),
            status => Err(RegistryError::Status {
                registry,
                status: status.as_u16(),
                detail: self.detail(response).await,
            }),
        }
    }

    fn is_elsewhere(&self, response: &Response) -> bool {
        response.url().origin() != self.origin
    }

    /// Returns the beginning of an error's text, if it comes at once.
    async fn detail(&self, mut response: Response) -> String {
        let first = tokio::time::timeout(self.patience, response.chunk()).await;
        let Ok(Ok(Some(bytes))) = first else {
            return String::new();
        };
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(DETAIL)]);
        text.split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(200)
            .collect()
    }

    /// Reads the next piece of a body; `pace` judges whether they come quickly enough.
    pub(super) async fn piece(
        &self,
        response: &mut Response,
        pace: &mut Pace,
    ) -> Result<Option<bytes::Bytes>, RegistryError> {
        let next = tokio::time::timeout(self.patience, response.chunk()).await;
        let piece = next.map_err(|_| self.timeout())?;
        let piece = piece.map_err(|error| self.exchange(error))?;
        let count = piece.as_ref().map_or(0, bytes::Bytes::len);
        if piece.is_some() && pace.is_too_slow(count as u64, self.patience, Instant::now()) {
            return Err(self.timeout());
        }
        Ok(piece)
    }

    fn refused(&self) -> RegistryError {
        let registry = self.name.clone();
        if self.credentials.is_anonymous() {
            RegistryError::Denied { registry }
        } else {
            RegistryError::WrongPassword { registry }
        }
    }

    fn timeout(&self) -> RegistryError {
        RegistryError::Timeout {
            registry: self.name.clone(),
            after: self.patience,
        }
    }

    fn redirect(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RegistryError {
        RegistryError::Redirect {
            registry: self.name.clone(),
            source: source.into(),
        }
    }

    fn exchange(&self, error: reqwest::Error) -> RegistryError {
        let registry = self.name.clone();
        // Who was asked is in the message already.
        let error = error.without_url();
        if error.is_redirect() {
            return self.redirect(error);
        }
        if error.is_timeout() {
            return self.timeout();
        }
        if is_about_certificates(&error) {
            return RegistryError::Certificate {
                registry,
                source: error.into(),
            };
        }
        if error.is_connect() {
            return RegistryError::Unreachable {
                registry,
                stranger: !self.met.load(Ordering::Relaxed),
                source: error.into(),
            };
        }
        RegistryError::Exchange {
            registry,
            source: error.into(),
        }
    }
}

/// Judges how quickly a body comes.
pub(super) struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0 }
    }

    fn is_too_slow(&mut self, count: u64, patience: Duration, now: Instant) -> bool {
        self.bytes += count;
        if now.duration_since(self.since) < patience {
            return false;
        }
        let too_slow = self.bytes < LEAST;
        *self = Self::new(now);
        too_slow
    }
}

fn client(address: &Address<'_>) -> Result<reqwest::Client, RegistryError> {
    // A second installation is refused, and the first one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(USER_AGENT)
        .referer(false)
        .redirect(Policy::custom(follow));
    if address.loopback {
        // No proxy stands before this host.
        builder = builder.no_proxy();
    }
    let own = match &address.settings.authorities {
        Some(path) => authorities(path)?,
        None => Vec::new(),
    };
    builder = if !rustls_native_certs::load_native_certs().certs.is_empty() {
        builder.tls_certs_merge(own)
    } else if address.plain_http || !own.is_empty() {
        builder.tls_certs_only(own)
    } else {
        return Err(RegistryError::NoCertificates);
    };
    builder
        .build()
        .map_err(|error| RegistryError::Client(error.into()))
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, RegistryError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| RegistryError::Authorities {
        path: path.to_owned(),
        source,
    };
    let pem = std::fs::read(path).map_err(|error| failed(error.into()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.into()))?;
    if found.is_empty() {
        return Err(failed("it holds no certificate".into()));
    }
    Ok(found)
}

/// Follows to any host (reqwest leaves the authorization behind then), but never out of TLS: an address that is as good
/// as a password for a while would be readable on the way.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let had_tls = attempt
        .previous()
        .last()
        .is_some_and(|url| url.scheme() == "https");
    if had_tls && attempt.url().scheme() != "https" {
        return attempt.error("it leads from HTTPS to plain HTTP");
    }
    if attempt.previous().len() > REDIRECTIONS {
        return attempt.error("there are too many of them");
    }
    attempt.follow()
}

/// Looks for the TLS library's own error; it is wrapped in IO errors, which do not name what is in them as their source.
fn is_about_certificates(error: &(dyn std::error::Error + 'static)) -> bool {
    if error.is::<rustls::Error>() {
        return true;
    }
    let wrapped = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    match wrapped {
        Some(inner) => is_about_certificates(inner),
        None => error.source().is_some_and(is_about_certificates),
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {pair}")
}

/// Returns host and port of a token server, for messages.
fn server(realm: &str) -> String {
    let url = reqwest::Url::parse(realm).ok();
    let host = url.as_ref().and_then(|url| url.host_str());
    let port = url.as_ref().and_then(reqwest::Url::port);
    match (host, port) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        _ => "(none)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_trickles_is_too_slow() {
        let (start, patience) = (Instant::now(), Duration::from_secs(30));
        let mut pace = Pace::new(start);
        assert!(!pace.is_too_slow(1, patience, start + patience / 2));
        assert!(pace.is_too_slow(1, patience, start + patience));
        // The next period is judged by itself.
        assert!(!pace.is_too_slow(LEAST, patience, start + patience * 2));
        assert!(pace.is_too_slow(LEAST - 1, patience, start + patience * 3));
    }

    #[test]
    fn a_user_and_a_password_are_encoded() {
        // RFC 7617, 2.
        assert_eq!(
            basic("Aladdin", "open sesame"),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
    }

    #[test]
    fn a_token_server_is_named_by_host_and_port() {
        assert_eq!(server("https://auth.docker.io/token?x=1"), "auth.docker.io");
        assert_eq!(server("http://127.0.0.1:5001/"), "127.0.0.1:5001");
        assert_eq!(server("nonsense"), "(none)");
    }
}
