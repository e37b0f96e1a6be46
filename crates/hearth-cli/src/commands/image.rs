//! `image ls|pull|build|inspect|tag|rm|prune`; `save` and `load` are in `archive`.

mod archive;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use hearth_api::v1::{self, BuildImage, PruneImages, PullImage, TagImage};
use hearth_machine::ByteSize;
use jiff::Timestamp;

use super::report;
use crate::arguments::{
    ImageBuild, ImageCommand, ImageInspect, ImageList, ImagePrune, ImagePull, ImageRemove, ImageTag, Recipe,
};
use crate::credentials;
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Screen, Table, ago};
use crate::progress::Steps;
use crate::resolve::{System, image_reference};

/// Runs a verb about images.
pub(super) async fn image(node: &Node, command: ImageCommand) -> Result<ExitCode, CliError> {
    match command {
        ImageCommand::Ls(arguments) => list(node, &arguments).await,
        ImageCommand::Pull(arguments) => pull(node, &arguments).await,
        ImageCommand::Build(arguments) => build(node, arguments).await,
        ImageCommand::Inspect(arguments) => inspect(node, &arguments).await,
        ImageCommand::Tag(arguments) => tag(node, arguments).await,
        ImageCommand::Save(arguments) => archive::save(node, &arguments).await,
        ImageCommand::Load(arguments) => archive::load(node, &arguments).await,
        ImageCommand::Rm(arguments) => remove(node, &arguments).await,
        ImageCommand::Prune(arguments) => prune(node, &arguments).await,
    }
}

async fn list(node: &Node, arguments: &ImageList) -> Result<ExitCode, CliError> {
    let images = node.call(async |client| client.images().await).await?;
    if arguments.json {
        print::json(&images)?;
    } else if arguments.quiet {
        let references: String = images
            .iter()
            .map(|image| format!("{}\n", image.reference))
            .collect();
        print::out(&references)?;
    } else {
        let mut screen = Screen::stdout();
        screen.width = screen.width.filter(|_| !arguments.no_trunc);
        print::out(&table(&images, arguments.no_trunc, Timestamp::now()).render(screen))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(images: &[v1::Image], whole: bool, now: Timestamp) -> Table {
    let mut table = Table::new(&[
        ("REFERENCE", Some(16)),
        ("DIGEST", None),
        ("SIZE", None),
        ("UNIQUE", None),
        ("ROOT FILE SYSTEM", None),
        ("CREATED", None),
    ]);
    for image in images {
        let digest = if whole {
            image.digest.clone()
        } else {
            short(&image.digest)
        };
        let created = image.created_at.as_deref().map(|time| ago(time, now));
        table.push([
            Cell::from(&image.reference),
            Cell::from(digest),
            Cell::from(ByteSize::from_bytes(image.size_bytes).to_string()),
            Cell::from(ByteSize::from_bytes(image.unique_bytes).to_string()),
            Cell::from(ByteSize::from_bytes(image.rootfs_bytes).to_string()),
            Cell::from(created.as_deref().unwrap_or("-")),
        ]);
    }
    table
}

/// The first twelve digits of a digest: what docker calls an image's id.
pub(super) fn short(digest: &str) -> String {
    let digits = digest.split_once(':').map_or(digest, |(_, digits)| digits);
    digits.chars().take(12).collect()
}

async fn pull(node: &Node, arguments: &ImagePull) -> Result<ExitCode, CliError> {
    let reference = image_reference(&arguments.reference, &System)?;
    show(&fetch(node, reference).await?, arguments.json)
}

/// Has the node fetch an image, as the caller whom its registry knows. It ends when this process does.
pub(super) async fn fetch(node: &Node, reference: String) -> Result<v1::Image, CliError> {
    let request = PullImage {
        credentials: credentials::find(&reference, &System).await?,
        reference,
    };
    node.call(async |client| {
        let mut steps = Steps::new();
        client
            .image_pull(&request, &mut |progress| steps.update(&progress))
            .await
    })
    .await
}

async fn build(node: &Node, arguments: ImageBuild) -> Result<ExitCode, CliError> {
    let request = BuildImage {
        recipe: match arguments.recipe {
            Recipe::Debian => v1::Recipe::Debian,
            Recipe::Busybox => v1::Recipe::Busybox,
        },
        packages: arguments.packages,
        reference: arguments.tag,
    };
    let built = node.call(async |client| {
        let mut steps = Steps::new();
        client
            .image_build(&request, &mut |progress| steps.update(&progress))
            .await
    });
    show(&built.await?, arguments.json)
}

/// Prints the reference, for scripts.
fn show(image: &v1::Image, json: bool) -> Result<ExitCode, CliError> {
    if json {
        print::json(image)?;
    } else {
        print::line(&image.reference)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn inspect(node: &Node, arguments: &ImageInspect) -> Result<ExitCode, CliError> {
    let mut found = Vec::new();
    for reference in &arguments.references {
        let reference = image_reference(reference, &System)?;
        let image = node.call(async |client| client.image(&reference).await).await;
        found.extend(report(image)?);
    }
    print::json(&found)?;
    let complete = found.len() == arguments.references.len();
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn tag(node: &Node, arguments: ImageTag) -> Result<ExitCode, CliError> {
    let request = TagImage {
        source: image_reference(&arguments.source, &System)?,
        target: arguments.target,
    };
    let tagged = node.call(async |client| client.image_tag(&request).await);
    show(&tagged.await?, arguments.json)
}

async fn prune(node: &Node, arguments: &ImagePrune) -> Result<ExitCode, CliError> {
    let what = if arguments.all {
        "every image that no machine is made of, and what no image needs"
    } else {
        "what no image needs"
    };
    if !arguments.force && !is_confirmed(what)? {
        return Ok(ExitCode::FAILURE);
    }
    let request = PruneImages { all: arguments.all };
    let pruned = node.call(async |client| client.image_prune(&request).await);
    let pruned = pruned.await?;
    if arguments.json {
        print::json(&pruned)?;
        return Ok(ExitCode::SUCCESS);
    }
    for reference in &pruned.images {
        print::line(reference)?;
    }
    match pruned.freed_bytes {
        Some(bytes) => print::line(&format!("freed {}", ByteSize::from_bytes(bytes)))?,
        None => print::note("hearth: a pull is under way; what nothing needs goes when it has ended"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks whether something is to be deleted. Without a terminal nobody can say so.
fn is_confirmed(what: &str) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::Unconfirmed(what.to_owned()));
    }
    print::out(&format!("This deletes {what}. Go on? [y/N] "))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(CliError::Input)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn remove(node: &Node, arguments: &ImageRemove) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::SUCCESS;
    for given in &arguments.references {
        let reference = image_reference(given, &System)?;
        let removed = node
            .call(async |client| client.image_remove(&reference, arguments.force).await)
            .await;
        match report(removed)? {
            Some(()) => print::line(given)?,
            None => code = ExitCode::FAILURE,
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_shown_by_their_first_digits() {
        assert_eq!(short("sha256:0123456789abcdef0123"), "0123456789ab");
        assert_eq!(short("odd"), "odd");
    }
}
