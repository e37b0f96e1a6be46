//! A home that is ready for machines: kernel, agent and the image `busybox`. Made once for each build of hearth, under
//! `target/e2e`, by hearth itself; every test gets its own tree of it, with the large files shared.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};

use crate::binary::hearth_binary;
use crate::node::{Driver, TestNode};
use crate::text::sha256;
use crate::tree::{copy_tree, link_tree};

/// A kernel may come from a slow mirror.
const SETUP_DEADLINE: Duration = Duration::from_secs(600);

/// Ready homes of other builds are kept so long: another run may be at work with one.
const STALE_AFTER: Duration = Duration::from_secs(3600);

/// What a home needs to run `busybox`, as directories of it.
const PARTS: [&str; 3] = ["artefacts", "images", "templates"];

/// Memory of machines for which homes have a template: what machines have by default, and what tests of many give them.
const SHAPES: [&str; 2] = ["256m", "80m"];

/// Returns the directory that belongs to the end-to-end tests, under cargo's target directory.
pub(crate) fn cache() -> Result<PathBuf> {
    let test = std::env::current_exe().context("cannot tell where this test lies")?;
    let target = test
        .ancestors()
        .nth(3)
        .context("this test does not lie in cargo's target directory")?;
    let cache = target.join("e2e");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache)
}

/// Runs `make` unless `path` exists, once among all processes. `make` gets a directory that becomes `path` when it is done.
///
/// # Errors
/// Those of `make`, and of the file system.
pub(crate) fn made_once(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let directory = path.parent().context("a cached thing lies in a directory")?;
    let lock = File::create(directory.join("lock"))?;
    lock.lock().context("cannot lock the cache of the tests")?;
    if path.exists() {
        return Ok(());
    }
    let begun = tempfile::tempdir_in(directory)?;
    let place = begun.path().join("new");
    fs::create_dir(&place)?;
    make(&place)?;
    fs::rename(&place, path).with_context(|| format!("cannot put {} in place", path.display()))
}

/// Fills a new home.
pub(crate) fn fill(home: &Path) -> Result<()> {
    static READY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let ready = READY
        .get_or_init(|| prepare().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("no home can be made ready: {error}"))?;
    // Copies of memory would fill a small disk.
    let shares = fs::metadata(ready)?.dev() == fs::metadata(home)?.dev();
    PARTS
        .iter()
        .filter(|part| shares || **part != "templates")
        .try_for_each(|part| link_tree(&ready.join(part), &home.join(part)))
}

/// Fills a new home with files of its own, for a user who may not have those of the cache.
pub(crate) fn copy(home: &Path) -> Result<()> {
    let shared = tempfile::tempdir()?;
    fill(shared.path())?;
    for part in PARTS.iter().filter(|part| **part != "templates") {
        copy_tree(&shared.path().join(part), &home.join(part))?;
    }
    Ok(())
}

fn prepare() -> Result<PathBuf> {
    let cache = cache()?;
    let hearth = hearth_binary()?;
    let agent = hearth.with_file_name("hearth-guest");
    let mut key = String::new();
    for binary in [&hearth, &agent] {
        let bytes = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
        key.push_str(&sha256(&bytes));
    }
    let ready = cache.join(format!("ready-{}", &sha256(key.as_bytes())[..16]));
    made_once(&ready, |place| {
        prune(&cache);
        make(&cache, place)
    })?;
    Ok(ready)
}

/// Lets hearth do it. Artefacts of the last build are offered to `hearth setup`, which keeps what still fits: most often
/// that is the kernel.
fn make(cache: &Path, place: &Path) -> Result<()> {
    let node = TestNode::unfilled(Driver::Auto)?;
    let last = cache.join("artefacts");
    if last.exists() {
        link_tree(&last, &node.home().join("artefacts"))?;
    }
    let done = node
        .hearth(["setup"])
        .deadline(SETUP_DEADLINE)
        .ok()
        .and_then(|_| node.hearth(["image", "build", "busybox", "-t", "busybox"]).ok())
        .and_then(|_| {
            let run = |memory: &&str| node.run(["--rm", "-m", memory, "busybox", "true"]).ok();
            SHAPES.iter().try_for_each(|memory| run(memory).map(drop))
        })
        .and_then(|()| node.hearth(["node", "stop"]).ok());
    if let Err(error) = done {
        node.tell();
        return Err(error);
    }
    for part in PARTS {
        link_tree(&node.home().join(part), &place.join(part))?;
    }
    // Nothing is lost if this fails but the download.
    let _ = fs::remove_dir_all(&last);
    let _ = link_tree(&place.join("artefacts"), &last);
    node.close()
}

fn prune(cache: &Path) {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    for entry in entries {
        let ready = entry.file_name().to_string_lossy().starts_with("ready-");
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let old = age.and_then(|time| SystemTime::now().duration_since(time).ok());
        if ready && old.is_some_and(|old| old > STALE_AFTER) {
            // Another run may do the same at the same time.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
