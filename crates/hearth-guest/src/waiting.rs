//! Processes that were made ahead: each has its namespaces and mounts, and waits for its launch.
//!
//! Made when the machine is configured. In a machine that is a clone of one that was configured they are there from the start.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use hearth_guest_protocol::message::{Launch, Role};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::console::complain;
use crate::report::{self, Received, Report};
use crate::spawn::{Nursery, Spawned};

/// How long it may take to make its mounts.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a process that waits is told, once: the bytes up to the end of a pipe.
#[derive(Debug)]
pub(crate) struct Order {
    /// The host name, which may be another than when the process was made.
    pub(crate) hostname: String,
    /// What it is to be.
    pub(crate) launch: Launch,
}

impl Order {
    /// Waits for the order; none when nobody will give one.
    pub(crate) fn receive(orders: OwnedFd) -> Option<Self> {
        let mut bytes = Vec::new();
        File::from(orders).read_to_end(&mut bytes).ok()?;
        let (hostname, launch) = postcard::from_bytes(&bytes).ok()?;
        Some(Self { hostname, launch })
    }

    fn to_bytes(&self) -> Option<Vec<u8>> {
        postcard::to_allocvec(&(&self.hostname, &self.launch)).ok()
    }
}

/// Those of a machine. The rehearsal has one to itself: to make another in the workload's place is a long way through the kernel, which
/// an emulator would translate and keep for each clone.
#[derive(Default)]
pub(crate) struct Ahead {
    workload: Option<Waiting>,
    rehearsal: Option<Waiting>,
}

impl Ahead {
    /// Makes them; one that cannot be made is missing, and its launch says why.
    pub(crate) fn make(nursery: &Nursery) -> Self {
        let made = |role| {
            nursery
                .ahead(role)
                .inspect_err(|error| complain!("no process is made ahead: {error}"))
                .ok()
        };
        Self {
            workload: made(Role::Main),
            rehearsal: made(Role::Rehearsal),
        }
    }

    /// Lets one become what is launched, if there is one that suits.
    pub(crate) fn launch(&mut self, launch: &Launch) -> Option<Spawned> {
        let waiting = match launch.execute.role {
            Role::Main => self.workload.take(),
            Role::Rehearsal => self.rehearsal.take(),
            Role::Exec => None,
        };
        let waiting = waiting.filter(|_| Waiting::suits(launch))?;
        let order = Order {
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            launch: launch.clone(),
        };
        waiting.launch(&order)
    }
}

/// One of them. When this is dropped it ends, having done nothing.
pub(crate) struct Waiting {
    spawned: Spawned,
    orders: OwnedFd,
    /// Namespaces that are long in going.
    namespaces: Vec<OwnedFd>,
}

impl Waiting {
    /// Waits until a process that has just been made waits.
    ///
    /// # Errors
    /// Returns what stands for the reason; the process has ended or is about to.
    pub(crate) fn made(spawned: Spawned, orders: OwnedFd) -> Result<Self, Errno> {
        let limit = Timespec::try_from(PATIENCE).map_err(|_| Errno::INVAL)?;
        poll(
            &mut [PollFd::from_borrowed_fd(spawned.report.as_fd(), PollFlags::IN)],
            Some(&limit),
        )?;
        match report::receive(&spawned.report) {
            Received::Report(Report::Waiting, _) => Ok(Self {
                namespaces: namespaces_of(spawned.process.pid),
                spawned,
                orders,
            }),
            Received::Nothing => Err(Errno::TIMEDOUT),
            // Whoever launches the workload hears why: the same happens again.
            Received::Report(..) | Received::End => Err(Errno::CHILD),
        }
    }

    /// Tells whether a launch is one that a process which was made ahead can become: its world is the usual one.
    fn suits(launch: &Launch) -> bool {
        launch.world.tmpfs.is_empty()
    }

    /// Lets it become what it is to be. None when it is not there any more.
    fn launch(self, order: &Order) -> Option<Spawned> {
        let Self {
            mut spawned,
            orders,
            namespaces,
        } = self;
        let bytes = order.to_bytes()?;
        // It reads for as long as it lives.
        File::from(orders).write_all(&bytes).ok()?;
        spawned.pipes = spawned.pipes.only(&order.launch);
        // They stay until the machine's end. Taking them down is a long way through the kernel, and only behind it would the agent hear
        // of the process's end. The disk comes to rest all the same: it is another mount.
        std::mem::forget(namespaces);
        Some(spawned)
    }
}

/// Opens the namespaces of a process's mounts and of its message queues; one that cannot be opened goes with the process.
fn namespaces_of(process: Pid) -> Vec<OwnedFd> {
    let open = |name| File::open(format!("/proc/{}/ns/{name}", process.as_raw_nonzero()));
    let opened = ["mnt", "ipc"].into_iter().map(open);
    opened.flatten().map(OwnedFd::from).collect()
}

#[cfg(test)]
mod tests {
    use hearth_guest_protocol::message::Execute;
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn an_order_of_any_length_arrives_and_none_is_no_order() {
        let launch = Launch::from(Execute {
            role: Role::Main,
            arguments: vec![vec![b'x'; 1 << 20].into()],
            environment: Vec::new(),
            working_directory: Vec::new().into(),
            user: String::new(),
            terminal: None,
            stdin: false,
        });
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let hostname = "lighthouse".to_owned();
        let order = Order { hostname, launch };
        let bytes = order.to_bytes().unwrap();
        let received = std::thread::scope(|scope| {
            scope.spawn(move || File::from(writer).write_all(&bytes).unwrap());
            Order::receive(reader).unwrap()
        });
        assert_eq!(received.hostname, "lighthouse");
        assert_eq!(received.launch, order.launch);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(writer);
        assert!(Order::receive(reader).is_none());
    }
}
