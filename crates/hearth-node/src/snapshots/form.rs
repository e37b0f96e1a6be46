//! In which form a snapshot keeps its machine's memory: whole, or as what differs from another one that it has a link to.
//!
//! ```text
//! vm/memory             whole
//! vm/base, vm/changes   a whole memory that others have, too, and what is another in this one
//! ```
//! There is never more than one file of changes: those of a machine that was itself restored from changes are told of the same base.
//! Changes that are more than half of their base are no gain, and become a whole memory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::host::memory_changes::{self, difference};
use crate::host::memory_image::{BASE_FILE, CHANGES_FILE, MEMORY_FILE, MemoryFiles};

/// A memory on its way into a directory.
const UNFINISHED: &str = "memory.new";

/// In which form the memory is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Whole.
    Whole,
    /// As changes, where there is something to tell them of, and that is a gain.
    Changes,
}

/// Brings what a driver has written in a directory to a form; `base` is the memory to tell changes of, if it is there and the driver
/// has not done so itself.
pub(super) fn settle(vm: &Path, form: Form, base: &Path) -> io::Result<()> {
    let files = MemoryFiles::of(vm);
    match (&files.changes, form) {
        (None, Form::Whole) => Ok(()),
        (None, Form::Changes) => compare(vm, base),
        (Some(changes), Form::Changes) if is_gain(changes, &files.whole)? => Ok(()),
        (Some(_), _) => flatten(vm, &files),
    }
}

/// Makes a whole memory of changes.
fn flatten(vm: &Path, files: &MemoryFiles) -> io::Result<()> {
    let unfinished = vm.join(UNFINISHED);
    files.flatten(&unfinished)?;
    fs::rename(&unfinished, vm.join(MEMORY_FILE))?;
    // Last: with it the base is what counts.
    fs::remove_file(vm.join(CHANGES_FILE))?;
    fs::remove_file(vm.join(BASE_FILE))
}

/// Makes changes of a whole memory, where there is a base and it is worth it.
fn compare(vm: &Path, base: &Path) -> io::Result<()> {
    let memory = vm.join(MEMORY_FILE);
    let whole = File::open(&memory)?;
    let bytes = whole.metadata()?.len();
    let base_file = match File::open(base) {
        Ok(file) if bytes > 0 && file.metadata()?.len() == bytes => file,
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let pieces = difference(&whole, &base_file)?;
    let changed: u64 = pieces
        .iter()
        .map(|piece| piece.pages * memory_changes::PAGE)
        .sum();
    if changed * 2 > allocated(base)? {
        return Ok(());
    }
    fs::hard_link(base, vm.join(BASE_FILE))?;
    memory_changes::write(&vm.join(CHANGES_FILE), bytes, &pieces)?;
    fs::remove_file(&memory)
}

fn is_gain(changes: &Path, base: &Path) -> io::Result<bool> {
    Ok(allocated(changes)? * 2 <= allocated(base)?)
}

fn allocated(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::path::PathBuf;

    use super::*;

    const PAGE: u64 = memory_changes::PAGE;

    /// Writes a memory of 64 pages, of which the first ones begin with a byte.
    fn memory(path: &Path, pages: u64, byte: u8) {
        let file = File::create(path).unwrap();
        file.set_len(64 * PAGE).unwrap();
        for page in 0..pages {
            file.write_all_at(&[byte], page * PAGE).unwrap();
        }
    }

    struct Place {
        _directory: tempfile::TempDir,
        base: PathBuf,
        vm: PathBuf,
    }

    fn place() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let (base, vm) = (directory.path().join("base"), directory.path().join("vm"));
        fs::create_dir(&vm).unwrap();
        memory(&base, 32, 1);
        Place {
            _directory: directory,
            base,
            vm,
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_memory_like_its_origins_is_kept_as_changes_and_comes_back_whole() {
        let place = place();
        memory(&place.vm.join(MEMORY_FILE), 32, 1);
        let file = File::options()
            .write(true)
            .open(place.vm.join(MEMORY_FILE))
            .unwrap();
        file.write_all_at(&[7], 40 * PAGE).unwrap();
        let whole = fs::read(place.vm.join(MEMORY_FILE)).unwrap();
        settle(&place.vm, Form::Changes, &place.base).unwrap();
        assert_eq!(names(&place.vm), [BASE_FILE, CHANGES_FILE]);
        // Again: it is so already.
        settle(&place.vm, Form::Changes, &place.base).unwrap();
        assert_eq!(names(&place.vm), [BASE_FILE, CHANGES_FILE]);
        settle(&place.vm, Form::Whole, &place.base).unwrap();
        assert_eq!(names(&place.vm), [MEMORY_FILE]);
        assert!(fs::read(place.vm.join(MEMORY_FILE)).unwrap() == whole);
    }

    #[test]
    fn a_memory_that_is_another_stays_whole() {
        let place = place();
        memory(&place.vm.join(MEMORY_FILE), 32, 2);
        settle(&place.vm, Form::Changes, &place.base).unwrap();
        assert_eq!(names(&place.vm), [MEMORY_FILE]);
        settle(&place.vm, Form::Changes, &place.vm.join("nowhere")).unwrap();
        assert_eq!(names(&place.vm), [MEMORY_FILE]);
    }

    #[test]
    fn changes_that_have_grown_become_a_whole_memory() {
        let place = place();
        fs::hard_link(&place.base, place.vm.join(BASE_FILE)).unwrap();
        let now = place.vm.with_file_name("now");
        memory(&now, 32, 3);
        let (now_file, base) = (
            File::open(&now).unwrap(),
            File::open(place.vm.join(BASE_FILE)).unwrap(),
        );
        let pieces = difference(&now_file, &base).unwrap();
        memory_changes::write(&place.vm.join(CHANGES_FILE), 64 * PAGE, &pieces).unwrap();
        settle(&place.vm, Form::Changes, &place.base).unwrap();
        assert_eq!(names(&place.vm), [MEMORY_FILE]);
        assert!(fs::read(place.vm.join(MEMORY_FILE)).unwrap() == fs::read(&now).unwrap());
    }
}
