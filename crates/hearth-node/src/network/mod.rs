//! The networks of machines: a namespace for each, in which the guest's side always looks the same, and the ways out of them.
//!
//! ```text
//!      guest         the machine's namespace                      the node's namespace
//!  eth0 .254 ---- tap0 .253 [rules, name server] uplink ---- hv... bridge hearth...  [rules] ---- the host's routes
//!       same in every machine       the address is translated       10.64.0.0/10, a /20 per node
//! ```
//! The monitor lives in the namespace, and so does the machine's end of the link: both go when the monitor does, also when the node is
//! dead by then. What is taken is what the kernel has, so nothing of this is written down. Namespaces are prepared ahead, since
//! making one takes tens of milliseconds. Rules are nft(8)'s, one text for a namespace. Where the node is not root's, each machine has a
//! pasta(1) instead of a place at the bridge ([`pasta`]).

mod address;
mod book;
mod counters;
mod dhcp;
mod dns;
mod exchange;
mod firewall;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
mod here;
mod journal;
pub mod keeper;
mod lease;
mod links;
mod packets;
mod pasta;
mod plug;
mod question;
mod record;
mod rules;
pub mod switch;
mod user;
mod way_in;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_machine::{MacAddress, MachineId, NetworkMode, Policy, Rate, Spec, Uplink};
use ipnet::Ipv4Net;
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::address::{Network, NodeKey};
pub use self::counters::{Counters, Way};
use self::dns::{Authority, NameServer, Servers, Sockets};
use self::firewall::Firewall;
use self::guard::Guard;
use self::here::Here;
pub use self::journal::{Contact, Denial, Journal, Target};
use self::lease::Tenure;
use self::links::{Links, Outlet, Sender, UPLINK};
use self::pasta::Carrier;
pub use self::pasta::{PACKAGE as PASTA_PACKAGE, PASTA, PastaError};
pub use self::user::{NewNetwork, UserNetwork, UserNetworkError, UserNetworks};
pub use self::way_in::WayIn;
use crate::configuration::{self, ConfigurationError};
use crate::host::command::{CommandError, HostCommand};
use crate::host::network_namespace::{NetworkNamespace, TAP, Tap};
use crate::host::{facts, own, process};
use crate::layout::Layout;

/// How many namespaces are kept ready, once there was a machine that needed one.
const READY: usize = 2;

/// How long what a machine leaves of its network stays: whoever waited for the machine's end has heard of it by then.
const BEHIND: Duration = Duration::from_millis(50);

/// The program that sets rules, and Debian's package of it.
const NFT: &str = "nft";
const NFT_PACKAGE: &str = "nftables";

/// Says why a machine has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The program that sets the rules.
    #[error("the rules of the firewall cannot be set")]
    Rules(#[from] CommandError),
    /// Only root may do it.
    #[error("ways out by a bridge of the host's are made by a node that runs as root")]
    NotRoot,
    /// The way out, where the node is not root's.
    #[error("this user's machines have no way out: use --network none or isolated, or run the node as root")]
    Uplink(#[from] PastaError),
    /// A text of rules cannot be handed over.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace or its TAP.
    #[error("cannot {what}")]
    Namespace {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something of an interface.
    #[error("cannot {what} {name}")]
    Link {
        /// What was tried.
        what: &'static str,
        /// With which interface or address.
        name: String,
        /// What the kernel said.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// An interface is not there any more.
    #[error("the interface {0} has gone")]
    Gone(String),
    /// All networks are in use.
    #[error("each /20 of 10.64.0.0/10 overlaps a route of this host; remove one of those routes")]
    NoNetwork,
    /// All addresses are in use.
    #[error("all {count} addresses of this node's network are taken; remove machines")]
    NoAddress {
        /// How many there are.
        count: u32,
    },
    /// A bridge of the host's that is none.
    #[error("there is no bridge {0:?} on this host")]
    NoBridge(String),
    /// Nobody who gives addresses is there.
    #[error("no DHCP server on the bridge {bridge:?} has given an address within {seconds} s")]
    NoLease {
        /// The bridge.
        bridge: String,
        /// How long was asked.
        seconds: u64,
    },
    /// A network of machines.
    #[error(transparent)]
    User(#[from] UserNetworkError),
    /// What carries one.
    #[error("networks of machines cannot be carried")]
    Exchange(#[from] exchange::ExchangeError),
    /// The settings.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
}

fn namespace_error(what: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Namespace { what, source }
}

/// The network that a machine is to have.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Where it leads.
    pub mode: NetworkMode,
    /// What the machine may reach there.
    pub policy: &'a Policy,
    /// How much it may carry, each way.
    pub limit: Option<Rate>,
    /// Who answers for names; the node's servers when empty.
    pub name_servers: &'a [IpAddr],
    /// Where it leads out; by the node's bridge when absent.
    pub uplink: Option<&'a Uplink>,
}

impl<'a> Wanted<'a> {
    /// Returns the one that a machine asks for.
    pub fn of(spec: &'a Spec) -> Self {
        Self {
            mode: spec.network,
            policy: &spec.policy,
            limit: spec.net_rate,
            name_servers: &spec.name_servers,
            uplink: spec.uplink.as_ref(),
        }
    }
}

/// The network of one machine, for its monitor.
#[derive(Debug, Clone)]
pub struct MachineNetwork {
    /// Where the monitor is to live.
    pub namespace: Arc<NetworkNamespace>,
    /// The host's end of the guest's interface.
    pub tap: Arc<Tap>,
}

/// The node's bridge.
#[derive(Debug, Clone, Copy)]
struct Bridge {
    index: u32,
    network: Network,
    /// The longest packet that its machines send.
    mtu: u32,
}

/// The networks of all machines of a node.
#[derive(Debug, Clone)]
pub struct Networks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    key: NodeKey,
    layout: Layout,
    tasks: TaskTracker,
    users: Arc<UserNetworks>,
    /// The bridge, once it is there; a second machine waits for the first to make it.
    bridge: tokio::sync::Mutex<Option<Bridge>>,
    /// Where the search for a free place begins: one that has just become free is taken last.
    next: AtomicU32,
    /// Those that lead out and belong to no machine yet: no start of a machine waits for a program.
    ///
    /// The mutexes guard a list and maps; starts and ends of machines have them in common, and none owns them.
    ready: Mutex<Vec<MachineNetwork>>,
    posts: Mutex<HashMap<MachineId, Post>>,
    journals: Mutex<HashMap<MachineId, Arc<Journal>>>,
    /// The networks whose switches are watched. Held by who connects a machine with one: two would each start one.
    switches: tokio::sync::Mutex<HashSet<u16>>,
    /// Held by who fills that up: many who took one at once would each make more.
    refilling: tokio::sync::Mutex<()>,
    /// What is this host, once somebody asked.
    here: tokio::sync::OnceCell<watch::Receiver<Here>>,
    /// Set once a network that leads out was made here: then others can be.
    can: tokio::sync::OnceCell<()>,
}

/// What serves and watches one machine. Ends with this value.
#[derive(Debug)]
struct Post {
    guard: Arc<Guard>,
    namespace: Arc<NetworkNamespace>,
    /// Open as long as the monitor lives: else the monitor's end waits until the kernel has removed it, and for whoever else has
    /// interfaces made or removed. Absent where an earlier node has made it.
    tap: Option<Arc<Tap>>,
    limit: Option<Rate>,
    /// The machine's address on a bridge of the host's, where it was given one there.
    tenure: Option<Tenure>,
    _names: NameServer,
    _packets: AbortOnDropHandle<()>,
    _here: Option<AbortOnDropHandle<()>>,
}

impl Networks {
    /// Makes them; nothing of the host changes until a machine asks for a network.
    pub fn open(layout: &Layout, tasks: TaskTracker) -> Self {
        let key = NodeKey::of(layout.data());
        Self {
            shared: Arc::new(Shared {
                key,
                users: Arc::new(UserNetworks::open(key, layout.networks())),
                layout: layout.clone(),
                tasks,
                bridge: tokio::sync::Mutex::default(),
                next: AtomicU32::new(0),
                ready: Mutex::default(),
                posts: Mutex::default(),
                journals: Mutex::default(),
                switches: tokio::sync::Mutex::default(),
                refilling: tokio::sync::Mutex::default(),
                here: tokio::sync::OnceCell::new(),
                can: tokio::sync::OnceCell::new(),
            }),
        }
    }

    /// Returns the networks of machines.
    pub fn users(&self) -> &UserNetworks {
        &self.shared.users
    }

    /// Tells whether this node can give a machine such a network.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn check(mode: NetworkMode) -> Result<(), NetworkError> {
        if !leads_out(mode) {
            return Ok(());
        }
        if !own::is_root() {
            pasta::check()?;
        }
        match facts::find_program(NFT) {
            Some(_) => Ok(()),
            None => Err(CommandError::NotFound {
                program: NFT.to_owned(),
                package: NFT_PACKAGE,
            }
            .into()),
        }
    }

    /// Finds out by making one whether this node can give networks that lead out. It is kept for the next machine; what cannot be made now is tried again the next time.
    ///
    /// # Errors
    /// [`NetworkError`]; nothing is left.
    pub async fn try_out(&self) -> Result<(), NetworkError> {
        Self::check(NetworkMode::Filtered)?;
        let make = async || -> Result<(), NetworkError> {
            let network = self.shared.prepare().await?;
            self.shared.ready().push(network);
            Ok(())
        };
        self.shared.can.get_or_try_init(make).await.copied()
    }

    /// Makes a machine's network, or takes one that is ready. [`Networks::release`] undoes it, and whoever has taken one calls
    /// [`Networks::refill`] when that is in nobody's way.
    ///
    /// # Errors
    /// [`NetworkError`]; nothing is left.
    pub async fn acquire(&self, id: MachineId, wanted: &Wanted<'_>) -> Result<MachineNetwork, NetworkError> {
        Self::check(wanted.mode)?;
        if !leads_out(wanted.mode) {
            return isolated().await;
        }
        let ready = self.shared.ready().pop();
        let network = match ready {
            Some(network) => network,
            None => self.shared.prepare().await?,
        };
        let tenure = match wanted.uplink {
            Some(uplink) => self.shared.lead_out(id, &network.namespace, uplink).await?,
            None => None,
        };
        if let Some(limit) = wanted.limit {
            let within =
                Links::within(&network.namespace).map_err(namespace_error("enter a network namespace"))?;
            let into = match own::is_root() {
                true => Sender::Kernel,
                false => Sender::Pasta,
            };
            within.limit(&[TAP], limit, into).await?;
            within.limit(&[UPLINK], limit, Sender::Kernel).await?;
        }
        self.shared
            .stand(id, &network.namespace, Some(&network.tap), wanted)
            .await?;
        self.shared.set_tenure(id, tenure);
        let plugged = self
            .shared
            .plug_in(id, &network.namespace, wanted.limit, true)
            .await;
        plugged.inspect_err(|_| self.release(id))?;
        Ok(network)
    }

    /// Goes on serving a machine that an earlier node has left running.
    ///
    /// # Errors
    /// [`NetworkError`]; the machine has no names then.
    pub async fn adopt(&self, id: MachineId, wanted: &Wanted<'_>, monitor: i32) -> Result<(), NetworkError> {
        if !leads_out(wanted.mode) {
            return Ok(());
        }
        let namespace = NetworkNamespace::of_process(monitor)
            .map_err(namespace_error("look at the monitor's network namespace"))?;
        match own::is_root() {
            // Rules and forwarding may have gone with whoever flushed them.
            true => self.shared.bridge().await.map(drop)?,
            false => carry_on(&namespace, monitor).await?,
        }
        let namespace = Arc::new(namespace);
        if self.shared.stand(id, &namespace, None, wanted).await.is_err() {
            // Rules of an older node's, or none any more.
            self.shared.nft(Some(&namespace), &rules::machine()).await?;
            self.shared.stand(id, &namespace, None, wanted).await?;
        }
        if wanted.uplink.is_some_and(Uplink::is_leased) {
            let tenure = lease::resume(&namespace, MacAddress::of(id).bytes()).await?;
            self.shared.set_tenure(id, Some(tenure));
        }
        self.shared.plug_in(id, &namespace, wanted.limit, false).await
    }

    /// Carries out another policy, at once: connections that it allows go on, others end. Nothing happens to a machine that does not
    /// run, or leads nowhere.
    ///
    /// # Errors
    /// [`NetworkError`]; the firewall is as it was, or as it is to be.
    pub fn change(&self, id: MachineId, policy: &Policy) -> Result<(), NetworkError> {
        let Some(guard) = self.guard(id) else {
            return Ok(());
        };
        let changed = guard.change(policy.clone());
        changed.map_err(namespace_error("change the rules of a machine's network"))
    }

    fn guard(&self, id: MachineId) -> Option<Arc<Guard>> {
        self.shared.posts().get(&id).map(|post| Arc::clone(&post.guard))
    }

    /// Returns what is known of a machine's connections.
    pub fn journal(&self, id: MachineId) -> Arc<Journal> {
        self.shared.journal(id)
    }

    /// Ends what serves a machine whose monitor has ended. Its namespace, and with it all that is in there, goes a little later: the kernel
    /// keeps whoever waits for the machine's end waiting meanwhile. Should the node die before, it goes with the node.
    pub fn release(&self, id: MachineId) {
        self.shared.users.set_present(id, false);
        let Some(mut post) = self.shared.posts().remove(&id) else {
            return;
        };
        if let Some(tenure) = post.tenure.take() {
            tenure.give_back();
        }
        let left = (post.tap.clone(), Arc::clone(&post.namespace));
        drop(post);
        self.shared.tasks.spawn(async move {
            tokio::time::sleep(BEHIND).await;
            // It waits for the kernel.
            let closed = tokio::task::spawn_blocking(move || drop(left)).await;
            closed.unwrap_or_else(
                |error| tracing::error!(%error, "a machine's network is left to the node's end"),
            );
        });
    }

    /// Returns the address that a machine was given on a bridge of the host's.
    pub fn given_address(&self, id: MachineId) -> Option<Ipv4Net> {
        self.shared.posts().get(&id)?.tenure.as_ref()?.address()
    }

    /// Forgets a machine that is no more.
    pub fn forget(&self, id: MachineId) {
        self.release(id);
        self.shared.users.forget(id);
        self.shared.journals().remove(&id);
    }

    /// Takes the node's bridge and rules away, when no machine needs them any more: also those that a node has left that died.
    pub async fn close(&self) {
        self.shared.ready().clear();
        self.shared.bridge.lock().await.take();
        if !own::is_root() {
            return;
        }
        let name = self.shared.key.bridge();
        let removed = async {
            self.shared.remove_user_bridges().await?;
            let links = Links::of_node().map_err(namespace_error("talk to the kernel about interfaces"))?;
            let Some(index) = links.find(&name).await? else {
                return Ok(());
            };
            links.remove(index, &name).await?;
            self.shared.nft(None, &rules::no_host(self.shared.key)).await
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, %name, "the node's bridge or its rules stay");
        }
    }

    /// Sees to it that namespaces are ready for the next machines, after one of this mode. It takes a processor some 20 ms.
    pub fn refill(&self, mode: NetworkMode) {
        if !leads_out(mode) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            let _turn = shared.refilling.lock().await;
            while shared.ready().len() < READY {
                match shared.prepare().await {
                    Ok(network) => shared.ready().push(network),
                    Err(error) => {
                        tracing::warn!(%error, "no network is ready for the next machine");
                        return;
                    }
                }
            }
        });
    }
}

/// Names nft(8), inside a namespace or in the node's.
fn nft(namespace: Option<&NetworkNamespace>) -> io::Result<HostCommand> {
    // An ordinary user's path may lack the directory that it is in.
    let program = facts::find_program(NFT).unwrap_or_else(|| NFT.into());
    let command = HostCommand::new(program, NFT_PACKAGE);
    match namespace {
        Some(namespace) => command.within(namespace),
        None => Ok(command),
    }
}

/// Keeps a machine off this host as its addresses change.
async fn keep_off(mut here: watch::Receiver<Here>, guard: Arc<Guard>) {
    while here.changed().await.is_ok() {
        let now = Here::clone(&here.borrow_and_update());
        if let Err(error) = guard.keep_off(now) {
            tracing::error!(%error, "a machine is not kept off new addresses of this host");
        }
    }
}

/// Tells whether a machine of this mode reaches anything.
pub fn leads_out(mode: NetworkMode) -> bool {
    match mode {
        NetworkMode::None | NetworkMode::Isolated => false,
        NetworkMode::Filtered | NetworkMode::Open => true,
    }
}

/// Makes a namespace that leads nowhere.
async fn isolated() -> Result<MachineNetwork, NetworkError> {
    let (namespace, tap) = with_tap().await?;
    Ok(MachineNetwork {
        namespace: Arc::new(namespace),
        tap: Arc::new(tap),
    })
}

async fn with_tap() -> Result<(NetworkNamespace, Tap), NetworkError> {
    let made = tokio::task::spawn_blocking(NetworkNamespace::with_tap).await;
    made.map_err(io::Error::other)
        .flatten()
        .map_err(namespace_error("make a network namespace with a TAP"))
}

/// Makes a namespace that leads out by a pasta of its own.
async fn carried() -> Result<MachineNetwork, NetworkError> {
    let ways = Links::of_node().map_err(namespace_error("talk to the kernel about interfaces"))?;
    let (has_v4, has_v6) = ways.ways_out().await?;
    let (mut namespace, tap) = with_tap().await?;
    let tied = namespace.tie().map_err(PastaError::from)?;
    pasta::prepare(&namespace).map_err(PastaError::from)?;
    furnish(&namespace, pasta::outlet(has_v4, has_v6)).await?;
    let untied = namespace.untied().map_err(PastaError::from)?;
    Carrier::new(untied, tied).keep().await?;
    Ok(MachineNetwork {
        namespace: Arc::new(namespace),
        tap: Arc::new(tap),
    })
}

/// Sees to it that a machine of an earlier node's has its way out still.
async fn carry_on(namespace: &NetworkNamespace, monitor: i32) -> Result<(), NetworkError> {
    let tied = process::handle(monitor).map_err(PastaError::from)?;
    let untied = namespace.untied().map_err(PastaError::from)?;
    match Carrier::new(untied, tied).take_over() {
        Some(carrier) => Ok(carrier.keep().await?),
        None => Ok(()),
    }
}

/// Gives a namespace its addresses and its way out, and lets it pass packets on.
async fn furnish(namespace: &NetworkNamespace, outlet: Outlet) -> Result<(), NetworkError> {
    namespace
        .enter(pass_on)
        .map_err(namespace_error("let a network namespace forward packets"))?;
    let within = Links::within(namespace).map_err(namespace_error("enter a network namespace"))?;
    within.furnish(outlet).await
}

/// Lets the kernel pass packets on, in the namespace that this thread is in. A host that does so takes its own routes from the
/// announcements of routers only where that is said once more (ip-sysctl of Linux, `accept_ra`).
fn forward_packets() -> io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let forwarding = Path::new("/proc/sys/net/ipv6/conf/all/forwarding");
    if !address::has_v6() || std::fs::read(forwarding)?.starts_with(b"1") {
        return Ok(());
    }
    for interface in std::fs::read_dir("/proc/sys/net/ipv6/conf")?.flatten() {
        let accept = interface.path().join("accept_ra");
        if std::fs::read(&accept).is_ok_and(|value| value.starts_with(b"1")) {
            std::fs::write(&accept, "2")?;
        }
    }
    std::fs::write(forwarding, "1")
}

/// Lets the kernel pass packets on in a machine's namespace, which this thread is in. No router that announces itself is believed there:
/// what leads out is said.
fn pass_on() -> io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    if !address::has_v6() {
        return Ok(());
    }
    for interface in std::fs::read_dir("/proc/sys/net/ipv6/conf")?.flatten() {
        std::fs::write(interface.path().join("accept_ra"), "0")?;
    }
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
}

/// Lets the machine's way out have the addresses and routes that routers announce (RFC 4862), in its namespace, which this thread is in; 2 says
/// that it passes packets on all the same (ip-sysctl of Linux).
fn believe_routers() -> io::Result<()> {
    match address::has_v6() {
        true => std::fs::write(format!("/proc/sys/net/ipv6/conf/{UPLINK}/accept_ra"), "2"),
        false => Ok(()),
    }
}

impl Shared {
    fn set_tenure(&self, id: MachineId, tenure: Option<Tenure>) {
        if let Some(post) = self.posts().get_mut(&id) {
            post.tenure = tenure;
        }
    }

    fn ready(&self) -> MutexGuard<'_, Vec<MachineNetwork>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn posts(&self) -> MutexGuard<'_, HashMap<MachineId, Post>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journals(&self) -> MutexGuard<'_, HashMap<MachineId, Arc<Journal>>> {
        self.journals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self, id: MachineId) -> Arc<Journal> {
        let layout = &self.layout;
        let open = || {
            Arc::new(Journal::open(
                layout.machine_denials(id),
                layout.machine_contacts(id),
            ))
        };
        Arc::clone(self.journals().entry(id).or_insert_with(open))
    }

    /// Makes the node's bridge with its rules, or returns it.
    async fn bridge(&self) -> Result<Bridge, NetworkError> {
        let mut bridge = self.bridge.lock().await;
        if let Some(bridge) = *bridge {
            return Ok(bridge);
        }
        let links = Links::of_node().map_err(namespace_error("talk to the kernel about interfaces"))?;
        let (index, network) = links.bridge(self.key, self.users.ranges()).await?;
        self.nft(None, &rules::host(self.key, network)).await?;
        forward_packets().map_err(namespace_error("let this host forward packets"))?;
        let mtu = match configuration::read(self.layout.configuration())?.mtu {
            Some(mtu) => mtu,
            None => links.outward_mtu().await?.clamp(user::MTU_MIN, user::MTU_DEFAULT),
        };
        Ok(*bridge.insert(Bridge { index, network, mtu }))
    }

    async fn prepare(&self) -> Result<MachineNetwork, NetworkError> {
        let network = match own::is_root() {
            true => self.bridged().await?,
            false => carried().await?,
        };
        self.nft(Some(&network.namespace), &rules::machine()).await?;
        Ok(network)
    }

    /// Makes a namespace that leads out by the node's bridge.
    async fn bridged(&self) -> Result<MachineNetwork, NetworkError> {
        let bridge = self.bridge().await?;
        let network = isolated().await?;
        let links = Links::of_node().map_err(namespace_error("talk to the kernel about interfaces"))?;
        let place = self.take_place(&links, bridge, &network.namespace).await?;
        furnish(&network.namespace, Outlet::at(bridge.network, place)).await?;
        Ok(network)
    }

    /// Connects a namespace at the next place that is free.
    async fn take_place(
        &self,
        links: &Links,
        bridge: Bridge,
        namespace: &NetworkNamespace,
    ) -> Result<u32, NetworkError> {
        let count = bridge.network.places();
        for _ in 0..count {
            let place = self.next.fetch_add(1, Ordering::Relaxed) % count;
            let name = self.key.link(place);
            if links.connect(&name, bridge.index, namespace, bridge.mtu).await? {
                return Ok(place);
            }
        }
        Err(NetworkError::NoAddress { count })
    }

    /// Sets rules, in the node's namespace or in another one.
    async fn nft(&self, namespace: Option<&NetworkNamespace>, text: &str) -> Result<(), NetworkError> {
        let write = |path: PathBuf| move |source| NetworkError::Write { path, source };
        let mut file = tempfile::NamedTempFile::new_in(self.layout.run())
            .map_err(write(self.layout.run().to_owned()))?;
        io::Write::write_all(&mut file, text.as_bytes()).map_err(write(file.path().to_owned()))?;
        let command = nft(namespace).map_err(namespace_error("enter a network namespace"))?;
        command.arg("-f").arg(file.path()).run().await?;
        Ok(())
    }

    /// Returns where a machine that runs is, and what its links may carry.
    fn of_post(&self, id: MachineId) -> Option<(Arc<NetworkNamespace>, Option<Rate>)> {
        let posts = self.posts();
        let post = posts.get(&id)?;
        Some((Arc::clone(&post.namespace), post.limit))
    }

    /// Tells a machine's guard which networks the machine is on.
    fn tell_guard(&self, id: MachineId) {
        let ranges = self
            .users
            .memberships(id)
            .iter()
            .flat_map(user::Membership::ranges)
            .collect();
        if let Some(post) = self.posts().get(&id) {
            post.guard.set_networks(ranges);
        }
    }

    /// Returns what is this host, for machines that leave by its sockets.
    async fn here(&self) -> Result<Option<watch::Receiver<Here>>, NetworkError> {
        if own::is_root() {
            return Ok(None);
        }
        let here = self.here.get_or_try_init(here::follow).await?;
        Ok(Some(here.clone()))
    }

    /// Begins to serve and watch a machine.
    async fn stand(
        &self,
        id: MachineId,
        namespace: &Arc<NetworkNamespace>,
        tap: Option<&Arc<Tap>>,
        wanted: &Wanted<'_>,
    ) -> Result<(), NetworkError> {
        let set: Arc<[IpAddr]> = match wanted.name_servers {
            [] => configuration::read(self.layout.configuration())?
                .name_servers
                .into(),
            own => own.into(),
        };
        let servers = match set.is_empty() {
            true => Servers::Host,
            false => Servers::Set(set),
        };
        let journal = self.journal(id);
        let mut here = self.here().await?;
        let stood = || -> io::Result<Post> {
            let runtime = tokio::runtime::Handle::current();
            let open = || {
                let _entered = runtime.enter();
                Ok((Sockets::open()?, Firewall::open()?, packets::open()?))
            };
            let (sockets, mut firewall, packets) = namespace.enter(open)?;
            let here_now = here.as_mut().map(|here| Here::clone(&here.borrow_and_update()));
            // Before a policy lets anything out.
            firewall.keep_off(here_now.as_deref().unwrap_or_default())?;
            let guard = Arc::new(Guard::new(firewall, wanted.policy.clone(), journal)?);
            if let Some(here) = here_now {
                guard.keep_off(here)?;
            }
            let following = here.map(|here| tokio::spawn(keep_off(here, Arc::clone(&guard))));
            let authority = Authority {
                servers,
                guard: Arc::clone(&guard),
                machine: id,
                users: Arc::clone(&self.users),
            };
            let watch = packets::watch(packets, Arc::clone(&guard));
            Ok(Post {
                _names: NameServer::start(sockets, &authority)?,
                _packets: AbortOnDropHandle::new(tokio::spawn(watch)),
                namespace: Arc::clone(namespace),
                tap: tap.map(Arc::clone),
                limit: wanted.limit,
                tenure: None,
                _here: following.map(AbortOnDropHandle::new),
                guard,
            })
        };
        let post = stood().map_err(namespace_error("guard a machine's network"))?;
        self.posts().insert(id, post);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
