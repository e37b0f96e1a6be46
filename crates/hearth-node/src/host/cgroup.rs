//! Limits of processes by cgroups: processor quota and weight, memory, number of tasks.
//!
//! A controller is used where it is mounted: in a version 1 hierarchy of its own, or in the unified one (version 2); a hybrid
//! host has some of each (cgroups(7), Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst). The groups lie in a group
//! `hearth` below the root of each hierarchy, which takes root's privileges.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};

/// The period that quotas are given for, in microseconds: the kernel's default.
pub const PERIOD_US: u64 = 100_000;

/// How long a process that has ended may take to be out of its groups: microseconds on an idle host. Nothing tells of it.
const LEAVING_STEP: Duration = Duration::from_millis(5);
const LEAVING_STEPS: u32 = 50;

const GROUP: &str = "hearth";

/// The kernel's weight of a process, or of a group, that asks for nothing else: in version 1, and in version 2.
const SHARES: u64 = 1024;
const WEIGHT: u64 = 100;

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
}

impl Controller {
    /// All of them. The processor's comes last: from then on what is left to be done takes its time.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    /// Returns the kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

/// What a process, with all its threads, may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Microseconds of processor time in each [`PERIOD_US`]; `None` for as much as there is.
    pub quota_us: Option<u64>,
    /// Its weight beside the other groups, in thousandths of a processor.
    pub weight_milli: u32,
    /// Bytes of memory, page cache of its files included; what cannot be freed beyond that ends it.
    pub memory: u64,
    /// Threads.
    pub tasks: u64,
}

/// Says which limit is not in force.
#[derive(Debug, thiserror::Error)]
#[error("no limit by the cgroup controller {}", controller.name())]
pub struct LimitError {
    controller: Controller,
    #[source]
    source: io::Error,
}

/// Which interface a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A hierarchy with a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    controller: Controller,
    /// Where it is mounted.
    mount: PathBuf,
    version: Version,
}

/// The controllers that this process may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    places: Vec<Place>,
}

impl Groups {
    /// Finds the controllers in which this process may make groups: none for an ordinary user.
    pub fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let enabled = |mount: &Path| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let mut places = places(&mounts, enabled);
        places.retain(|place| super::own::is_root() && access(&place.mount, Access::WRITE_OK).is_ok());
        Self { places }
    }

    /// Returns the controllers that are not to be had.
    pub fn absent(&self) -> Vec<&'static str> {
        let is_absent =
            |controller: &Controller| self.places.iter().all(|place| place.controller != *controller);
        let absent = Controller::ALL.into_iter().filter(is_absent);
        absent.map(Controller::name).collect()
    }

    /// Puts a process, with all its threads, into groups `name` with these limits. What it holds already is not counted
    /// anew, so a process that has grown beyond its memory stays. Doing it twice is no error.
    ///
    /// # Errors
    /// Returns the first limit that could not be set; the others are in force.
    pub fn limit(&self, name: &str, pid: u32, limits: &Limits) -> Result<(), LimitError> {
        let set = |place: &Place| {
            let limited = place.limit(name, pid, limits);
            limited.map_err(|source| LimitError {
                controller: place.controller,
                source,
            })
        };
        // Each one is tried.
        let failed: Vec<_> = self.places.iter().filter_map(|place| set(place).err()).collect();
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    /// Removes the groups of this name that are there; their processes must be gone.
    ///
    /// # Errors
    /// Returns the kernel's first refusal.
    pub fn release(&self, name: &str) -> io::Result<()> {
        let mut released = Ok(());
        for place in &self.places {
            let removed = match remove_when_left(&place.group(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other,
            };
            // Stays while it has other groups.
            let _ = fs::remove_dir(place.mount.join(GROUP));
            released = released.and(removed);
        }
        released
    }
}

/// Removes a group that is being left: a process is told to have ended a moment before it is out of its groups.
fn remove_when_left(group: &Path) -> io::Result<()> {
    for _ in 0..LEAVING_STEPS {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(LEAVING_STEP),
            other => return other,
        }
    }
    fs::remove_dir(group)
}

impl Place {
    fn group(&self, name: &str) -> PathBuf {
        self.mount.join(GROUP).join(name)
    }

    fn limit(&self, name: &str, pid: u32, limits: &Limits) -> io::Result<()> {
        let group = self.group(name);
        fs::create_dir_all(&group)?;
        if self.version == Version::Two {
            for above in [self.mount.clone(), self.mount.join(GROUP)] {
                let switch = format!("+{}", self.controller.name());
                fs::write(above.join("cgroup.subtree_control"), switch)?;
            }
        }
        for (file, value) in settings(self.controller, self.version, limits) {
            fs::write(group.join(file), value)?;
        }
        if (self.controller, self.version) == (Controller::Cpu, Version::One) {
            // All groups together weigh as much as a busy process on each processor; in version 2 the kernel sees to it.
            let shares = SHARES * u64::from(super::own::processors());
            fs::write(self.mount.join(GROUP).join("cpu.shares"), shares.to_string())?;
        }
        // The last step: from here on the group cannot be removed before the process is gone.
        fs::write(group.join("cgroup.procs"), pid.to_string())
    }
}

/// Returns which files of a group get which values.
fn settings(controller: Controller, version: Version, limits: &Limits) -> Vec<(&'static str, String)> {
    let weight = |usual: u64, most: u64| {
        let weight = usual * u64::from(limits.weight_milli) / 1000;
        weight.clamp(2, most).to_string()
    };
    match (controller, version) {
        (Controller::Cpu, Version::One) => {
            let quota = limits.quota_us.map_or("-1".to_owned(), |quota| quota.to_string());
            vec![
                ("cpu.shares", weight(SHARES, 262_144)),
                ("cpu.cfs_period_us", PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", quota),
            ]
        }
        (Controller::Cpu, Version::Two) => {
            let quota = limits
                .quota_us
                .map_or("max".to_owned(), |quota| quota.to_string());
            vec![
                ("cpu.weight", weight(WEIGHT, 10_000)),
                ("cpu.max", format!("{quota} {PERIOD_US}")),
            ]
        }
        (Controller::Memory, Version::One) => vec![("memory.limit_in_bytes", limits.memory.to_string())],
        (Controller::Memory, Version::Two) => vec![("memory.max", limits.memory.to_string())],
        (Controller::Pids, _) => vec![("pids.max", limits.tasks.to_string())],
    }
}

/// Finds out of proc_pid_mountinfo(5) where each controller is: in a version 1 hierarchy where it has one, since then the
/// unified one does not have it.
fn places(mounts: &str, enabled: impl Fn(&Path) -> String) -> Vec<Place> {
    let mounts: Vec<_> = mounts.lines().filter_map(parse_mount).collect();
    let find = |controller: Controller| {
        let has = |names: &str, separator: char| names.split(separator).any(|name| name == controller.name());
        let of = |version| mounts.iter().filter(move |mount| mount.1 == version);
        let one = of(Version::One).find(|(_, _, options)| has(options, ','));
        let found =
            one.or_else(|| of(Version::Two).find(|(mount, _, _)| has(enabled(mount).trim_end(), ' ')));
        found.map(|(mount, version, _)| Place {
            controller,
            mount: mount.clone(),
            version: *version,
        })
    };
    Controller::ALL.into_iter().filter_map(find).collect()
}

/// Returns a hierarchy's mount point, version and options.
fn parse_mount(line: &str) -> Option<(PathBuf, Version, &str)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (filesystem, _source, options) = (kind.next()?, kind.next()?, kind.next()?);
    let version = match filesystem {
        "cgroup" => Version::One,
        "cgroup2" => Version::Two,
        _ => return None,
    };
    Some((place.split(' ').nth(4)?.into(), version, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
34 31 0:31 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
";

    fn found(mounts: &str, enabled: &str) -> Vec<(&'static str, String, Version)> {
        let places = places(mounts, |_| enabled.to_owned()).into_iter();
        places
            .map(|place| {
                (
                    place.controller.name(),
                    place.mount.display().to_string(),
                    place.version,
                )
            })
            .collect()
    }

    fn limits() -> Limits {
        Limits {
            quota_us: Some(25_000),
            weight_milli: 250,
            memory: 64 << 20,
            tasks: 20,
        }
    }

    #[test]
    fn each_controller_is_found_in_the_hierarchy_in_charge_of_it() {
        let at = |name, mount: &str, version| (name, format!("/sys/fs/cgroup/{mount}"), version);
        assert_eq!(
            found(HYBRID, "pids\n"),
            [
                at("memory", "memory", Version::One),
                at("pids", "unified", Version::Two),
                at("cpu", "cpu", Version::One)
            ]
        );
        let unified = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let names = |found: Vec<(&'static str, String, Version)>| -> Vec<_> {
            found.into_iter().map(|(name, _, _)| name).collect()
        };
        assert_eq!(
            names(found(unified, "cpuset cpu io memory pids\n")),
            ["memory", "pids", "cpu"]
        );
        assert_eq!(names(found(unified, "cpuset memory\n")), ["memory"]);
    }

    #[test]
    fn limits_are_told_in_the_words_of_each_version() {
        let told = |controller, version| {
            let settings = settings(controller, version, &limits()).into_iter();
            settings
                .map(|(file, value)| format!("{file}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            told(Controller::Cpu, Version::One),
            [
                "cpu.shares=256",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=25000"
            ]
        );
        assert_eq!(
            told(Controller::Cpu, Version::Two),
            ["cpu.weight=25", "cpu.max=25000 100000"]
        );
        assert_eq!(
            told(Controller::Memory, Version::One),
            ["memory.limit_in_bytes=67108864"]
        );
        assert_eq!(told(Controller::Memory, Version::Two), ["memory.max=67108864"]);
        assert_eq!(told(Controller::Pids, Version::Two), ["pids.max=20"]);
    }

    #[test]
    fn a_process_gets_its_limits_and_leaves_no_group() {
        let groups = Groups::find();
        if !groups.absent().is_empty() {
            let absent = groups.absent().join(", ");
            return crate::host::skip::skipped(&format!("not root, or no controllers: {absent}"));
        }
        // Takes a mebibyte after the other.
        let script = "x=; read go; while :; do x=$x$(head -c 1048576 /dev/zero | tr '\\0' x); done";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let name = format!("test-{}", child.id());
        groups.limit(&name, child.id(), &limits()).unwrap();
        groups.limit(&name, child.id(), &limits()).unwrap();
        let inside = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        assert!(inside.contains(&format!("/hearth/{name}")), "{inside}");
        assert!(groups.release(&name).is_err(), "a process is in it");
        drop(child.stdin.take());
        // The kernel ends it where it would be more than its memory; nothing else would.
        let status = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9),
            "{status}"
        );
        groups.release(&name).unwrap();
        assert!(groups.places.iter().all(|place| !place.group(&name).exists()));
    }
}
