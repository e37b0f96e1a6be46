//! How machines get onto networks of machines, and off: a link from the machine's namespace to the network's bridge for each.
//!
//! ```text
//!      guest      the machine's namespace                     the node's namespace          another machine's namespace
//!  eth0 .254 ---- tap0 .253 [rules] user0001 10.x ---- hu... bridge hn...0001 hu... ---- user0001 10.y [rules] tap0 ---- eth0
//! ```
//! Where the node is not root's, the interface is a TAP, and a switch is in the place of bridge and link ([`super::exchange`]).
//!
//! The guest sees nothing of it: what it sends to the others leaves by the machine's own address there, and what comes for that goes
//! to the guest. So a clone needs nothing new, and joins while it runs.

use std::sync::Arc;

use hearth_machine::{MacAddress, MachineId, NetworkMode, NetworkName, Rate, Uplink};

use super::lease::{self, Tenure};
use super::links::{Ends, Links, Sender, UPLINK, USER};
use super::user::{Membership, NewNetwork, UserNetworkError};
use super::{NetworkError, Networks, Shared, believe_routers, namespace_error};
use crate::host::network_namespace::NetworkNamespace;
use crate::host::own;

fn interface(number: u16) -> String {
    format!("{USER}{number:04x}")
}

fn within(namespace: &NetworkNamespace) -> Result<Links, NetworkError> {
    Links::within(namespace).map_err(namespace_error("enter a network namespace"))
}

fn of_node() -> Result<Links, NetworkError> {
    Links::of_node().map_err(namespace_error("talk to the kernel about interfaces"))
}

impl Networks {
    /// Makes sure that there is a bridge to lead out by.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn check_uplink(&self, uplink: &Uplink) -> Result<(), NetworkError> {
        if !own::is_root() {
            return Err(NetworkError::NotRoot);
        }
        of_node()?.find_bridge(uplink.bridge()).await.map(drop)
    }

    /// Makes a network of machines.
    ///
    /// # Errors
    /// [`NetworkError`]; there is none then.
    pub async fn create_network(&self, new: NewNetwork) -> Result<(), NetworkError> {
        Self::check(NetworkMode::Filtered)?;
        if own::is_root() {
            // The node's own range is a route of the host's from here on.
            self.shared.bridge().await?;
        }
        let routes = of_node()?.routes().await?;
        Ok(self.users().create(new, &routes)?)
    }

    /// Forgets a network that no machine is on; returns its number, by which [`Networks::remove_bridge`] knows the rest of it.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn forget_network(&self, name: &str) -> Result<u16, NetworkError> {
        Ok(self.users().remove(name)?)
    }

    /// Removes what carried a network.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn remove_bridge(&self, number: u16) -> Result<(), NetworkError> {
        self.shared.remove_user_bridge(number).await
    }

    /// Puts a machine on a network; at once when it runs.
    ///
    /// # Errors
    /// [`NetworkError`]; it is not on it then.
    pub async fn connect(
        &self,
        id: MachineId,
        name: &str,
        network: &NetworkName,
    ) -> Result<(), NetworkError> {
        let users = self.users();
        if users
            .find(network.as_str())?
            .record
            .members
            .contains_key(&id.to_string())
        {
            return Err(UserNetworkError::OnIt(network.clone()).into());
        }
        users.join(id, name, std::slice::from_ref(network))?;
        let Some((namespace, limit)) = self.shared.of_post(id) else {
            return Ok(());
        };
        let plugged = self.shared.plug_in(id, &namespace, limit, false).await;
        if plugged.is_err() {
            // What went wrong first is what counts.
            let _ = self.disconnect(id, network.as_str()).await;
        }
        plugged
    }

    /// Takes a machine off a network; at once when it runs.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn disconnect(&self, id: MachineId, network: &str) -> Result<(), NetworkError> {
        let number = self.users().leave(id, network)?;
        self.shared.tell_guard(id);
        self.shared.unplug(id, number).await
    }
}

impl Shared {
    /// Lets a machine lead out by a bridge of the host's, instead of the node's. Returns what keeps its address where it is given one there.
    pub(super) async fn lead_out(
        &self,
        id: MachineId,
        namespace: &NetworkNamespace,
        uplink: &Uplink,
    ) -> Result<Option<Tenure>, NetworkError> {
        let links = of_node()?;
        let bridge = links.find_bridge(uplink.bridge()).await?;
        let within = within(namespace)?;
        within.remove_uplink().await?;
        let card = MacAddress::of(id).bytes();
        let ends = Ends {
            outer: &self.key.bridge_link(id),
            inner: UPLINK,
            card: Some(card),
            mtu: bridge.mtu,
        };
        links.plug(bridge.index, namespace, &ends).await?;
        if !uplink.is_leased() {
            within.lead_out(uplink).await?;
            return Ok(None);
        }
        namespace
            .enter(believe_routers)
            .map_err(namespace_error("let a machine have what routers announce"))?;
        within.lead_out(uplink).await?;
        let tenure = lease::take(namespace, card, uplink.bridge(), bridge.delay).await?;
        Ok(Some(tenure))
    }

    /// Connects a machine's namespace with all networks that it is on; `anew` where it may have links of an earlier namespace.
    pub(super) async fn plug_in(
        self: &Arc<Self>,
        id: MachineId,
        namespace: &NetworkNamespace,
        limit: Option<Rate>,
        anew: bool,
    ) -> Result<(), NetworkError> {
        let memberships = self.users.memberships(id);
        if !anew {
            self.unplug_strays(id, &memberships).await?;
        }
        if memberships.is_empty() {
            return Ok(());
        }
        for membership in &memberships {
            if anew || !self.is_plugged(id, namespace, membership.number).await? {
                self.plug(id, namespace, membership, limit).await?;
            } else if !own::is_root() {
                self.take_over_switch(membership.number).await;
            }
        }
        self.users.set_present(id, true);
        self.tell_guard(id);
        Ok(())
    }

    async fn is_plugged(
        &self,
        id: MachineId,
        namespace: &NetworkNamespace,
        number: u16,
    ) -> Result<bool, NetworkError> {
        let found = match own::is_root() {
            true => of_node()?.find(&self.key.user_link(id, number)).await?,
            false => within(namespace)?.find(&interface(number)).await?,
        };
        Ok(found.is_some())
    }

    /// Takes a machine's link to a network away, if there is one.
    async fn unplug(&self, id: MachineId, number: u16) -> Result<(), NetworkError> {
        if own::is_root() {
            return of_node()?.remove_found(&self.key.user_link(id, number)).await;
        }
        match self.of_post(id) {
            Some((namespace, _)) => within(&namespace)?.remove_found(&interface(number)).await,
            None => Ok(()),
        }
    }

    async fn plug(
        self: &Arc<Self>,
        id: MachineId,
        namespace: &NetworkNamespace,
        membership: &Membership,
        limit: Option<Rate>,
    ) -> Result<(), NetworkError> {
        let number = membership.number;
        let interface = interface(number);
        let card = self.key.user_card(id, number);
        let within = within(namespace)?;
        if own::is_root() {
            let links = of_node()?;
            let bridge = links.user_bridge(&self.key.user_bridge(number)).await?;
            let ends = Ends {
                outer: &self.key.user_link(id, number),
                inner: &interface,
                card: Some(card),
                mtu: membership.mtu,
            };
            links.plug(bridge, namespace, &ends).await?;
        } else {
            self.plug_into_switch(namespace, &interface, number).await?;
            within.shape(&interface, card, membership.mtu).await?;
        }
        within
            .join(&interface, membership.network, membership.place)
            .await?;
        match limit {
            Some(limit) => within.limit(&[&interface], limit, Sender::Kernel).await,
            None => Ok(()),
        }
    }

    /// Takes away links to networks that a machine is not on: an earlier node may have died between the link and the word of it.
    async fn unplug_strays(&self, id: MachineId, memberships: &[Membership]) -> Result<(), NetworkError> {
        let is_on = |number: &u16| memberships.iter().any(|membership| membership.number == *number);
        for number in self.users.numbers().into_iter().filter(|number| !is_on(number)) {
            self.unplug(id, number).await?;
        }
        Ok(())
    }

    /// Removes what carried a network: a switch ends by itself.
    async fn remove_user_bridge(&self, number: u16) -> Result<(), NetworkError> {
        if !own::is_root() {
            return Ok(());
        }
        of_node()?.remove_found(&self.key.user_bridge(number)).await
    }

    /// Removes the bridges of all networks: no machine runs any more.
    pub(super) async fn remove_user_bridges(&self) -> Result<(), NetworkError> {
        for number in self.users.numbers() {
            self.remove_user_bridge(number).await?;
        }
        Ok(())
    }
}
