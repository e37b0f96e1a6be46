//! One blob from one endpoint: taken up again after each cut, where the last attempt ended.

use std::time::Instant;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

use super::RegistryError;
use super::endpoint::{Endpoint, Pace};
use crate::store::{BlobError, Download, StoreError};

/// Pieces of up to some 64 KiB between network and disk.
const QUEUE: usize = 64;
/// Bytes after which a download that breaks again and again gets all its attempts anew.
const PROGRESS: u64 = 1 << 20;

/// A download that this endpoint could not end.
pub(super) struct Broken {
    /// What came so far, for another endpoint to go on with; it is gone when the process is stopping.
    pub(super) download: Option<Download>,
    pub(super) error: RegistryError,
}

/// Fetches what is missing of a blob, checks it, and gives it its name. `elsewhere` are the addresses that the manifest
/// names.
pub(super) async fn fetch(
    endpoint: &Endpoint,
    mut download: Download,
    elsewhere: &[String],
) -> Result<(), Broken> {
    let mut backoff = endpoint.backoff();
    // Bytes of several answers are put together: one of them may have been wrong.
    let mut stitched = download.got() > 0;
    let mut restarted = false;
    loop {
        let before = download.got();
        let (back, error) = match attempt(endpoint, download, elsewhere).await {
            Ok(()) => return Ok(()),
            Err(Broken {
                download: Some(back),
                error,
            }) => (back, error),
            Err(gone) => return Err(gone),
        };
        download = back;
        let came = download.got().saturating_sub(before);
        if came >= PROGRESS {
            backoff.progressed();
        }
        let anew = match error {
            RegistryError::Blob(BlobError::WrongDigest { .. }) => stitched,
            RegistryError::Status { status: 416, .. } => before > 0,
            _ => false,
        };
        stitched = true;
        if anew && !restarted {
            restarted = true;
            download = restart(download).await?;
            continue;
        }
        // A body that ends early is taken up again; not if its server believes that this is all.
        let short = matches!(error, RegistryError::Blob(BlobError::Truncated { .. }));
        let waited = match short && (came == 0 || restarted) {
            true => Err(error),
            false => endpoint.wait(error, &mut backoff).await,
        };
        match waited {
            Ok(()) => {}
            // What is of no use here is of none elsewhere.
            Err(error @ RegistryError::Blob(_)) => {
                let download = Some(restart(download).await?);
                return Err(Broken { download, error });
            }
            Err(error) => {
                let download = Some(download);
                return Err(Broken { download, error });
            }
        }
    }
}

/// Asks once, and stores what comes.
async fn attempt(endpoint: &Endpoint, download: Download, elsewhere: &[String]) -> Result<(), Broken> {
    let opened = match download.is_whole() {
        true => None,
        false => match open(endpoint, &download, elsewhere).await {
            Ok(opened) => Some(opened),
            Err(error) => {
                let download = Some(download);
                return Err(Broken { download, error });
            }
        },
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writing = on_disk(download, move |download| write(download, receiver));
    let sending = async {
        match opened {
            Some((answer, skip)) => send(endpoint, answer, skip, sender).await,
            None => Ok(()),
        }
    };
    let (written, sent) = tokio::join!(writing, sending);
    let (download, written) = written?;
    // What the disk or the digest says counts more than that the sender then found nobody listening.
    match written.map_err(RegistryError::Blob).and(sent) {
        Ok(()) => {}
        Err(error) => {
            let download = Some(download);
            return Err(Broken { download, error });
        }
    }
    let (download, finished) = on_disk(download, Download::finish).await?;
    finished.map_err(|error| Broken {
        download: Some(download),
        error: RegistryError::Blob(error),
    })
}

/// Asks for the bytes that are missing; returns the answer, and how many of its first bytes are known.
async fn open(
    endpoint: &Endpoint,
    download: &Download,
    elsewhere: &[String],
) -> Result<(Response, u64), RegistryError> {
    let got = download.got();
    let mut headers = HeaderMap::new();
    // A range of compressed bytes would be a range of something else.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if got > 0 {
        headers.extend(HeaderValue::try_from(format!("bytes={got}-")).map(|value| (RANGE, value)));
    }
    let mut asked = endpoint
        .get(&format!("blobs/{}", download.digest()), &headers)
        .await;
    if matches!(asked, Err(RegistryError::Unknown { .. })) {
        for url in elsewhere {
            asked = endpoint.get_foreign(url, &headers).await;
            if asked.is_ok() {
                break;
            }
        }
    }
    let answer = asked?;
    let start = match answer.status() {
        StatusCode::PARTIAL_CONTENT => answer.headers().get(CONTENT_RANGE).and_then(range_start),
        // It knows no ranges, and sends everything.
        _ => Some(0),
    };
    match start {
        Some(start) if start <= got => Ok((answer, got - start)),
        _ => Err(RegistryError::Exchange {
            registry: endpoint.name.clone(),
            source: "it sent another part than it was asked for".into(),
        }),
    }
}

/// Reads where a part begins (RFC 9110, 14.4).
fn range_start(value: &HeaderValue) -> Option<u64> {
    let range = value.to_str().ok()?.trim().strip_prefix("bytes ")?;
    range.split_once('-')?.0.trim().parse().ok()
}

async fn send(
    endpoint: &Endpoint,
    mut answer: Response,
    mut skip: u64,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), RegistryError> {
    let mut pace = Pace::new(Instant::now());
    while let Some(mut piece) = endpoint.piece(&mut answer, &mut pace).await? {
        let skipped = skip.min(piece.len() as u64);
        skip -= skipped;
        let piece = piece.split_off(skipped as usize);
        if sender.send(piece).await.is_err() {
            // The writer has found a fault, and reports it.
            return Ok(());
        }
    }
    Ok(())
}

fn write(download: &mut Download, mut pieces: mpsc::Receiver<Bytes>) -> Result<(), BlobError> {
    while let Some(piece) = pieces.blocking_recv() {
        download.write(&piece)?;
    }
    Ok(())
}

async fn restart(download: Download) -> Result<Download, Broken> {
    let (download, restarted) = on_disk(download, Download::restart).await?;
    match restarted {
        Ok(()) => Ok(download),
        Err(error) => Err(Broken {
            download: None,
            error: RegistryError::Blob(error.into()),
        }),
    }
}

/// Does file work on a download where it holds nobody up. When the caller is dropped, the work goes to its end.
async fn on_disk<T: Send + 'static>(
    mut download: Download,
    work: impl FnOnce(&mut Download) -> T + Send + 'static,
) -> Result<(Download, T), Broken> {
    let worked = tokio::task::spawn_blocking(move || {
        let result = work(&mut download);
        (download, result)
    });
    worked.await.map_err(|_| Broken {
        download: None,
        error: RegistryError::Blob(StoreError::Cancelled.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_part_is_read() {
        let start = |text| range_start(&HeaderValue::from_static(text));
        assert_eq!(start("bytes 42-1233/1234"), Some(42));
        assert_eq!(start("bytes 42-1233/*"), Some(42));
        assert_eq!(start("bytes */1234"), None);
        assert_eq!(start("lines 1-2/3"), None);
    }
}
