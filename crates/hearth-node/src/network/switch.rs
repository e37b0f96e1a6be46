//! `hearth switch`: carries the frames of one network of machines of an ordinary user, between TAPs in the machines' namespaces. No kernel
//! bridge can: it would be in a namespace of its own, and nobody has rights over that and over a machine's at once.
//!
//! ```text
//!  machine's namespace                                                   another machine's
//!  user0001 (TAP) ---- its descriptor ---- hearth switch ---- ... ---- user0001
//! ```
//! A port is given to it over a Unix socket: a TAP, and what tells that its machine has ended. It has rights over nothing, reads no more of a
//! frame than the two addresses, and ends with its last port. It outlives the node, as machines do. Before the first port it gives up all
//! files and system calls but those of this.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::host::confine::{ConfineError, Role, confine};
use crate::host::launch::FIRST_PASSED_FD;
use crate::host::poller::Poller;
use crate::host::{fork, passing};

/// The longest frame: the longest packet of a network, and its addresses. What is longer is cut off, and nobody takes that.
const FRAME_MAX: usize = 9000 + 18;
/// Two addresses and a type (IEEE 802.3).
const HEADER: usize = 14;
/// Frames that are taken of one port before the others have their turn.
const TURN: usize = 64;
/// Addresses that are remembered. Each machine has one; who makes up others has all frames told to everybody.
const PLACES_MAX: usize = 16 << 10;
/// How long somebody who connects may take to say what for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nobody may come at first.
const IDLE: Duration = Duration::from_secs(60);

/// What a port is given with, and answered with.
pub(super) const PLUG: &[u8] = b"+";

/// Says why a network is carried no longer.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The command line.
    #[error("`hearth switch` is started by the node: its command line makes no sense")]
    Arguments,
    /// What it was started with is not there.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// It is not confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The kernel.
    #[error("cannot wait for frames")]
    Wait(#[source] io::Error),
}

/// Is the program `hearth switch SOCKET`. It is given the listener there.
///
/// # Errors
/// [`SwitchError`].
pub fn run(words: &[OsString]) -> Result<(), SwitchError> {
    let [socket] = words else {
        return Err(SwitchError::Arguments);
    };
    let socket = Path::new(socket);
    let directory = socket.parent().ok_or(SwitchError::Arguments)?;
    let listener = fork::inherited(FIRST_PASSED_FD).map_err(SwitchError::Start)?;
    let switch = Switch::new(UnixListener::from(listener)).map_err(SwitchError::Start)?;
    confine(Role::Frames(directory))?;
    let ended = switch.run(socket);
    ended.map_err(SwitchError::Wait)
}

/// A machine's place.
struct Port {
    tap: File,
    /// Can be read, or hangs up, when its machine has ended.
    end: OwnedFd,
}

/// An address of a frame.
type Card = [u8; 6];

struct Switch {
    poller: Poller,
    listener: UnixListener,
    ports: BTreeMap<u64, Port>,
    /// Behind which port an address was seen.
    places: HashMap<Card, u64>,
    next: u64,
    frame: Vec<u8>,
}

/// The poller's number of the listener; of a port's TAP twice its number, and of its end one more.
const LISTENER: u64 = 0;

impl Switch {
    fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let poller = Poller::new()?;
        poller.add(&listener, LISTENER)?;
        Ok(Self {
            poller,
            listener,
            ports: BTreeMap::new(),
            places: HashMap::new(),
            next: 1,
            frame: vec![0; FRAME_MAX],
        })
    }

    /// Carries frames until the last port has gone. Who comes while it ends finds nobody, and starts another.
    fn run(mut self, socket: &Path) -> io::Result<()> {
        let began = Instant::now();
        while !self.ports.is_empty() || self.next == 1 && began.elapsed() < IDLE {
            for token in self.poller.wait(IDLE)? {
                match token {
                    LISTENER => self.accept(),
                    tap if tap % 2 == 0 => self.carry(tap / 2),
                    end => self.remove(end / 2),
                }
            }
        }
        // Before the listener closes: the name may be another's from then on.
        std::fs::remove_file(socket)
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if let Err(error) = self.plug(stream) {
                tracing::warn!(%error, "a port was not given");
            }
        }
    }

    fn plug(&mut self, mut stream: UnixStream) -> io::Result<()> {
        fork::wait_for_any(&[stream.as_fd()], Some(PATIENCE))?;
        let mut word = [0; 1];
        let received = passing::receive(&stream, &mut word)?.ok_or(io::ErrorKind::TimedOut)?;
        let [tap, end] =
            <[OwnedFd; 2]>::try_from(received.descriptors).map_err(|_| io::ErrorKind::InvalidData)?;
        self.add(tap, end)?;
        stream.write_all(PLUG)
    }

    fn add(&mut self, tap: OwnedFd, end: OwnedFd) -> io::Result<()> {
        let number = self.next;
        self.next += 1;
        self.poller.add(&tap, 2 * number)?;
        self.poller.add(&end, 2 * number + 1)?;
        let tap = File::from(tap);
        self.ports.insert(number, Port { tap, end });
        Ok(())
    }

    fn remove(&mut self, number: u64) {
        let Some(port) = self.ports.remove(&number) else {
            return;
        };
        // Others may have them open, too, and the poller goes by what is open. It fails on what is not watched.
        let _ = self.poller.remove(&port.tap);
        let _ = self.poller.remove(&port.end);
        self.places.retain(|_, place| *place != number);
    }

    /// Takes what a port sends.
    fn carry(&mut self, number: u64) {
        for _ in 0..TURN {
            let Some(port) = self.ports.get_mut(&number) else {
                return;
            };
            match port.tap.read(&mut self.frame) {
                Ok(count) => self.pass(number, count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Its interface is gone: the machine has left the network.
                Err(_) => return self.remove(number),
            }
        }
    }

    /// Hands a frame to whom it is for, or to all others where that is not known.
    fn pass(&mut self, from: u64, count: usize) {
        let Some(frame) = self.frame.get(..count).filter(|frame| frame.len() >= HEADER) else {
            return;
        };
        let (to, by) = (card(&frame[..6]), card(&frame[6..12]));
        if !is_group(by) && (self.places.len() < PLACES_MAX || self.places.contains_key(&by)) {
            self.places.insert(by, from);
        }
        match self.places.get(&to).filter(|_| !is_group(to)) {
            Some(place) if *place == from => {}
            Some(place) => {
                if let Some(port) = self.ports.get_mut(place) {
                    give(port, frame);
                }
            }
            None => {
                for (_, port) in self.ports.iter_mut().filter(|(number, _)| **number != from) {
                    give(port, frame);
                }
            }
        }
    }
}

fn card(bytes: &[u8]) -> Card {
    let mut card = Card::default();
    card.copy_from_slice(bytes);
    card
}

/// Tells whether an address is of several.
fn is_group(card: Card) -> bool {
    card[0] & 1 == 1
}

/// Gives a frame to a port. Where that is not up, or has no room, it is lost, as on any network.
fn give(port: &mut Port, frame: &[u8]) {
    let _ = port.tap.write(frame);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// A port whose TAP is one end of a socket that keeps frames apart; returns the other end, and what ends it.
    fn port(socket: &Path) -> (File, OwnedFd) {
        let (theirs, ours) = passing::pair().unwrap();
        let (end, held) = fork::pipe().unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        let theirs_file = File::from(theirs.try_clone().unwrap());
        let flags = rustix::fs::fcntl_getfl(&theirs_file).unwrap();
        rustix::fs::fcntl_setfl(&theirs_file, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        passing::send_all(&stream, PLUG, &[theirs.as_fd(), end.as_fd()]).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert!(ours.as_raw_fd() > 2 && answer == *PLUG);
        (File::from(ours), held)
    }

    fn frame(to: u8, by: u8) -> Vec<u8> {
        let mut frame = vec![0; 60];
        (frame[0], frame[5], frame[6], frame[11]) = (2, to, 2, by);
        if to == 0xff {
            frame[..6].fill(0xff);
        }
        frame
    }

    /// Reads what a port has been given, in time.
    fn given(port: &mut File) -> Option<Vec<u8>> {
        let ready = fork::wait_for_any(&[port.as_fd()], Some(Duration::from_millis(300))).unwrap();
        let mut bytes = [0; 100];
        ready[0].then(|| {
            let count = port.read(&mut bytes).unwrap();
            bytes[..count].to_vec()
        })
    }

    #[test]
    fn frames_go_to_whom_they_are_for_and_to_all_where_that_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("switch");
        let switch = Switch::new(UnixListener::bind(&path).unwrap()).unwrap();
        let at = path.clone();
        let running = std::thread::spawn(move || switch.run(&at));
        let (mut one, end_of_one) = port(&path);
        let (mut two, end_of_two) = port(&path);
        let (mut three, end_of_three) = port(&path);
        // To all, and so is one for somebody who was not heard of.
        for to in [0xff, 2] {
            one.write_all(&frame(to, 1)).unwrap();
            assert_eq!(given(&mut two), Some(frame(to, 1)));
            assert_eq!(given(&mut three), Some(frame(to, 1)));
        }
        two.write_all(&frame(1, 2)).unwrap();
        assert_eq!(given(&mut one), Some(frame(1, 2)));
        one.write_all(&frame(2, 1)).unwrap();
        assert_eq!(given(&mut two), Some(frame(2, 1)));
        assert_eq!(given(&mut three), None);
        // What is no frame is nobody's.
        one.write_all(&[0xff; 13]).unwrap();
        assert_eq!((given(&mut two), given(&mut three)), (None, None));
        // Whoever has gone is forgotten; the last one ends it.
        drop(end_of_two);
        one.write_all(&frame(2, 1)).unwrap();
        assert_eq!(given(&mut three), Some(frame(2, 1)));
        drop(end_of_one);
        drop(end_of_three);
        running.join().unwrap().unwrap();
        assert!(!path.exists());
    }
}
