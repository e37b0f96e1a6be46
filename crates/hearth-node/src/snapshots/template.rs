//! Templates: machines as they are at a [`Moment`] of their start, before there is anything in them that is theirs alone; one for
//! each [`TemplateKey`].
//!
//! ```text
//! DATA/templates/ID/        manifest.json   the files that the driver wrote, and the disk where that was mounted
//! DATA/templates/ID.new/    one that is being made; its manifest goes in last, then the directory gets its name
//! ```
//! Everything there is of a key's template is behind one lock: starts that use it hold it shared, who makes or removes it holds it
//! alone. So of several first starts one makes the template and the others wait for it.

use std::collections::HashMap;
use std::fs::{self, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::manifest::{Flaw, MANIFEST, Manifest, Moment, TemplateKey};
use crate::host::facts::{Place, existing_ancestor};
use crate::host::{failpoint, files};

/// The extension of a template that is being made.
const UNFINISHED: &str = "new";

/// The files that the driver writes.
const DRIVERS: [&str; 2] = ["state", "memory"];

/// The machine's disk at the same moment.
const DISK: &str = "disk";

/// Returns the files of a template, in the order of their digests in the manifest.
fn files_of(moment: Moment) -> Vec<&'static str> {
    let disk = (moment == Moment::Configured).then_some(DISK);
    DRIVERS.into_iter().chain(disk).collect()
}

/// How many templates are kept; the one that was used longest ago goes first.
const MOST: usize = 64;

/// How much room they may take in all, in bytes. One takes 20 to 70 MB.
const ROOM: u64 = 4 << 30;

/// Below so much free room none is made, in bytes: machines need the disk more.
const LEAST_FREE: u64 = 1 << 30;

/// How long no template is made of a key after that has failed.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The name of a template.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TemplateId(String);

impl TemplateId {
    /// Returns the name of a key's template.
    pub fn of(key: &TemplateKey) -> Self {
        Self(key.id())
    }
}

/// Says that a text names no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no template's id: sixteen lower-case hexadecimal digits are")]
pub struct InvalidId(String);

impl std::str::FromStr for TemplateId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match text.len() == 16 && digits {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidId(text.to_owned())),
        }
    }
}

impl std::fmt::Display for TemplateId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says why a template was not made or not removed.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file system refused.
    #[error("cannot write the template {}", path.display())]
    Write {
        /// What could not be written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is none of that name.
    #[error("there is no template {0}")]
    NotFound(TemplateId),
    /// The name is none.
    #[error(transparent)]
    Id(#[from] InvalidId),
}

/// A template as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its name.
    pub id: TemplateId,
    /// What it is of.
    pub key: TemplateKey,
    /// RFC 3339.
    pub created_at: String,
    /// When a machine was last made of it.
    pub used_at: SystemTime,
    /// What it takes on the disk, in bytes.
    pub bytes: u64,
}

/// The templates of a node.
#[derive(Debug)]
pub struct Templates {
    directory: PathBuf,
    /// Guards who has which key's lock; the locks themselves are held by starts, for as long as they use files.
    slots: Mutex<HashMap<TemplateId, Arc<RwLock<Slot>>>>,
}

/// What this node knows of a key's template.
#[derive(Debug, Default)]
struct Slot {
    /// Every byte of it has been read, or was written by this node.
    good: bool,
    /// When making one last failed.
    failed: Option<Instant>,
}

/// Whose turn it is, with a key.
#[derive(Debug)]
pub enum Turn {
    /// There is a template.
    Use(Ready),
    /// There is none: the caller makes one.
    Make(Box<Building>),
    /// There is none, and none is made: the disk is nearly full, or it could not be done a moment ago.
    Without,
}

/// A template that stays as it is for as long as this is held.
#[derive(Debug)]
pub struct Ready {
    id: TemplateId,
    path: PathBuf,
    moment: Moment,
    _slot: OwnedRwLockReadGuard<Slot>,
}

impl Ready {
    /// Returns its name.
    pub fn id(&self) -> &TemplateId {
        &self.id
    }

    /// Returns the directory with its files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns how far the start of its machines has come.
    pub fn moment(&self) -> Moment {
        self.moment
    }

    /// Returns the disk that machines of it go on with; where there is none, any disk will do.
    pub fn disk(&self) -> Option<PathBuf> {
        (self.moment == Moment::Configured).then(|| self.path.join(DISK))
    }
}

/// A template that is being made. When it is dropped before its end, nothing is left of it.
#[derive(Debug)]
pub struct Building {
    id: TemplateId,
    key: TemplateKey,
    unfinished: PathBuf,
    slot: OwnedRwLockWriteGuard<Slot>,
}

impl Templates {
    /// Opens the templates of a directory; what an earlier node did not finish there is removed, and what it wrote in another format.
    pub fn open(directory: PathBuf) -> Self {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_whole = name(&path).is_some() && path.join(MANIFEST).exists();
            if is_whole && !is_of_another_format(&path) {
                continue;
            }
            if let Err(error) = files::remove_tree(&path) {
                tracing::warn!(path = %path.display(), %error, "left behind");
            }
        }
        Self {
            directory,
            slots: Mutex::default(),
        }
    }

    /// Waits until a key's template can be used, or made.
    pub async fn turn(&self, key: &TemplateKey) -> Turn {
        let id = TemplateId::of(key);
        let slot = self.slot(&id);
        let known = Arc::clone(&slot).read_owned().await;
        if known.good {
            return self.ready(id, key, known);
        }
        drop(known);
        let mut slot = slot.write_owned().await;
        if slot.good {
            // Another start has made it meanwhile.
            return self.ready(id, key, slot.downgrade());
        }
        if self.is_good(&id, key).await {
            slot.good = true;
            return self.ready(id, key, slot.downgrade());
        }
        if slot.failed.is_some_and(|failed| failed.elapsed() < RETRY_AFTER) {
            return Turn::Without;
        }
        let place = Place::of(existing_ancestor(&self.directory));
        if place.is_ok_and(|place| place.free.bytes() < LEAST_FREE) {
            return Turn::Without;
        }
        let unfinished = self.directory.join(format!("{id}.{UNFINISHED}"));
        Turn::Make(Box::new(Building {
            id,
            key: key.clone(),
            unfinished,
            slot,
        }))
    }

    fn ready(&self, id: TemplateId, key: &TemplateKey, slot: OwnedRwLockReadGuard<Slot>) -> Turn {
        let path = self.path(&id);
        let now = FileTimes::new().set_modified(SystemTime::now());
        let marked = fs::File::open(path.join(MANIFEST)).and_then(|file| file.set_times(now));
        if let Err(error) = marked {
            // It is used all the same; at worst it goes earlier than it should.
            tracing::debug!(template = %id, %error, "its use is not noted");
        }
        Turn::Use(Ready {
            id,
            path,
            moment: key.moment,
            _slot: slot,
        })
    }

    /// Reads what there is on the disk; what cannot be used is removed.
    async fn is_good(&self, id: &TemplateId, key: &TemplateKey) -> bool {
        let (path, key) = (self.path(id), key.clone());
        if !path.exists() {
            return false;
        }
        let directory = path.clone();
        let verify = move || {
            let manifest = Manifest::<TemplateKey>::read(&directory)?;
            match manifest.key == key {
                true => manifest.verify(&directory),
                false => Err(Flaw::Key),
            }
        };
        let flaw: Option<Flaw> = match tokio::task::spawn_blocking(verify).await {
            Ok(Ok(())) => return true,
            Ok(Err(flaw)) => Some(flaw),
            Err(_) => None,
        };
        let flaw = flaw.as_ref().map(ToString::to_string).unwrap_or_default();
        tracing::warn!(template = %id, %flaw, "a template is thrown away");
        if let Err(error) = files::remove_tree(&path) {
            tracing::error!(template = %id, %error, "left behind");
        }
        false
    }

    /// Lists them, the one used last first.
    pub fn list(&self) -> Vec<Template> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries.filter_map(|entry| listed(&entry.path())).collect();
        all.sort_by_key(|template| std::cmp::Reverse(template.used_at));
        all
    }

    /// Removes one, once no start is about to use it. Machines that were made of it go on.
    ///
    /// # Errors
    /// Returns [`TemplateError`].
    pub async fn remove(&self, id: &TemplateId) -> Result<(), TemplateError> {
        let slot = self.slot(id);
        let mut slot = slot.write_owned().await;
        let path = self.path(id);
        if !path.exists() {
            return Err(TemplateError::NotFound(id.clone()));
        }
        *slot = Slot::default();
        discard(&path).map_err(|source| TemplateError::Write { path, source })
    }

    /// Removes those that were used longest ago, until the rest keeps to the bounds.
    pub async fn trim(&self) {
        let (mut count, mut bytes) = (0, 0);
        for template in self.list() {
            count += 1;
            bytes += template.bytes;
            if count > 1 && (count > MOST || bytes > ROOM) {
                tracing::info!(template = %template.id, "goes to make room");
                if let Err(error) = self.remove(&template.id).await {
                    tracing::warn!(template = %template.id, %error, "left behind");
                }
            }
        }
    }

    fn path(&self, id: &TemplateId) -> PathBuf {
        self.directory.join(&id.0)
    }

    fn slot(&self, id: &TemplateId) -> Arc<RwLock<Slot>> {
        Arc::clone(self.lock().entry(id.clone()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TemplateId, Arc<RwLock<Slot>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Building {
    /// Returns its name.
    pub fn id(&self) -> &TemplateId {
        &self.id
    }

    /// Makes the directory that the driver is to fill.
    ///
    /// # Errors
    /// Returns [`TemplateError::Write`].
    pub fn directory(&self) -> Result<&Path, TemplateError> {
        let made = files::remove_tree(&self.unfinished)
            .and_then(|()| files::make_directory(&self.unfinished, 0o700))
            .and_then(|()| failpoint::reach("template-begun"));
        made.map_err(self.at())?;
        Ok(&self.unfinished)
    }

    /// Returns how far the start is to have come of which it is taken.
    pub fn moment(&self) -> Moment {
        self.key.moment
    }

    /// Returns where the machine's disk is to be copied to, as it is when the driver has filled the directory; none where the disk does
    /// not matter.
    pub fn disk(&self) -> Option<PathBuf> {
        (self.key.moment == Moment::Configured).then(|| self.unfinished.join(DISK))
    }

    /// Makes it a template: from here on starts use it.
    ///
    /// # Errors
    /// Returns [`TemplateError::Write`]; nothing is left of it then.
    pub async fn finish(mut self) -> Result<(), TemplateError> {
        let (unfinished, key) = (self.unfinished.clone(), self.key.clone());
        let finished = tokio::task::spawn_blocking(move || finish(&unfinished, key)).await;
        finished.map_err(io::Error::other).flatten().map_err(self.at())?;
        self.slot.good = true;
        self.slot.failed = None;
        Ok(())
    }

    /// Gives it up; for a while no start tries again.
    pub fn failed(mut self) {
        self.slot.failed = Some(Instant::now());
    }

    fn at(&self) -> impl FnOnce(io::Error) -> TemplateError + use<> {
        let path = self.unfinished.clone();
        move |source| TemplateError::Write { path, source }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.slot.good
            && let Err(error) = files::remove_tree(&self.unfinished)
        {
            tracing::warn!(template = %self.id, %error, "a template that was begun is left behind");
        }
    }
}

fn finish(unfinished: &Path, key: TemplateKey) -> io::Result<()> {
    failpoint::reach("template-written")?;
    let files = files_of(key.moment);
    let manifest = Manifest::of(unfinished, key, &files)?;
    files::write_atomic(&unfinished.join(MANIFEST), &manifest.to_bytes(), files::PRIVATE)?;
    failpoint::reach("template-described")?;
    fs::rename(unfinished, unfinished.with_extension(""))?;
    failpoint::pass("template-named");
    Ok(())
}

/// Takes the name first, so that no half of it is found.
fn discard(path: &Path) -> io::Result<()> {
    let unnamed = path.with_extension("gone");
    files::remove_tree(&unnamed)?;
    fs::rename(path, &unnamed)?;
    files::remove_tree(&unnamed)
}

fn name(path: &Path) -> Option<TemplateId> {
    path.file_name()?.to_str()?.parse().ok()
}

fn is_of_another_format(path: &Path) -> bool {
    matches!(Manifest::<TemplateKey>::parse(path), Err(Flaw::Format { .. }))
}

fn listed(path: &Path) -> Option<Template> {
    let id = name(path)?;
    let manifest = Manifest::<TemplateKey>::read(path).ok()?;
    let size = |file: &str| {
        let metadata = fs::metadata(path.join(file)).ok();
        metadata.map_or(0, |metadata| {
            std::os::unix::fs::MetadataExt::blocks(&metadata) * 512
        })
    };
    Some(Template {
        id,
        used_at: fs::metadata(path.join(MANIFEST)).ok()?.modified().ok()?,
        bytes: manifest.files.iter().map(|file| size(&file.name)).sum(),
        key: manifest.key,
        created_at: manifest.created_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(image: &str) -> TemplateKey {
        TemplateKey {
            driver: "fake".into(),
            version: "1".into(),
            fingerprint: String::new(),
            border: "emulated".into(),
            vcpus: 1,
            memory_mib: 64,
            image: image.into(),
            rootfs_bytes: 1,
            disk_bytes: 1,
            interface: false,
            kernel: "k".into(),
            initramfs: "i".into(),
            moment: Moment::Configured,
        }
    }

    async fn make(templates: &Templates, image: &str) -> TemplateId {
        let Turn::Make(building) = templates.turn(&key(image)).await else {
            panic!("there is one of {image}");
        };
        let (id, directory) = (building.id().clone(), building.directory().unwrap().to_owned());
        fs::write(directory.join("state"), b"state").unwrap();
        fs::write(directory.join("memory"), [7; 9000]).unwrap();
        fs::write(building.disk().unwrap(), [8; 9000]).unwrap();
        building.finish().await.unwrap();
        id
    }

    async fn is_there(templates: &Templates, image: &str) -> bool {
        matches!(templates.turn(&key(image)).await, Turn::Use(_))
    }

    #[tokio::test]
    async fn of_two_first_starts_one_makes_the_template_and_the_other_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Arc::new(Templates::open(directory.path().join("templates")));
        let Turn::Make(building) = templates.turn(&key("a")).await else {
            panic!("there is one already");
        };
        let waiting = tokio::spawn({
            let templates = Arc::clone(&templates);
            async move { is_there(&templates, "a").await }
        });
        let directory = building.directory().unwrap().to_owned();
        for name in files_of(Moment::Configured) {
            fs::write(directory.join(name), b"x").unwrap();
        }
        assert!(!waiting.is_finished());
        building.finish().await.unwrap();
        assert!(waiting.await.unwrap());
        assert_eq!(templates.list().len(), 1);
    }

    #[tokio::test]
    async fn the_next_node_finds_whole_templates_and_throws_all_others_away() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("templates");
        let templates = Templates::open(place.clone());
        let (whole, shorter, changed, foreign) = (
            make(&templates, "whole").await,
            make(&templates, "shorter").await,
            make(&templates, "changed").await,
            make(&templates, "foreign").await,
        );
        let older = place.join(make(&templates, "older").await.0).join(MANIFEST);
        let text = fs::read_to_string(&older).unwrap();
        fs::write(&older, text.replace("\"format\": 2", "\"format\": 1")).unwrap();
        fs::write(place.join(&shorter.0).join("state"), b"stat").unwrap();
        fs::write(place.join(&changed.0).join("disk"), [9; 9000]).unwrap();
        let manifest = place.join(&foreign.0).join(MANIFEST);
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(
            &manifest,
            text.replace("\"image\": \"foreign\"", "\"image\": \"other\""),
        )
        .unwrap();
        fs::create_dir(place.join("0123456789abcdef.new")).unwrap();
        fs::create_dir(place.join("0123456789abcdef")).unwrap();

        let next = Templates::open(place.clone());
        assert_eq!(fs::read_dir(&place).unwrap().count(), 4);
        assert!(is_there(&next, "whole").await);
        for image in ["shorter", "changed", "foreign", "older"] {
            assert!(!is_there(&next, image).await, "{image}");
        }
        assert_eq!(
            next.list()
                .into_iter()
                .map(|template| template.id)
                .collect::<Vec<_>>(),
            [whole]
        );
    }

    #[tokio::test]
    async fn one_that_is_given_up_leaves_nothing_and_is_not_tried_again_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("templates");
        let templates = Templates::open(place.clone());
        for fails in [false, true] {
            let Turn::Make(building) = templates.turn(&key("a")).await else {
                panic!("nothing has failed yet");
            };
            building.directory().unwrap();
            match fails {
                true => building.failed(),
                false => drop(building),
            }
            assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        }
        assert!(matches!(templates.turn(&key("a")).await, Turn::Without));
    }

    #[tokio::test]
    async fn one_that_is_removed_is_made_anew_and_what_is_in_use_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let templates = Arc::new(Templates::open(directory.path().join("templates")));
        let id = make(&templates, "a").await;
        let Turn::Use(ready) = templates.turn(&key("a")).await else {
            panic!("it was made");
        };
        let removing = tokio::spawn({
            let (templates, id) = (Arc::clone(&templates), id.clone());
            async move { templates.remove(&id).await }
        });
        assert!(ready.path().join("state").exists() && !removing.is_finished());
        drop(ready);
        removing.await.unwrap().unwrap();
        assert!(matches!(
            templates.remove(&id).await,
            Err(TemplateError::NotFound(_))
        ));
        assert_eq!(make(&templates, "a").await, id);
        assert!("../../../../etc/x".parse::<TemplateId>().is_err());
    }
}
