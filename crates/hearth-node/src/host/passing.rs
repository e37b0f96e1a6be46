//! Bytes with descriptors, over Unix sockets: unix(7), `SCM_RIGHTS`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};

/// Descriptors that are taken of one message; a message with more loses the others.
const DESCRIPTORS: usize = 4;

/// What a socket brought.
#[derive(Debug)]
pub struct Received {
    /// How many bytes; none at the end of the connection.
    pub bytes: usize,
    /// Descriptors that came along.
    pub descriptors: Vec<OwnedFd>,
}

/// Makes two connected sockets that keep messages apart.
///
/// # Errors
/// Returns the kernel's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Receives what is there; `None` when there is nothing yet.
///
/// # Errors
/// Returns the kernel's.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(buffer)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = match rustix::net::recvmsg(socket, &mut buffers, &mut control, flags) {
        Ok(message) => message,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
        _ => Vec::new(),
    });
    Ok(Some(Received {
        bytes: message.bytes,
        descriptors: descriptors.collect(),
    }))
}

/// Sends bytes and a descriptor; waits while the socket is full.
///
/// # Errors
/// Returns the kernel's; the other end may be gone.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    send_all(socket, bytes, &[descriptor])
}

/// Sends bytes and some descriptors, no more than are taken of one message.
///
/// # Errors
/// As [`send`].
pub fn send_all(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Lets the other end see the end of the connection; what it has sent can still be received.
///
/// # Errors
/// Returns the kernel's.
pub fn hang_up(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, Shutdown::Write)?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_descriptor_comes_along_and_the_end_is_seen() {
        let (one, other) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let mut buffer = [0; 8];
        assert!(receive(&other, &mut buffer).unwrap().is_none());
        send(&one, b"pipe", writer.as_fd()).unwrap();
        drop((one, writer));
        let received = receive(&other, &mut buffer).unwrap().unwrap();
        assert_eq!(
            (&buffer[..received.bytes], received.descriptors.len()),
            (&b"pipe"[..], 1)
        );
        rustix::io::write(&received.descriptors[0], b"x").unwrap();
        drop(received);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "x");
        assert_eq!(receive(&other, &mut buffer).unwrap().unwrap().bytes, 0);
    }
}
