//! Where a node's roots lie: socket, data, run time, guests' memory. Pure: the environment and the user id are arguments.
//!
//! Both the node and its clients call this, so that a client finds the node that it, or anybody else of the same user,
//! has started. What lies below the roots is the node's business alone.
//!
//! ```text
//!            HEARTH_HOME=dir          root               anybody else
//! socket     dir/run/node.sock        /run/hearth/...    $XDG_RUNTIME_DIR/hearth/...   or /tmp/hearth-UID/...
//! data       dir                      /var/lib/hearth    $XDG_DATA_HOME/hearth         or ~/.local/share/hearth
//! settings   dir/hearth.toml         /etc/hearth/...     $XDG_CONFIG_HOME/hearth/... or ~/.config/hearth/...
//! memory     /dev/shm/hearth-UID-HASH, where HASH is made of the data path, so that two homes do not meet
//! ```
//! HEARTH_SOCKET replaces the socket alone, and HEARTH_CONFIG the file of settings. A variable that is empty counts as absent.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The variable that puts everything into one directory.
pub const HOME_VARIABLE: &str = "HEARTH_HOME";

/// The variable that names the socket.
pub const SOCKET_VARIABLE: &str = "HEARTH_SOCKET";

/// The variable that names the file of settings.
pub const CONFIGURATION_VARIABLE: &str = "HEARTH_CONFIG";

/// The longest path of a Unix socket, in bytes (`sun_path` less its NUL, unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// The roots of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The node's socket.
    pub socket: PathBuf,
    /// What survives a reboot.
    pub data: PathBuf,
    /// What does not: sockets, locks, the node's log. A client that starts a node makes it with mode 0700; the node opens it to
    /// pass through (0711), since monitors run as users of their own. What is private in it has its own mode.
    pub run: PathBuf,
    /// Guests' memory, on a tmpfs.
    pub memory: PathBuf,
    /// The node's settings.
    pub configuration: Configuration,
}

/// Where a node's settings lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configuration {
    /// Where somebody has said that they are: it is a mistake if they are not there.
    Named(PathBuf),
    /// Where they are if there are any.
    Usual(PathBuf),
}

/// Says why the environment names no usable place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// A node has no working directory of its caller's, so a relative path would name two places.
    #[error("{variable}={} is not an absolute path", path.display())]
    Relative {
        /// The variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// There is no place for data.
    #[error("neither HOME nor XDG_DATA_HOME nor HEARTH_HOME is set")]
    NoHome,
    /// The kernel takes no longer path for a socket.
    #[error("the socket's path {} has {} bytes, and at most {MAX_SOCKET_PATH} are possible",
            .0.display(), .0.as_os_str().len())]
    SocketTooLong(PathBuf),
}

/// Returns a variable's path if it is set, not empty, and absolute.
fn absolute(
    lookup: &impl Fn(&str) -> Option<OsString>,
    variable: &'static str,
) -> Result<Option<PathBuf>, LocationError> {
    let value = lookup(variable).filter(|value| !value.is_empty());
    let Some(path) = value.map(PathBuf::from) else {
        return Ok(None);
    };
    if path.is_absolute() {
        Ok(Some(path))
    } else {
        Err(LocationError::Relative { variable, path })
    }
}

/// Hashes a path with FNV-1a (32 bits): stable over versions and machines, which the standard library's hasher is not.
fn fingerprint(path: &Path) -> u32 {
    let bytes = path.as_os_str().as_bytes();
    bytes.iter().fold(0x811c_9dc5, |hash: u32, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

impl Location {
    /// Decides where the node of user `uid` lies; `lookup` returns environment variables.
    ///
    /// # Errors
    /// Returns [`LocationError`] when the environment names no usable place.
    pub fn resolve(lookup: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Self, LocationError> {
        let home = absolute(&lookup, HOME_VARIABLE)?;
        let (data, run) = match home {
            Some(home) => (home.clone(), home.join("run")),
            None if uid == 0 => (PathBuf::from("/var/lib/hearth"), PathBuf::from("/run/hearth")),
            None => (user_data(&lookup)?, user_run(&lookup, uid)),
        };
        let socket = absolute(&lookup, SOCKET_VARIABLE)?.unwrap_or_else(|| run.join("node.sock"));
        let configuration = match absolute(&lookup, CONFIGURATION_VARIABLE)? {
            Some(path) => Configuration::Named(path),
            None => Configuration::Usual(usual_configuration(&lookup, uid, &data).join("hearth.toml")),
        };
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(LocationError::SocketTooLong(socket));
        }
        let memory = PathBuf::from(format!("/dev/shm/hearth-{uid}-{:08x}", fingerprint(&data)));
        Ok(Self {
            socket,
            data,
            run,
            memory,
            configuration,
        })
    }
}

/// Returns the directory of settings; beside the data where the environment names no other.
fn usual_configuration(lookup: &impl Fn(&str) -> Option<OsString>, uid: u32, data: &Path) -> PathBuf {
    let found = |variable| absolute(lookup, variable).ok().flatten();
    match found(HOME_VARIABLE) {
        Some(home) => home,
        None if uid == 0 => PathBuf::from("/etc/hearth"),
        None => found("XDG_CONFIG_HOME")
            .or_else(|| found("HOME").map(|home| home.join(".config")))
            .map_or_else(|| data.to_owned(), |base| base.join("hearth")),
    }
}

/// XDG's rule: a relative path in its variables is ignored.
fn user_data(lookup: &impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, LocationError> {
    let base = match absolute(lookup, "XDG_DATA_HOME") {
        Ok(Some(base)) => base,
        _ => absolute(lookup, "HOME")?
            .ok_or(LocationError::NoHome)?
            .join(".local/share"),
    };
    Ok(base.join("hearth"))
}

fn user_run(lookup: &impl Fn(&str) -> Option<OsString>, uid: u32) -> PathBuf {
    match absolute(lookup, "XDG_RUNTIME_DIR") {
        Ok(Some(base)) => base.join("hearth"),
        _ => PathBuf::from(format!("/tmp/hearth-{uid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(variables: &[(&str, &str)], uid: u32) -> Result<Location, LocationError> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Location::resolve(lookup, uid)
    }

    #[test]
    fn root_lives_in_the_systems_directories_whatever_its_environment() {
        let location = at(
            &[
                ("XDG_RUNTIME_DIR", "/run/user/1000"),
                ("HOME", "/home/a"),
                ("HEARTH_HOME", ""),
            ],
            0,
        )
        .unwrap();
        assert_eq!(location.socket, Path::new("/run/hearth/node.sock"));
        assert_eq!(location.data, Path::new("/var/lib/hearth"));
        assert_eq!(
            location.configuration,
            Configuration::Usual("/etc/hearth/hearth.toml".into())
        );
    }

    #[test]
    fn others_live_where_xdg_says() {
        let full = [
            ("XDG_RUNTIME_DIR", "/run/user/7"),
            ("XDG_DATA_HOME", "/d"),
            ("HOME", "/h"),
        ];
        let location = at(&full, 7).unwrap();
        assert_eq!(location.socket, Path::new("/run/user/7/hearth/node.sock"));
        assert_eq!(location.data, Path::new("/d/hearth"));
        assert_eq!(
            location.configuration,
            Configuration::Usual("/h/.config/hearth/hearth.toml".into())
        );
        let bare = at(&[("HOME", "/h"), ("XDG_DATA_HOME", "relative")], 7).unwrap();
        assert_eq!(bare.socket, Path::new("/tmp/hearth-7/node.sock"));
        assert_eq!(bare.data, Path::new("/h/.local/share/hearth"));
        assert_eq!(at(&[], 7), Err(LocationError::NoHome));
    }

    #[test]
    fn one_variable_moves_everything_and_others_the_socket_and_the_settings() {
        let home = at(&[("HEARTH_HOME", "/x/h")], 0).unwrap();
        assert_eq!(home.socket, Path::new("/x/h/run/node.sock"));
        assert_eq!(
            (home.data.as_path(), home.run.as_path()),
            (Path::new("/x/h"), Path::new("/x/h/run"))
        );
        assert_eq!(
            home.configuration,
            Configuration::Usual("/x/h/hearth.toml".into())
        );
        let named = at(&[("HEARTH_HOME", "/x/h"), ("HEARTH_CONFIG", "/c.toml")], 0).unwrap();
        assert_eq!(named.configuration, Configuration::Named("/c.toml".into()));
        let socket = at(&[("HEARTH_HOME", "/x/h"), ("HEARTH_SOCKET", "/s")], 0).unwrap();
        assert_eq!(socket.socket, Path::new("/s"));
        assert_eq!(socket.run, home.run);
    }

    #[test]
    fn two_homes_keep_their_guests_memory_apart() {
        let (one, two) = (
            at(&[("HEARTH_HOME", "/a")], 3).unwrap(),
            at(&[("HEARTH_HOME", "/b")], 3).unwrap(),
        );
        assert_ne!(one.memory, two.memory);
        assert_eq!(one.memory, Path::new("/dev/shm/hearth-3-70d2182d"));
    }

    #[test]
    fn unusable_places_are_refused() {
        let relative = at(&[("HEARTH_HOME", "here")], 0).unwrap_err();
        assert_eq!(relative.to_string(), "HEARTH_HOME=here is not an absolute path");
        let long = format!("/{}", "x".repeat(100));
        assert!(matches!(
            at(&[("HEARTH_HOME", long.as_str())], 0),
            Err(LocationError::SocketTooLong(_))
        ));
    }
}
