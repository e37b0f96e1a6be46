//! `image` and what is below it.

use clap::{Args, Subcommand, ValueEnum};

/// List, fetch, make and remove images.
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
    Rm(ImageRemove),
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

/// Remove images that no machine uses.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image rm debian:12
  hearth image rm $(hearth image ls -q)")]
pub(crate) struct ImageRemove {
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) references: Vec<String>,
}
