//! Names of machines: the id that Hearth gives, and the name that people give.

use std::fmt;
use std::str::FromStr;

/// Identifies one machine on one node: 48 random bits, written as twelve lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineId([u8; 6]);

/// Says why a text is not a machine id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a machine id: twelve lower-case hexadecimal digits are")]
pub struct InvalidMachineId(String);

impl MachineId {
    /// Makes an id of six random bytes.
    pub const fn from_random(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Returns the six bytes, for what is derived from them (MAC address, user id).
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MachineId({self})")
    }
}

impl FromStr for MachineId {
    type Err = InvalidMachineId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || InvalidMachineId(text.to_owned());
        let lower_hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        if text.len() != 12 || !text.as_bytes().iter().all(lower_hex) {
            return Err(refused());
        }
        let mut bytes = [0; 6];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| refused())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refused())?;
        }
        Ok(Self(bytes))
    }
}

/// The name a person gave a machine: docker's rule, `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, 63 bytes at most, so that it
/// can be a host name's label, a file name and an argument.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineName(String);

/// Says why a text is not a machine name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a machine name: 1 to 63 of [a-zA-Z0-9_.-], the first a letter or a digit")]
pub struct InvalidMachineName(String);

impl MachineName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MachineName {
    type Err = InvalidMachineName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        let starts_well = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
        let goes_on_well = bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b));
        if starts_well && goes_on_well && bytes.len() <= 63 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidMachineName(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        let id = MachineId::from_random([0, 1, 0xab, 0xcd, 0xef, 0xff]);
        assert_eq!(id.to_string(), "0001abcdefff");
        assert_eq!("0001abcdefff".parse(), Ok(id));
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in [
            "",
            "0001abcdeff",
            "0001abcdefff0",
            "0001ABCDEFFF",
            "../../../etc",
            "0001abcdefg0",
            "+001abcdefff",
        ] {
            assert!(text.parse::<MachineId>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_follow_dockers_rule() {
        for text in ["a", "web-1", "A.b_c-d", "9lives"] {
            assert_eq!(
                text.parse::<MachineName>().map(|n| n.to_string()).as_deref(),
                Ok(text)
            );
        }
        let long = "x".repeat(64);
        for text in ["", "-a", ".hidden", "a/b", "..", "a b", "ü", long.as_str()] {
            assert!(text.parse::<MachineName>().is_err(), "{text}");
        }
    }
}
