//! Processor quotas: a cgroup for each process that may have less than its threads could use.
//!
//! Version 2 is told by `cpu.max`, version 1 by `cpu.cfs_quota_us`; a hybrid host has the controller in one of them
//! (cgroups(7), Documentation/admin-guide/cgroup-v2.rst, Documentation/scheduler/sched-bwc.rst). The groups lie in a
//! group `hearth` below the root of the hierarchy, which takes root's privileges.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The period that quotas are given for, in microseconds: the kernel's default.
pub const PERIOD_US: u64 = 100_000;

const GROUP: &str = "hearth";

/// Which interface the host's processor controller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The host's processor controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processors {
    /// Where its hierarchy is mounted.
    mount: PathBuf,
    version: Version,
}

impl Processors {
    /// Finds the controller; `None` where there is none, or this process may not make groups in it.
    pub fn find() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let found = parse_mounts(&mounts).find(Self::is_usable)?;
        super::own::uid().eq(&0).then_some(found)
    }

    fn is_usable(&self) -> bool {
        match self.version {
            Version::One => true,
            Version::Two => {
                let controllers = fs::read_to_string(self.mount.join("cgroup.controllers"));
                controllers.is_ok_and(|list| list.split_whitespace().any(|name| name == "cpu"))
            }
        }
    }

    /// Puts a process, with all its threads, into a group `name` that may use `quota_us` of each [`PERIOD_US`].
    ///
    /// # Errors
    /// Returns the kernel's refusal; no group is left then.
    pub fn limit(&self, name: &str, pid: u32, quota_us: u64) -> io::Result<()> {
        let group = self.group(name);
        let limited = self.make(&group, quota_us).and_then(|()| {
            // The last step: from here on the group cannot be removed before the process is gone.
            fs::write(group.join("cgroup.procs"), pid.to_string())
        });
        limited.inspect_err(|_| drop(self.release(name)))
    }

    fn make(&self, group: &Path, quota_us: u64) -> io::Result<()> {
        fs::create_dir_all(group)?;
        match self.version {
            Version::One => {
                fs::write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
                fs::write(group.join("cpu.cfs_quota_us"), quota_us.to_string())
            }
            Version::Two => {
                for above in [self.mount.clone(), self.mount.join(GROUP)] {
                    fs::write(above.join("cgroup.subtree_control"), "+cpu")?;
                }
                fs::write(group.join("cpu.max"), format!("{quota_us} {PERIOD_US}"))
            }
        }
    }

    /// Removes a group if it is there; its processes must be gone.
    ///
    /// # Errors
    /// Returns the kernel's refusal.
    pub fn release(&self, name: &str) -> io::Result<()> {
        let removed = match fs::remove_dir(self.group(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other,
        };
        // Stays while it has other groups.
        let _ = fs::remove_dir(self.mount.join(GROUP));
        removed
    }

    fn group(&self, name: &str) -> PathBuf {
        self.mount.join(GROUP).join(name)
    }
}

/// Reads where processor controllers may be out of proc_pid_mountinfo(5): a version 1 hierarchy first, since on a hybrid
/// host that is the one in charge.
fn parse_mounts(mounts: &str) -> impl Iterator<Item = Processors> {
    let mut found: Vec<_> = mounts.lines().filter_map(parse_mount).collect();
    found.sort_by_key(|processors| processors.version == Version::Two);
    found.into_iter()
}

fn parse_mount(line: &str) -> Option<Processors> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (filesystem, _source, options) = (kind.next()?, kind.next()?, kind.next()?);
    let version = match filesystem {
        "cgroup" if options.split(',').any(|option| option == "cpu") => Version::One,
        "cgroup2" => Version::Two,
        _ => return None,
    };
    Some(Processors {
        mount: place.split(' ').nth(4)?.into(),
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
";

    #[test]
    fn the_hierarchy_in_charge_of_processors_is_found() {
        let found: Vec<_> = parse_mounts(HYBRID).collect();
        let at = |mount: &str, version| Processors {
            mount: mount.into(),
            version,
        };
        assert_eq!(
            found,
            [
                at("/sys/fs/cgroup/cpu", Version::One),
                at("/sys/fs/cgroup/unified", Version::Two)
            ]
        );
    }

    #[test]
    fn a_process_gets_its_quota_and_leaves_no_group() {
        let Some(processors) = Processors::find() else {
            eprintln!(
                "SKIPPED a_process_gets_its_quota_and_leaves_no_group: not root, or no processor controller"
            );
            return;
        };
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let name = format!("test-{}", child.id());
        processors.limit(&name, child.id(), 25_000).unwrap();
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        assert!(groups.contains(&format!("/hearth/{name}")), "{groups}");
        assert!(processors.release(&name).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
        processors.release(&name).unwrap();
        assert!(!processors.group(&name).exists());
    }
}
