//! `image save` and `image load`: the archive goes through the API, file or pipe on this side.

use std::process::ExitCode;

use hearth_api::client::reader;
use hearth_api::v1::SaveImages;

use crate::arguments::{ImageLoad, ImageSave};
use crate::commands::transfer::{self, Upload};
use crate::error::CliError;
use crate::node::Node;
use crate::print;
use crate::resolve::{System, image_reference};

pub(super) async fn save(node: &Node, arguments: &ImageSave) -> Result<ExitCode, CliError> {
    transfer::check_output(arguments.output.as_deref())?;
    let references = arguments.references.iter();
    let references: Vec<_> = references
        .map(|reference| image_reference(reference, &System))
        .collect::<Result<_, _>>()?;
    let request = SaveImages { references };
    let body = node.call(async |client| client.image_save(&request).await);
    transfer::save(arguments.output.as_deref(), reader(body.await?)).await?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn load(node: &Node, arguments: &ImageLoad) -> Result<ExitCode, CliError> {
    let (upload, body) = Upload::begin(arguments.input.as_deref())?;
    // A body cannot be sent twice: the node is up before.
    node.call(async |client| client.node_status().await).await?;
    let client = node.client();
    let loaded = client.image_load(arguments.tag.as_deref(), body).await?;
    upload.finish().await?;
    if arguments.json {
        print::json(&loaded)?;
    } else {
        for image in &loaded {
            print::line(&image.reference)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
