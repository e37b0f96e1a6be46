//! Names of devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The id of a drive or network interface: letters, digits and underscores.
///
/// It becomes part of a request's path, so nothing else ever gets there. Firecracker takes letters beyond ASCII as well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct DeviceId(String);

/// Says that a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id has 1 to {max} letters, digits and underscores: {0:?}", max = DeviceId::MAX)]
pub struct InvalidId(String);

impl DeviceId {
    /// The longest id in bytes. Firecracker has no bound; a longer one is a mistake.
    pub const MAX: usize = 64;

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DeviceId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if (1..=Self::MAX).contains(&text.len()) && text.bytes().all(good) {
            Ok(Self(text))
        } else {
            Err(InvalidId(text.chars().take(Self::MAX).collect()))
        }
    }
}

impl FromStr for DeviceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
