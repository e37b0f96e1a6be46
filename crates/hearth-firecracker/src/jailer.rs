//! Command lines of Firecracker and of its jailer. Pure: nothing here looks at the host.
//!
//! ```text
//! BASE/EXECUTABLE'S NAME/ID/root/     what Firecracker sees as /     (Jailer::root)
//! ```
//!
//! `--no-seccomp` is not among the arguments, on purpose.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::model::LogLevel;

/// Where the jailer puts its jails unless it is told otherwise.
const BASE: &str = "/srv/jailer";

/// The id of a machine for Firecracker and jailer: 1 to 64 letters, digits and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceId(String);

/// Says why the jailer would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JailerError {
    /// The id is none.
    #[error("a machine's id has 1 to 64 letters, digits and hyphens: {0:?}")]
    Id(String),
    /// The jailer takes executables of that name only.
    #[error("the jailer starts what has \"firecracker\" in its name only: {}", .0.display())]
    Executable(PathBuf),
    /// A file of a control group is named after what it limits.
    #[error("not a file of a control group: {0:?}")]
    ControlFile(String),
    /// The value would be another argument, or several lines.
    #[error("not a value for a file of a control group: {0:?}")]
    ControlValue(String),
}

impl FromStr for InstanceId {
    type Err = JailerError;

    fn from_str(text: &str) -> Result<Self, JailerError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(good) {
            Ok(Self(text.into()))
        } else {
            Err(JailerError::Id(text.chars().take(64).collect()))
        }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Firecracker's own arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firecracker {
    api_socket: PathBuf,
    log: Option<PathBuf>,
    level: Option<LogLevel>,
    metrics: Option<PathBuf>,
    payload_max: Option<u32>,
    metadata_max: Option<u32>,
    boot_timer: bool,
}

impl Firecracker {
    /// Serves the API on a socket, which must not be there yet; within a jail as the jail sees it.
    pub fn new(api_socket: impl Into<PathBuf>) -> Self {
        Self {
            api_socket: api_socket.into(),
            log: None,
            level: None,
            metrics: None,
            payload_max: None,
            metadata_max: None,
            boot_timer: false,
        }
    }

    /// Writes the log to a file that is there, from the first line on.
    #[must_use]
    pub fn log(mut self, path: impl Into<PathBuf>, level: LogLevel) -> Self {
        (self.log, self.level) = (Some(path.into()), Some(level));
        self
    }

    /// Writes metrics to a file that is there.
    #[must_use]
    pub fn metrics(mut self, path: impl Into<PathBuf>) -> Self {
        self.metrics = Some(path.into());
        self
    }

    /// Takes requests of so many bytes; metadata may have as many.
    #[must_use]
    pub fn payload_max(mut self, bytes: u32) -> Self {
        (self.payload_max, self.metadata_max) = (Some(bytes), Some(bytes));
        self
    }

    /// Adds the device by which a guest tells that it has booted; the log has the time.
    #[must_use]
    pub fn boot_timer(mut self) -> Self {
        self.boot_timer = true;
        self
    }

    /// Returns the arguments for Firecracker on its own, with the machine's id.
    pub fn arguments(&self, id: &InstanceId) -> Vec<OsString> {
        let mut arguments = Vec::new();
        push(&mut arguments, "--id", &id.0);
        arguments.extend(self.behind_the_jailer());
        arguments
    }

    /// Returns the arguments without the id, which the jailer passes on itself.
    fn behind_the_jailer(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        push(&mut arguments, "--api-sock", &self.api_socket);
        if let Some(path) = &self.log {
            push(&mut arguments, "--log-path", path);
        }
        if let Some(level) = self.level {
            push(&mut arguments, "--level", format!("{level:?}"));
        }
        if let Some(path) = &self.metrics {
            push(&mut arguments, "--metrics-path", path);
        }
        if let Some(bytes) = self.payload_max {
            push(&mut arguments, "--http-api-max-payload-size", bytes.to_string());
        }
        if let Some(bytes) = self.metadata_max {
            push(&mut arguments, "--mmds-size-limit", bytes.to_string());
        }
        if self.boot_timer {
            arguments.push("--boot-timer".into());
        }
        arguments
    }
}

/// Which control groups the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// A hierarchy for each controller.
    V1,
    /// One for all.
    V2,
}

/// A file of the machine's control group, and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    name: String,
    value: String,
}

impl ControlFile {
    /// Makes one, as in `cpu.weight` and `100`.
    ///
    /// # Errors
    /// Returns [`JailerError`] for a name that is not `controller.file`, or a value that is empty or not of one line.
    pub fn new(name: &str, value: &str) -> Result<Self, JailerError> {
        let part = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b))
        };
        let good = name
            .split_once('.')
            .is_some_and(|(left, right)| part(left) && part(right));
        if !good || name.contains("..") {
            return Err(JailerError::ControlFile(name.into()));
        }
        if value.is_empty() || value.chars().any(char::is_control) {
            return Err(JailerError::ControlValue(value.into()));
        }
        Ok(Self {
            name: name.into(),
            value: value.into(),
        })
    }
}

/// A limit of the process, as setrlimit(2) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceLimit {
    /// The largest file it may make, in bytes.
    FileSize(u64),
    /// One more than the highest descriptor it may have; 2048 unless it is said.
    OpenFiles(u64),
}

/// The jailer's arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jailer {
    id: InstanceId,
    executable: PathBuf,
    uid: u32,
    gid: u32,
    base: Option<PathBuf>,
    network_namespace: Option<PathBuf>,
    process_namespace: bool,
    daemon: bool,
    cgroup_version: Option<CgroupVersion>,
    parent_cgroup: Option<String>,
    control_files: Vec<ControlFile>,
    limits: Vec<ResourceLimit>,
}

impl Jailer {
    /// Starts an executable as a user and group.
    ///
    /// # Errors
    /// Returns [`JailerError::Executable`] when the jailer would refuse its name.
    pub fn new(
        id: InstanceId,
        executable: impl Into<PathBuf>,
        uid: u32,
        gid: u32,
    ) -> Result<Self, JailerError> {
        let executable = executable.into();
        let name = executable.file_name().and_then(|name| name.to_str());
        if !name.is_some_and(|name| name.contains("firecracker")) {
            return Err(JailerError::Executable(executable));
        }
        Ok(Self {
            id,
            executable,
            uid,
            gid,
            base: None,
            network_namespace: None,
            process_namespace: false,
            daemon: false,
            cgroup_version: None,
            parent_cgroup: None,
            control_files: Vec::new(),
            limits: Vec::new(),
        })
    }

    /// Puts the jail below another directory.
    #[must_use]
    pub fn base(mut self, directory: impl Into<PathBuf>) -> Self {
        self.base = Some(directory.into());
        self
    }

    /// Joins a network namespace, by its file.
    #[must_use]
    pub fn network_namespace(mut self, path: impl Into<PathBuf>) -> Self {
        self.network_namespace = Some(path.into());
        self
    }

    /// Makes Firecracker PID 1 of a namespace; the jailer ends then, and leaves its PID in a file.
    #[must_use]
    pub fn process_namespace(mut self) -> Self {
        self.process_namespace = true;
        self
    }

    /// Gives Firecracker a session of its own, and /dev/null for standard input and output.
    #[must_use]
    pub fn daemon(mut self) -> Self {
        self.daemon = true;
        self
    }

    /// Says which control groups the host has, and below which one the machine's is made.
    #[must_use]
    pub fn cgroups(mut self, version: CgroupVersion, parent: Option<&str>) -> Self {
        self.cgroup_version = Some(version);
        self.parent_cgroup = parent.map(str::to_owned);
        self
    }

    /// Sets a limit of the machine's control group.
    #[must_use]
    pub fn control(mut self, file: ControlFile) -> Self {
        self.control_files.push(file);
        self
    }

    /// Sets a limit of the process.
    #[must_use]
    pub fn limit(mut self, limit: ResourceLimit) -> Self {
        self.limits.push(limit);
        self
    }

    /// Returns the directory that Firecracker sees as `/`. The jailer makes it, and nobody removes it.
    pub fn root(&self) -> PathBuf {
        self.directory().join("root")
    }

    /// Returns the machine's directory, which is to be removed when it has ended.
    pub fn directory(&self) -> PathBuf {
        let base = self.base.as_deref().unwrap_or(Path::new(BASE));
        let name = self.executable.file_name().unwrap_or_default();
        base.join(name).join(&self.id.0)
    }

    /// Returns the arguments of the jailer, with those of Firecracker behind them.
    pub fn arguments(&self, firecracker: &Firecracker) -> Vec<OsString> {
        let mut arguments = Vec::new();
        push(&mut arguments, "--id", &self.id.0);
        push(&mut arguments, "--exec-file", &self.executable);
        push(&mut arguments, "--uid", self.uid.to_string());
        push(&mut arguments, "--gid", self.gid.to_string());
        if let Some(base) = &self.base {
            push(&mut arguments, "--chroot-base-dir", base);
        }
        if let Some(path) = &self.network_namespace {
            push(&mut arguments, "--netns", path);
        }
        if self.process_namespace {
            arguments.push("--new-pid-ns".into());
        }
        if self.daemon {
            arguments.push("--daemonize".into());
        }
        if let Some(version) = self.cgroup_version {
            let version = match version {
                CgroupVersion::V1 => "1",
                CgroupVersion::V2 => "2",
            };
            push(&mut arguments, "--cgroup-version", version);
        }
        if let Some(parent) = &self.parent_cgroup {
            push(&mut arguments, "--parent-cgroup", parent);
        }
        for ControlFile { name, value } in &self.control_files {
            push(&mut arguments, "--cgroup", format!("{name}={value}"));
        }
        for limit in &self.limits {
            let limit = match limit {
                ResourceLimit::FileSize(bytes) => format!("fsize={bytes}"),
                ResourceLimit::OpenFiles(count) => format!("no-file={count}"),
            };
            push(&mut arguments, "--resource-limit", limit);
        }
        arguments.push("--".into());
        arguments.extend(firecracker.behind_the_jailer());
        arguments
    }
}

fn push(arguments: &mut Vec<OsString>, name: &str, value: impl Into<OsString>) {
    arguments.push(name.into());
    arguments.push(value.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> InstanceId {
        "01-abc".parse().unwrap()
    }

    fn line(arguments: Vec<OsString>) -> String {
        arguments.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn the_shortest_command_lines_are_these() {
        let firecracker = Firecracker::new("api.sock");
        assert_eq!(
            line(firecracker.arguments(&id())),
            "--id 01-abc --api-sock api.sock"
        );
        let jailer = Jailer::new(id(), "/opt/firecracker", 1001, 1002).unwrap();
        assert_eq!(
            line(jailer.arguments(&firecracker)),
            "--id 01-abc --exec-file /opt/firecracker --uid 1001 --gid 1002 -- --api-sock api.sock"
        );
        assert_eq!(jailer.root(), Path::new("/srv/jailer/firecracker/01-abc/root"));
    }

    #[test]
    fn the_longest_command_line_is_this() {
        let firecracker = Firecracker::new("/api.sock")
            .log("/vmm.log", LogLevel::Warning)
            .metrics("/metrics")
            .payload_max(65_536)
            .boot_timer();
        let jailer = Jailer::new(id(), "/opt/fc/firecracker-v1.12.1", 7, 8)
            .unwrap()
            .base("/run/jails")
            .network_namespace("/run/netns/m")
            .process_namespace()
            .daemon()
            .cgroups(CgroupVersion::V2, Some("hearth"))
            .control(ControlFile::new("cpu.weight", "100").unwrap())
            .control(ControlFile::new("memory.max", "134217728").unwrap())
            .limit(ResourceLimit::FileSize(1 << 30))
            .limit(ResourceLimit::OpenFiles(1024));
        assert_eq!(
            line(jailer.arguments(&firecracker)),
            "--id 01-abc --exec-file /opt/fc/firecracker-v1.12.1 --uid 7 --gid 8 --chroot-base-dir /run/jails \
             --netns /run/netns/m --new-pid-ns --daemonize --cgroup-version 2 --parent-cgroup hearth \
             --cgroup cpu.weight=100 --cgroup memory.max=134217728 --resource-limit fsize=1073741824 \
             --resource-limit no-file=1024 -- --api-sock /api.sock --log-path /vmm.log --level Warning \
             --metrics-path /metrics --http-api-max-payload-size 65536 --mmds-size-limit 65536 --boot-timer"
        );
        assert_eq!(
            jailer.root(),
            Path::new("/run/jails/firecracker-v1.12.1/01-abc/root")
        );
    }

    #[test]
    fn seccomp_is_never_switched_off() {
        let firecracker = Firecracker::new("a").boot_timer();
        let jailer = Jailer::new(id(), "/firecracker", 1, 1).unwrap();
        for line in [
            line(firecracker.arguments(&id())),
            line(jailer.arguments(&firecracker)),
        ] {
            assert!(!line.contains("seccomp"), "{line}");
        }
    }

    #[test]
    fn what_the_jailer_would_refuse_or_take_for_something_else_is_refused() {
        for text in ["", "a_b", "../x", "a/b", &"x".repeat(65)] {
            assert!(text.parse::<InstanceId>().is_err(), "{text:?}");
        }
        assert!(Jailer::new(id(), "/usr/bin/qemu", 1, 1).is_err());
        for name in [
            "",
            "cpu",
            ".max",
            "cpu.",
            "../x.y",
            "a..b",
            "cpu.max=1",
            "cpu/x.max",
        ] {
            assert!(ControlFile::new(name, "1").is_err(), "{name:?}");
        }
        for value in ["", "1\n2"] {
            assert!(ControlFile::new("cpu.max", value).is_err(), "{value:?}");
        }
        assert!(ControlFile::new("memory.oom.group", "1").is_ok());
    }
}
