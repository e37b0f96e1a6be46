//! The workload's output on its way: from the guest to the log and to everybody attached.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hearth_guest_protocol::message::{Failure, Outcome};
use tokio::sync::mpsc;

use super::log::LogWriter;
use super::missed::Missed;
use crate::guest::{Session, SessionEvent, Stream};
use crate::host::failpoint;

/// Pieces that wait for one attached client. A client that reads slowly slows the workload down, as in docker: nothing is
/// thrown away for anybody.
const CLIENT_QUEUE: usize = 16;

/// The receiving end of an attached client; closed when the workload has ended and everything was delivered.
pub type Attached = mpsc::Receiver<(Stream, Bytes)>;

/// The end into which the workload's output goes.
pub(super) type Subscriber = mpsc::Sender<(Stream, Bytes)>;

/// Makes a connected pair.
pub(super) fn subscription() -> (Subscriber, Attached) {
    mpsc::channel(CLIENT_QUEUE)
}

/// How the workload's session ended.
#[derive(Debug)]
pub(super) enum SessionEnd {
    Ended(Outcome),
    Failed(Failure),
    ChannelLost,
}

/// Carries a workload's output until it ends.
pub(super) struct Pump {
    pub(super) session: Session,
    /// Its log, open; `None` where none could be opened.
    pub(super) log: Option<LogWriter>,
    pub(super) directory: PathBuf,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) joining: mpsc::Receiver<Subscriber>,
    /// What nobody has seen.
    pub(super) missed: Missed,
}

impl Pump {
    /// Runs until the session ends. A log that cannot be written is reported once, and tried again with all that follows: the
    /// workload goes on.
    pub(super) async fn run(mut self) -> SessionEnd {
        let mut lost = 0;
        loop {
            tokio::select! {
                event = self.session.next() => match event {
                    SessionEvent::Started { .. } | SessionEvent::OutputEnded(_) => {}
                    SessionEvent::Output(stream, bytes) => {
                        failpoint::pass("output-taken");
                        self.record(stream, &bytes, &mut lost);
                        failpoint::pass("output-logged");
                        self.deliver(stream, &bytes).await;
                    }
                    SessionEvent::Ended(outcome) => return SessionEnd::Ended(outcome),
                    SessionEvent::Failed(failure) => return SessionEnd::Failed(failure),
                    SessionEvent::ChannelLost => return SessionEnd::ChannelLost,
                },
                Some(subscriber) = self.joining.recv() => self.join(subscriber).await,
            }
        }
    }

    /// Takes an attached client in, with what nobody has seen.
    async fn join(&mut self, subscriber: Subscriber) {
        let missed = self.missed.take();
        // There is room: it is the first piece. One that is gone again is found out by the next.
        if !missed.is_empty() && subscriber.send((Stream::Stdout, missed.clone())).await.is_err() {
            return self.missed.keep(&missed);
        }
        self.subscribers.push(subscriber);
    }

    /// Logs a piece; `lost` counts the bytes that could not be since the last that could.
    fn record(&mut self, stream: Stream, bytes: &[u8], lost: &mut usize) {
        let Some(log) = &mut self.log else { return };
        let directory = self.directory.display();
        match log.write(now_unix_ns(), stream, bytes) {
            Ok(()) if *lost > 0 => {
                tracing::warn!(%directory, lost, "output is logged again");
                *lost = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if *lost == 0 {
                    tracing::error!(%directory, %error, "output is not logged as long as this lasts");
                }
                *lost += bytes.len();
            }
        }
    }

    async fn deliver(&mut self, stream: Stream, bytes: &Bytes) {
        let mut gone = Vec::new();
        for (index, subscriber) in self.subscribers.iter().enumerate() {
            if subscriber.send((stream, bytes.clone())).await.is_err() {
                gone.push(index);
            }
        }
        if gone.len() == self.subscribers.len() {
            self.missed.keep(bytes);
        }
        gone.into_iter()
            .rev()
            .for_each(|index| drop(self.subscribers.swap_remove(index)));
    }
}

/// Returns the wall clock in nanoseconds since 1970.
pub(super) fn now_unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
