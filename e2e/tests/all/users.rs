//! Ordinary users: everything works without root, and two of them on one host do not see each other.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::{Driver, Invocation, TestNode, check, missing_program, skip};
use hearth_api::location::Location;
use hearth_api::v1::{Machine, NetworkMode, NodeStatus};
use tempfile::TempDir;
use walkdir::WalkDir;

/// Users that nobody has: they need no entry in /etc/passwd.
const USERS: [u32; 2] = [64_101, 64_102];

/// A user with a home and the directories that a log-in makes.
struct User {
    uid: u32,
    home: TempDir,
    hearth: PathBuf,
}

impl User {
    fn new(uid: u32, hearth: &Path, filled: &Path) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("hearth-user-").tempdir()?;
        let user = Self {
            uid,
            home,
            hearth: hearth.to_owned(),
        };
        let data = user.home.path().join(".local/share/hearth");
        for part in ["artefacts", "images"] {
            copy(&filled.join(part), &data.join(part))?;
        }
        fs::create_dir(user.home.path().join("run"))?;
        for entry in WalkDir::new(user.home.path()) {
            chown(entry?.path(), Some(uid), Some(uid))?;
        }
        for private in [user.home.path().to_owned(), user.home.path().join("run")] {
            fs::set_permissions(private, fs::Permissions::from_mode(0o700))?;
        }
        Ok(user)
    }

    /// Names a program that is called as this user, with nothing of our environment but `PATH`.
    fn call(&self, program: impl Into<OsString>, arguments: &[&str]) -> Invocation {
        let uid = self.uid.to_string();
        let mut words: Vec<OsString> = ["--reuid", &uid, "--regid", &uid, "--clear-groups", "env", "-i"]
            .map(OsString::from)
            .into();
        let path = std::env::var("PATH").unwrap_or_default();
        let set = |name: &str, value: &str| OsString::from(format!("{name}={value}"));
        words.push(set("PATH", &path));
        for (name, value) in self.environment() {
            words.push(set(name, &value));
        }
        words.push(program.into());
        words.extend(arguments.iter().map(OsString::from));
        Invocation::new("setpriv", words).current_dir("/")
    }

    fn environment(&self) -> [(&'static str, String); 2] {
        let home = self.home.path().to_string_lossy();
        [
            ("HOME", home.to_string()),
            ("XDG_RUNTIME_DIR", format!("{home}/run")),
        ]
    }

    fn hearth(&self, arguments: &[&str]) -> Invocation {
        self.call(&self.hearth, arguments)
    }

    fn location(&self) -> Result<Location> {
        let lookup = |name: &str| {
            let found = self.environment().into_iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        };
        Ok(Location::resolve(lookup, self.uid)?)
    }

    /// Returns what machines have that ask for no network, as the doctor has it.
    fn default_network(&self) -> Result<NetworkMode> {
        let told = self.hearth(&["doctor"]).run()?.text()?;
        let row = told.lines().find(|line| line.contains("networks"));
        let is_there = row.is_some_and(|row| row.trim_start().starts_with("ok"));
        Ok(match is_there {
            true => NetworkMode::Filtered,
            false => NetworkMode::None,
        })
    }

    fn machines(&self) -> Result<Vec<Machine>> {
        Ok(serde_json::from_str(&self.hearth(&["ps", "-a", "--json"]).ok()?)?)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // A test that failed must not leave machines behind; one that did not has stopped them.
        let _ = self.hearth(&["node", "stop", "--stop-machines"]).run();
    }
}

/// Copies a tree, file by file: what is shared with others must not change its owner.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in WalkDir::new(from) {
        let entry = entry?;
        let place = to.join(entry.path().strip_prefix(from)?);
        if entry.file_type().is_dir() {
            fs::create_dir_all(place)?;
        } else {
            fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

#[test]
fn ordinary_users_run_machines_and_do_not_see_each_other() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return skip!("only root can be two other users");
    }
    if let Some(program) = missing_program(&["setpriv"]) {
        return skip!("{program} is not installed");
    }
    check(TestNode::ready(Driver::Qemu), |node| {
        // Where others can execute it: this one may lie in a closed directory.
        let bin = tempfile::Builder::new().prefix("hearth-bin-").tempdir()?;
        fs::set_permissions(bin.path(), fs::Permissions::from_mode(0o755))?;
        for name in ["hearth", "hearth-guest"] {
            fs::copy(node.program().with_file_name(name), bin.path().join(name))?;
        }
        let hearth = bin.path().join("hearth");
        let [one, two] = USERS.map(|uid| User::new(uid, &hearth, node.home()));
        let (one, two) = (one?, two?);
        for user in [&one, &two] {
            let told = user
                .hearth(&["run", "--rm", "-m", "80m", "busybox", "id", "-u"])
                .ok()?;
            ensure!(told == "0", "{told}");
        }
        let expected = one.default_network()?;
        if expected == NetworkMode::None {
            // What they cannot have is said before anything is made.
            one.hearth(&["run", "--network", "filtered", "busybox", "true"])
                .run()?
                .complains("this user's machines have no way out")?;
            ensure!(one.machines()?.is_empty(), "a refused machine is left");
        }
        one.hearth(&[
            "run",
            "-d",
            // So that its memory is a file with a path.
            "--no-template",
            "-m",
            "80m",
            "--name",
            "mine",
            "--secret",
            "WORD=mellon",
            "busybox",
            "sleep",
            "3600",
        ])
        .ok()?;
        one.hearth(&["exec", "mine", "true"]).ok()?;
        ensure!(two.machines()?.is_empty(), "another user's machine is listed");
        let mine = one.machines()?.pop().context("it is not listed")?;
        assert_eq!(mine.spec.network, Some(expected));
        let monitor = mine.state.pid.context("it has no monitor")?;
        let owner = fs::metadata(format!("/proc/{monitor}"))?.uid();
        ensure!(owner == one.uid, "the monitor runs as {owner}");
        unseen(&one, &two, &mine)?;
        for user in [&one, &two] {
            user.hearth(&["node", "stop", "--stop-machines"]).ok()?;
            let location = user.location()?;
            ensure!(
                !location.memory.exists() && !location.socket.exists(),
                "left behind"
            );
        }
        ensure!(
            !Path::new(&format!("/proc/{monitor}")).exists(),
            "the monitor is left behind"
        );
        Ok(())
    })
}

/// Checks that nothing of one user's machine can be reached, read or listed by another.
fn unseen(one: &User, two: &User, mine: &Machine) -> Result<()> {
    let location = one.location()?;
    let status: NodeStatus = serde_json::from_str(&one.hearth(&["node", "status", "--json"]).ok()?)?;
    let socket = location.socket.to_string_lossy().into_owned();
    two.hearth(&["--socket", &socket, "ps"]).run()?.expect_code(1)?;
    let data = location.data.join("machines").join(&mine.id);
    let run = location.run.join("m").join(&mine.id);
    let processes = [status.pid, mine.state.pid.unwrap_or(0)];
    let mut files = vec![
        location.memory.join(&mine.id),
        data.join("record.json"),
        data.join("disk.img"),
        data.join("output.log"),
        run.join("qmp"),
        run.join("guest"),
    ];
    files.extend(processes.map(|pid| PathBuf::from(format!("/proc/{pid}/environ"))));
    for file in &files {
        ensure!(file.exists(), "{} is not there", file.display());
        let path = file.to_string_lossy();
        let read = two.call("head", &["-c", "1", &path]).run()?;
        ensure!(read.code != 0, "{path} can be read");
    }
    for directory in [&location.data, &location.run, &location.memory] {
        let path = directory.to_string_lossy();
        let listing = two.call("ls", &[&path]).run()?;
        ensure!(listing.code != 0, "{path} can be listed");
        let mode = directory.metadata()?.mode() & 0o777;
        ensure!(mode == 0o700, "{path} has the mode {mode:o}");
    }
    for pid in processes {
        let line = fs::read(format!("/proc/{pid}/cmdline"))?;
        ensure!(
            !String::from_utf8_lossy(&line).contains("mellon"),
            "a secret is on a command line"
        );
    }
    Ok(())
}
