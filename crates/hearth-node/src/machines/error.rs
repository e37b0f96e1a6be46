//! Why something could not be done with a machine.

use std::path::PathBuf;
use std::time::Duration;

use hearth_guest_protocol::message::Failure;
use hearth_machine::{MachineId, Refused};

use super::drivers::SelectError;
use super::pagers::PagersError;
use super::ports::PortError;
use crate::guest::{ConnectError, RequestError};
use crate::images::ImageError;
use crate::network::NetworkError;
use crate::records::RecordError;
use crate::records::spec::InvalidSpec;
use crate::setup::NotSetUp;
use crate::storage::DiskError;
use crate::vmm::{self, AdoptError, ControlError};

/// Says why a machine was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The request makes no sense.
    #[error(transparent)]
    Spec(#[from] InvalidSpec),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] hearth_machine::id::InvalidMachineName),
    /// A secret's name or value cannot be an environment entry.
    #[error("secret {0:?} cannot be an environment variable")]
    Secret(String),
    /// The name belongs to another machine.
    #[error("the name {name:?} belongs to machine {owner}")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        owner: MachineId,
    },
    /// Its address on a bridge is another's.
    #[error("the address on the bridge is that of the machine {owner}")]
    AddressTaken {
        /// Whose it is.
        owner: String,
    },
    /// The image is not there, or not usable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is nothing to run.
    #[error(transparent)]
    NoCommand(#[from] hearth_machine::process::NoCommand),
    /// No driver can run it here.
    #[error(transparent)]
    Driver(#[from] SelectError),
    /// The driver has not what was asked for.
    #[error("{driver} has no {what}")]
    Unsupported {
        /// The driver.
        driver: &'static str,
        /// What was asked for.
        what: &'static str,
    },
    /// This node cannot give it the network that was asked for.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// It could not be written down.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its directory, or the link to its image, could not be made.
    #[error("cannot make {}", path.display())]
    Directory {
        /// The directory or link.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel gave no random bytes for an id.
    #[error("the kernel gave no random bytes")]
    Random(#[source] std::io::Error),
}

/// Says why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its network.
    #[error("it has no network")]
    Network(#[from] NetworkError),
    /// Its state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The host has less than when it was created.
    #[error("this host has less than the machine was made with")]
    HostShrank(#[source] InvalidSpec),
    /// Its secrets were in the memory of a node that has ended.
    #[error("its secrets ({}) were in the memory of a node that has ended", .0.join(", "))]
    SecretsLost(Vec<String>),
    /// The agent on disk is a new one, and could not be taken in.
    #[error("the new guest agent cannot be taken in")]
    Agent(#[source] crate::setup::SetupError),
    /// No kernel or agent.
    #[error(transparent)]
    NotSetUp(#[from] NotSetUp),
    /// No driver can run it here.
    #[error(transparent)]
    Driver(#[from] SelectError),
    /// Its disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A directory could not be made.
    #[error("cannot make the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its record could not be written: without one, a later node would not know of it.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file of its own could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its virtual machine did not come up.
    #[error("the virtual machine did not come up")]
    Boot(#[source] vmm::BootError),
    /// Its monitor does not take over what was captured.
    #[error("the virtual machine cannot go on where it was captured")]
    Restore(#[source] vmm::RestoreError),
    /// Nobody serves its memory.
    #[error(transparent)]
    Pager(#[from] PagersError),
    /// Its programs went on before the guest was made this machine.
    #[error("the guest went on before it was made this machine")]
    WentOn,
    /// Its disk cannot be put in the place of the one it has.
    #[error("cannot put the snapshot's disk in place")]
    DiskInPlace(#[source] std::io::Error),
    /// It stands still behind a snapshot.
    #[error("the virtual machine does not go on")]
    Resume(#[source] ControlError),
    /// Its virtual machine died before the guest said hello.
    #[error("the virtual machine died before the guest said hello{}", last_words(words))]
    DiedInBoot {
        /// What the monitor, or the guest's console, said last.
        words: String,
    },
    /// The guest said nothing.
    #[error("the guest did not say hello within {} s{}", limit.as_secs(), last_words(console))]
    NoHello {
        /// The deadline.
        limit: Duration,
        /// The end of the guest's console.
        console: String,
    },
    /// The guest cannot be talked to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The guest did not do as it was told.
    #[error(transparent)]
    Guest(#[from] RequestError),
    /// A port cannot be published.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The virtual machine of an earlier node is not there any more, or cannot be watched.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// An earlier node ended before the workload was started.
    #[error("the node ended while the machine was starting")]
    NoWorkload,
    /// Its certificates could not be put into it.
    #[error("its certificates cannot be added to those that the image trusts: {0}")]
    Certificates(String),
    /// The workload could not be started.
    #[error("{}", .0.message)]
    Workload(Failure),
    /// It was stopped before it ran.
    #[error("it was stopped before its workload ran")]
    Stopped,
}

fn last_words(words: &str) -> String {
    if words.is_empty() {
        String::new()
    } else {
        format!("; the last it said:\n{}", words.trim_end())
    }
}

/// Says why something could not be done with a machine that exists.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No machine answers to that.
    #[error("no machine {0:?}")]
    NotFound(String),
    /// More than one machine's id starts like that.
    #[error("{0:?} is the start of more than one machine's id")]
    Ambiguous(String),
    /// Its state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The name belongs to another machine.
    #[error("the name {name:?} belongs to machine {owner}")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        owner: MachineId,
    },
    /// A machine cannot be so.
    #[error(transparent)]
    Change(#[from] InvalidSpec),
    /// A policy for a machine that reaches nothing.
    #[error("the machine reaches nothing over a network, so no policy can be set")]
    NoNetwork,
    /// Its network is not changed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// It does not run.
    #[error("machine {name} is {state}, not running")]
    NotRunning {
        /// Its name.
        name: String,
        /// How it stands.
        state: &'static str,
    },
    /// Its virtual processors stand still.
    #[error("machine {name} is paused")]
    Paused {
        /// Its name.
        name: String,
    },
    /// It is being paused, or resumed.
    #[error("machine {name} is being paused or resumed")]
    PauseUnderWay {
        /// Its name.
        name: String,
    },
    /// Something else is under way with it.
    #[error("machine {name} is being rolled back, paused or resumed")]
    Busy {
        /// Its name.
        name: String,
    },
    /// Its monitor did not do as it was told.
    #[error("the monitor of the machine does not do as it is told")]
    Control(#[from] ControlError),
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The guest did not do as it was told.
    #[error(transparent)]
    Guest(#[from] RequestError),
    /// Not all of it could be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// What is left.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of its could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An argument cannot be.
    #[error(transparent)]
    Spec(#[from] hearth_machine::SpecError),
    /// A process needs a command.
    #[error("no command was given")]
    NoCommand,
    /// It was removed meanwhile.
    #[error("the machine was removed")]
    Gone,
}
