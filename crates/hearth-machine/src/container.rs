//! How a workload sees its machine, as docker's flags say it: init, read-only root, file systems in memory, more hosts,
//! limits, more groups. Checked by [`Container::check`]; text is parsed here and nowhere else.

use core::fmt::Write as _;
use core::net::IpAddr;

use crate::ByteSize;

/// The most entries of each list: beyond, a request is a mistake.
const ENTRIES_MAX: usize = 256;

/// The settings, with nothing left open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Container {
    /// An init of the agent's is PID 1.
    pub init: bool,
    /// The root file system cannot be written to.
    pub read_only: bool,
    /// File systems in memory, parents first.
    pub tmpfs: Vec<Tmpfs>,
    /// Names beside the machine's own in /etc/hosts.
    pub hosts: Vec<ExtraHost>,
    /// Limits of each process.
    pub limits: Vec<Limit>,
    /// Groups beside the user's own, by name or number.
    pub groups: Vec<String>,
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute, without `.` and `..`.
    pub path: String,
    /// It cannot be written to.
    pub read_only: bool,
    /// Programs on it can be executed.
    pub executable: bool,
    /// Set-user-id bits on it count.
    pub set_uid: bool,
    /// Devices on it work.
    pub devices: bool,
    /// What it holds at most; half of the guest's memory when absent.
    pub size: Option<ByteSize>,
    /// Permission bits of its root; those of the directory it covers when absent, or else all.
    pub mode: Option<u16>,
    /// Owner of its root.
    pub uid: Option<u32>,
    /// Group of its root.
    pub gid: Option<u32>,
}

/// A name and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// A limit of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What is limited.
    pub resource: Resource,
    /// The limit in force; `None` for none.
    pub soft: Option<u64>,
    /// What it can be raised to; `None` for anything.
    pub hard: Option<u64>,
}

/// What can be limited; the numbers are setrlimit(2)'s on x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of setrlimit(2)")]
pub enum Resource {
    Cpu = 0,
    Fsize = 1,
    Data = 2,
    Stack = 3,
    Core = 4,
    Rss = 5,
    Nproc = 6,
    Nofile = 7,
    Memlock = 8,
    As = 9,
    Locks = 10,
    Sigpending = 11,
    Msgqueue = 12,
    Nice = 13,
    Rtprio = 14,
    Rttime = 15,
}

/// Names as docker has them.
const RESOURCES: [(&str, Resource); 16] = [
    ("cpu", Resource::Cpu),
    ("fsize", Resource::Fsize),
    ("data", Resource::Data),
    ("stack", Resource::Stack),
    ("core", Resource::Core),
    ("rss", Resource::Rss),
    ("nproc", Resource::Nproc),
    ("nofile", Resource::Nofile),
    ("memlock", Resource::Memlock),
    ("as", Resource::As),
    ("locks", Resource::Locks),
    ("sigpending", Resource::Sigpending),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
];

/// Says which setting cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// A place where no file system in memory can be.
    #[error(
        "a tmpfs cannot be at {0:?}: an absolute path without '..' can, other than /, /dev, and what is in /proc and /sys"
    )]
    TmpfsPath(String),
    /// Two at one place.
    #[error("two tmpfs are at {0:?}")]
    TmpfsTwice(String),
    /// An option of a tmpfs.
    #[error(
        "{option:?} is no option of a tmpfs: rw, ro, exec, noexec, suid, nosuid, dev, nodev, size=, mode=, uid= and gid= are"
    )]
    TmpfsOption {
        /// The option.
        option: String,
    },
    /// A name in /etc/hosts.
    #[error("{0:?} is not a name for /etc/hosts: letters, digits, hyphens, dots and underscores are")]
    HostName(String),
    /// An address in /etc/hosts.
    #[error("{0:?} is not an IP address")]
    HostAddress(String),
    /// Something that cannot be limited.
    #[error(
        "{0:?} cannot be limited: nofile, nproc, core, stack, memlock and the others of setrlimit(2) can"
    )]
    Resource(String),
    /// A soft limit above the hard one.
    #[error("the soft limit of {0} is above the hard one")]
    Limit(&'static str),
    /// A group that is neither name nor number.
    #[error("{0:?} is not a group: a name or a number is")]
    Group(String),
    /// A list that is too long.
    #[error("there are more than {ENTRIES_MAX} entries of {0}")]
    TooMany(&'static str),
}

impl Container {
    /// Checks what depends on more than one value, and puts file systems in the order in which they are mounted.
    ///
    /// # Errors
    /// Returns the first setting that cannot be.
    pub fn check(mut self) -> Result<Self, ContainerError> {
        let lengths = [
            (self.tmpfs.len(), "--tmpfs"),
            (self.hosts.len(), "--add-host"),
            (self.limits.len(), "--ulimit"),
            (self.groups.len(), "--group-add"),
        ];
        if let Some((_, what)) = lengths.into_iter().find(|&(length, _)| length > ENTRIES_MAX) {
            return Err(ContainerError::TooMany(what));
        }
        self.tmpfs.sort_by(|a, b| a.path.cmp(&b.path));
        if let Some(pair) = self.tmpfs.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(ContainerError::TmpfsTwice(pair[0].path.clone()));
        }
        let is_group = |group: &&String| {
            group.is_empty()
                || group
                    .chars()
                    .any(|c| c.is_whitespace() || c.is_control() || c == ':')
        };
        if let Some(group) = self.groups.iter().find(is_group) {
            return Err(ContainerError::Group(group.clone()));
        }
        Ok(self)
    }
}

impl Tmpfs {
    /// Reads a path and docker's options, as in `rw,size=64m,mode=1777`; without any it is writable, and nothing on it can be
    /// executed or be a device.
    ///
    /// # Errors
    /// Returns [`ContainerError::TmpfsPath`] or [`ContainerError::TmpfsOption`].
    pub fn parse(path: &str, options: &str) -> Result<Self, ContainerError> {
        let place = place(path).ok_or_else(|| ContainerError::TmpfsPath(path.to_owned()))?;
        let mut tmpfs = Self {
            path: place,
            read_only: false,
            executable: false,
            set_uid: false,
            devices: false,
            size: None,
            mode: None,
            uid: None,
            gid: None,
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let refused = || ContainerError::TmpfsOption {
                option: option.to_owned(),
            };
            tmpfs.set(option).ok_or_else(refused)?;
        }
        Ok(tmpfs)
    }

    fn set(&mut self, option: &str) -> Option<()> {
        match option.split_once('=') {
            None => match option {
                "rw" => self.read_only = false,
                "ro" => self.read_only = true,
                "exec" => self.executable = true,
                "noexec" => self.executable = false,
                "suid" => self.set_uid = true,
                "nosuid" => self.set_uid = false,
                "dev" => self.devices = true,
                "nodev" => self.devices = false,
                _ => return None,
            },
            Some(("size", value)) => self.size = Some(value.parse().ok()?),
            Some(("mode", value)) => {
                let mode = u16::from_str_radix(value, 8).ok();
                self.mode = Some(mode.filter(|&mode| mode <= 0o7777)?);
            }
            Some(("uid", value)) => self.uid = Some(value.parse().ok()?),
            Some(("gid", value)) => self.gid = Some(value.parse().ok()?),
            Some(_) => return None,
        }
        Some(())
    }

    /// Returns the options that the kernel's tmpfs takes.
    pub fn kernel_options(&self) -> String {
        let mut options = String::new();
        if let Some(mode) = self.mode {
            // Writing to a string does not fail.
            let _ = write!(options, ",mode={mode:o}");
        }
        let numbers = [
            ("size", self.size.map(ByteSize::bytes)),
            ("uid", self.uid.map(u64::from)),
            ("gid", self.gid.map(u64::from)),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                let _ = write!(options, ",{name}={number}");
            }
        }
        options.split_off(options.len().min(1))
    }
}

/// Returns a path in one form only, if a file system in memory can be there.
fn place(path: &str) -> Option<String> {
    let parts: Vec<&str> = path
        .strip_prefix('/')?
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    let allowed = match parts.first() {
        None | Some(&("proc" | "sys")) => false,
        Some(&"dev") => parts.len() > 1,
        Some(_) => true,
    };
    let plain = |part: &&str| !matches!(*part, "." | "..") && !part.contains('\0');
    (allowed && parts.iter().all(plain)).then(|| format!("/{}", parts.join("/")))
}

impl ExtraHost {
    /// Reads a name and an address.
    ///
    /// # Errors
    /// Returns [`ContainerError::HostName`] or [`ContainerError::HostAddress`].
    pub fn parse(name: &str, address: &str) -> Result<Self, ContainerError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if !(1..=253).contains(&name.len()) || !name.bytes().all(allowed) {
            return Err(ContainerError::HostName(name.to_owned()));
        }
        let address = address
            .parse()
            .map_err(|_| ContainerError::HostAddress(address.to_owned()))?;
        Ok(Self {
            name: name.to_owned(),
            address,
        })
    }
}

impl Limit {
    /// Reads a resource's name and its limits; a negative one is none.
    ///
    /// # Errors
    /// Returns [`ContainerError::Resource`] or [`ContainerError::Limit`].
    pub fn parse(name: &str, soft: i64, hard: i64) -> Result<Self, ContainerError> {
        let known = RESOURCES.iter().find(|(known, _)| *known == name);
        let &(name, resource) = known.ok_or_else(|| ContainerError::Resource(name.to_owned()))?;
        let (soft, hard) = (u64::try_from(soft).ok(), u64::try_from(hard).ok());
        if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
            return Err(ContainerError::Limit(name));
        }
        Ok(Self { resource, soft, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tmpfs_is_dockers_unless_options_say_otherwise() {
        let plain = Tmpfs::parse("/run//a/", "").unwrap();
        assert_eq!(
            (plain.path.as_str(), plain.executable, plain.read_only),
            ("/run/a", false, false)
        );
        assert_eq!(plain.kernel_options(), "");
        let said = Tmpfs::parse("/t", "ro,exec,suid,size=64m,mode=755,uid=5,gid=6").unwrap();
        assert!(said.read_only && said.executable && said.set_uid && !said.devices);
        assert_eq!(said.kernel_options(), "mode=755,size=67108864,uid=5,gid=6");
    }

    #[test]
    fn a_tmpfs_that_cannot_be_is_refused() {
        for path in [
            "", "t", "/", "/proc", "/proc/x", "/sys/fs", "/dev", "/a/../b", "/a\0",
        ] {
            assert!(
                matches!(Tmpfs::parse(path, ""), Err(ContainerError::TmpfsPath(_))),
                "{path:?}"
            );
        }
        for option in [
            "bind",
            "mode=9",
            "mode=77777",
            "size=much",
            "uid=-1",
            "lowerdir=/",
        ] {
            assert!(
                matches!(
                    Tmpfs::parse("/t", option),
                    Err(ContainerError::TmpfsOption { .. })
                ),
                "{option}"
            );
        }
        let twice = Container {
            tmpfs: ["/t", "/t/"].map(|path| Tmpfs::parse(path, "").unwrap()).into(),
            ..Container::default()
        };
        assert_eq!(twice.check(), Err(ContainerError::TmpfsTwice("/t".into())));
    }

    #[test]
    fn file_systems_are_mounted_parents_first() {
        let container = Container {
            tmpfs: ["/b/c", "/a", "/b"]
                .map(|path| Tmpfs::parse(path, "").unwrap())
                .into(),
            ..Container::default()
        };
        let paths: Vec<_> = container
            .check()
            .unwrap()
            .tmpfs
            .into_iter()
            .map(|tmpfs| tmpfs.path)
            .collect();
        assert_eq!(paths, ["/a", "/b", "/b/c"]);
    }

    #[test]
    fn names_addresses_limits_and_groups_are_checked() {
        assert!(ExtraHost::parse("db_1.example", "::1").is_ok());
        assert!(matches!(
            ExtraHost::parse("a b", "::1"),
            Err(ContainerError::HostName(_))
        ));
        assert!(matches!(
            ExtraHost::parse("a", "1.2.3"),
            Err(ContainerError::HostAddress(_))
        ));
        let limit = Limit::parse("nofile", 64, -1).unwrap();
        assert_eq!(
            (limit.resource as u8, limit.soft, limit.hard),
            (7, Some(64), None)
        );
        assert_eq!(
            Limit::parse("nofile", 65, 64),
            Err(ContainerError::Limit("nofile"))
        );
        assert_eq!(
            Limit::parse("nofile", -1, 64),
            Err(ContainerError::Limit("nofile"))
        );
        assert!(matches!(
            Limit::parse("files", 1, 1),
            Err(ContainerError::Resource(_))
        ));
        let groups = |group: &str| Container {
            groups: vec![group.into()],
            ..Container::default()
        };
        assert!(groups("wheel").check().is_ok());
        assert!(groups("a:b").check().is_err() && groups("").check().is_err());
    }
}
