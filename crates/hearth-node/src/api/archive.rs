//! Archives as the body of an answer or of a request; whoever writes or reads one blocks.

use std::error::Error;
use std::io::{self, Read, Write};

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};
use tokio_util::task::TaskTracker;

use crate::machines::chain;

/// Bytes between the thread that writes an archive and the connection.
const PIPE: usize = 1 << 20;

/// Answers with an archive that `write` writes on a thread of its own, as fast as the client takes it.
pub(super) fn answer<E: Error + Send + Sync + 'static>(
    tasks: &TaskTracker,
    content_type: &'static str,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static,
) -> Response {
    let (reader, writer) = tokio::io::duplex(PIPE);
    let (mut writer, (broken, mut breaks)) = (SyncIoBridge::new(writer), mpsc::channel(1));
    tasks.spawn_blocking(move || {
        if let Err(error) = write(&mut writer) {
            tracing::warn!(content_type, error = %chain(&error), "an archive was not written to its end");
            // Cuts the body off, so that the client does not take half an archive for a whole one.
            drop(broken.blocking_send(io::Error::other(error)));
        }
    });
    let pieces = ReaderStream::new(reader).chain(
        futures_util::stream::once(async move { breaks.recv().await })
            .filter_map(async |broken| broken.map(Err)),
    );
    ([(CONTENT_TYPE, content_type)], Body::from_stream(pieces)).into_response()
}

/// Returns the archive that a client sends, for a thread that may block.
pub(super) fn sent(request: Request) -> impl Read + Send + 'static {
    let pieces = request.into_body().into_data_stream().map_err(io::Error::other);
    SyncIoBridge::new(StreamReader::new(Box::pin(pieces)))
}
