//! What a forked child tells the agent before it executes its program, over a socket that the execution closes: so an
//! end without a failure means that the program runs.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hearth_guest_protocol::message::Failure;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

/// The longest message, in bytes; a failure's text is cut to fit.
const MESSAGE_MAX: usize = 4096;
const TEXT_MAX: usize = 3000;

/// One thing that a child says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The file or directory of a file operation is open.
    Opened,
    /// The master side of its terminal comes with this.
    Terminal,
    /// It was made ahead of its launch, and has come as far as it can without.
    Waiting,
    /// It cannot do what it was made for.
    Failed(Failure),
}

/// What came of looking for a report.
#[derive(Debug)]
pub(crate) enum Received {
    /// A report, and the descriptor that came with it.
    Report(Report, Option<OwnedFd>),
    /// None now.
    Nothing,
    /// No more will come.
    End,
}

/// Makes the agent's and the child's end.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Says something; an agent that does not listen is gone, and so is this child soon.
pub(crate) fn send(socket: BorrowedFd<'_>, report: &Report, fd: Option<BorrowedFd<'_>>) {
    let mut report = report.clone();
    if let Report::Failed(failure) = &mut report {
        let cut = (0..=TEXT_MAX.min(failure.message.len())).rev();
        let cut = cut.into_iter().find(|&at| failure.message.is_char_boundary(at));
        failure.message.truncate(cut.unwrap_or(0));
    }
    let Ok(bytes) = postcard::to_allocvec(&report) else {
        return;
    };
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut room);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let sent = retry_on_intr(|| {
        sendmsg(
            socket,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
    });
    let _ = sent;
}

/// Looks for a report.
pub(crate) fn receive(socket: &OwnedFd) -> Received {
    let mut bytes = [0; MESSAGE_MAX];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let count = match retry_on_intr(|| recvmsg(socket.as_fd(), &mut parts, &mut ancillary, flags)) {
        Ok(message) => message.bytes,
        Err(Errno::AGAIN) => return Received::Nothing,
        Err(_) => 0,
    };
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match postcard::from_bytes(&bytes[..count]) {
        Ok(report) if count > 0 => Received::Report(report, fd),
        _ => Received::End,
    }
}

#[cfg(test)]
mod tests {
    use hearth_guest_protocol::message::FailureCode;

    use super::*;

    #[test]
    fn a_failure_of_any_length_arrives() {
        let (agent, child) = pair().unwrap();
        let failure = Failure {
            code: FailureCode::CommandNotFound,
            message: "ü".repeat(MESSAGE_MAX),
        };
        send(child.as_fd(), &Report::Failed(failure), None);
        drop(child);
        let Received::Report(Report::Failed(failure), None) = receive(&agent) else {
            panic!("no failure came");
        };
        assert_eq!(failure.code, FailureCode::CommandNotFound);
        assert_eq!(failure.message, "ü".repeat(TEXT_MAX / 2));
        assert!(matches!(receive(&agent), Received::End));
    }

    #[test]
    fn a_descriptor_comes_with_its_report() {
        let (agent, child) = pair().unwrap();
        assert!(matches!(receive(&agent), Received::Nothing));
        send(child.as_fd(), &Report::Terminal, Some(agent.as_fd()));
        assert!(matches!(
            receive(&agent),
            Received::Report(Report::Terminal, Some(_))
        ));
    }
}
