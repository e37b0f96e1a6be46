//! What a registry asks for when it says 401 (RFC 9110, 11.6.1; distribution's token specification). Pure.

/// How a registry wants to know who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With user and password in each request.
    Basic,
    /// With a token, which a token server gives.
    Bearer {
        /// The token server.
        realm: String,
        /// What the token server calls the registry.
        service: Option<String>,
        /// What the token must allow.
        scope: Option<String>,
    },
}

/// Chooses among the challenges of an answer's `WWW-Authenticate` lines; a token is preferred, since no password goes to
/// the registry then. `None` when there is none that we know.
pub(super) fn choose<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for line in lines {
        let Ok(challenges) = http_auth::parse_challenges(line) else {
            continue;
        };
        for challenge in challenges {
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |wanted: &str| {
                    let mut parameters = challenge.params.iter();
                    let found = parameters.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if let Some(realm) = parameter("realm") {
                    return Some(Challenge::Bearer {
                        realm,
                        service: parameter("service"),
                        scope: parameter("scope"),
                    });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hubs_challenge_is_read() {
        let line = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/busybox:pull".into()),
        };
        assert_eq!(choose([line]), Some(expected));
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let bearer = r#"bearer realm="http://h/t""#;
        let chosen = choose(["Basic realm=\"x\"", bearer]);
        assert!(matches!(chosen, Some(Challenge::Bearer { service: None, .. })));
        assert_eq!(choose(["Negotiate", "BASIC realm=\"x\""]), Some(Challenge::Basic));
    }

    #[test]
    fn what_is_no_challenge_is_passed_over() {
        assert_eq!(choose([]), None);
        assert_eq!(
            choose([
                "Bearer",
                "Bearer service=\"x\"",
                "Digest realm=\"x\"",
                "\"\u{1}=,,"
            ]),
            None
        );
    }
}
