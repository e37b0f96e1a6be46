//! `image ls|pull|build|inspect|rm`.

use std::process::ExitCode;

use hearth_api::v1::{self, BuildImage, PullImage};
use hearth_machine::ByteSize;
use jiff::Timestamp;

use super::report;
use crate::arguments::{ImageBuild, ImageCommand, ImageInspect, ImageList, ImagePull, ImageRemove, Recipe};
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
        ImageCommand::Rm(arguments) => remove(node, &arguments).await,
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

async fn remove(node: &Node, arguments: &ImageRemove) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::SUCCESS;
    for given in &arguments.references {
        let reference = image_reference(given, &System)?;
        let removed = node
            .call(async |client| client.image_remove(&reference).await)
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
