//! A snapshot as one file, to be taken to another host: a tar archive, compressed with zstd.
//!
//! ```text
//! manifest.json    the snapshot's own, with the size and digest of every file, rootfs.img among them
//! each of these files, in the manifest's order
//! ```
//! An archive comes from anybody. Its names are compared, never used: what is not expected next is refused. Sizes are bound by what
//! the description says a machine has.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::manifest::{Description, Extent, FileFact, Flaw, MANIFEST, Manifest};
use super::named::{BASE, CHANGES, ROOTFS};
use crate::host::files;

/// The longest manifest, in bytes.
const MANIFEST_MAX: u64 = 1 << 20;
/// What a monitor writes beyond memory is less than that, in bytes.
const STATE_MAX: u64 = 1 << 30;
/// The largest root file system, in bytes.
const ROOTFS_MAX: u64 = 1 << 40;
/// Files are written in pieces of that size; those of zeros become holes.
const PIECE: usize = 64 << 10;
/// zstd's fast level: memory of guests gets little smaller beyond it.
const LEVEL: i32 = 1;

/// Says why an archive is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read, or ends early.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// Something else than what had to come next.
    #[error("the archive has {found:?} where {expected:?} should be")]
    Order {
        /// What was to come.
        expected: String,
        /// What came.
        found: String,
    },
    /// Its description makes no sense.
    #[error("the archive's description makes no sense")]
    Manifest(#[source] Flaw),
    /// It has files that no such snapshot has.
    #[error("the archive does not have the files of a snapshot")]
    Files,
    /// A file is larger than a machine's can be, or not as large as it is said to be.
    #[error("{name} in the archive has {bytes} bytes, which is not what such a machine has")]
    Size {
        /// The file.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// A file's bytes are not those that were exported.
    #[error("the archive is damaged")]
    Damaged(#[source] Flaw),
    /// A file cannot be written here.
    #[error("cannot write a file of the archive")]
    Write(#[source] io::Error),
}

/// Writes the snapshot in a directory as an archive.
pub(super) fn write<F>(directory: &Path, out: impl Write) -> Result<(), ArchiveError>
where
    F: Serialize + DeserializeOwned,
{
    let mut manifest = Manifest::<Description<F>>::read(directory).map_err(ArchiveError::Damaged)?;
    let rootfs = FileFact::of(directory, ROOTFS).map_err(ArchiveError::Read)?;
    manifest.files.push(rootfs);
    let mut encoder = zstd::Encoder::new(out, LEVEL).map_err(ArchiveError::Write)?;
    {
        let mut archive = tar::Builder::new(&mut encoder);
        let text = manifest.to_bytes();
        append(&mut archive, MANIFEST, text.len() as u64, &text[..]).map_err(ArchiveError::Write)?;
        for file in &manifest.files {
            let source = File::open(directory.join(&file.name)).map_err(ArchiveError::Read)?;
            append(&mut archive, &file.name, file.bytes, source).map_err(ArchiveError::Write)?;
        }
        archive.finish().map_err(ArchiveError::Write)?;
    }
    let mut out = encoder.finish().map_err(ArchiveError::Write)?;
    out.flush().map_err(ArchiveError::Write)
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    bytes: u64,
    source: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    archive.append_data(&mut header, name, source.take(bytes))
}

/// Writes the files of an archive into a directory, which has the places for them, and returns its manifest, without the root file
/// system's entry. Every byte was compared with its digest then.
pub(super) fn read<F>(archive: impl Read, directory: &Path) -> Result<Manifest<Description<F>>, ArchiveError>
where
    F: Serialize + DeserializeOwned,
{
    let decoder = zstd::Decoder::new(archive).map_err(ArchiveError::Read)?;
    let mut archive = tar::Archive::new(decoder);
    // As they are: names that take entries of their own, of any length, are none that come here.
    let mut entries = archive.entries().map_err(ArchiveError::Read)?.raw(true);
    let mut next = |expected: &str| {
        let entry = entries.next().transpose().map_err(ArchiveError::Read)?;
        let entry = entry.ok_or_else(|| ArchiveError::Read(io::ErrorKind::UnexpectedEof.into()))?;
        let found = entry.path_bytes();
        if *found != *expected.as_bytes() || !entry.header().entry_type().is_file() {
            return Err(ArchiveError::Order {
                expected: expected.to_owned(),
                found: String::from_utf8_lossy(&found).chars().take(100).collect(),
            });
        }
        Ok(entry)
    };
    let mut text = Vec::new();
    let mut entry = next(MANIFEST)?.take(MANIFEST_MAX);
    entry.read_to_end(&mut text).map_err(ArchiveError::Read)?;
    let mut manifest = Manifest::<Description<F>>::from_bytes(&text).map_err(ArchiveError::Manifest)?;
    check_files(&manifest)?;
    for file in &manifest.files {
        let mut entry = next(&file.name)?;
        if entry.size() != file.bytes || file.bytes > largest(&manifest.key, &file.name) {
            let name = file.name.clone();
            return Err(ArchiveError::Size {
                name,
                bytes: entry.size(),
            });
        }
        unpack(&mut entry, &directory.join(&file.name), file.bytes)?;
    }
    manifest.verify(directory).map_err(ArchiveError::Damaged)?;
    manifest.files.retain(|file| file.name != ROOTFS);
    Ok(manifest)
}

/// Makes sure that the files are exactly those of one form of snapshot: their names are paths below.
fn check_files<F>(manifest: &Manifest<Description<F>>) -> Result<(), ArchiveError> {
    let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    let forms = match manifest.key.extent {
        Extent::Disk => [&["disk", ROOTFS][..]; 3],
        Extent::Full => [
            &["disk", "vm/state", "vm/memory", ROOTFS][..],
            &["disk", "vm/state", BASE, CHANGES, ROOTFS][..],
            &["disk", "shared/state", "shared/memory", ROOTFS][..],
        ],
    };
    match forms.contains(&&names[..]) {
        true => Ok(()),
        false => Err(ArchiveError::Files),
    }
}

fn largest<F>(description: &Description<F>, name: &str) -> u64 {
    let memory = description.key.memory_mib.saturating_mul(1 << 20);
    match name {
        ROOTFS => ROOTFS_MAX,
        "disk" => description.key.disk_bytes,
        "vm/memory" | "shared/memory" | BASE => memory,
        _ => memory.saturating_add(STATE_MAX),
    }
}

fn unpack(entry: &mut impl Read, path: &Path, bytes: u64) -> Result<(), ArchiveError> {
    if let Some(parent) = path.parent() {
        files::make_directory(parent, 0o700).map_err(ArchiveError::Write)?;
    }
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(files::PRIVATE)
        .open(path);
    let file = file.map_err(ArchiveError::Write)?;
    file.set_len(bytes).map_err(ArchiveError::Write)?;
    let (mut piece, mut at) = (vec![0; PIECE], 0);
    while at < bytes {
        let wanted = PIECE.min(usize::try_from(bytes - at).unwrap_or(PIECE));
        entry
            .read_exact(&mut piece[..wanted])
            .map_err(ArchiveError::Read)?;
        if piece[..wanted].iter().any(|&byte| byte != 0) {
            file.write_all_at(&piece[..wanted], at)
                .map_err(ArchiveError::Write)?;
        }
        at += wanted as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::manifest::{Moment, TemplateKey};
    use super::*;

    fn description(disk_bytes: u64) -> Description<u32> {
        Description {
            name: "it".into(),
            extent: Extent::Full,
            key: TemplateKey {
                driver: "fake".into(),
                version: "1".into(),
                fingerprint: String::new(),
                border: "emulated".into(),
                vcpus: 1,
                memory_mib: 1,
                image: "i".into(),
                rootfs_bytes: 3,
                disk_bytes,
                interface: false,
                kernel: "k".into(),
                initramfs: "i".into(),
                moment: Moment::default(),
            },
            received: 7,
            facts: 8,
        }
    }

    /// Makes the files of a snapshot; returns its archive.
    fn archive(directory: &Path) -> Vec<u8> {
        fs::create_dir(directory.join("vm")).unwrap();
        let disk = File::create(directory.join("disk")).unwrap();
        disk.set_len(300_000).unwrap();
        disk.write_all_at(b"data", 200_000).unwrap();
        fs::write(directory.join("vm/state"), b"state").unwrap();
        fs::write(directory.join("vm/memory"), vec![3; 1 << 20]).unwrap();
        fs::write(directory.join(ROOTFS), b"abc").unwrap();
        let names = ["disk", "vm/state", "vm/memory"];
        let manifest = Manifest::of(directory, description(300_000), &names).unwrap();
        fs::write(directory.join(MANIFEST), manifest.to_bytes()).unwrap();
        let mut out = Vec::new();
        write::<u32>(directory, &mut out).unwrap();
        out
    }

    fn tar_of(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
        for (name, kind, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            let field = &mut header.as_old_mut().name;
            field[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn a_name_of_any_length_takes_no_memory() {
        let long = vec![b'x'; 4 << 20];
        let text = b"{}";
        let bytes = tar_of(&[
            ("././@LongLink", tar::EntryType::GNULongName, &long),
            (MANIFEST, tar::EntryType::Regular, text),
        ]);
        // It is not even read: what comes first is no manifest.
        match refusal(&bytes) {
            ArchiveError::Order { found, .. } => assert_eq!(found, "././@LongLink"),
            other => panic!("{other}"),
        }
    }

    fn refusal(bytes: &[u8]) -> ArchiveError {
        let target = tempfile::tempdir().unwrap();
        let refused = read::<u32>(bytes, target.path()).unwrap_err();
        let parent = target.path().parent().unwrap();
        assert!(!parent.join("evil").exists() && !target.path().join("evil").exists());
        refused
    }

    #[test]
    fn what_was_exported_is_imported_with_its_holes() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bytes = archive(source.path());
        assert!(bytes.len() < 100_000);
        let manifest = read::<u32>(&bytes[..], target.path()).unwrap();
        assert_eq!(manifest.key, description(300_000));
        assert_eq!(manifest.files.len(), 3);
        for name in ["disk", "vm/state", "vm/memory", ROOTFS] {
            let (was, is) = (source.path().join(name), target.path().join(name));
            assert!(fs::read(was).unwrap() == fs::read(is).unwrap(), "{name}");
        }
        use std::os::unix::fs::MetadataExt as _;
        assert!(fs::metadata(target.path().join("disk")).unwrap().blocks() * 512 <= 128 << 10);
    }

    #[test]
    fn archives_that_are_cut_changed_or_hostile_are_refused() {
        let source = tempfile::tempdir().unwrap();
        let whole = archive(source.path());
        for length in [0, 3, whole.len() / 2, whole.len() - 8] {
            assert!(matches!(
                refusal(&whole[..length]),
                ArchiveError::Read(_) | ArchiveError::Damaged(_)
            ));
        }
        let text = fs::read_to_string(source.path().join(MANIFEST)).unwrap();
        let file = tar::EntryType::Regular;
        let evil = text.replace("\"vm/state\"", "\"../evil\"");
        let cases: [(&str, Vec<u8>); 5] = [
            (
                "no archive",
                zstd::encode_all(&b"no archive at all"[..], 1).unwrap(),
            ),
            (
                "a path",
                tar_of(&[(MANIFEST, file, evil.as_bytes()), ("../evil", file, b"x")]),
            ),
            ("another file", tar_of(&[("evil", file, b"x")])),
            ("a link", tar_of(&[(MANIFEST, tar::EntryType::Symlink, b"")])),
            ("no manifest", tar_of(&[(MANIFEST, file, b"{}")])),
        ];
        for (what, bytes) in cases {
            let refused = refusal(&bytes);
            assert!(
                !matches!(refused, ArchiveError::Write(_) | ArchiveError::Damaged(_)),
                "{what}: {refused}"
            );
        }
        // A disk larger than the machine's, which would take no bytes of the archive.
        let rootfs = FileFact::of(source.path(), ROOTFS).unwrap();
        let mut manifest = Manifest::<Description<u32>>::parse(source.path()).unwrap();
        manifest.files.push(rootfs);
        manifest.files[0].bytes = 1 << 50;
        let large = tar_of(&[(MANIFEST, file, &manifest.to_bytes()), ("disk", file, b"x")]);
        assert!(matches!(refusal(&large), ArchiveError::Size { .. }));
        let disk = fs::read(source.path().join("disk")).unwrap();
        let mut changed = disk.clone();
        changed[200_001] = b'x';
        manifest.files[0].bytes = disk.len() as u64;
        let memory = fs::read(source.path().join("vm/memory")).unwrap();
        let changed = tar_of(&[
            (MANIFEST, file, &manifest.to_bytes()),
            ("disk", file, &changed),
            ("vm/state", file, b"state"),
            ("vm/memory", file, &memory),
            (ROOTFS, file, b"abc"),
        ]);
        assert!(matches!(
            refusal(&changed),
            ArchiveError::Damaged(Flaw::Digest(_))
        ));
    }
}
