//! The handle to one machine: what everybody but its actor holds. It asks the actor, and reads what that shows.

use std::sync::Arc;
use std::time::Duration;

use hearth_api::v1::EventAction;
use hearth_guest_protocol::message::Processes;
use hearth_machine::{Container, HostLimits, MachineId, MachineName, Process, State};
use tokio::sync::{mpsc, oneshot, watch};

use super::command::{AttachedMachine, Change, Command, NetworkChange, Reply, View};
use super::error::{MachineError, StartError};
use super::exec::Exec;
use super::life::{self, Parts};
use super::log::LogReader;
use super::registry;
use super::session::{self, ExecSpec};
use crate::guest::Input;
use crate::host::failpoint;
use crate::records::spec;

/// How long a guest may take to list its processes.
const TOP_DEADLINE: Duration = Duration::from_secs(30);

/// A handle to one machine; cloned freely.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(super) id: MachineId,
    /// As the registry knows it; handles that were cloned before a renaming have the old one.
    pub(super) name: String,
    pub(super) mailbox: mpsc::Sender<Command>,
    pub(super) view: watch::Receiver<View>,
    pub(super) process: Arc<Process>,
    pub(super) container: Arc<Container>,
    pub(super) parts: Arc<Parts>,
    pub(super) host: HostLimits,
}

impl Machine {
    /// Returns its id.
    pub const fn id(&self) -> MachineId {
        self.id
    }

    /// Returns it as it is now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Starts it; returns when its workload runs. `terminal` is the attached client's size.
    ///
    /// # Errors
    /// Returns [`MachineError::Start`] with the step that failed.
    pub async fn start(&self, terminal: Option<(u16, u16)>) -> Result<(), MachineError> {
        self.check_host()?;
        self.ask(|reply| Command::Start { terminal, reply }).await
    }

    /// Stops it: its stop signal, `grace`, then a kill; returns when nothing of it runs.
    ///
    /// # Errors
    /// Returns [`MachineError::Gone`].
    pub async fn stop(&self, grace: Duration) -> Result<(), MachineError> {
        self.ask(|reply| Command::Stop { grace, reply }).await
    }

    /// Stops it, where it runs, and starts it again; returns when its workload runs.
    ///
    /// # Errors
    /// Returns [`MachineError::Start`] with the step that failed.
    pub async fn restart(&self, grace: Duration) -> Result<(), MachineError> {
        self.check_host()?;
        self.ask(|reply| Command::Restart { grace, reply }).await
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// Returns [`MachineError::NameTaken`], or [`MachineError::Refused`] when it is being removed.
    pub async fn rename(&self, name: MachineName) -> Result<(), MachineError> {
        self.ask(|reply| Command::Rename { name, reply }).await
    }

    /// Changes labels, restart policy or time limits, whether it runs or not.
    ///
    /// # Errors
    /// Returns [`MachineError::Change`] when the machine cannot be so; then nothing is changed.
    pub async fn update(&self, change: Change) -> Result<(), MachineError> {
        self.ask(|reply| Command::Update { change, reply }).await
    }

    /// Puts it on a network of machines, or takes it off; at once when it runs.
    ///
    /// # Errors
    /// Returns [`MachineError::Network`], or [`MachineError::Change`] for one that reaches nothing; then nothing is changed.
    pub async fn change_network(&self, change: NetworkChange) -> Result<(), MachineError> {
        self.ask(|reply| Command::Network { change, reply }).await
    }

    /// Stops its virtual processors; what it has stays as it is.
    ///
    /// # Errors
    /// Returns [`MachineError::Refused`] when it does not run, [`MachineError::Control`] when its monitor does not do it.
    pub async fn pause(&self) -> Result<(), MachineError> {
        self.ask(|reply| Command::Pause { reply }).await
    }

    /// Lets its virtual processors go on.
    ///
    /// # Errors
    /// Returns [`MachineError::Refused`] when it is not paused, [`MachineError::Control`] when its monitor does not do it.
    pub async fn resume(&self) -> Result<(), MachineError> {
        self.ask(|reply| Command::Resume { reply }).await
    }

    /// Sends its workload a signal; SIGKILL ends the whole machine.
    ///
    /// # Errors
    /// Returns [`MachineError::NotRunning`] or [`MachineError::Paused`].
    pub async fn kill(&self, signal: hearth_machine::Signal) -> Result<(), MachineError> {
        if signal == hearth_machine::Signal::KILL {
            return self.ask(|reply| Command::Kill { reply }).await;
        }
        let view = self.view();
        let running = Arc::clone(view.running()?);
        if signal == self.process.stop_signal {
            // Whoever sends it means the machine to end, and not to be restarted.
            self.ask(|reply| Command::EndByHand { reply }).await?;
        }
        running.input.signal(signal.number()).await;
        let sent = [("signal", signal.to_string())];
        self.parts.events.tell(&view.record, EventAction::Kill, sent);
        Ok(())
    }

    /// Removes it; `force` kills it first.
    ///
    /// # Errors
    /// Returns [`MachineError::Refused`] when it runs, [`MachineError::Remove`] when something is left.
    pub async fn remove(&self, force: bool) -> Result<(), MachineError> {
        self.ask(|reply| Command::Remove { force, reply }).await
    }

    /// Connects to its workload's output, from here on.
    ///
    /// # Errors
    /// Returns [`MachineError::Gone`].
    pub async fn attach(&self) -> Result<AttachedMachine, MachineError> {
        let output = self.ask(|reply| Command::Attach { reply }).await?;
        Ok(AttachedMachine {
            output,
            input: self.input(),
        })
    }

    /// Returns its workload's input, while it runs.
    pub fn input(&self) -> Option<Input> {
        self.view
            .borrow()
            .running()
            .ok()
            .map(|running| running.input.clone())
    }

    /// Waits until its workload has ended and will not be restarted, and returns the last view; the machine may be gone by then.
    pub async fn ended(&self) -> View {
        let mut view = self.view.clone();
        let is_over = |view: &View| !view.state.is_active() && view.state != State::Created;
        // An error says that the actor is gone: what it showed last is what counts.
        let _ = view.wait_for(is_over).await;
        view.borrow().clone()
    }

    /// Waits until its workload has ended, whether it will be restarted or not, and returns the view then.
    pub async fn rested(&self) -> View {
        let mut view = self.view.clone();
        let rests = |view: &View| !view.state.is_alive() && view.state != State::Created;
        // An error says that the actor is gone: what it showed last is what counts.
        let _ = view.wait_for(rests).await;
        view.borrow().clone()
    }

    /// Waits until its workload has been started, or never will be.
    pub async fn started(&self) {
        let mut view = self.view.clone();
        let is_started = |view: &View| !matches!(view.state, State::Created | State::Starting);
        // An error says that the actor is gone: there is nothing to wait for.
        let _ = view.wait_for(is_started).await;
    }

    /// Waits until it was removed.
    pub async fn removed(&self) {
        self.mailbox.closed().await;
    }

    /// Runs a process beside its workload.
    ///
    /// # Errors
    /// Returns [`MachineError`]; what the guest says of the process comes as the session's events.
    pub async fn exec(&self, asked: &ExecSpec) -> Result<Exec, MachineError> {
        let view = self.view();
        let running = Arc::clone(view.running()?);
        let launch = session::exec(&self.process, &self.container, asked)?;
        let session = running.guest.launch_within(&launch, asked.time_limit).await?;
        let is_limited = asked.time_limit.is_some() && running.guest.info().knows_time_limit();
        failpoint::pass("exec-opened");
        // Arguments may hold what is nobody's business; the program's name tells enough.
        let program = asked.command.first().cloned().unwrap_or_default();
        Ok(Exec::new(
            session,
            self.parts.events.clone(),
            view.record,
            program,
            is_limited,
        ))
    }

    /// Lists the processes of its workload and those beside it.
    ///
    /// # Errors
    /// Returns [`MachineError`].
    pub async fn processes(&self) -> Result<Processes, MachineError> {
        let running = Arc::clone(self.view().running()?);
        Ok(running.guest.processes(TOP_DEADLINE).await?)
    }

    /// Opens what its workload printed, from the beginning; `None` when it never ran.
    ///
    /// # Errors
    /// Returns [`MachineError::Read`].
    pub fn output(&self) -> Result<Option<LogReader>, MachineError> {
        let directory = self.parts.layout.machine_data(self.id);
        LogReader::open(&directory).map_err(|source| MachineError::Read {
            path: directory,
            source,
        })
    }

    /// Returns the file its output is written to.
    pub fn output_path(&self) -> std::path::PathBuf {
        super::log::path(&self.parts.layout.machine_data(self.id))
    }

    /// Returns the file of its writable disk.
    pub(super) fn disk_path(&self) -> std::path::PathBuf {
        self.parts.layout.machine_disk(self.id)
    }

    /// Returns the file of its serial console.
    pub fn console_path(&self) -> std::path::PathBuf {
        life::dirs(&self.parts.layout, self.id).console_log()
    }

    /// Returns the directory of its record, disk and logs.
    pub(super) fn directory(&self) -> std::path::PathBuf {
        self.parts.layout.machine_data(self.id)
    }

    /// Checks that the host still has what the machine asks for.
    fn check_host(&self) -> Result<(), StartError> {
        let limits = registry::limits(&self.parts, self.host);
        let checked = spec::check(&self.view().record.spec, limits);
        checked.map(drop).map_err(StartError::HostShrank)
    }

    /// Tells its actor something that is answered another way.
    pub(super) async fn send(&self, command: Command) -> Result<(), MachineError> {
        self.mailbox.send(command).await.map_err(|_| MachineError::Gone)
    }

    /// Says how it stands, for whom it does not stand as it should.
    pub(super) fn not_running(&self) -> MachineError {
        let view = self.view();
        MachineError::NotRunning {
            name: view.record.name.clone(),
            state: view.state.name(),
        }
    }

    pub(super) async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, MachineError> {
        let (reply, answer) = oneshot::channel();
        self.mailbox
            .send(command(reply))
            .await
            .map_err(|_| MachineError::Gone)?;
        answer.await.map_err(|_| MachineError::Gone)?
    }
}
