//! Signals by name and number, as signal(7) has them for x86-64.

use std::fmt;
use std::str::FromStr;

/// A Linux signal: 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(u8);

/// Says why a text is not a signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a signal: a name as in TERM or SIGTERM, RTMIN+n, or a number from 1 to 64")]
pub struct InvalidSignal(String);

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

impl Signal {
    /// SIGKILL.
    pub const KILL: Self = Self(9);
    /// SIGTERM.
    pub const TERM: Self = Self(15);

    /// Returns the number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0) - 1) {
            Some(name) => write!(f, "SIG{name}"),
            None => write!(f, "SIGRTMIN+{}", i16::from(self.0) - i16::from(RTMIN)),
        }
    }
}

impl FromStr for Signal {
    type Err = InvalidSignal;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let from_rtmin = name.strip_prefix("RTMIN").map(|rest| (rest, RTMIN));
        let number = match (NAMES.iter().position(|known| *known == name), from_rtmin) {
            (Some(index), _) => u8::try_from(index + 1).ok(),
            (None, Some(("", base))) => Some(base),
            (None, Some((rest, base))) => rest
                .strip_prefix('+')
                .and_then(|n| n.parse::<u8>().ok()?.checked_add(base)),
            (None, None) => upper.parse().ok(),
        };
        number
            .filter(|n| (1..=RTMAX).contains(n))
            .map(Self)
            .ok_or_else(|| InvalidSignal(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time_signals_are_understood() {
        let golden = [
            ("TERM", 15),
            ("sigterm", 15),
            ("9", 9),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SYS", 31),
        ];
        for (text, number) in golden {
            assert_eq!(text.parse::<Signal>().map(Signal::number), Ok(number), "{text}");
        }
    }

    #[test]
    fn every_signal_survives_its_text() {
        for number in (1..=31).chain(34..=64) {
            assert_eq!(Signal(number).to_string().parse(), Ok(Signal(number)));
        }
    }

    #[test]
    fn what_is_not_a_signal_is_refused() {
        for text in ["", "0", "65", "SIG", "TERMINATE", "-9", "RTMIN+31", "RTMIN-1"] {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
    }
}
