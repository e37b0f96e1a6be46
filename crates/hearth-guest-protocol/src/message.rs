//! The messages: what the payload of each frame kind says. Encoded with postcard.
//!
//! Text that a kernel takes as bytes (arguments, environment, paths) is bytes here. Every list has a bound in the
//! frame's own length; what does not fit one frame is refused by [`encode`]. A [`Launch`] alone may take several.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;

use crate::frame::{Header, Kind, MAX_PAYLOAD};

/// Opens the talk. Sent by the host on each connection, answered by the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest generation the sender speaks.
    pub oldest: u16,
    /// The newest generation the sender speaks.
    pub newest: u16,
    /// Chosen by the host, repeated by the guest.
    pub nonce: u64,
    /// The sender's version, for people.
    pub version: String,
    /// From the guest: nanoseconds from the kernel's start to the agent's first line. From the host: zero.
    pub uptime_ns: u64,
}

/// What makes a booted guest this machine. Sent once, before the first [`Execute`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// The host name inside.
    pub hostname: String,
    /// The block device of the read-only image, as in `/dev/vda`.
    pub image_device: String,
    /// The file system on it, as in `erofs`.
    pub image_filesystem: String,
    /// The block device of the machine's own writable disk (ext4).
    pub disk_device: String,
    /// The content of `/etc/hosts`.
    pub hosts: ByteBuf,
    /// The content of `/etc/resolv.conf`.
    pub resolv_conf: ByteBuf,
    /// Wall clock of the host, in nanoseconds since 1970.
    pub clock_unix_ns: u64,
    /// Random bytes of the host for the guest's random number generator.
    pub entropy: [u8; 32],
}

/// Whose life a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The workload: it is PID 1 of the namespaces that the others join. One per guest life.
    Main,
    /// A process beside it, in the same namespaces.
    Exec,
    /// In generation 10, before there is a workload: [`crate::PROBE`] in its place, which begins and ends as it will. The workload finds
    /// the way that an emulator has translated.
    Rehearsal,
}

/// Starts a process. Answered by [`Status::Started`] or a [`Failure`], ended by an [`Outcome`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execute {
    /// Workload or a process beside it.
    pub role: Role,
    /// Program and arguments; a program without a slash is looked up in the environment's PATH inside. Empty, for the workload: an
    /// init that runs nothing and reaps, until a signal asks it to end. (An agent that does not know that finds no such program.)
    pub arguments: Vec<ByteBuf>,
    /// `NAME=value`, complete; secrets are here and only here.
    pub environment: Vec<ByteBuf>,
    /// The working directory; `/` when empty. Created for the workload where it is missing, as docker does.
    pub working_directory: ByteBuf,
    /// `name|uid[:group|gid]`, looked up inside; root when empty.
    pub user: String,
    /// A terminal of this size; without one, pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether standard input is connected; otherwise it is /dev/null.
    pub stdin: bool,
}

/// The most bytes of a [`Launch`]: what Linux takes of arguments and environment with the usual stack of 8 MiB, twice.
pub const LAUNCH_MAX: usize = 4 << 20;

/// Starts a process as [`Execute`] does, with all that generation 2 can say. Written by [`encode_launch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// What generation 1 says.
    pub execute: Execute,
    /// How the workload sees its machine; a process beside it sees the same, whatever this says.
    pub world: World,
    /// Limits of the process, over the guest's own.
    pub limits: Vec<ResourceLimit>,
    /// More groups of the user, by name or number.
    pub groups: Vec<String>,
}

impl From<Execute> for Launch {
    fn from(execute: Execute) -> Self {
        Self {
            execute,
            world: World::default(),
            limits: Vec::new(),
            groups: Vec::new(),
        }
    }
}

/// How a workload sees its machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct World {
    /// The agent's own code is PID 1: it reaps orphans and passes signals on.
    pub init: bool,
    /// The root file system cannot be written to.
    pub read_only: bool,
    /// File systems in memory, parents first.
    pub tmpfs: Vec<Tmpfs>,
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path; the directory is made where it is missing.
    pub path: ByteBuf,
    /// It cannot be written to.
    pub read_only: bool,
    /// Programs on it can be executed.
    pub executable: bool,
    /// Set-user-id bits on it count.
    pub set_uid: bool,
    /// Devices on it work.
    pub devices: bool,
    /// The kernel's own options, as in `mode=1777,size=65536`.
    pub options: String,
}

/// A limit of a process, as in setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// The resource's number on x86-64.
    pub resource: u8,
    /// The limit in force; `u64::MAX` for none.
    pub soft: u64,
    /// What it can be raised to; `u64::MAX` for anything.
    pub hard: u64,
}

/// Rows and columns of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A signal for the process of a session; its Linux number (1 to 64).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// The number, as in signal(7) for x86-64.
    pub number: u8,
}

/// Limits how long the process of the launch that follows in this session may run. The guest keeps to it also when its host is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeLimit {
    /// From its start on, in milliseconds of the guest's clock.
    pub after_ms: u32,
}

/// Gives the network interface another hardware address: what goes on has that of the machine that was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardwareAddress(pub [u8; 6]);

/// How a session's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It exited with this status.
    Exited(u8),
    /// A signal of this number ended it.
    Signaled(u8),
    /// Its [`TimeLimit`] ended it, and all that it had made.
    TimedOut,
}

impl Outcome {
    /// Returns the shell's exit code: the status, or 128 plus the signal's number; at a time limit that of timeout(1).
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(number) => 128_u8.wrapping_add(number),
            Self::TimedOut => 124,
        }
    }
}

/// What the guest tells of itself or of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// On the control session: configured, disks mounted; processes may be started.
    Ready,
    /// On the control session: everything ended, disks at rest; the machine may be switched off.
    Stopped,
    /// On an execute session: the process runs.
    Started {
        /// Its process id in the guest's outermost namespace.
        pid: u32,
    },
    /// On a file or dial session: the file or connection is open.
    Opened,
    /// On the control session: processes and file system stand still.
    Frozen,
    /// On the control session: they go on.
    Thawed {
        /// Whether they stood still until now.
        was_frozen: bool,
    },
    /// On the control session: the guest is another machine; its processes stand still.
    Renewed,
}

/// Why the guest could not do what was asked. Closes the session, if on one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: FailureCode,
    /// For people; names the path, user or port concerned.
    pub message: String,
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureCode {
    /// The program does not exist (exit code 127).
    CommandNotFound,
    /// The program exists and cannot be run (exit code 126).
    CommandNotExecutable,
    /// No such user or group in the image.
    UnknownUser,
    /// The working directory cannot be entered.
    BadWorkingDirectory,
    /// A file or directory does not exist.
    NoSuchFile,
    /// The request makes no sense now: exec before the workload, a second workload, a session in use.
    BadRequest,
    /// Nothing listens on that port.
    ConnectionRefused,
    /// The guest could not mount its disks.
    Storage,
    /// The workload is gone, and its namespaces with it.
    WorkloadGone,
    /// Any other error of the guest's kernel.
    System,
}

/// Ends every process and brings the disks to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The signal that asks the workload to end (its image's STOPSIGNAL, SIGTERM otherwise); 0 kills at once.
    pub signal: u8,
    /// How long it may take, in milliseconds, before it is killed.
    pub grace_ms: u32,
}

/// A file operation inside the workload's root, symbolic links followed inside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRequest {
    /// Sends `path` as a tar stream on the session's output; its first entry is the path's base name.
    Get {
        /// Absolute path.
        path: ByteBuf,
    },
    /// Unpacks the tar stream of the session's input into the directory `path`, which must exist.
    Put {
        /// Absolute path.
        path: ByteBuf,
        /// Owners as the archive says; otherwise everything belongs to root.
        keep_owners: bool,
    },
    /// Sends a [`FileStat`] on the session's output.
    Stat {
        /// Absolute path.
        path: ByteBuf,
    },
    /// Generation 9: has the image's programs trust the certificates (PEM) of the session's input, beside those that they trust. Sends
    /// two lines: the path of the file that has all of them, and that of one that has these.
    Trust,
}

/// What `path` is, after symbolic links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, as in chmod(2).
    pub mode: u32,
}

/// A file's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A device, socket or fifo.
    Other,
}

/// Connects to a TCP port on the guest's loopback; then input and output are the connection's bytes. As [`Kind::Datagrams`] to a UDP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    /// The port.
    pub port: u16,
}

/// What the guest uses. Bytes, or nanoseconds since the guest's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time of all processes, nanoseconds.
    pub cpu_ns: u64,
    /// Memory the guest's kernel manages.
    pub memory_total: u64,
    /// Memory that is free or can be freed.
    pub memory_available: u64,
    /// Size of the machine's disk.
    pub disk_total: u64,
    /// What of it is free.
    pub disk_free: u64,
    /// Processes of the workload.
    pub processes: u32,
}

/// Steps the guest's wall clock: after its virtual processors stood still, it is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Wall clock of the host, in nanoseconds since 1970.
    pub unix_ns: u64,
}

/// Lets the processes of the workload and the file system of the machine's disk stand still, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// How long at most, by the guest's clock, in milliseconds: then they go on unasked.
    pub at_most_ms: u32,
}

/// Makes a guest that stands still, or (generation 7) has no workload yet, another machine: it goes on where that machine was captured. Its file system goes on with it, its
/// processes with what follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// The host name inside.
    pub hostname: String,
    /// The content of `/etc/hosts`.
    pub hosts: ByteBuf,
    /// The content of `/etc/resolv.conf`.
    pub resolv_conf: ByteBuf,
    /// The machine's id, as in machine-id(5); absent where it keeps the one it has.
    pub machine_id: Option<[u8; 16]>,
    /// `NAME=value`, put over what processes beside the workload inherit of its environment; a `NAME` alone takes it away.
    pub environment: Vec<ByteBuf>,
    /// Wall clock of the host, in nanoseconds since 1970.
    pub clock_unix_ns: u64,
    /// Random bytes of the host for the guest's random number generator.
    pub entropy: [u8; 32],
}

/// The processes of the workload and those beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// How many there are.
    pub total: u32,
    /// The first of them, by number; what fits one frame.
    pub processes: Vec<ProcessInfo>,
}

/// One process, as its own namespace counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Process id.
    pub pid: u32,
    /// Its parent's; 0 for one from outside.
    pub parent: u32,
    /// Effective user id.
    pub uid: u32,
    /// State, as in proc_pid_stat(5): `R`, `S`, `D`, `Z`, `T`.
    pub state: u8,
    /// Processor time, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, in bytes.
    pub memory: u64,
    /// Arguments with spaces between them, cut.
    pub command: ByteBuf,
}

/// Grants a session's sender more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditGrant {
    /// How many.
    pub bytes: u32,
}

/// Goes on with the workload's session after a host was followed by another. Until it comes, the guest says nothing in that
/// session but that it is there; then it sends again what no host keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Bytes of the session's output, both streams together, that a host keeps: the first that is wanted has this number.
    pub received: u64,
}

/// Says that a message is longer than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is {length} bytes, more than the {limit} that it may be")]
pub struct MessageTooLong {
    /// Its length.
    pub length: usize,
    /// The bound: a frame's payload, or [`LAUNCH_MAX`].
    pub limit: usize,
}

/// Says that a frame's payload is not the message that its kind promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the payload is not a well-formed message")]
pub struct MalformedMessage;

/// Appends `message` to `out` as one frame.
///
/// # Errors
/// Returns [`MessageTooLong`] when it does not fit; `out` is unchanged then.
pub fn encode<M: Serialize>(
    kind: Kind,
    session: u32,
    message: &M,
    out: &mut Vec<u8>,
) -> Result<(), MessageTooLong> {
    let payload = to_payload(message, MAX_PAYLOAD)?;
    Header::new(kind, session).write(&payload, out);
    Ok(())
}

/// Appends a launch to `out`: frames of [`Kind::Part`] as they are needed, and the one that ends it.
///
/// # Errors
/// Returns [`MessageTooLong`] beyond [`LAUNCH_MAX`]; `out` is unchanged then.
pub fn encode_launch(session: u32, launch: &Launch, out: &mut Vec<u8>) -> Result<(), MessageTooLong> {
    let payload = to_payload(launch, LAUNCH_MAX)?;
    let mut pieces = payload.chunks(MAX_PAYLOAD).peekable();
    while let Some(piece) = pieces.next() {
        let kind = match pieces.peek() {
            Some(_) => Kind::Part,
            None => Kind::Launch,
        };
        Header::new(kind, session).write(piece, out);
    }
    Ok(())
}

fn to_payload(message: &impl Serialize, limit: usize) -> Result<Vec<u8>, MessageTooLong> {
    let too_long = |length| MessageTooLong { length, limit };
    // postcard into a growing vector cannot fail for these types: no map, no unknown length.
    let payload = postcard::to_allocvec(message).map_err(|_| too_long(usize::MAX))?;
    if payload.len() > limit {
        return Err(too_long(payload.len()));
    }
    Ok(payload)
}

/// Reads a message from a frame's payload; bytes behind it are an error.
///
/// # Errors
/// Returns [`MalformedMessage`].
pub fn decode<M: DeserializeOwned>(payload: &[u8]) -> Result<M, MalformedMessage> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        _ => Err(MalformedMessage),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn execute() -> Execute {
        Execute {
            role: Role::Exec,
            arguments: vec![ByteBuf::from(*b"sh"), ByteBuf::from([0xff, 0x01])],
            environment: vec![ByteBuf::from(*b"A=b")],
            working_directory: ByteBuf::from(*b"/w"),
            user: "1000:10".into(),
            terminal: Some(TerminalSize {
                rows: 24,
                columns: 300,
            }),
            stdin: true,
        }
    }

    #[test]
    fn golden_bytes_of_an_execute_message() {
        let payload = postcard::to_allocvec(&execute()).unwrap();
        let expected: &[u8] = b"\x01\x02\x02sh\x02\xff\x01\x01\x03A=b\x02/w\x071000:10\x01\x18\xac\x02\x01";
        assert_eq!(payload, expected);
        assert_eq!(decode::<Execute>(expected), Ok(execute()));
    }

    #[test]
    fn golden_bytes_of_a_launch_message() {
        let launch = Launch {
            world: World {
                init: true,
                read_only: false,
                tmpfs: vec![Tmpfs {
                    path: ByteBuf::from(*b"/t"),
                    read_only: false,
                    executable: true,
                    set_uid: false,
                    devices: false,
                    options: "mode=1777".into(),
                }],
            },
            limits: vec![ResourceLimit {
                resource: 7,
                soft: 300,
                hard: u64::MAX,
            }],
            groups: vec!["wheel".into()],
            ..Launch::from(execute())
        };
        let behind: &[u8] =
            b"\x01\x00\x01\x02/t\x00\x01\x00\x00\x09mode=1777\x01\x07\xac\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01\x05wheel";
        let expected = [&postcard::to_allocvec(&execute()).unwrap(), behind].concat();
        assert_eq!(postcard::to_allocvec(&launch).unwrap(), expected);
        assert_eq!(decode::<Launch>(&expected), Ok(launch));
    }

    #[test]
    fn a_launch_is_cut_into_frames_and_bounded() {
        let mut launch = Launch::from(execute());
        launch.execute.environment = vec![ByteBuf::from(vec![b'x'; 2 * MAX_PAYLOAD])];
        let mut out = Vec::new();
        encode_launch(5, &launch, &mut out).unwrap();
        let (mut decoder, mut kinds, mut payload) = (crate::Decoder::new(), vec![], vec![]);
        let mut rest = &out[..];
        while !rest.is_empty() {
            let space = decoder.space();
            let count = space.len().min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            decoder.filled(count);
            rest = &rest[count..];
            while let Some(frame) = decoder.next_frame().unwrap() {
                kinds.push((frame.header.kind, frame.header.session));
                payload.extend_from_slice(frame.payload);
            }
        }
        assert_eq!(kinds, [(Kind::Part, 5), (Kind::Part, 5), (Kind::Launch, 5)]);
        assert_eq!(decode::<Launch>(&payload), Ok(launch.clone()));
        launch.execute.environment = vec![ByteBuf::from(vec![b'x'; LAUNCH_MAX])];
        assert!(encode_launch(5, &launch, &mut out).is_err());
    }

    #[test]
    fn golden_bytes_of_the_latest_file_request() {
        assert_eq!(postcard::to_allocvec(&FileRequest::Trust).unwrap(), b"\x03");
    }

    #[test]
    fn golden_bytes_of_clock_and_processes() {
        let clock = postcard::to_allocvec(&Clock { unix_ns: 300 }).unwrap();
        assert_eq!(clock, b"\xac\x02");
        let processes = Processes {
            total: 2,
            processes: vec![ProcessInfo {
                pid: 1,
                parent: 0,
                uid: 300,
                state: b'S',
                cpu_ms: 5,
                memory: 4096,
                command: ByteBuf::from(*b"sh"),
            }],
        };
        let expected: &[u8] = b"\x02\x01\x01\x00\xac\x02S\x05\x80\x20\x02sh";
        assert_eq!(postcard::to_allocvec(&processes).unwrap(), expected);
        assert_eq!(decode::<Processes>(expected), Ok(processes));
    }

    #[test]
    fn golden_bytes_of_stillness() {
        let freeze = postcard::to_allocvec(&Freeze { at_most_ms: 30_000 }).unwrap();
        assert_eq!(freeze, b"\xb0\xea\x01");
        let answers = [
            Status::Frozen,
            Status::Thawed { was_frozen: true },
            Status::Renewed,
        ];
        let answers = answers.map(|answer| postcard::to_allocvec(&answer).unwrap());
        assert_eq!(answers, [&b"\x04"[..], b"\x05\x01", b"\x06"]);
        let renew = Renew {
            hostname: "twin".into(),
            hosts: ByteBuf::from(*b"h"),
            resolv_conf: ByteBuf::new(),
            machine_id: Some([7; 16]),
            environment: vec![ByteBuf::from(*b"A=b"), ByteBuf::from(*b"C")],
            clock_unix_ns: 300,
            entropy: [9; 32],
        };
        let head: &[u8] = b"\x04twin\x01h\x00\x01";
        let expected = [head, &[7; 16], b"\x02\x03A=b\x01C\xac\x02", &[9; 32]].concat();
        assert_eq!(postcard::to_allocvec(&renew).unwrap(), expected);
        assert_eq!(decode::<Renew>(&expected), Ok(renew));
    }

    #[test]
    fn golden_bytes_of_a_greeting_frame() {
        // `hearth bench` has them, too.
        let hello = Hello {
            oldest: 1,
            newest: 1,
            nonce: 7,
            version: "bench".into(),
            uptime_ns: 0,
        };
        let mut frame = Vec::new();
        encode(Kind::Hello, crate::CONTROL, &hello, &mut frame).unwrap();
        let expected: &[u8] =
            b"HRTH\x01\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\xb4\x8ax5\x01\x01\x07\x05bench\x00";
        assert_eq!(frame, expected);
    }

    #[test]
    fn golden_bytes_of_the_small_messages() {
        let golden: [(Vec<u8>, &[u8]); 10] = [
            (
                postcard::to_allocvec(&HardwareAddress([2, 0, 0, 1, 2, 255])).unwrap(),
                b"\x02\x00\x00\x01\x02\xff",
            ),
            (postcard::to_allocvec(&Outcome::TimedOut).unwrap(), b"\x02"),
            (
                postcard::to_allocvec(&TimeLimit { after_ms: 30_000 }).unwrap(),
                b"\xb0\xea\x01",
            ),
            (postcard::to_allocvec(&Outcome::Signaled(9)).unwrap(), b"\x01\x09"),
            (
                postcard::to_allocvec(&Status::Started { pid: 300 }).unwrap(),
                b"\x02\xac\x02",
            ),
            (
                postcard::to_allocvec(&Stop {
                    signal: 15,
                    grace_ms: 10_000,
                })
                .unwrap(),
                b"\x0f\x90\x4e",
            ),
            (postcard::to_allocvec(&Dial { port: 8080 }).unwrap(), b"\x90\x3f"),
            (
                postcard::to_allocvec(&CreditGrant { bytes: 131_072 }).unwrap(),
                b"\x80\x80\x08",
            ),
            (postcard::to_allocvec(&Signal { number: 2 }).unwrap(), b"\x02"),
            (
                postcard::to_allocvec(&Resume { received: 1 << 40 }).unwrap(),
                b"\x80\x80\x80\x80\x80\x20",
            ),
        ];
        for (bytes, expected) in golden {
            assert_eq!(bytes, expected);
        }
    }

    #[test]
    fn bytes_behind_a_message_are_an_error() {
        let mut payload = postcard::to_allocvec(&execute()).unwrap();
        payload.push(0);
        assert_eq!(decode::<Execute>(&payload), Err(MalformedMessage));
    }

    #[test]
    fn a_message_that_does_not_fit_a_frame_is_refused() {
        let mut large = execute();
        large.environment = vec![ByteBuf::from(vec![b'x'; MAX_PAYLOAD])];
        let mut out = vec![1];
        assert!(encode(Kind::Execute, 1, &large, &mut out).is_err());
        assert_eq!(out, [1]);
    }

    #[test]
    fn exit_codes_are_the_shells() {
        assert_eq!(Outcome::Exited(3).exit_code(), 3);
        assert_eq!(Outcome::Signaled(15).exit_code(), 143);
        assert_eq!(Outcome::TimedOut.exit_code(), 124);
    }
}
