//! A node with a home of its own, and the end of it.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hearth_api::location::{HOME_VARIABLE, Location};
use hearth_api::v1::{Machine, NodeStatus};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::binary::hearth_binary;
use crate::captured::tail;
use crate::command::Invocation;
use crate::leaks::Traces;
use crate::permits::Permit;
use crate::setup;
use crate::tree::copy_tree;
use crate::user::User;

/// Machines may take their grace period to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// The virtual machine monitor that a node's machines are given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The one that hearth chooses.
    Auto,
    /// QEMU.
    Qemu,
    /// Firecracker.
    Firecracker,
}

impl Driver {
    /// Returns the name that the command line takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
        }
    }
}

/// A node with a home of its own. The node itself is started by the first verb that needs one.
#[derive(Debug)]
pub struct TestNode {
    home: TempDir,
    location: Location,
    hearth: PathBuf,
    driver: Driver,
    environment: Vec<(OsString, OsString)>,
    /// The ordinary user whose node this is, when not that of the tests.
    user: Option<User>,
    /// Whether the home is a file system of its own.
    mounted: bool,
    /// Absent while homes are made ready: that happens once, under a permit of the test that needs it.
    _permit: Option<Permit>,
    closed: bool,
}

/// Runs a test on a node, then closes the node: what it leaves behind fails the test, too.
///
/// # Errors
/// The node cannot be made, the test fails, or the node leaks.
pub fn check(node: Result<TestNode>, test: impl FnOnce(&TestNode) -> Result<()>) -> Result<()> {
    let node = node?;
    let outcome = catch_unwind(AssertUnwindSafe(|| test(&node)));
    if !matches!(outcome, Ok(Ok(()))) {
        node.tell();
    }
    let closed = node.close();
    match outcome {
        Ok(outcome) => outcome.and(closed),
        Err(panic) => resume_unwind(panic),
    }
}

/// The file of a home's settings.
const SETTINGS: &str = "hearth.toml";

/// Settings of a node that keeps no clones ready.
pub const NO_STANDBYS: &str = "[standby]\nmachines = 0\n";

impl TestNode {
    /// Makes a home with kernel, agent and the image `busybox`.
    ///
    /// # Errors
    /// Hearth is not built, or cannot be set up here.
    pub fn ready(driver: Driver) -> Result<Self> {
        let permit = Permit::acquire();
        let mut node = Self::unfilled(driver)?;
        setup::fill(node.home())?;
        node._permit = Some(permit);
        Ok(node)
    }

    /// Has the node keep clones ready from now on, as it does unless told otherwise. Homes tell it otherwise: tests count what is there.
    ///
    /// # Errors
    /// The settings cannot be removed.
    pub fn keep_standbys(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.home().join(SETTINGS))?)
    }

    /// Has the node keep none again.
    ///
    /// # Errors
    /// The settings cannot be written.
    pub fn keep_no_standbys(&self) -> Result<()> {
        Ok(std::fs::write(self.home().join(SETTINGS), NO_STANDBYS)?)
    }

    /// Makes a home as [`TestNode::ready`] does, on a file system of its own that has so much room left. Takes root's privileges.
    ///
    /// # Errors
    /// As for that, or the file system cannot be mounted.
    pub fn ready_on_small_disk(driver: Driver, spare_mib: u64) -> Result<Self> {
        let permit = Permit::acquire();
        let mut node = Self::unfilled(driver)?;
        node._permit = Some(permit);
        let size = |bytes: u64| CString::new(format!("size={bytes},mode=711"));
        let home = node.home.path();
        mount(
            "hearth-e2e",
            home,
            "tmpfs",
            MountFlags::empty(),
            size(1 << 30)?.as_c_str(),
        )
        .context("cannot mount a small file system")?;
        node.mounted = true;
        std::fs::create_dir(home.join("user"))?;
        std::fs::write(home.join(SETTINGS), NO_STANDBYS)?;
        setup::fill(home)?;
        let files = WalkDir::new(home).into_iter().flatten();
        let used: u64 = files
            .filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512))
            .sum();
        let size = size(used + (spare_mib << 20))?;
        mount_remount(home, MountFlags::empty(), size.as_c_str())?;
        Ok(node)
    }

    /// Makes a home as [`TestNode::ready`] does for an ordinary user, who has no entry in /etc/passwd. Takes root's privileges.
    ///
    /// # Errors
    /// As for that, or the home cannot be given to the user.
    pub fn ready_for(driver: Driver, uid: u32) -> Result<Self> {
        let permit = Permit::acquire();
        let mut node = Self::unfilled(driver)?;
        node._permit = Some(permit);
        setup::copy(node.home())?;
        let user = User::of(uid, node.home())?;
        // Where that user may execute it.
        node.hearth = user.install(&node.hearth, node.home())?;
        node.user = Some(user);
        let lookup = |name: &str| (name == HOME_VARIABLE).then(|| node.home.path().as_os_str().to_owned());
        node.location = Location::resolve(lookup, uid)?;
        Ok(node)
    }

    /// Gives the node's user a file, or a tree of files, as its own, below the home.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn lend(&self, tree: &Path) -> Result<PathBuf> {
        let lent = self.home().join("lent");
        std::fs::create_dir_all(&lent)?;
        let place = lent.join(tree.file_name().context("what is lent has a name")?);
        match tree.is_dir() {
            true => copy_tree(tree, &place)?,
            false => std::fs::copy(tree, &place).map(drop)?,
        }
        if let Some(user) = &self.user {
            user.own(&place)?;
        }
        Ok(place)
    }

    /// Makes an empty home, where nothing is set up.
    ///
    /// # Errors
    /// Hearth is not built.
    pub fn bare(driver: Driver) -> Result<Self> {
        let permit = Permit::acquire();
        let mut node = Self::unfilled(driver)?;
        node._permit = Some(permit);
        Ok(node)
    }

    pub(crate) fn unfilled(driver: Driver) -> Result<Self> {
        let hearth = hearth_binary()?;
        // A short path: that of a Unix socket has 108 bytes.
        let home = tempfile::Builder::new()
            .prefix("hearth-e2e-")
            .tempdir()
            .context("cannot make a home")?;
        std::fs::create_dir(home.path().join("user"))?;
        std::fs::write(home.path().join(SETTINGS), NO_STANDBYS)?;
        let lookup = |name: &str| (name == HOME_VARIABLE).then(|| home.path().as_os_str().to_owned());
        let location = Location::resolve(lookup, rustix::process::getuid().as_raw())?;
        Ok(Self {
            home,
            location,
            hearth,
            driver,
            environment: Vec::new(),
            user: None,
            mounted: false,
            _permit: None,
            closed: false,
        })
    }

    /// Sets a variable for every call, and for the node that the first one starts.
    pub fn with_env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Returns the node's home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Returns where the node's socket, data and memory lie.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Returns the `hearth` that is tested.
    pub fn program(&self) -> &Path {
        &self.hearth
    }

    /// Names a call of another `hearth` with this node's home.
    pub fn call<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Invocation {
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        let mut words = self.user.as_ref().map_or_else(Vec::new, User::becoming);
        words.push(program.as_ref().to_owned());
        words.extend(arguments);
        let program = words.remove(0);
        self.prepared(Invocation::new(program, words))
    }

    /// Names a call of the command line. Only `PATH` and the like reach it from the caller's environment.
    pub fn hearth<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Invocation {
        self.call(&self.hearth, arguments)
    }

    fn prepared(&self, mut invocation: Invocation) -> Invocation {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["HEARTH_", "XDG_", "DOCKER_"]
                .iter()
                .any(|prefix| text.starts_with(prefix))
            {
                invocation = invocation.env_remove(&name);
            }
        }
        invocation = invocation
            .env(HOME_VARIABLE, self.home())
            .env("HOME", self.home().join("user"))
            .env("RUST_BACKTRACE", "0");
        for (name, value) in &self.environment {
            invocation = invocation.env(&name.to_string_lossy(), value);
        }
        invocation
    }

    /// Names a `hearth run` with this node's driver.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Invocation {
        let head = ["run", "--driver", self.driver.name()].map(OsString::from);
        let rest = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        self.hearth(head.into_iter().chain(rest))
    }

    /// Names a `hearth exec`.
    pub fn exec<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Invocation {
        let rest = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        self.hearth(std::iter::once(OsString::from("exec")).chain(rest))
    }

    /// Names a shell script on the host that finds `hearth` on its path: for pipes.
    pub fn script(&self, script: &str) -> Invocation {
        let directory = self.hearth.parent().map(Path::as_os_str).unwrap_or_default();
        let mut path = directory.to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        self.prepared(Invocation::new("bash", ["-c", script]))
            .env("PATH", path)
    }

    /// Starts a machine in the background and returns its id.
    ///
    /// # Errors
    /// It does not start.
    pub fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        let rest = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        self.run(std::iter::once(OsString::from("--detach")).chain(rest))
            .ok()
    }

    /// Returns what `hearth inspect` tells.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn inspect(&self, machine: &str) -> Result<Machine> {
        let mut machines: Vec<Machine> = self.json(["inspect", machine])?;
        machines.pop().context("inspect printed an empty array")
    }

    /// Returns every machine of this node.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn machines(&self) -> Result<Vec<Machine>> {
        self.json(["ps", "--all", "--json"])
    }

    /// Returns the node's status.
    ///
    /// # Errors
    /// No node answers.
    pub fn status(&self) -> Result<NodeStatus> {
        self.json(["node", "status", "--json"])
    }

    fn json<T: DeserializeOwned, const N: usize>(&self, arguments: [&str; N]) -> Result<T> {
        let text = self.hearth(arguments).ok()?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed: {text}"))
    }

    /// Prints the logs below the home: the node's, and consoles of machines that are left.
    pub(crate) fn tell(&self) {
        for entry in WalkDir::new(self.home()).max_depth(4).into_iter().flatten() {
            let name = entry.file_name().to_string_lossy();
            // A pipe of that name would be read until its writer ends.
            if entry.file_type().is_file() && (name.ends_with(".log") || name.starts_with("console")) {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                eprintln!("--- {}\n{}", entry.path().display(), tail(&bytes));
            }
        }
    }

    /// Stops the node with its machines, and looks at what they have left.
    ///
    /// # Errors
    /// The node does not stop, or something is left.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.closed = true;
        let runs = self.location.socket.exists();
        let machines = if runs {
            self.machines().unwrap_or_default()
        } else {
            Vec::new()
        };
        let mut ids: Vec<String> = machines.into_iter().map(|machine| machine.id).collect();
        ids.extend(ids_in(&self.location.data.join("events.jsonl")));
        let stopped = if runs {
            self.hearth(["node", "stop", "--stop-machines"])
                .deadline(STOP_DEADLINE)
                .ok()
                .map(drop)
        } else {
            Ok(())
        };
        if std::mem::take(&mut self.mounted) {
            // Lazily: monitors may take a moment to end, and are looked for below.
            unmount(self.home.path(), UnmountFlags::DETACH).context("cannot unmount the home")?;
        }
        let traces = Traces {
            home: self.home.path(),
            memory: &self.location.memory,
            data: &self.location.data,
            machines: &ids,
        };
        let left = traces.find();
        traces.clean();
        stopped.context("the node does not stop")?;
        let left = left?;
        if !left.is_empty() {
            bail!("the node has left behind:\n  {}", left.join("\n  "));
        }
        Ok(())
    }
}

/// Returns every id of a machine that a log of events tells of: twelve hexadecimal digits in quotes.
fn ids_in(events: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(events).unwrap_or_default();
    let is_id = |word: &&str| word.len() == 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut ids: Vec<_> = text.split('"').filter(is_id).map(str::to_owned).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if !self.closed {
            // Whoever drops it without `close` has an error already, and reports that.
            let _ = self.end();
        }
        if std::env::var_os("HEARTH_E2E_KEEP").is_some() {
            eprintln!("kept: {}", self.home.path().display());
            self.home.disable_cleanup(true);
        }
    }
}
