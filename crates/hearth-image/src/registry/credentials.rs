//! Who we are to a registry. Never shown: `Debug` names the kind alone.

use std::fmt;

/// Who we are to a registry.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A user with a password, or an access token in its place.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// What a token server gave at an earlier login, to be exchanged for access tokens (OAuth 2's refresh token).
    IdentityToken(String),
}

impl Credentials {
    /// Tells whether there are any.
    pub fn is_anonymous(&self) -> bool {
        *self == Self::Anonymous
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Password { .. } => "Password(..)",
            Self::IdentityToken(_) => "IdentityToken(..)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        let password = Credentials::Password {
            user: "ada".into(),
            password: "hush".into(),
        };
        let token = Credentials::IdentityToken("hush".into());
        assert_eq!(
            format!("{password:?} {token:?}"),
            "Password(..) IdentityToken(..)"
        );
    }
}
