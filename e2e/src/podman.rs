//! podman, as the reference that Hearth is held beside: with a store, a configuration and locks of its own, of which nothing is
//! left.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::command::Invocation;
use crate::image::Layout;
use crate::skip::missing_program;
use crate::text::contains;

/// Runtimes that podman may use: crun refuses hosts that have both versions of cgroups.
const RUNTIMES: [&str; 2] = ["crun", "runc"];

/// How long its monitors may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A podman of a test's own.
#[derive(Debug)]
pub struct Podman {
    home: TempDir,
    runtime: &'static str,
    image: String,
}

impl Podman {
    /// Makes one that has an image of a layout, and sees whether it can run a container here.
    ///
    /// # Errors
    /// podman, or each of its runtimes, is not there or cannot run a container on this host.
    pub fn with_image(layout: &Layout, tag: &str) -> Result<Self> {
        if let Some(program) = missing_program(&["podman"]) {
            anyhow::bail!("{program} is not installed");
        }
        let mut refused = None;
        for runtime in RUNTIMES {
            match Self::of_runtime(runtime, layout, tag) {
                Ok(podman) => return Ok(podman),
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or_else(|| anyhow::bail!("no runtime"), Err)
    }

    fn of_runtime(runtime: &'static str, layout: &Layout, tag: &str) -> Result<Self> {
        if let Some(program) = missing_program(&[runtime]) {
            anyhow::bail!("{program} is not installed");
        }
        let home = tempfile::Builder::new().prefix("hearth-podman-").tempdir()?;
        let mut podman = Self {
            home,
            runtime,
            image: String::new(),
        };
        fs::write(podman.path("containers.conf"), podman.configuration())?;
        let policy = podman.path("policy.json");
        fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        // By a path from where it lies: podman makes a name of the path, and names have no capital letters.
        let layout = PathBuf::from(layout.path());
        let (place, name) = (layout.parent(), layout.file_name());
        let source = format!("oci:{}:{tag}", name.unwrap_or_default().display());
        let pull = ["pull", "--quiet", "--signature-policy"].map(OsStr::new);
        let pull = pull.into_iter().chain([policy.as_os_str(), OsStr::new(&source)]);
        let pull = podman.call(pull).current_dir(place.unwrap_or(&layout));
        podman.image = pull.ok()?.trim().to_owned();
        let image = podman.image.clone();
        podman
            .call(["run", "--rm", &image, "true"])
            .ok()
            .with_context(|| format!("podman with {runtime} runs no container here"))?;
        Ok(podman)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Limits are given because podman would raise them to what a host in a container may not.
    fn configuration(&self) -> String {
        format!(
            "[containers]\nnetns = \"none\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             log_driver = \"k8s-file\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             lock_type = \"file\"\nruntime = \"{}\"\ntmp_dir = \"{}\"\n",
            self.runtime,
            self.path("tmp").display()
        )
    }

    /// Names a call of it.
    pub fn call<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Invocation {
        let (root, run) = (self.path("root"), self.path("run"));
        let head = [
            OsString::from("--root"),
            root.into_os_string(),
            "--runroot".into(),
            run.into_os_string(),
            "--storage-driver".into(),
            "vfs".into(),
        ];
        let rest = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        Invocation::new("podman", head.into_iter().chain(rest))
            .env("CONTAINERS_CONF", self.path("containers.conf"))
    }

    /// Returns its image.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Returns its name and that of its runtime.
    pub fn name(&self) -> String {
        format!("podman with {}", self.runtime)
    }
}

impl Podman {
    /// Tells whether a process was started with a path of its home.
    fn is_in_use(&self) -> bool {
        let home = self.home.path().to_string_lossy().into_owned();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .any(|line| contains(&line, home.as_bytes()))
    }
}

/// Removes podman's empty cgroups, which are nobody's; tells whether all are gone. The kernel refuses those that are in use.
fn remove_cgroups() -> bool {
    let groups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let groups = groups.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]);
    let parents = groups.map(|group| group.join("libpod_parent"));
    let left = parents.filter(|parent| {
        let children = fs::read_dir(parent).into_iter().flatten().flatten();
        children.for_each(|child| drop(fs::remove_dir(child.path())));
        fs::remove_dir(parent).is_err() && parent.exists()
    });
    left.count() == 0
}

impl Drop for Podman {
    fn drop(&mut self) {
        // What cannot be removed stays where the next lines do not find it empty.
        let _ = self.call(["rm", "--all", "--force", "--time", "0"]).run();
        // Its monitors clean up behind themselves, in the home that is removed next; then their cgroups are empty.
        let end = Instant::now() + PATIENCE;
        while (self.is_in_use() || !remove_cgroups()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
