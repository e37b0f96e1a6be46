//! A bare clone: what a machine of a template costs without Hearth, with the same program, devices, memory and state.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use hearth_guest_protocol::frame::{Decoder, Kind};
use hearth_guest_protocol::message::{Execute, Launch, Role, encode_launch};
use serde_bytes::ByteBuf;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::BenchError;

/// A greeting that every agent answers; the guest protocol's tests have it, too.
const GREETING: &[u8; 30] =
    b"HRTH\x01\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\xb4\x8ax5\x01\x01\x07\x05bench\x00";

/// What its answer begins with.
const MAGIC: &[u8; 4] = b"HRTH";

/// The session of a program that is launched.
const SESSION: u32 = 1;

/// A bare clone that can be made any number of times.
#[derive(Debug)]
pub(super) struct BareClone {
    program: PathBuf,
    /// The monitor's command line, as /proc has it.
    line: Vec<u8>,
    memory: PathBuf,
    state: Vec<u8>,
    /// The image's disk, which goes with the machine that this was taken after.
    image: File,
    /// The disk that is written to, as it was when the memory was.
    disk: PathBuf,
    /// Sockets and copies of the disk.
    place: tempfile::TempDir,
}

impl BareClone {
    /// Takes after the monitor of a clone that runs, and the files of its template.
    pub(super) fn like(pid: u32, template: &Path) -> Result<Self, BenchError> {
        let unreadable = |source| BenchError::Monitor { pid, source };
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(unreadable)?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(unreadable)?;
        let image = image_of(&line).ok_or_else(|| unreadable(std::io::ErrorKind::InvalidData.into()))?;
        Ok(Self {
            program,
            memory: template.join("memory"),
            state: std::fs::read(template.join("state")).map_err(unreadable)?,
            image: File::open(image).map_err(unreadable)?,
            disk: template.join("disk"),
            place: tempfile::tempdir().map_err(unreadable)?,
            line,
        })
    }

    /// Makes one, greets its agent, and kills it. Returns the time to the agent's answer.
    pub(super) async fn first_reply(&self) -> Result<Duration, BenchError> {
        let listener = self.listen().map_err(self.failed())?;
        let begun = Instant::now();
        let mut one = self.greeted(&listener, |text| self.no_disk(text)).await?;
        let took = begun.elapsed();
        one.monitor.child.kill().await.map_err(self.failed())?;
        Ok(took)
    }

    /// Makes many, which live until they are dropped.
    pub(super) async fn crowd(&self, count: u32) -> Result<Crowd, BenchError> {
        let listener = self.listen().map_err(self.failed())?;
        let mut crowd = Crowd(Vec::new());
        for _ in 0..count {
            crowd
                .0
                .push(self.greeted(&listener, |text| self.no_disk(text)).await?);
        }
        Ok(crowd)
    }

    /// The same, each with disks and a program that runs.
    pub(super) async fn crowd_at_work(&self, count: u32, program: &[&str]) -> Result<Crowd, BenchError> {
        let listener = self.listen().map_err(self.failed())?;
        let image = format!("/proc/{}/fd/{}", std::process::id(), self.image.as_raw_fd());
        let mut crowd = Crowd(Vec::new());
        for number in 0..count {
            let own = self.place.path().join(format!("disk-{number}"));
            self.copy_disk(&own).await.map_err(self.failed())?;
            let disks = |text: &str| match text.ends_with(READ_ONLY) {
                true => on_disk(text, Path::new(&image)),
                false => on_disk(text, &own),
            };
            let mut one = self.greeted(&listener, disks).await?;
            launch(&mut one.stream, program).await.map_err(self.failed())?;
            crowd.0.push(one);
        }
        Ok(crowd)
    }

    /// Copies what was written to the disk (cp(1)).
    async fn copy_disk(&self, to: &Path) -> std::io::Result<()> {
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"])
            .arg(&self.disk)
            .arg(to);
        match copy.status().await?.success() {
            true => Ok(()),
            false => Err(std::io::Error::other("cannot copy the template's disk")),
        }
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> BenchError + '_ {
        |source| BenchError::Program {
            line: self.program.display().to_string(),
            source,
        }
    }

    fn listen(&self) -> std::io::Result<UnixListener> {
        let guest = self.guest();
        // Made anew each time.
        let _ = std::fs::remove_file(&guest);
        UnixListener::bind(&guest)
    }

    /// A machine's disk, with nothing on it.
    fn no_disk(&self, text: &str) -> OsString {
        let facts = match text.ends_with(READ_ONLY) {
            true => self.image.metadata(),
            false => std::fs::metadata(&self.disk),
        };
        no_disk(text, facts.map_or(0, |facts| facts.len()))
    }

    fn guest(&self) -> PathBuf {
        self.place.path().join("guest")
    }

    /// Makes one; returns when its agent has answered.
    async fn greeted(
        &self,
        listener: &UnixListener,
        disks: impl Fn(&str) -> OsString,
    ) -> Result<Greeted, BenchError> {
        let failed = self.failed();
        let arguments = arguments(&self.line, &self.memory, &self.guest(), disks);
        let mut monitor = Monitor::start(&self.program, &arguments).map_err(&failed)?;
        let (mut stream, _) = listener.accept().await.map_err(&failed)?;
        stream.write_all(GREETING).await.map_err(&failed)?;
        self.load(&mut monitor).await.map_err(&failed)?;
        let mut answer = [0; MAGIC.len()];
        stream.read_exact(&mut answer).await.map_err(&failed)?;
        match answer == *MAGIC {
            true => Ok(Greeted { monitor, stream }),
            false => Err(BenchError::NoFirstLine),
        }
    }

    async fn load(&self, monitor: &mut Monitor) -> std::io::Result<()> {
        let place = self.place.path().join("state");
        // As above.
        let _ = std::fs::remove_file(&place);
        let ability = |name| json!({"capability": name, "state": true});
        let capabilities = json!({"capabilities": [ability("events"), ability("x-ignore-shared")]});
        monitor.tell("qmp_capabilities", json!({})).await?;
        monitor.tell("migrate-set-capabilities", capabilities).await?;
        let uri = format!("unix:{}", place.display());
        monitor.tell("migrate-incoming", json!({"uri": uri})).await?;
        // The greeting, and an answer to each.
        for _ in 0..3 {
            monitor.hear("\"return\"").await?;
        }
        let mut stream = UnixStream::connect(&place).await?;
        stream.write_all(&self.state).await?;
        drop(stream);
        monitor.hear("\"completed\"").await?;
        monitor.tell("cont", json!({})).await
    }
}

/// A clone that has answered.
struct Greeted {
    monitor: Monitor,
    stream: UnixStream,
}

/// Clones that live until this is dropped.
pub(super) struct Crowd(Vec<Greeted>);

impl Crowd {
    /// Returns their processes.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().filter_map(|one| one.monitor.child.id())
    }
}

struct Monitor {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Monitor {
    fn start(program: &Path, arguments: &[OsString]) -> std::io::Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (input, output) = child
            .stdin
            .take()
            .zip(child.stdout.take())
            .ok_or(std::io::ErrorKind::BrokenPipe)?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output).lines(),
        })
    }

    async fn tell(&mut self, command: &str, arguments: serde_json::Value) -> std::io::Result<()> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.input.write_all(line.as_bytes()).await
    }

    /// Waits for a line with this text.
    async fn hear(&mut self, text: &str) -> std::io::Result<()> {
        while let Some(line) = self.output.next_line().await? {
            if line.contains(text) {
                return Ok(());
            }
            if line.contains("\"error\"") || line.contains("\"failed\"") {
                return Err(std::io::Error::other(line));
            }
        }
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// Launches a program in the place of the workload; returns when it runs.
async fn launch(stream: &mut UnixStream, program: &[&str]) -> std::io::Result<()> {
    let launch = Launch::from(Execute {
        role: Role::Main,
        arguments: program
            .iter()
            .map(|word| ByteBuf::from(word.as_bytes()))
            .collect(),
        environment: Vec::new(),
        working_directory: ByteBuf::new(),
        user: String::new(),
        terminal: None,
        stdin: false,
    });
    let mut bytes = Vec::new();
    encode_launch(SESSION, &launch, &mut bytes).map_err(std::io::Error::other)?;
    stream.write_all(&bytes).await?;
    let mut decoder = Decoder::new();
    // Its greeting's first bytes were read.
    decoder.space()[..MAGIC.len()].copy_from_slice(MAGIC);
    decoder.filled(MAGIC.len());
    loop {
        while let Some(frame) = decoder.next_frame().map_err(std::io::Error::other)? {
            match (frame.header.session, frame.header.kind) {
                (SESSION, Kind::Status) => return Ok(()),
                (SESSION, Kind::Error) => {
                    return Err(std::io::Error::other("a bare clone could not start the program"));
                }
                _ => {}
            }
        }
        match stream.read(decoder.space()).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => decoder.filled(count),
        }
    }
}

/// How the image's disk ends in a command line.
const READ_ONLY: &str = ",read-only=on";

/// How a disk that is written to ends there.
const DISCARD: &str = ",discard=unmap";

/// Makes of a monitor's command line, as /proc has it, that of a bare clone: control on the standard streams, the guest's stream on
/// a socket, other disks, the template's own memory file.
fn arguments(line: &[u8], memory: &Path, guest: &Path, disks: impl Fn(&str) -> OsString) -> Vec<OsString> {
    let mut words = line
        .split(|&byte| byte == 0)
        .skip(1)
        .filter(|word| !word.is_empty());
    let mut kept: Vec<OsString> = Vec::new();
    while let Some(word) = words.next() {
        let word = OsStr::from_bytes(word).to_owned();
        if word == "-sandbox" {
            words.next();
            continue;
        }
        let text = word.to_string_lossy().into_owned();
        kept.push(if text.starts_with("socket,id=control,") {
            "stdio,id=control,signal=off".into()
        } else if text.starts_with("file,id=console,") {
            "null,id=console".into()
        } else if text.starts_with("socket,id=guest,") {
            format!("socket,id=guest,path={}", guest.display()).into()
        } else if let Some((before, _)) = text.split_once("mem-path=") {
            format!("{before}mem-path={}", memory.display()).into()
        } else if text.starts_with(DISK) {
            disks(&text)
        } else {
            word
        });
    }
    kept
}

/// How a disk begins in a command line.
const DISK: &str = "driver=file,node-name=";

/// Returns the file of a disk, and what is said of it before and behind that.
fn parts_of(text: &str) -> (&str, PathBuf, &str) {
    let (before, file) = text.split_once("filename=").unwrap_or((text, ""));
    let end = [READ_ONLY, DISCARD].into_iter().find(|end| file.ends_with(end));
    let (file, behind) = file.split_at(file.len() - end.map_or(0, str::len));
    (before, PathBuf::from(file.replace(",,", ",")), behind)
}

/// Returns the disk of a monitor's command line that is only read.
fn image_of(line: &[u8]) -> Option<PathBuf> {
    let words = line.split(|&byte| byte == 0);
    let mut words = words.filter_map(|word| std::str::from_utf8(word).ok());
    let image = words.find(|word| word.starts_with(DISK) && word.ends_with(READ_ONLY));
    image.map(|text| parts_of(text).1)
}

/// The same disk, on another file.
fn on_disk(text: &str, file: &Path) -> OsString {
    let (before, _, behind) = parts_of(text);
    let file = file.display().to_string().replace(',', ",,");
    format!("{before}filename={file}{behind}").into()
}

/// The same disk with so many bytes, and nothing on it.
fn no_disk(text: &str, bytes: u64) -> OsString {
    let name = text
        .split(',')
        .find(|part| part.starts_with("node-name="))
        .unwrap_or_default();
    let (_, _, behind) = parts_of(text);
    let access = behind.strip_prefix(DISCARD).unwrap_or(behind);
    format!("driver=null-co,{name},size={bytes},read-zeroes=on{access}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_clone_has_the_devices_of_the_machine_and_none_of_its_files() {
        let line = b"qemu\0-sandbox\0on\0-S\0-incoming\0defer\0-object\0memory-backend-file,id=memory,share=off,mem-path=/proc/self/fd/7\0\
            -chardev\0socket,id=control,fd=3,server=on\0-chardev\0file,id=console,path=/c\0-chardev\0socket,id=guest,fd=4\0\
            -blockdev\0driver=file,node-name=disk0,aio=threads,filename=/a,,b,read-only=on\0\
            -blockdev\0driver=file,node-name=disk1,aio=threads,filename=/d,discard=unmap\0";
        let expected = [
            "-S",
            "-incoming",
            "defer",
            "-object",
            "memory-backend-file,id=memory,share=off,mem-path=/t/memory",
            "-chardev",
            "stdio,id=control,signal=off",
            "-chardev",
            "null,id=console",
            "-chardev",
            "socket,id=guest,path=/g",
            "-blockdev",
            "driver=null-co,node-name=disk0,size=5,read-zeroes=on,read-only=on",
            "-blockdev",
            "driver=null-co,node-name=disk1,size=7,read-zeroes=on",
        ];
        let disks = |text: &str| no_disk(text, if text.ends_with(READ_ONLY) { 5 } else { 7 });
        let made = arguments(line, Path::new("/t/memory"), Path::new("/g"), disks);
        assert_eq!(made, expected.map(OsString::from));
        assert_eq!(image_of(line).unwrap(), Path::new("/a,b"));
        let disk = "driver=file,node-name=disk1,aio=threads,filename=/d,discard=unmap";
        assert_eq!(
            on_disk(disk, Path::new("/e,f")),
            "driver=file,node-name=disk1,aio=threads,filename=/e,,f,discard=unmap"
        );
    }
}
