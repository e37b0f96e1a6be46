//! A bare clone: what a machine of a template costs without Hearth, with the same program, devices, memory and state.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

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

/// A bare clone that can be made any number of times.
#[derive(Debug)]
pub(super) struct BareClone {
    program: PathBuf,
    arguments: Vec<OsString>,
    state: Vec<u8>,
    sockets: tempfile::TempDir,
}

impl BareClone {
    /// Takes after the monitor of a clone that runs, and the files of its template.
    pub(super) fn like(pid: u32, template: &Path) -> Result<Self, BenchError> {
        let unreadable = |source| BenchError::Monitor { pid, source };
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(unreadable)?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(unreadable)?;
        let sockets = tempfile::tempdir().map_err(unreadable)?;
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        Ok(Self {
            program,
            arguments: arguments(
                &line,
                &template.join("memory"),
                &sockets.path().join("guest"),
                size,
            ),
            state: std::fs::read(template.join("state")).map_err(unreadable)?,
            sockets,
        })
    }

    /// Makes one, greets its agent, and kills it. Returns the time to the agent's answer.
    pub(super) async fn first_reply(&self) -> Result<Duration, BenchError> {
        let listener = self.listen().map_err(self.failed())?;
        let begun = Instant::now();
        let mut one = self.greeted(&listener).await?;
        let took = begun.elapsed();
        one.monitor.child.kill().await.map_err(self.failed())?;
        Ok(took)
    }

    /// Makes many, which live until they are dropped.
    pub(super) async fn crowd(&self, count: u32) -> Result<Crowd, BenchError> {
        let listener = self.listen().map_err(self.failed())?;
        let mut crowd = Crowd(Vec::new());
        for _ in 0..count {
            crowd.0.push(self.greeted(&listener).await?);
        }
        Ok(crowd)
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> BenchError + '_ {
        |source| BenchError::Program {
            line: self.program.display().to_string(),
            source,
        }
    }

    fn listen(&self) -> std::io::Result<UnixListener> {
        let guest = self.sockets.path().join("guest");
        // Made anew each time.
        let _ = std::fs::remove_file(&guest);
        UnixListener::bind(&guest)
    }

    /// Makes one; returns when its agent has answered.
    async fn greeted(&self, listener: &UnixListener) -> Result<Greeted, BenchError> {
        let failed = self.failed();
        let mut monitor = Monitor::start(&self.program, &self.arguments).map_err(&failed)?;
        let (mut stream, _) = listener.accept().await.map_err(&failed)?;
        stream.write_all(GREETING).await.map_err(&failed)?;
        self.load(&mut monitor).await.map_err(&failed)?;
        let mut answer = [0; MAGIC.len()];
        stream.read_exact(&mut answer).await.map_err(&failed)?;
        match answer == *MAGIC {
            true => Ok(Greeted {
                monitor,
                _stream: stream,
            }),
            false => Err(BenchError::NoFirstLine),
        }
    }

    async fn load(&self, monitor: &mut Monitor) -> std::io::Result<()> {
        let place = self.sockets.path().join("state");
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
    _stream: UnixStream,
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

/// Makes of a monitor's command line, as /proc has it, that of a bare clone: control on the standard streams, the guest's stream on
/// a socket, no disks behind the disks, the template's own memory file.
fn arguments(line: &[u8], memory: &Path, guest: &Path, size: impl Fn(&Path) -> u64) -> Vec<OsString> {
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
        } else if text.starts_with("driver=file,node-name=") {
            no_disk(&text, &size)
        } else {
            word
        });
    }
    kept
}

fn no_disk(text: &str, size: &impl Fn(&Path) -> u64) -> OsString {
    let name = text
        .split(',')
        .find(|part| part.starts_with("node-name="))
        .unwrap_or_default();
    let read_only = text.ends_with(",read-only=on");
    let file = text.split_once("filename=").map_or("", |(_, rest)| rest);
    let file = file
        .trim_end_matches(",read-only=on")
        .trim_end_matches(",discard=unmap");
    let bytes = size(Path::new(&OsString::from_vec(
        file.replace(",,", ",").into_bytes(),
    )));
    let access = if read_only { ",read-only=on" } else { "" };
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
        let size = |path: &Path| if path == Path::new("/a,b") { 5 } else { 7 };
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
        let made = arguments(line, Path::new("/t/memory"), Path::new("/g"), size);
        assert_eq!(made, expected.map(OsString::from));
    }
}
