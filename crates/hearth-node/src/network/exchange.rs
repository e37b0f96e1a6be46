//! Networks of machines where the node is not root's: a [`super::switch`] for each, started with the first machine that is on it and
//! found again by the next node.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::Shared;
use super::switch::PLUG;
use crate::host::launch::{self, Launch, LaunchError};
use crate::host::network_namespace::{self, NetworkNamespace};
use crate::host::process::{self, Process};
use crate::host::unix_socket::SocketError;
use crate::host::{files, passing, unix_socket};

/// The first argument of [`super::switch`].
const SWITCH: &str = "switch";

/// How long it may take to take a port.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says why a machine is not on a network.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The machine's end.
    #[error("cannot make an interface for a network of machines")]
    Interface(#[source] io::Error),
    /// Where ports are taken.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its log, or the node's own program.
    #[error("cannot prepare the switch of a network")]
    Prepare(#[source] io::Error),
    /// The process.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It takes no port.
    #[error("the switch of a network takes no machine")]
    HandOver(#[source] io::Error),
}

impl Shared {
    /// Connects a namespace with a network by an interface in it, which is not up.
    pub(super) async fn plug_into_switch(
        self: &Arc<Self>,
        namespace: &NetworkNamespace,
        interface: &str,
        number: u16,
    ) -> Result<(), ExchangeError> {
        let tap = namespace.enter(|| network_namespace::make_port(interface));
        let tap = tap.map_err(ExchangeError::Interface)?;
        let end = namespace.end().map_err(ExchangeError::Interface)?;
        let path = self.layout.switch(number);
        let mut watched = self.switches.lock().await;
        if hand_over(&path, &tap, &end).await.is_ok() {
            return Ok(());
        }
        let process = self.start_switch(&path)?;
        watched.insert(number);
        tokio::spawn(Arc::clone(self).watch_switch(number, process));
        hand_over(&path, &tap, &end)
            .await
            .map_err(ExchangeError::HandOver)
    }

    fn start_switch(&self, path: &Path) -> Result<Process, ExchangeError> {
        let mut log = OpenOptions::new();
        log.create(true).append(true).mode(files::PRIVATE);
        let log = log
            .open(path.with_extension("log"))
            .map_err(ExchangeError::Prepare)?;
        let listener = unix_socket::listen(path)?;
        let program = std::env::current_exe().map_err(ExchangeError::Prepare)?;
        Ok(launch::launch(Launch {
            passed: vec![listener],
            ..Launch::of(program, vec![SWITCH.into(), path.into()], log)
        })?)
    }

    /// Watches a switch that an earlier node has started, if there is one.
    pub(super) async fn take_over_switch(self: &Arc<Self>, number: u16) {
        let mut watched = self.switches.lock().await;
        let path = self.layout.switch(number);
        let Some(text) = path.to_str().filter(|_| !watched.contains(&number)) else {
            return;
        };
        let found = process::with_arguments(&[SWITCH, text]).into_iter();
        if let Some(switch) = found.filter_map(|id| Process::find(id).ok().flatten()).next() {
            watched.insert(number);
            tokio::spawn(Arc::clone(self).watch_switch(number, switch));
        }
    }

    /// Waits until a switch has ended, and connects the machines that it leaves behind with another one.
    fn watch_switch(
        self: Arc<Self>,
        number: u16,
        switch: Process,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let ended = switch.wait().await;
            self.switches.lock().await.remove(&number);
            for id in self.users.present_on(number) {
                let Some((namespace, limit)) = self.of_post(id) else {
                    continue;
                };
                tracing::warn!(?ended, machine = %id, "the switch of a network has ended, and the machine is connected anew");
                if let Err(error) = self.plug_in(id, &namespace, limit, false).await {
                    tracing::error!(%error, machine = %id, "a machine is not on its networks");
                }
            }
        })
    }
}

/// Gives a port to a switch, where there is one.
async fn hand_over(path: &Path, tap: &OwnedFd, end: &OwnedFd) -> io::Result<()> {
    let mut stream = UnixStream::connect(path).await?;
    passing::send_all(&stream, PLUG, &[tap.as_fd(), end.as_fd()])?;
    let mut answer = [0; PLUG.len()];
    let answered = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    answered.map_err(|_| io::ErrorKind::TimedOut)?.map(drop)
}
