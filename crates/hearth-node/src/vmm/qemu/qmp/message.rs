//! The part of QEMU's machine protocol that is used here, typed: what is sent, and what comes back.
//!
//! Pure: text in, values out. Source: QEMU's `qapi/*.json` of version 7.2 and the QMP specification
//! (`docs/interop/qmp-spec.txt`). Fields that nobody reads are left out; unknown ones are ignored.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A command: its name, its arguments (the value itself), and what QEMU returns for it.
pub trait Command: Serialize {
    /// The command's name on the wire.
    const NAME: &'static str;
    /// What QEMU returns.
    type Returns: DeserializeOwned;
}

/// What commands return that have nothing to say: `{}`.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

macro_rules! plain_commands {
    ($($(#[$doc:meta])* $type:ident = $name:literal -> $returns:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Serialize)]
        pub struct $type {}

        impl Command for $type {
            const NAME: &'static str = $name;
            type Returns = $returns;
        }
    )*};
}

plain_commands! {
    /// Ends the negotiation that every connection starts with.
    NegotiateCapabilities = "qmp_capabilities" -> Nothing;
    /// Asks whether the machine runs.
    QueryStatus = "query-status" -> Status;
    /// Stops the virtual processors.
    Stop = "stop" -> Nothing;
    /// Lets the virtual processors go on.
    Continue = "cont" -> Nothing;
    /// Ends QEMU, without a word to the guest.
    Quit = "quit" -> Nothing;
    /// Asks how a migration goes.
    QueryMigrate = "query-migrate" -> MigrationInfo;
    /// Asks for the memory backends.
    QueryMemory = "query-memdev" -> Vec<MemoryInfo>;
}

/// Takes the descriptor that comes with the command, under a name.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct GetDescriptor {
    /// The name.
    #[serde(rename = "fdname")]
    pub name: &'static str,
}

impl Command for GetDescriptor {
    const NAME: &'static str = "getfd";
    type Returns = Nothing;
}

/// Takes the descriptor that comes with the command into a set, whose members `/dev/fdset/N` stands for.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddDescriptor {
    /// The set's number.
    pub fdset_id: u32,
}

impl Command for AddDescriptor {
    const NAME: &'static str = "add-fd";
    type Returns = serde::de::IgnoredAny;
}

/// Closes the descriptors of a set.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoveDescriptors {
    /// The set's number.
    pub fdset_id: u32,
}

impl Command for RemoveDescriptors {
    const NAME: &'static str = "remove-fd";
    type Returns = Nothing;
}

/// Writes the state of processors and devices, without memory. Made for Xen, and there without it.
#[derive(Debug, Clone, Serialize)]
pub struct SaveDevices {
    /// Where to.
    pub filename: String,
    /// Whether the machine goes on elsewhere: then this QEMU lets go of its disks.
    pub live: bool,
}

impl Command for SaveDevices {
    const NAME: &'static str = "xen-save-devices-state";
    type Returns = Nothing;
}

/// Sets measures of migration.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrateSetParameters {
    /// Bytes per second, at most.
    pub max_bandwidth: u64,
}

impl Command for MigrateSetParameters {
    const NAME: &'static str = "migrate-set-parameters";
    type Returns = Nothing;
}

/// What `query-memdev` returns of each backend.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MemoryInfo {
    /// Whether what the guest writes reaches the file.
    pub share: bool,
}

/// Writes the machine's state to a destination.
#[derive(Debug, Clone, Serialize)]
pub struct Migrate {
    /// Where to, as a URI.
    pub uri: String,
}

impl Command for Migrate {
    const NAME: &'static str = "migrate";
    type Returns = Nothing;
}

/// Reads the machine's state; for a QEMU that was started with `-incoming defer`.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateIncoming {
    /// Where from, as a URI.
    pub uri: String,
}

impl Command for MigrateIncoming {
    const NAME: &'static str = "migrate-incoming";
    type Returns = Nothing;
}

/// Switches abilities of migration on or off.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateSetCapabilities {
    /// The abilities, each with its new state.
    pub capabilities: Vec<MigrationCapability>,
}

impl Command for MigrateSetCapabilities {
    const NAME: &'static str = "migrate-set-capabilities";
    type Returns = Nothing;
}

/// One ability of migration.
#[derive(Debug, Clone, Serialize)]
pub struct MigrationCapability {
    /// Its name.
    pub capability: &'static str,
    /// Whether it is on.
    pub state: bool,
}

/// What `query-status` returns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Whether the virtual processors run.
    pub running: bool,
    /// The state's name: `running`, `paused`, `inmigrate`, `internal-error`, `guest-panicked`, ...
    pub status: String,
}

/// What `query-migrate` returns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// How far it is; absent when there has been none.
    pub status: Option<MigrationStatus>,
    /// Why it failed, if QEMU knows.
    pub error_desc: Option<String>,
}

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// It is done.
    Completed,
    /// It failed.
    Failed,
    /// It was given up.
    Cancelled,
    /// It is under way, in one of the steps that QEMU distinguishes.
    #[serde(other)]
    UnderWay,
}

/// What QEMU tells without being asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", content = "data", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Event {
    /// The machine is about to end.
    Shutdown {
        /// Whether the guest asked for it.
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    },
    /// The guest reset the machine.
    Reset {
        /// Whether the guest asked for it.
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    },
    /// The virtual processors stand still.
    Stop,
    /// The virtual processors go on.
    Resume,
    /// The guest's kernel panicked, and told so.
    GuestPanicked {},
    /// A migration entered another step (only with the capability `events`).
    Migration {
        /// The step.
        status: MigrationStatus,
    },
    /// A disk could not be read or written.
    BlockIoError {
        /// The block node.
        #[serde(rename = "node-name", default)]
        node_name: String,
        /// What the guest was doing: `read` or `write`.
        operation: String,
        /// What the host said.
        #[serde(default)]
        reason: String,
    },
}

/// Why a machine ends or is reset (QEMU's `ShutdownCause`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownCause {
    /// The guest powered off.
    GuestShutdown,
    /// The guest reset, and resets end this machine.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The command `quit`.
    HostQmpQuit,
    /// A signal to QEMU.
    HostSignal,
    /// QEMU met an error of its own.
    HostError,
    /// Anything else.
    #[serde(other)]
    Other,
}

/// Why QEMU refused a command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// QEMU's class of error: `GenericError`, `CommandNotFound`, `DeviceNotFound`, ...
    pub class: String,
    /// What QEMU says about it.
    #[serde(rename = "desc")]
    pub description: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.description, self.class)
    }
}

/// The answer to one command, not yet of its type.
pub type Answer = Result<serde_json::Value, Refusal>;

/// One line from QEMU.
#[derive(Debug)]
pub enum Message {
    /// The first line of a connection.
    Greeting,
    /// The answer to the command of that id; `None` when QEMU could not even read an id.
    Answer(Option<u64>, Answer),
    /// An event that is known here.
    Event(Event),
    /// An event that nobody here cares for.
    OtherEvent,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
    #[serde(rename = "return")]
    returned: Option<serde_json::Value>,
    error: Option<Refusal>,
    id: Option<u64>,
    #[serde(borrow)]
    event: Option<std::borrow::Cow<'a, str>>,
}

/// Says why a line is not of the protocol.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// It is not JSON of the expected form.
    #[error("QEMU sent a line that is not of its machine protocol")]
    Json(#[source] serde_json::Error),
    /// It is JSON, and nothing that the protocol has.
    #[error("QEMU sent a message that is neither greeting, answer nor event")]
    UnknownForm,
}

/// Parses one line from QEMU.
///
/// # Errors
/// [`ParseError`]. An event that is not known here is not an error, since every version of QEMU adds some.
pub fn parse(line: &[u8]) -> Result<Message, ParseError> {
    let wire: Wire<'_> = serde_json::from_slice(line).map_err(ParseError::Json)?;
    match wire {
        Wire { event: Some(_), .. } => {
            Ok(serde_json::from_slice(line).map_or(Message::OtherEvent, Message::Event))
        }
        Wire {
            returned: Some(value),
            id,
            ..
        } => Ok(Message::Answer(id, Ok(value))),
        Wire {
            error: Some(refusal),
            id,
            ..
        } => Ok(Message::Answer(id, Err(refusal))),
        Wire {
            greeting: Some(_), ..
        } => Ok(Message::Greeting),
        _ => Err(ParseError::UnknownForm),
    }
}

/// Writes a command as one line, newline included.
///
/// # Errors
/// When its arguments cannot be written as JSON.
pub fn encode<C: Command>(command: &C, id: u64) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct Request<'a, C> {
        execute: &'static str,
        arguments: &'a C,
        id: u64,
    }
    let mut line = serde_json::to_vec(&Request {
        execute: C::NAME,
        arguments: command,
        id,
    })?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> Option<Event> {
        match parse(line.as_bytes()) {
            Ok(Message::Event(event)) => Some(event),
            _ => None,
        }
    }

    #[test]
    fn commands_are_one_line_with_an_id() {
        let line = encode(&Stop {}, 7).unwrap();
        assert_eq!(line, b"{\"execute\":\"stop\",\"arguments\":{},\"id\":7}\n");
        let migrate = Migrate {
            uri: "exec:\"quoted\"".to_owned(),
        };
        let line = String::from_utf8(encode(&migrate, 8).unwrap()).unwrap();
        assert_eq!(
            line,
            "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"exec:\\\"quoted\\\"\"},\"id\":8}\n"
        );
    }

    #[test]
    fn the_greeting_of_qemu_7_2_is_known() {
        let line = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        assert!(matches!(parse(line), Ok(Message::Greeting)));
    }

    #[test]
    fn answers_carry_their_id_and_refusals_their_class() {
        let line = br#"{"return": {"status": "running", "singlestep": false, "running": true}, "id": 3}"#;
        let Ok(Message::Answer(Some(3), Ok(value))) = parse(line) else {
            panic!("not an answer");
        };
        let status: Status = serde_json::from_value(value).unwrap();
        assert!(status.running);

        let line = br#"{"id": 4, "error": {"class": "CommandNotFound", "desc": "The command foo has not been found"}}"#;
        let Ok(Message::Answer(Some(4), Err(refusal))) = parse(line) else {
            panic!("not a refusal");
        };
        assert_eq!(
            refusal.to_string(),
            "The command foo has not been found (CommandNotFound)"
        );
    }

    #[test]
    fn events_are_typed() {
        let time = r#""timestamp": {"seconds": 1, "microseconds": 2}"#;
        assert_eq!(
            event(&format!(
                r#"{{{time}, "event": "SHUTDOWN", "data": {{"guest": true, "reason": "guest-reset"}}}}"#
            )),
            Some(Event::Shutdown {
                guest: true,
                reason: ShutdownCause::GuestReset
            })
        );
        assert_eq!(
            event(&format!(r#"{{{time}, "event": "STOP"}}"#)),
            Some(Event::Stop)
        );
        assert_eq!(
            event(&format!(
                r#"{{{time}, "event": "GUEST_PANICKED", "data": {{"action": "pause"}}}}"#
            )),
            Some(Event::GuestPanicked {})
        );
        assert_eq!(
            event(&format!(
                r#"{{{time}, "event": "MIGRATION", "data": {{"status": "pre-switchover"}}}}"#
            )),
            Some(Event::Migration {
                status: MigrationStatus::UnderWay
            })
        );
    }

    #[test]
    fn an_event_of_a_later_qemu_is_passed_over() {
        let line = br#"{"event": "RTC_CHANGE", "data": {"offset": 1}, "timestamp": {}}"#;
        assert!(matches!(parse(line), Ok(Message::OtherEvent)));
        let line =
            br#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "brand-new"}, "timestamp": {}}"#;
        assert!(matches!(
            parse(line),
            Ok(Message::Event(Event::Shutdown {
                reason: ShutdownCause::Other,
                ..
            }))
        ));
    }

    #[test]
    fn what_is_not_of_the_protocol_is_refused() {
        for line in [
            "",
            "x",
            "[]",
            "{}",
            "{\"id\": 1}",
            "{\"error\": 3}",
            "{\"return\": {}, \"id\": -1}",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }
}
