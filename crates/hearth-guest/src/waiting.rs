//! A workload's process that was made ahead: it has its namespaces and mounts, and waits for its launch.
//!
//! Made when the machine is configured. In a machine that is a clone of one that was configured it is there from the start.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use hearth_guest_protocol::message::{Launch, Role};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::report::{self, Received, Report};
use crate::spawn::Spawned;

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

/// The process. When this is dropped it ends, having done nothing.
pub(crate) struct Waiting {
    spawned: Spawned,
    orders: OwnedFd,
    /// The namespace of its mounts.
    mounts: Option<OwnedFd>,
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
                mounts: mounts_of(spawned.process.pid),
                spawned,
                orders,
            }),
            Received::Nothing => Err(Errno::TIMEDOUT),
            // Whoever launches the workload hears why: the same happens again.
            Received::Report(..) | Received::End => Err(Errno::CHILD),
        }
    }

    /// Tells whether a launch is one that a process which was made ahead can become: its world is the usual one.
    pub(crate) fn suits(launch: &Launch) -> bool {
        launch.world.tmpfs.is_empty()
    }

    /// Lets it become what it is to be. None when it is not there any more.
    pub(crate) fn launch(self, order: &Order) -> Option<Spawned> {
        let Self {
            mut spawned,
            orders,
            mounts,
        } = self;
        let bytes = order.to_bytes()?;
        // It reads for as long as it lives.
        File::from(orders).write_all(&bytes).ok()?;
        spawned.pipes = spawned.pipes.only(&order.launch);
        // They stay until the machine's end. Taking them down is a long way through the kernel, and only behind it would the agent hear
        // of the workload's end. The disk comes to rest all the same: it is another mount.
        if order.launch.execute.role == Role::Main {
            std::mem::forget(mounts);
        }
        Some(spawned)
    }
}

/// Opens the namespace of a process's mounts; where that cannot be, they go with the process.
fn mounts_of(process: Pid) -> Option<OwnedFd> {
    let path = format!("/proc/{}/ns/mnt", process.as_raw_nonzero());
    File::open(path).ok().map(OwnedFd::from)
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
