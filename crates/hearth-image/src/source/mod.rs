//! Local sources of images: layouts, archives, directory trees. Blocking; `crate::store` calls it.

mod archive;
mod directory;
mod layer;
mod layout;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::{ConfigError, ImageConfig};
use crate::manifest::ManifestError;
use crate::rootfs::ArchiveError;
use crate::store::{BlobError, Blobs, StoreError};
use crate::{Digest, Limits, ProgressSink, Reference};

pub use layer::LayerError;
pub(crate) use layer::write_layer;

/// Says why a local source is no image.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file of it.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A layout without `oci-layout` and `index.json`.
    #[error("{} is no OCI image layout: it has no index.json", .0.display())]
    NoLayout(PathBuf),
    /// A tag that the layout does not have.
    #[error("the layout {} has no image {tag:?}, only {available}", dir.display())]
    UnknownTag {
        /// The layout.
        dir: PathBuf,
        /// What was looked for.
        tag: String,
        /// What there is.
        available: String,
    },
    /// Several images, and no tag.
    #[error("the layout {} has several images: {available}", dir.display())]
    Several {
        /// The layout.
        dir: PathBuf,
        /// What there is.
        available: String,
    },
    /// A manifest or index.
    #[error("a manifest in {} is not usable", path.display())]
    Manifest {
        /// The layout or archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A configuration.
    #[error("a configuration in {} is not usable", path.display())]
    Config {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// An archive that is none, damaged, or too large.
    #[error("{} is not usable", path.display())]
    Tar {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ArchiveError,
    },
    /// An image of an archive without a name, and none was given.
    #[error("{} has an image without a name", .0.display())]
    Nameless(PathBuf),
    /// A name was given for several images.
    #[error("{} has {images} images, and one name was given", path.display())]
    OneName {
        /// The archive.
        path: PathBuf,
        /// How many images it has.
        images: usize,
    },
    /// An archive that nobody saved images into.
    #[error("{} is no archive of images: {fault}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        fault: ArchiveFault,
    },
    /// A blob.
    #[error("a blob in the source is not usable")]
    Blob(#[from] BlobError),
    /// The layer that is made of a directory tree.
    #[error("cannot make a layer of {}", dir.display())]
    Layer {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: LayerError,
    },
}

/// Says what is wrong with a docker archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveFault {
    /// Not a tar archive, or a damaged one.
    #[error("it is not a readable tar archive")]
    Tar,
    /// Compressed as a whole.
    #[error("it is compressed")]
    Compressed,
    /// No list of images.
    #[error("it has neither an index.json nor a manifest.json that is valid")]
    Manifest,
    /// More than one image.
    #[error("it has {0} images, and one is wanted")]
    Several(usize),
    /// A file that the list names.
    #[error("it has no file {0:?}, which its list of images names")]
    Missing(String),
    /// Too much.
    #[error("it goes over the limit of {0}")]
    Limit(&'static str),
}

impl SourceError {
    /// Says what the user can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Read { .. } => "check that the path exists and that the node may read it",
            Self::NoLayout(_) => "name the directory that holds oci-layout and index.json",
            Self::UnknownTag { .. } | Self::Several { .. } => "name one of these images, as in oci:DIR:TAG",
            Self::Manifest {
                source: ManifestError::Platform { .. },
                ..
            } => "choose an image that is built for this machine's architecture",
            Self::Archive {
                fault: ArchiveFault::Compressed,
                ..
            } => "decompress it first, for example with gunzip",
            Self::Archive {
                fault: ArchiveFault::Several(_),
                ..
            } => "save one image into an archive of its own",
            Self::Manifest { .. } | Self::Archive { .. } | Self::Config { .. } | Self::Tar { .. } => {
                "make it anew, for example with skopeo copy or docker save"
            }
            Self::Nameless(_) => "give it a name with --tag",
            Self::OneName { .. } => "leave --tag away, or save one image into an archive of its own",
            Self::Blob(BlobError::Store(_)) | Self::Layer { .. } => {
                "check the space and the permissions of the store and the source"
            }
            Self::Blob(_) => "make the source anew: it is damaged",
        }
    }
}

/// An image that is to be named: with digest and length of its manifest.
pub(crate) type Loaded = (Reference, (Digest, u64));

/// Copies all images of an archive that comes as a stream into the store, for the names that it gives them, or for `name`.
/// `file` is empty, and where the archive is put down; `path` is for messages.
pub(crate) fn load(
    (path, file): (&Path, File),
    archive: Box<dyn Read + Send>,
    name: Option<Reference>,
    (blobs, limits): (&Blobs, &Limits),
    progress: &ProgressSink,
) -> Result<Vec<Loaded>, SourceError> {
    let mut archive = archive::Archive::receive(path, archive, file, limits)?;
    let mut images = archive.images(limits)?;
    if let Some(name) = name {
        let [image] = &mut images[..] else {
            return Err(SourceError::OneName {
                path: path.to_owned(),
                images: images.len(),
            });
        };
        image.names = vec![name];
    }
    // Before anything is copied.
    if images.iter().any(|image| image.names.is_empty()) {
        return Err(SourceError::Nameless(path.to_owned()));
    }
    let mut loaded = Vec::new();
    for image in images {
        let copied = archive.copy(&image, blobs, limits, progress)?;
        loaded.extend(image.names.into_iter().map(|name| (name, copied)));
    }
    Ok(loaded)
}

/// Copies an image from a local source into the store. Returns digest and length of its manifest.
pub(crate) fn import(
    reference: &Reference,
    blobs: &Blobs,
    limits: &Limits,
    progress: &ProgressSink,
) -> Result<(Digest, u64), SourceError> {
    match reference {
        Reference::Layout { dir, tag } => layout::import(dir, tag.as_deref(), blobs, limits, progress),
        Reference::Archive { file } => archive::import(file, blobs, limits, progress),
        Reference::Directory { dir } => {
            let config = ImageConfig::default();
            let written = write_layer(blobs, &config, limits, |layer| directory::write_tree(dir, layer));
            written.map_err(|source| SourceError::Layer {
                dir: dir.clone(),
                source,
            })
        }
        Reference::Registry(_) => Err(SourceError::NoLayout(PathBuf::from(reference.to_string()))),
    }
}

/// Tells states of a local source apart without reading its content: a changed one is imported anew. `None` for
/// registries, and for sources that cannot be read.
pub(crate) fn stamp(reference: &Reference) -> Option<String> {
    match reference {
        Reference::Layout { dir, .. } => file_stamp(&dir.join("index.json")).ok(),
        Reference::Archive { file } => file_stamp(file).ok(),
        Reference::Directory { dir } => directory::stamp(dir).ok(),
        Reference::Registry(_) => None,
    }
}

fn file_stamp(path: &Path) -> io::Result<String> {
    let meta = std::fs::metadata(path)?;
    Ok(format!(
        "{}-{}-{}.{}",
        meta.ino(),
        meta.len(),
        meta.ctime(),
        meta.ctime_nsec()
    ))
}

/// The store fails a local import as a blob that did not get there does.
impl From<StoreError> for SourceError {
    fn from(error: StoreError) -> Self {
        Self::Blob(BlobError::Store(error))
    }
}
