//! The way in to what a machine serves, for its published ports: from the machine's namespace by its interface.
//!
//! ```text
//! client --TCP--> the node's socket in the machine's namespace ---- tap0 ---- eth0 --TCP--> service at 0.0.0.0 in the guest
//! ```
//! No rule lets anybody in by it: the namespace may talk to its own guest, and nobody but the node and the monitor is in there. What listens on the
//! guest's loopback alone is not reached so.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hearth_guest_protocol::network::GUEST_V4;
use hearth_machine::MachineId;
use tokio::net::{TcpSocket, TcpStream};

use super::Networks;
use crate::host::network_namespace::NetworkNamespace;

/// How long a guest may take to accept or to refuse: its kernel does that, not the service.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long one is not tried again that has said nothing: rules of its own may drop what comes.
const SILENCE: Duration = Duration::from_secs(60);

/// The way in to one machine.
#[derive(Debug)]
pub struct WayIn {
    namespace: Arc<NetworkNamespace>,
    /// When the guest said nothing to a connection. Single reads and writes, by all who connect.
    silent: Mutex<Option<Instant>>,
}

impl Networks {
    /// Finds the way in to a machine that runs. There is none where the network leads nowhere, nor where its rate is limited: that is of
    /// what the machine has to do with others, as ports are not.
    pub fn way_in(&self, id: MachineId) -> Option<WayIn> {
        let (namespace, limit) = self.shared.of_post(id)?;
        limit.is_none().then(|| WayIn {
            namespace,
            silent: Mutex::default(),
        })
    }
}

impl WayIn {
    /// Connects to a service; nothing where none listens at the interface, or it cannot be told.
    pub async fn connect(&self, port: u16) -> Option<TcpStream> {
        if self.silent_since().is_some_and(|since| since.elapsed() < SILENCE) {
            return None;
        }
        match tokio::time::timeout(PATIENCE, self.open(port)).await {
            Ok(connected) => connected.ok(),
            Err(_) => {
                *self.silent() = Some(Instant::now());
                None
            }
        }
    }

    async fn open(&self, port: u16) -> io::Result<TcpStream> {
        let socket = self.namespace.enter(TcpSocket::new_v4)?;
        socket.set_nodelay(true)?;
        socket.connect((GUEST_V4, port).into()).await
    }

    fn silent(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silent_since(&self) -> Option<Instant> {
        *self.silent()
    }
}
