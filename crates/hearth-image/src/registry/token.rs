//! Tokens: asked for at a token server, kept for as long as they are good (distribution's token specification).

use std::time::{Duration, Instant};

use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::Credentials;
use super::error::TokenError;

/// Bytes of a token server's answer; tokens are some kilobytes.
const ANSWER: usize = 1 << 20;
/// How long a token is good when its server does not say.
const LIFE: Duration = Duration::from_secs(60);
/// Taken off a token's life: a request takes time, and clocks differ in speed, not in this.
const MARGIN: Duration = Duration::from_secs(5);

/// A token for one repository.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) until: Instant,
}

/// What a token is asked for with.
pub(super) struct TokenRequest<'a> {
    pub(super) realm: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) scope: &'a str,
    pub(super) credentials: &'a Credentials,
    /// Whether the token server may be one without TLS.
    pub(super) plain_http: bool,
}

/// How a token server answered.
pub(super) enum Answer {
    /// With a token.
    Token(Token),
    /// It does not accept the credentials, or gives strangers nothing.
    Refused,
}

#[derive(Deserialize)]
struct Body {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Returns a token server's address, if it may be one.
pub(super) fn realm(text: &str, plain_http: bool) -> Result<Url, TokenError> {
    let refused = || TokenError::Realm(text.chars().take(200).collect());
    let url = Url::parse(text).map_err(|_| refused())?;
    let allowed = url.scheme() == "https" || (url.scheme() == "http" && plain_http);
    if allowed && url.host_str().is_some() {
        Ok(url)
    } else {
        Err(refused())
    }
}

/// Asks a token server once.
pub(super) async fn ask(http: &reqwest::Client, request: &TokenRequest<'_>) -> Result<Answer, TokenError> {
    let realm = realm(request.realm, request.plain_http)?;
    let service = request.service.map(|service| ("service", service));
    let sent = match request.credentials {
        Credentials::IdentityToken(token) => {
            let fields = [
                ("grant_type", "refresh_token"),
                ("client_id", "hearth"),
                ("refresh_token", token),
                ("scope", request.scope),
            ];
            let body = form(&realm, fields.into_iter().chain(service));
            let kind = "application/x-www-form-urlencoded";
            http.post(realm)
                .header(reqwest::header::CONTENT_TYPE, kind)
                .body(body)
        }
        credentials => {
            let mut url = realm;
            url.query_pairs_mut()
                .extend_pairs(service)
                .append_pair("scope", request.scope);
            match credentials {
                Credentials::Password { user, password } => http.get(url).basic_auth(user, Some(password)),
                _ => http.get(url),
            }
        }
    };
    let asked = Instant::now();
    let mut response = sent.send().await.map_err(failed)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Ok(Answer::Refused),
        // OAuth 2 says so of a refresh token that is not good any more (RFC 6749, 5.2).
        StatusCode::BAD_REQUEST if matches!(request.credentials, Credentials::IdentityToken(_)) => {
            return Ok(Answer::Refused);
        }
        status => return Err(TokenError::Status(status.as_u16())),
    }
    let mut json = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        json.extend_from_slice(&piece);
        if json.len() > ANSWER {
            return Err(TokenError::Answer);
        }
    }
    parse(&json, asked).map(Answer::Token)
}

fn parse(json: &[u8], asked: Instant) -> Result<Token, TokenError> {
    let body: Body = serde_json::from_slice(json).map_err(|_| TokenError::Answer)?;
    let text = body.token.or(body.access_token).filter(|text| !text.is_empty());
    let life = body.expires_in.map_or(LIFE, Duration::from_secs);
    // A day is enough for any pull; a larger number must not overflow a clock.
    let life = life.min(Duration::from_secs(24 * 3600)).saturating_sub(MARGIN);
    Ok(Token {
        text: text.ok_or(TokenError::Answer)?,
        until: asked + life,
    })
}

/// Encodes fields as the body of a form; a query is encoded in the same way.
fn form<'a>(realm: &Url, fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut url = realm.clone();
    url.query_pairs_mut().clear().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

fn failed(error: reqwest::Error) -> TokenError {
    // Without its URL, which is in the message already, and may be long.
    TokenError::Exchange(error.without_url().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_a_token_are_read_and_a_missing_life_is_a_minute() {
        let asked = Instant::now();
        let token = parse(br#"{"token":"a","expires_in":300}"#, asked).unwrap();
        assert_eq!(
            (token.text.as_str(), token.until - asked),
            ("a", Duration::from_secs(295))
        );
        let token = parse(br#"{"access_token":"b"}"#, asked).unwrap();
        assert_eq!(
            (token.text.as_str(), token.until - asked),
            ("b", Duration::from_secs(55))
        );
        let token = parse(br#"{"token":"c","expires_in":18446744073709551615}"#, asked).unwrap();
        assert!(token.until > asked);
        for nothing in ["", "{}", r#"{"token":""}"#, "[]"] {
            assert!(parse(nothing.as_bytes(), asked).is_err(), "{nothing}");
        }
    }

    #[test]
    fn a_password_goes_to_no_token_server_without_tls_unless_its_registry_has_none() {
        assert!(realm("https://auth.docker.io/token", false).is_ok());
        assert!(realm("http://auth.docker.io/token", false).is_err());
        assert!(realm("http://localhost:5001/token", true).is_ok());
        for nonsense in ["", "file:///etc/passwd", "/token", "gopher://x"] {
            assert!(realm(nonsense, true).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_form_is_encoded() {
        let realm = realm("https://h/t?x=1", false).unwrap();
        let encoded = form(&realm, [("a", "b c&d"), ("e", "é")].into_iter());
        assert_eq!(encoded, "a=b+c%26d&e=%C3%A9");
    }
}
