//! `image` and what is below it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// List, fetch, make, name, save, load and remove images.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  hearth image pull localhost:5000/app:1
  hearth image build debian --packages git,python3 -t tools
  hearth image ls"
)]
pub(crate) struct Image {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

/// The verbs about images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    Ls(ImageList),
    Pull(ImagePull),
    Build(ImageBuild),
    Inspect(ImageInspect),
    Tag(ImageTag),
    Save(ImageSave),
    Load(ImageLoad),
    Rm(ImageRemove),
    Prune(ImagePrune),
}

/// List images.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image ls
  hearth image ls --json")]
pub(crate) struct ImageList {
    /// Only references
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Shorten nothing
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
}

/// Fetch an image and prepare it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image pull debian:12
  hearth image pull localhost:5000/app@sha256:...
  hearth image pull oci:./layout:latest
  hearth image pull docker-archive:saved.tar")]
pub(crate) struct ImagePull {
    /// Image: NAME[:TAG][@DIGEST], oci:DIR[:TAG], docker-archive:FILE, dir:DIR
    #[arg(value_name = "IMAGE")]
    pub(crate) reference: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make an image of packages of the host's distribution.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image build busybox -t busybox
  hearth image build debian --packages git,python3 -t tools:1")]
pub(crate) struct ImageBuild {
    /// What to start from
    #[arg(value_enum, value_name = "RECIPE")]
    pub(crate) recipe: Recipe,
    /// Packages to put in
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(crate) packages: Vec<String>,
    /// Reference that the image gets
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub(crate) tag: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What an image is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Recipe {
    /// A minimal Debian
    Debian,
    /// The static busybox and nothing else
    Busybox,
}

/// Print everything about images, as a JSON array.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image inspect debian:12 | jq '.[0].config'")]
pub(crate) struct ImageInspect {
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) references: Vec<String>,
    /// Print JSON; it always does
    #[arg(long, hide = true)]
    pub(crate) json: bool,
}

/// Give an image one more name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image tag tools:1 tools:latest
  hearth image tag oci:./layout:latest app")]
pub(crate) struct ImageTag {
    /// Image of the store
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// Name; an image that had it loses it
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) target: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write images into a tar archive that docker, podman, skopeo and umoci read.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image save -o tools.tar tools:1 tools:2
  hearth image save tools | ssh elsewhere hearth image load")]
pub(crate) struct ImageSave {
    /// File to write; standard output when absent
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) references: Vec<String>,
}

/// Take the images of an archive that docker, podman, skopeo or hearth has saved.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image load -i tools.tar
  docker save app | hearth image load
  hearth image load -i oci-archive.tar --tag app:1")]
pub(crate) struct ImageLoad {
    /// File to read, compressed or not; standard input when absent, or -
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Name of the archive's one image
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub(crate) tag: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove names of images, and an image with its last name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image rm debian:12
  hearth image rm -f tools:1
  hearth image rm $(hearth image ls -q)")]
pub(crate) struct ImageRemove {
    /// Even while machines are made of it: they keep what they need
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) references: Vec<String>,
}

/// Delete what no image needs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image prune
  hearth image prune --all --force --json")]
pub(crate) struct ImagePrune {
    /// Images that no machine is made of, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
