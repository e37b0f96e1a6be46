//! Signals to this program that are meant for the workload, and changes of the window's size.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that are passed on. Not among them: SIGCHLD, SIGPIPE and SIGURG, which are this process's own, and those of
/// job control, which would leave a shell without its prompt.
#[derive(Debug)]
pub(super) struct Signals {
    caught: Vec<(u8, Signal)>,
}

impl Signals {
    /// Begins to catch them; from now on they do not end this process.
    pub(super) fn catch() -> io::Result<Self> {
        let kinds = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::alarm(),
        ];
        let one = |kind: SignalKind| {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            Ok((number, signal(kind)?))
        };
        let caught = kinds.into_iter().map(one).collect::<io::Result<_>>()?;
        Ok(Self { caught })
    }

    /// Returns the next one's number. Dropping the future loses none.
    pub(super) async fn next(&mut self) -> u8 {
        poll_fn(|context| {
            for (number, signal) in &mut self.caught {
                if let Poll::Ready(Some(())) = signal.poll_recv(context) {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Changes of the window's size, where somebody wants to know.
#[derive(Debug)]
pub(super) struct WindowChanges {
    caught: Option<Signal>,
}

impl WindowChanges {
    /// Begins to watch, if `wanted`.
    pub(super) fn catch(wanted: bool) -> io::Result<Self> {
        let caught = wanted.then(|| signal(SignalKind::window_change())).transpose()?;
        Ok(Self { caught })
    }

    /// Returns after the next change; never, where nobody wants to know.
    pub(super) async fn next(&mut self) {
        match &mut self.caught {
            Some(caught) => {
                caught.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}
