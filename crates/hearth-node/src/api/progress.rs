//! Long work as lines of JSON: progress as it comes, then one result or error.

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hearth_api::v1::{Progress, ProgressLine};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::error::ApiError;

/// Lines that wait for the client: more than a pull has steps that end at once. A client that does not read loses lines of
/// progress, never the result.
const QUEUE: usize = 512;

/// Where a long work tells how far it is.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    lines: mpsc::Sender<Bytes>,
}

impl Teller {
    pub(super) fn tell(&self, progress: Progress) {
        if let Some(line) = line(&ProgressLine::<()>::Progress(progress)) {
            // Full: the client reads slowly, and the next line says more anyway.
            let _ = self.lines.try_send(line);
        }
    }
}

fn line<T: Serialize>(line: &ProgressLine<T>) -> Option<Bytes> {
    let mut bytes = serde_json::to_vec(line).ok()?;
    bytes.push(b'\n');
    Some(Bytes::from(bytes))
}

/// Runs a work in a task of its own, which goes on when the client goes away, and answers with its lines.
pub(super) fn lines<T, F>(tasks: &TaskTracker, work: impl FnOnce(Teller) -> F) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    let (lines, receiver) = mpsc::channel(QUEUE);
    let running = work(Teller { lines: lines.clone() });
    tasks.spawn(finish(running, lines));
    answer(receiver)
}

/// As [`lines`], but the work is dropped when the client goes away.
pub(super) fn lines_while_heard<T, F>(tasks: &TaskTracker, work: impl FnOnce(Teller) -> F) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    let (lines, receiver) = mpsc::channel(QUEUE);
    let running = work(Teller { lines: lines.clone() });
    tasks.spawn(async move {
        let heard = lines.clone();
        tokio::select! {
            () = finish(running, lines) => {}
            () = heard.closed() => tracing::debug!("the client has gone away, and its work ends"),
        }
    });
    answer(receiver)
}

async fn finish<T: Serialize>(work: impl Future<Output = Result<T, ApiError>>, lines: mpsc::Sender<Bytes>) {
    let last = match work.await {
        Ok(result) => line(&ProgressLine::Result(result)),
        Err(ApiError(error)) => line(&ProgressLine::<T>::Error(*error)),
    };
    if let Some(last) = last {
        // Fails only when the client is gone.
        let _ = lines.send(last).await;
    }
}

fn answer(receiver: mpsc::Receiver<Bytes>) -> Response {
    let body = Body::from_stream(received(receiver));
    ([(CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Returns what a channel receives as a stream of body pieces.
pub(super) fn received(
    receiver: mpsc::Receiver<Bytes>,
) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|bytes| (Ok(bytes), receiver))
    })
}
