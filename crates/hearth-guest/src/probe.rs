//! What a machine says of itself when it is asked whether a clone is a machine of its own: this binary, executed anew beside the
//! workload, so that it needs nothing of the image. `hearth test fork-correctness` asks.
//!
//! ```text
//! witness TOKEN   goes on for ever: counts, keeps a connection within the machine and one that leads out of it, tells how they are
//! wait            waits to be ended
//! report          tells the time for each byte of its input, and at its end everything, as lines of `name=value`
//! end             lets the witness end, and removes what it left
//! rehearse        is there in the place of a workload that will come, prints a line and ends
//! ```

use std::convert::Infallible;
use std::ffi::{CStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustix::process::getuid;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::sys;

/// How the agent's binary is called when it is to be a probe.
pub(crate) const NAME: &CStr = c"hearth-probe";

/// What the witness tells, in memory of the machine.
const TOLD: &str = "/dev/shm/.hearth-witness";
/// That the witness is to end.
const END: &str = "/dev/shm/.hearth-witness-end";
/// What the witness left on the disk.
const LEFT: &str = "/.hearth-witness";
/// How often the witness counts.
const TICK: Duration = Duration::from_millis(10);
/// How long the witness has to end.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// How often it tells, in ticks.
const TELLING: u64 = 10;
/// An address that nobody has (RFC 5737), and a port.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
/// Random numbers in a report, of eight bytes each.
const NUMBERS: usize = 1000;

/// Runs what the arguments say, and ends.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> Infallible {
    sys::leave_agent();
    let _ = rustix::thread::set_name(NAME);
    let words: Vec<String> = arguments
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["witness", token] => witness(token),
        ["wait"] => loop {
            // For nothing: only a signal ends it.
            let _ = poll(&mut [], None);
        },
        ["report"] => report(),
        ["end"] => end(),
        ["rehearse"] => writeln!(io::stdout(), "rehearsed"),
        _ => Err(io::Error::other("witness TOKEN, wait, report, end or rehearse")),
    };
    match done {
        Ok(()) => sys::exit(0),
        Err(error) => {
            let _ = writeln!(io::stderr(), "hearth-probe: {error}");
            sys::exit(1)
        }
    }
}

fn witness(token: &str) -> io::Result<()> {
    let _ = fs::remove_file(END);
    // Not every machine can write to its disk.
    let _ = fs::write(LEFT, token);
    let mut within = Within::connect()?;
    let outward = Outward::connect();
    let (mut count, mut gap, mut last) = (0_u64, Duration::ZERO, Instant::now());
    while fs::metadata(END).is_err() {
        within.exchange(count);
        if count.is_multiple_of(TELLING) {
            let told = format!(
                "token={token}\ncount={count}\ngap_us={}\nwithin={}\noutward={}\n",
                gap.as_micros(),
                within.state(),
                outward.state()
            );
            let new = format!("{TOLD}.new");
            fs::write(&new, told)?;
            fs::rename(&new, TOLD)?;
        }
        // Not a wait: how much longer than this it takes is what is to be known.
        std::thread::sleep(TICK);
        gap = gap.max(last.elapsed());
        (count, last) = (count + 1, Instant::now());
    }
    for path in [TOLD, LEFT, END] {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// A connection whose both ends are here, and over which numbers go in order.
struct Within {
    client: TcpStream,
    server: TcpStream,
    broken: Option<String>,
}

impl Within {
    fn connect() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        client.set_nodelay(true)?;
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self {
            client,
            server,
            broken: None,
        })
    }

    fn exchange(&mut self, number: u64) {
        if self.broken.is_some() {
            return;
        }
        let mut heard = [0; 8];
        let exchanged = self
            .client
            .write_all(&number.to_le_bytes())
            .and_then(|()| self.server.read_exact(&mut heard));
        self.broken = match exchanged {
            Ok(()) if u64::from_le_bytes(heard) == number => None,
            Ok(()) => Some("bytes were lost".to_owned()),
            Err(error) => Some(error.to_string()),
        };
    }

    fn state(&self) -> &str {
        self.broken.as_deref().unwrap_or("open")
    }
}

/// A connection to somebody who does not answer. It goes over the loopback, which loses it: no network is to say that there is nobody.
struct Outward(Result<OwnedFd, Errno>);

impl Outward {
    fn connect() -> Self {
        Self(Self::attempt())
    }

    fn attempt() -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sys::bind_to_device(socket.as_fd(), b"lo\0")
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        match connect(&socket, &NOWHERE) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(errno) => Err(errno),
        }
    }

    fn state(&self) -> String {
        match &self.0 {
            Err(errno) => format!("none: {errno}"),
            Ok(socket) => match has_ended(socket) {
                Some(why) => format!("closed: {why}"),
                None => "open".to_owned(),
            },
        }
    }
}

fn has_ended(socket: &OwnedFd) -> Option<String> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut fds, Some(&now)).ok()?;
    let ended = fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP);
    // The kernel tells the error once; what is told again later is that there is none any more.
    ended.then(|| match sockopt::socket_error(socket) {
        Ok(Err(errno)) => errno.to_string(),
        _ => "told before".to_owned(),
    })
}

fn end() -> io::Result<()> {
    fs::write(END, "")?;
    let events = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    match inotify::add_watch(&events, END, inotify::WatchFlags::DELETE_SELF) {
        Ok(_) => {}
        // The witness was quicker.
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    match poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&PATIENCE))? {
        0 => {
            let _ = fs::remove_file(END);
            Err(io::Error::other("there is no witness"))
        }
        _ => Ok(()),
    }
}

fn report() -> io::Result<()> {
    let (mut input, mut output) = (io::stdin(), io::stdout());
    let mut byte = [0];
    while input.read(&mut byte)? > 0 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(io::Error::other)?;
        output.write_all(format!("{}\n", now.as_nanos()).as_bytes())?;
        output.flush()?;
    }
    output.write_all(everything()?.as_bytes())?;
    output.flush()
}

fn everything() -> io::Result<String> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut random = [0; 8 * NUMBERS];
    let mut filled = 0;
    while filled < random.len() {
        filled += getrandom(&mut random[filled..], GetRandomFlags::empty())?;
    }
    let random: String = random.iter().fold(String::new(), |mut digits, byte| {
        // Text grows as long as there is memory.
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hosts = text("/etc/hosts");
    let named = hosts.split_ascii_whitespace().any(|word| word == hostname);
    let mut lines = format!(
        "random={random}\nuuid={}\nhostname={hostname}\nhostname_file={}\nhosts_name_it={named}\nmachine_id={}\n",
        text("/proc/sys/kernel/random/uuid"),
        text("/etc/hostname"),
        text("/etc/machine-id"),
    );
    let _ = writeln!(lines, "mac={}", addresses().join(" "));
    let _ = writeln!(
        lines,
        "variable={}",
        std::env::var("HOSTNAME").unwrap_or_default()
    );
    let _ = writeln!(lines, "waiting={}", waiting());
    let _ = writeln!(lines, "user={}", getuid().as_raw());
    let _ = writeln!(lines, "left={}", text(LEFT));
    for line in text(TOLD).lines() {
        let _ = writeln!(lines, "witness_{line}");
    }
    Ok(lines)
}

/// Returns the hardware addresses of network interfaces that lead out.
fn addresses() -> Vec<String> {
    let interfaces = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let others = interfaces.filter(|interface| interface.file_name() != "lo");
    let address = others.filter_map(|it| fs::read_to_string(it.path().join("address")).ok());
    address.map(|address| address.trim().to_owned()).collect()
}

/// Counts the probes that wait to be ended.
fn waiting() -> usize {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let commands = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    commands
        .filter(|command| command == b"hearth-probe\0wait\0")
        .count()
}
