//! Prepares an image in a store and prints how long that took: `prepare REFERENCE STORE`.

use std::time::Instant;

use hearth_image::{Reference, Store, no_progress};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [reference, dir] = &arguments[..] else {
        return Err("usage: prepare REFERENCE STORE".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(prepare(reference.parse()?, dir))
        .inspect_err(|error| {
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("because: {cause}");
                source = cause.source();
            }
        })
}

async fn prepare(reference: Reference, dir: &str) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(dir).await?;
    let start = Instant::now();
    let image = store
        .pull(&reference.absolute(&std::env::current_dir()?), no_progress())
        .await?;
    let pulled = start.elapsed();
    let start = Instant::now();
    let resolved = store.resolve(&image.reference).await?;
    println!(
        "{} {}: pull {:.3} s, resolve {:.6} s ({}), {} bytes of blobs, {} bytes of root file system in {}",
        image.reference.familiar(),
        image.digest,
        pulled.as_secs_f64(),
        start.elapsed().as_secs_f64(),
        if resolved.is_some() { "found" } else { "not found" },
        image.size,
        image.rootfs_size,
        image.rootfs.display()
    );
    Ok(())
}
