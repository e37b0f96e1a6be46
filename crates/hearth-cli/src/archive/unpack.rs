//! From an archive that a machine wrote to files here.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, FileTimes, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::EntryType;

use crate::error::CliError;

/// Who owns what is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Whoever unpacks; set-user-id bits are dropped.
    Mine,
    /// Who the archive says, by number.
    Kept,
}

/// One unpacking.
pub(crate) struct Unpack {
    /// The directory that everything stays below.
    directory: PathBuf,
    /// What the archive's top is called here; `None` when what is in it goes right into the directory.
    top: Option<String>,
    /// How many components the archive's own top has: none, when the machine's root was asked for.
    strip: usize,
    owners: Owners,
    /// Directories that are known to be real ones.
    checked: HashSet<PathBuf>,
    /// Directories' permissions and times, which the files in them would spoil.
    pending: Vec<(PathBuf, u32, SystemTime)>,
    /// Members of kinds that are not made here.
    skipped: Vec<String>,
}

impl Unpack {
    /// Prepares to unpack into `directory`; `strip` components of every name are the archive's top.
    pub(crate) fn new(
        directory: impl Into<PathBuf>,
        top: Option<String>,
        strip: usize,
        owners: Owners,
    ) -> Self {
        Self {
            directory: directory.into(),
            top,
            strip,
            owners,
            checked: HashSet::new(),
            pending: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Unpacks everything; returns the names of devices, sockets and the like, which are left out.
    ///
    /// # Errors
    /// Returns [`CliError`] for the first member that is hostile or cannot be written.
    pub(crate) fn run(mut self, archive: impl Read) -> Result<Vec<String>, CliError> {
        let unreadable = |source| CliError::CopyFile {
            path: "the archive from the machine".to_owned(),
            action: "read",
            source,
        };
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let path = entry.path().map_err(unreadable)?.into_owned();
            if let Some(target) = self.place(&path)? {
                self.member(&mut entry, &target)?;
            }
        }
        for (path, mode, modified) in std::mem::take(&mut self.pending).into_iter().rev() {
            let done = fs::set_permissions(&path, Permissions::from_mode(mode))
                .and_then(|()| fs::File::open(&path)?.set_times(FileTimes::new().set_modified(modified)));
            // A directory that its own mode closes keeps the time of its making.
            if let Err(error) = done
                && error.kind() != io::ErrorKind::PermissionDenied
            {
                return Err(written(&path)(error));
            }
        }
        Ok(self.skipped)
    }

    /// Returns where a member goes; `None` for the top itself when it has no place here.
    fn place(&self, name: &Path) -> Result<Option<PathBuf>, CliError> {
        let mut parts: Vec<OsString> = Vec::new();
        for component in name.components() {
            match component {
                Component::Normal(part) => parts.push(part.to_owned()),
                Component::CurDir => {}
                _ => return Err(CliError::CopyEscape(name.display().to_string())),
            }
        }
        let below = parts.into_iter().skip(self.strip);
        let inside: PathBuf = self.top.iter().map(OsString::from).chain(below).collect();
        if inside.as_os_str().is_empty() {
            return Ok(None);
        }
        Ok(Some(self.directory.join(inside)))
    }

    fn member(&mut self, entry: &mut tar::Entry<'_, impl Read>, target: &Path) -> Result<(), CliError> {
        self.check_parents(target)?;
        let header = entry.header();
        let kind = header.entry_type();
        let mode = header.mode().unwrap_or(0o600)
            & if self.owners == Owners::Kept {
                0o7777
            } else {
                0o777
            };
        let seconds = Duration::from_secs(header.mtime().unwrap_or_default());
        let modified = SystemTime::UNIX_EPOCH
            .checked_add(seconds)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let owner = (header.uid().ok(), header.gid().ok());
        match kind {
            EntryType::Directory => {
                self.make_directory(target)?;
                self.pending.push((target.to_owned(), mode, modified));
            }
            EntryType::Symlink => {
                let link = link_name(entry, target)?;
                clear(target)?;
                symlink(&link, target).map_err(written(target))?;
            }
            EntryType::Link => return self.hard_link(&link_name(entry, target)?, target),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                write_file(entry, target, mode, modified).map_err(written(target))?;
            }
            _ => {
                self.skipped.push(target.display().to_string());
                return Ok(());
            }
        }
        if self.owners == Owners::Kept {
            let number = |id: Option<u64>| id.and_then(|id| u32::try_from(id).ok());
            lchown(target, number(owner.0), number(owner.1)).map_err(written(target))?;
            // Changing the owner took the set-user-id bits.
            if kind.is_file() {
                fs::set_permissions(target, Permissions::from_mode(mode)).map_err(written(target))?;
            }
        }
        Ok(())
    }

    /// Refuses a member below anything that is not a real directory: a link, of the archive or of before, would lead out.
    fn check_parents(&mut self, target: &Path) -> Result<(), CliError> {
        let Some(parent) = target.parent().filter(|parent| *parent != self.directory) else {
            return Ok(());
        };
        if self.checked.contains(parent) {
            return Ok(());
        }
        self.check_parents(parent)?;
        match parent.symlink_metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(CliError::CopyEscape(target.display().to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(parent).map_err(written(parent))?;
            }
            Err(error) => return Err(written(parent)(error)),
        }
        self.checked.insert(parent.to_owned());
        Ok(())
    }

    fn make_directory(&mut self, target: &Path) -> Result<(), CliError> {
        match target.symlink_metadata() {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => clear(target)?,
            Err(_) => {}
        }
        fs::create_dir(target).map_err(written(target))
    }

    /// Links to a member that was unpacked before.
    fn hard_link(&mut self, name: &Path, target: &Path) -> Result<(), CliError> {
        let escapes = || CliError::CopyEscape(name.display().to_string());
        let first = self.place(name)?.ok_or_else(escapes)?;
        self.check_parents(&first)?;
        let found = first.symlink_metadata().map_err(written(&first))?;
        if !found.is_file() {
            return Err(escapes());
        }
        clear(target)?;
        fs::hard_link(&first, target).map_err(written(target))
    }
}

fn written(path: &Path) -> impl FnOnce(io::Error) -> CliError {
    let path = path.display().to_string();
    move |source| CliError::CopyFile {
        path,
        action: "written",
        source,
    }
}

fn link_name(entry: &tar::Entry<'_, impl Read>, target: &Path) -> Result<PathBuf, CliError> {
    let name = entry.link_name().map_err(written(target))?;
    Ok(name.map(|name| name.into_owned()).unwrap_or_default())
}

/// Removes what is in a file's place; a directory stays, and then the file cannot be made.
fn clear(target: &Path) -> Result<(), CliError> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(written(target)(error)),
        _ => Ok(()),
    }
}

/// Writes a file that was not there: what was, even a link, is replaced and not written through.
fn write_file(source: &mut impl Read, target: &Path, mode: u32, modified: SystemTime) -> io::Result<()> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(target)?;
    io::copy(
        &mut io::BufReader::with_capacity(super::pieces::PIECE, source),
        &mut file,
    )?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.set_times(FileTimes::new().set_modified(modified))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryType, size: u64, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// Members as kind, name, and content or link.
    fn archive(members: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for &(kind, name, text) in members {
            let mode = if kind.is_dir() { 0o755 } else { 0o4755 };
            if kind.is_symlink() || kind.is_hard_link() {
                builder
                    .append_link(&mut header(kind, 0, mode), name, text)
                    .unwrap();
            } else {
                // The crate refuses ".." in names: a machine would not.
                let mut header = header(kind, text.len() as u64, mode);
                header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                builder.append(&header, text.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn unpack(
        directory: &Path,
        top: Option<&str>,
        members: &[(EntryType, &str, &str)],
    ) -> Result<Vec<String>, CliError> {
        let unpack = Unpack::new(directory, top.map(str::to_owned), 1, Owners::Mine);
        unpack.run(archive(members).as_slice())
    }

    use EntryType::{Directory, Fifo, Link, Regular, Symlink};

    #[test]
    fn a_tree_lands_under_its_new_name() {
        let home = tempfile::tempdir().unwrap();
        let members = [
            (Directory, "old/", ""),
            (Directory, "old/sub/", ""),
            (Regular, "old/sub/file", "content"),
            (Link, "old/again", "old/sub/file"),
            (Symlink, "old/link", "/etc/passwd"),
            (Fifo, "old/pipe", ""),
        ];
        let skipped = unpack(home.path(), Some("new"), &members).unwrap();
        let new = home.path().join("new");
        assert_eq!(fs::read_to_string(new.join("sub/file")).unwrap(), "content");
        assert_eq!(fs::read_to_string(new.join("again")).unwrap(), "content");
        assert_eq!(fs::read_link(new.join("link")).unwrap(), Path::new("/etc/passwd"));
        let found = fs::metadata(new.join("sub/file")).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o755, "no set-user-id bit");
        let age = found.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH);
        assert_eq!(age.unwrap().as_secs(), 1_000_000_000);
        assert_eq!(skipped, [new.join("pipe").display().to_string()]);
    }

    #[test]
    fn what_is_in_a_tree_lands_right_here() {
        let home = tempfile::tempdir().unwrap();
        let members = [(Directory, "old", ""), (Regular, "old/file", "x")];
        unpack(home.path(), None, &members).unwrap();
        assert_eq!(fs::read_to_string(home.path().join("file")).unwrap(), "x");
    }

    #[test]
    fn nothing_leaves_the_directory() {
        let outside = tempfile::tempdir().unwrap();
        let out = outside.path().to_str().unwrap();
        let home = outside.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(outside.path().join("precious"), "mine").unwrap();
        let through = format!("{out}/precious");
        for members in [
            &[(Regular, "t/../../precious", "theirs")][..],
            &[(Regular, "/t/precious", "theirs")],
            &[(Symlink, "t/a", out), (Regular, "t/a/precious", "theirs")],
            &[(Symlink, "t/b", "../.."), (Regular, "t/b/precious", "theirs")],
            &[(Link, "t/c", "t/../../precious"), (Regular, "t/c", "theirs")],
            &[(Symlink, "t/d", &through), (Link, "t/e", "t/d")],
            &[(Symlink, "t/f", out), (Link, "t/g", "t/f/precious")],
            &[(Symlink, "t/h", out), (Directory, "t/h/new", "")],
        ] {
            let result = unpack(&home, Some("t"), members);
            assert!(
                matches!(result, Err(CliError::CopyEscape(_))),
                "{members:?}: {result:?}"
            );
        }
        assert_eq!(
            fs::read_to_string(outside.path().join("precious")).unwrap(),
            "mine"
        );
        assert!(!outside.path().join("new").exists());
    }

    #[test]
    fn a_link_in_a_files_place_is_replaced_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let precious = outside.path().join("precious");
        fs::write(&precious, "mine").unwrap();
        let home = outside.path().join("home");
        fs::create_dir(&home).unwrap();
        let members = [
            (Symlink, "t", precious.to_str().unwrap()),
            (Regular, "t", "theirs"),
        ];
        unpack(&home, Some("t"), &members).unwrap();
        assert_eq!(fs::read_to_string(home.join("t")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
    }

    #[test]
    fn an_archive_that_breaks_off_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let mut bytes = archive(&[(Regular, "t", "0123456789")]);
        bytes.truncate(515);
        let unpack = Unpack::new(home.path(), Some("t".into()), 1, Owners::Mine);
        assert!(matches!(
            unpack.run(bytes.as_slice()),
            Err(CliError::CopyFile { .. })
        ));
    }
}
