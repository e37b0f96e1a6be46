//! The address that a machine is given on a bridge of the host's, for as long as it runs (RFC 2131, 4.4).
//!
//! Nothing of a lease is written down: the kernel has the address for as long as the lease goes, and takes it away by itself when
//! nobody renews it. A node that takes a machine over asks for the address that it finds.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::NetworkError;
use super::dhcp::{self, Answer, Ask, Lease, Term};
use super::links::{Links, UPLINK};
use crate::host::network_namespace::NetworkNamespace;
use crate::host::packet_socket::{self, Card, EVERYBODY, PacketSocket};

/// How long somebody may take for an address at first, beside what the bridge takes to pass packets on.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing is heard before it is said again: the first time, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(64);
/// How long somebody who has offered an address may take to give it, and who is asked by a new node to give it again.
const SHORTLY: Duration = Duration::from_secs(8);
/// A lease is not asked for again sooner.
const LEAST: Duration = Duration::from_secs(1);
/// The longest message, and what is before it: what no link is too narrow for has room (RFC 2131, 2).
const LONGEST: usize = 1500;

/// A lease, from when it was asked for, and who on the link has given it.
#[derive(Debug, Clone)]
struct Held {
    lease: Lease,
    since: Instant,
    giver: Card,
}

impl Held {
    fn address(&self) -> Ipv4Addr {
        self.lease.address.addr()
    }

    /// Returns the moment that is this of its times; nothing where it has none.
    fn at(&self, of: impl Fn(Term) -> Duration) -> Option<Instant> {
        self.lease.term.map(|term| self.since + of(term).max(LEAST))
    }
}

/// What asks for a machine's address.
#[derive(Debug)]
struct Client {
    socket: PacketSocket,
    card: Card,
    links: Links,
    /// What the machine has now. Guards a value that is replaced; held for that alone.
    held: Mutex<Option<Held>>,
}

/// A machine's address on a bridge, which is kept for as long as this value is there. It stays with the machine when this goes, until
/// its time is over.
#[derive(Debug)]
pub(super) struct Tenure {
    client: Arc<Client>,
    _keeping: AbortOnDropHandle<()>,
}

/// Asks for an address on the bridge that the machine's way out is at, and gives it to the machine.
///
/// # Errors
/// [`NetworkError`]; nobody has given one within [`PATIENCE`] and `delay`.
pub(super) async fn take(
    namespace: &NetworkNamespace,
    card: Card,
    bridge: &str,
    delay: Duration,
) -> Result<Tenure, NetworkError> {
    let client = Client::open(namespace, card).await?;
    let patience = PATIENCE + delay;
    let acquired = client.acquire(Instant::now() + patience).await;
    let acquired = acquired.map_err(super::namespace_error("ask for an address"))?;
    let held = acquired.ok_or_else(|| NetworkError::NoLease {
        bridge: bridge.to_owned(),
        seconds: patience.as_secs(),
    })?;
    client.settle(held).await?;
    Ok(client.keep())
}

/// Goes on keeping the address of a machine that an earlier node has left running.
///
/// # Errors
/// [`NetworkError`]; the address goes when its time is over.
pub(super) async fn resume(namespace: &NetworkNamespace, card: Card) -> Result<Tenure, NetworkError> {
    Ok(Client::open(namespace, card).await?.keep())
}

impl Tenure {
    /// Returns the address, while there is one.
    pub(super) fn address(&self) -> Option<ipnet::Ipv4Net> {
        self.client.held().map(|held| held.lease.address)
    }

    /// Says that the address is needed no more. Nobody answers that, and whoever does not hear it takes the address back when its time is over.
    pub(super) fn give_back(self) {
        let Some(held) = self.client.held() else {
            return;
        };
        let (address, server) = (held.address(), held.lease.server);
        let said = self
            .client
            .say(Ask::Release { address, server }, 0, server, held.giver);
        if let Err(error) = said {
            tracing::debug!(%error, %address, "an address is not given back");
        }
    }
}

impl Client {
    async fn open(namespace: &NetworkNamespace, card: Card) -> Result<Arc<Self>, NetworkError> {
        let links = Links::within(namespace).map_err(super::namespace_error("enter a network namespace"))?;
        let index = links.index(UPLINK).await?;
        let opened = namespace.enter(|| packet_socket::open(index, dhcp::PORT));
        let socket = opened.and_then(|socket| PacketSocket::new(socket, index));
        Ok(Arc::new(Self {
            socket: socket.map_err(super::namespace_error("open a socket for packets"))?,
            card,
            links,
            held: Mutex::default(),
        }))
    }

    fn held(&self) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    fn keep(self: Arc<Self>) -> Tenure {
        let keeping = Arc::clone(&self).go_on();
        Tenure {
            client: self,
            _keeping: AbortOnDropHandle::new(tokio::spawn(keeping)),
        }
    }

    /// Keeps an address, until the task is ended: this one, or another where it cannot.
    async fn go_on(self: Arc<Self>) {
        loop {
            let kept = match self.held() {
                Some(held) => self.renew(&held).await,
                None => self.regain().await,
            };
            let settled = match kept {
                Ok(Some(held)) => self.settle(held).await,
                // Its time is over, or it is somebody else's.
                Ok(None) => self.withdraw().await,
                Err(error) => Err(super::namespace_error("ask for an address")(error)),
            };
            if let Err(error) = settled {
                tracing::warn!(%error, "a machine's address on a bridge is not kept");
                sleep(PAUSE_MAX).await;
            }
        }
    }

    /// Gives the machine what it was given.
    async fn settle(&self, held: Held) -> Result<(), NetworkError> {
        let lease = &held.lease;
        let before = self.links.leased().await?;
        if let Some(other) = before.filter(|before| *before != lease.address) {
            self.links.unlease(other).await?;
        }
        let term = lease.term.map(|term| term.end);
        self.links.lease(lease.address, term, lease.gateway).await?;
        tracing::debug!(address = %lease.address, server = %lease.server, ?term, "a machine has an address on a bridge");
        self.hold(Some(held));
        Ok(())
    }

    /// Takes the machine's address away.
    async fn withdraw(&self) -> Result<(), NetworkError> {
        self.hold(None);
        match self.links.leased().await? {
            Some(address) => self.links.unlease(address).await,
            None => Ok(()),
        }
    }

    /// Waits until the lease is to be renewed, and does so. Returns nothing where that was refused, or its time is over.
    async fn renew(&self, held: &Held) -> io::Result<Option<Held>> {
        let (Some(renew), Some(rebind), Some(end)) = (
            held.at(|term| term.renew),
            held.at(|term| term.rebind),
            held.at(|term| term.end),
        ) else {
            return std::future::pending().await;
        };
        sleep_until(renew).await;
        let ask = Ask::Renew(held.address());
        let server = (held.lease.server, held.giver);
        if let Some(answer) = self.exchange(ask, server, rebind, given).await? {
            return Ok(answer);
        }
        let answer = self.exchange(ask, ALL, end, given).await?;
        Ok(answer.flatten())
    }

    /// Finds an address for a machine that has none, or one that this node knows nothing of.
    async fn regain(&self) -> io::Result<Option<Held>> {
        let found = self.links.leased().await.map_err(io::Error::other)?;
        if let Some(address) = found {
            let ask = Ask::Reboot(address.addr());
            let again = self.exchange(ask, ALL, Instant::now() + SHORTLY, given).await?;
            match again {
                Some(answer) => return Ok(answer),
                // Nobody has said that it is not the machine's.
                None => tracing::debug!(%address, "nobody answers for a machine's address"),
            }
        }
        loop {
            if let Some(held) = self.acquire(Instant::now() + PAUSE_MAX).await? {
                return Ok(Some(held));
            }
        }
    }

    /// Asks all who have addresses for one.
    async fn acquire(&self, until: Instant) -> io::Result<Option<Held>> {
        while Instant::now() < until {
            let offered = self.exchange(Ask::Discover, ALL, until, offered).await?;
            let Some(offer) = offered else {
                return Ok(None);
            };
            let select = Ask::Select {
                address: offer.address(),
                server: offer.lease.server,
            };
            let shortly = until.min(Instant::now() + SHORTLY);
            if let Some(held) = self.exchange(select, ALL, shortly, given).await?.flatten() {
                return Ok(Some(held));
            }
            // Who offers and refuses is not asked without end.
            sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// Says something until there is an answer that can be taken, or until then.
    async fn exchange<T>(
        &self,
        ask: Ask,
        (server, card): (Ipv4Addr, Card),
        until: Instant,
        take: impl Fn(Answer, Instant, Card) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let number = getrandom::u32().map_err(io::Error::other)?;
        let mut pause = PAUSE;
        let mut buffer = [0; LONGEST];
        loop {
            let since = Instant::now();
            self.say(ask, number, server, card)?;
            let again = until.min(since + pause);
            let answer = async {
                loop {
                    let (length, giver) = self.socket.receive(&mut buffer).await?;
                    let answer = dhcp::read(&buffer[..length], number, self.card);
                    if let Some(taken) = answer.and_then(|answer| take(answer, since, giver)) {
                        return Ok(taken);
                    }
                }
            };
            if let Ok(answer) = timeout_at(again, answer).await {
                return answer.map(Some);
            }
            if again >= until {
                return Ok(None);
            }
            pause = PAUSE_MAX.min(pause * 2);
        }
    }

    fn say(&self, ask: Ask, number: u32, server: Ipv4Addr, card: Card) -> io::Result<()> {
        self.socket.send(&ask.packet(number, self.card, server)?, card)
    }
}

/// Whoever gives addresses.
const ALL: (Ipv4Addr, Card) = (Ipv4Addr::BROADCAST, EVERYBODY);

/// Takes an offer.
fn offered(answer: Answer, since: Instant, giver: Card) -> Option<Held> {
    match answer {
        Answer::Offer(lease) => Some(Held { lease, since, giver }),
        Answer::Given(_) | Answer::Refused => None,
    }
}

/// Takes what is given, or nothing where that is refused.
fn given(answer: Answer, since: Instant, giver: Card) -> Option<Option<Held>> {
    match answer {
        Answer::Given(lease) => Some(Some(Held { lease, since, giver })),
        Answer::Refused => Some(None),
        Answer::Offer(_) => None,
    }
}
