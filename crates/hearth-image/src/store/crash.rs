//! A process that dies between any two steps of a pull, a removal or a sweep leaves a store that the next one can use, and
//! that loses nothing and keeps nothing in vain.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::Store;
use crate::config::ImageConfig;
use crate::{Reference, no_progress, watch_steps};

/// Names the store of the process that is to die, and the step, a number, at which it does.
const STORE: &str = "HEARTH_IMAGE_CRASH_STORE";
const STEP: &str = "HEARTH_IMAGE_CRASH_STEP";

static STEPS_LEFT: AtomicU32 = AtomicU32::new(u32::MAX);

fn archive(content: &str) -> Cursor<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "file", content.as_bytes())
        .unwrap();
    Cursor::new(builder.into_inner().unwrap())
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Images come, get names, replace each other, go, and what nothing needs goes: `keep` stays all the time.
async fn work(store: &Store) {
    let import = async |reference: &str, content: &str| {
        let config = ImageConfig::default();
        let imported = store
            .import_layer_tar(&name(reference), archive(content), config, no_progress())
            .await;
        imported.unwrap();
    };
    import("keep", "keep").await;
    import("one", "one").await;
    store.tag(&name("one"), &name("two")).await.unwrap();
    import("one", "another").await;
    store.remove(&name("two")).await.unwrap();
    store.remove(&name("one")).await.unwrap();
    store.sweep().await.unwrap();
}

/// The process that dies, when the test below starts it.
#[test]
fn one_that_dies() {
    let Some(dir) = std::env::var_os(STORE) else {
        return;
    };
    let step = std::env::var(STEP).unwrap().parse().unwrap();
    STEPS_LEFT.store(step, Ordering::Relaxed);
    watch_steps(|_| {
        if STEPS_LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Without destructors, as kill -9 does.
            std::process::abort();
        }
        Ok(())
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(PathBuf::from(dir)).await.unwrap();
        work(&store).await;
    });
}

fn child(dir: &Path, step: u32) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "store::crash::one_that_dies"])
        .env(STORE, dir)
        .env(STEP, step.to_string())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    command
}

fn files(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Opens a store after a death, and looks whether every image is whole and nothing else is left.
async fn examine(dir: &Path) {
    let store = Store::open(dir).await.unwrap();
    assert_eq!(files(&dir.join("tmp")), BTreeSet::new());
    store.sweep().await.unwrap().expect("nobody writes");
    let mut blobs = BTreeSet::new();
    let mut rootfs = BTreeSet::new();
    for details in store.list().await.unwrap() {
        let image = store.resolve(&details.image.reference).await.unwrap().unwrap();
        let content = std::fs::File::open(&image.rootfs).unwrap();
        let tree = crate::erofs::read(&content).expect("a sound file system");
        assert!(tree.contains_key(&b"/file"[..]));
        let layers = details.layers.iter().map(|layer| layer.digest);
        for digest in layers.chain([image.digest, details.config_digest]) {
            let bytes = std::fs::read(dir.join("blobs/sha256").join(digest.hex())).unwrap();
            assert_eq!(crate::Digest::of(&bytes), digest);
            blobs.insert(digest.hex());
        }
        rootfs.insert(image.rootfs.file_name().unwrap().to_str().unwrap().to_owned());
    }
    assert_eq!(files(&dir.join("blobs/sha256")), blobs);
    assert_eq!(files(&dir.join("rootfs")), rootfs);
}

fn examine_now(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(examine(dir));
}

#[test]
fn a_death_at_any_step_leaves_a_sound_store() {
    let mut died = 0;
    for step in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let ended = child(dir.path(), step).status().unwrap();
        examine_now(dir.path());
        // And what was begun can be done again, over what is left.
        assert!(child(dir.path(), u32::MAX).status().unwrap().success());
        examine_now(dir.path());
        if ended.success() {
            break;
        }
        died += 1;
    }
    assert!(died > 10, "{died} steps");
}

#[test]
fn kills_at_any_moment_leave_a_sound_store() {
    let rounds = match std::env::var_os("HEARTH_E2E_SOAK") {
        Some(_) => 300,
        None => 20,
    };
    let dir = tempfile::tempdir().unwrap();
    for round in 0..rounds {
        let mut child = child(dir.path(), u32::MAX).spawn().unwrap();
        // Between nothing and what all of it takes on an idle machine.
        std::thread::sleep(Duration::from_micros(round * 7919 % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        examine_now(dir.path());
    }
    assert!(child(dir.path(), u32::MAX).status().unwrap().success());
    let dir = dir.path();
    examine_now(dir);
    assert_eq!(files(&dir.join("rootfs")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_swept_while_others_pull_is_never_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let pulls = (0..8).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..6 {
                let reference = name(&format!("image{task}"));
                let content = format!("{task} {}", round % 2);
                let config = ImageConfig::default();
                let imported = store
                    .import_layer_tar(&reference, archive(&content), config, no_progress())
                    .await;
                imported.unwrap();
                assert!(store.resolve(&reference).await.unwrap().is_some());
                store.sweep().await.unwrap();
                if round % 3 == 2 {
                    store.remove(&reference).await.unwrap();
                }
            }
        })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap();
    }
    examine(dir.path()).await;
    assert_eq!(files(&dir.path().join("blobs/sha256")), BTreeSet::new());
}
