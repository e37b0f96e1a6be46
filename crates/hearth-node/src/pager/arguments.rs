//! The command line of `hearth pager`, which the node writes and nobody else.

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// How long a pager without machines waits for one, unless it is told.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// How long the first machine's touches are recorded, unless it is told: what a machine needs to answer, not all it ever does.
pub(super) const RECORD: Duration = Duration::from_secs(2);

/// What to serve, to whom, how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) image: PathBuf,
    /// Bytes that the image has, when that is known.
    pub(super) length: Option<u64>,
    pub(super) door: Door,
    pub(super) working_set: Option<PathBuf>,
    /// Users whose machines are served.
    pub(super) peers: Vec<RangeInclusive<u32>>,
    pub(super) idle: Duration,
    pub(super) record: Duration,
}

/// Where machines connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Door {
    /// A listening socket that this process was started with.
    Inherited(i32),
    /// A path to listen at.
    Path(PathBuf),
}

/// Says what is wrong with the command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// An option that there is not.
    #[error("there is no option {0:?}")]
    Unknown(OsString),
    /// An option stands alone.
    #[error("{0} needs a value")]
    Alone(&'static str),
    /// A value that cannot be.
    #[error("{option} cannot be {value:?}")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value.
        value: OsString,
    },
    /// An option is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
}

const OPTIONS: [&str; 8] = [
    "--image",
    "--length",
    "--socket",
    "--socket-fd",
    "--working-set",
    "--peers",
    "--idle",
    "--record",
];

impl Arguments {
    /// Reads what stands behind `hearth pager`; `own` is who is served when nobody is named.
    pub(super) fn parse(words: &[OsString], own: u32) -> Result<Self, ArgumentError> {
        let (mut image, mut length, mut door, mut working_set) = (None, None, None, None);
        let (mut peers, mut idle, mut record) = (Vec::new(), IDLE, RECORD);
        for pair in words.chunks(2) {
            let option = OPTIONS.into_iter().find(|option| pair[0] == *option);
            let option = option.ok_or_else(|| ArgumentError::Unknown(pair[0].clone()))?;
            let value = pair.get(1).ok_or(ArgumentError::Alone(option))?;
            match option {
                "--image" => image = Some(PathBuf::from(value)),
                "--length" => length = Some(number(option, value)?),
                "--socket" => door = Some(Door::Path(value.into())),
                "--socket-fd" => door = Some(Door::Inherited(number(option, value)?)),
                "--working-set" => working_set = Some(PathBuf::from(value)),
                "--peers" => peers.push(users(option, value)?),
                "--idle" => idle = Duration::from_millis(number(option, value)?),
                _ => record = Duration::from_millis(number(option, value)?),
            }
        }
        if peers.is_empty() {
            peers.push(own..=own);
        }
        Ok(Self {
            image: image.ok_or(ArgumentError::Missing("--image"))?,
            length,
            door: door.ok_or(ArgumentError::Missing("--socket or --socket-fd"))?,
            working_set,
            peers,
            idle,
            record,
        })
    }
}

fn number<T: FromStr>(option: &'static str, value: &OsStr) -> Result<T, ArgumentError> {
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| ArgumentError::Value {
        option,
        value: value.to_owned(),
    })
}

fn users(option: &'static str, value: &OsStr) -> Result<RangeInclusive<u32>, ArgumentError> {
    let text = value.to_str().unwrap_or_default();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Ok(number(option, OsStr::new(first))?..=number(option, OsStr::new(last))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, ArgumentError> {
        let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        Arguments::parse(&words, 1000)
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let arguments = parse("--image m --socket-fd 3").unwrap();
        assert_eq!(arguments.peers, [1000..=1000]);
        assert_eq!((arguments.idle, arguments.record), (IDLE, RECORD));
        assert_eq!(arguments.door, Door::Inherited(3));
        let arguments = parse("--image m --socket s --peers 0 --peers 5-9 --idle 10 --length 4096").unwrap();
        assert_eq!(arguments.peers, [0..=0, 5..=9]);
        assert_eq!(
            (arguments.length, arguments.idle),
            (Some(4096), Duration::from_millis(10))
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (line, words) in [
            ("--socket s", "--image is missing"),
            ("--image m", "--socket or --socket-fd is missing"),
            ("--image m --socket", "--socket needs a value"),
            ("--image m --socket-fd x", "--socket-fd cannot be \"x\""),
            ("--image m --peers 1-", "--peers cannot be \"\""),
            ("image", "there is no option \"image\""),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), words, "{line}");
        }
    }
}
