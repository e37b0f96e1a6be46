//! What of a machine changes while it is there: its name, its limits, its policy, its networks.

use std::time::Duration;

use hearth_api::v1::EventAction;
use hearth_machine::{MachineName, State};

use super::super::command::{Change, NetworkChange};
use super::super::error::MachineError;
use super::super::life::{Limits, Order};
use super::super::recovery::ANY_HOST;
use super::{Actor, Work, since};
use crate::network::{self, NetworkError};
use crate::records::spec;

impl Actor {
    pub(super) fn rename(&mut self, work: &mut Work, name: &MachineName) -> Result<(), MachineError> {
        self.table.rename(self.id, name)?;
        let old = std::mem::replace(&mut self.record.name, name.to_string());
        self.enter(work, self.state.clone());
        self.tell(EventAction::Rename, [("old_name", old)]);
        let named = self.parts.networks.users().rename(self.id, name.as_str());
        Ok(named.map_err(NetworkError::from)?)
    }

    /// Puts the machine on a network, or takes it off; the record follows what is so.
    pub(super) async fn change_network(
        &mut self,
        work: &mut Work,
        change: NetworkChange,
    ) -> Result<(), MachineError> {
        let networks = self.parts.networks.clone();
        let mut wire = self.record.spec.clone();
        match change {
            NetworkChange::Connect(network) => {
                wire.networks.push(network.to_string());
                let spec = spec::check(&wire, ANY_HOST)?;
                networks.connect(self.id, &self.record.name, &network).await?;
                self.spec = spec;
            }
            NetworkChange::Disconnect(network) => {
                wire.networks.retain(|name| name != network.as_str());
                let spec = spec::check(&wire, ANY_HOST)?;
                networks.disconnect(self.id, network.as_str()).await?;
                self.spec = spec;
            }
        }
        self.record.spec = wire;
        self.enter(work, self.state.clone());
        self.tell(EventAction::Update, []);
        Ok(())
    }

    pub(super) async fn update(&mut self, work: &mut Work, change: Change) -> Result<(), MachineError> {
        if change.policy.is_some() && !network::leads_out(self.spec.network) {
            return Err(MachineError::NoNetwork);
        }
        let mut wire = self.record.spec.clone();
        change.apply(&mut wire);
        let spec = spec::check(&wire, ANY_HOST)?;
        if spec.policy != self.spec.policy {
            self.parts.networks.change(self.id, &spec.policy)?;
        }
        self.spec = spec;
        self.record.spec = wire;
        work.limits_changed = true;
        self.enter(work, self.state.clone());
        self.tell(EventAction::Update, []);
        self.pass_limits(work).await;
        if self.state.is_active() && !self.state.is_alive() {
            let state = self.planned(work, &self.state.clone(), Duration::ZERO);
            self.enter(work, state);
        }
        Ok(())
    }

    /// Tells the life of new time limits, once it takes orders that are no end.
    pub(super) async fn pass_limits(&mut self, work: &mut Work) {
        let takes = matches!(self.state, State::Running | State::Paused) && work.pauser.is_none();
        if let (true, true, Some(life)) = (work.limits_changed, takes, &work.life) {
            work.limits_changed = false;
            let order = Order::Limits(self.limits());
            // Fails only when the life is just over.
            let _ = life.orders.send(order).await;
        }
    }

    pub(super) fn limits(&self) -> Limits {
        let began = self.record.started_at.as_ref().and_then(|text| text.parse().ok());
        let gone = began.map_or(Duration::ZERO, |began| since(began, jiff::Timestamp::now()));
        Limits {
            time: self.spec.timeout.map(|limit| limit.saturating_sub(gone)),
            idle: self.spec.idle_timeout,
        }
    }
}
