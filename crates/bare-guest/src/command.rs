//! What can be executed. Results are lines of `name=value` on standard output; refusals go to standard error, with the
//! exit code 1.
//!
//! ```text
//! wait                               until a signal comes; stubborn: until SIGKILL
//! echo                               sends its input back            produce BYTES      sends a pattern
//! status                             counts of what happened         panic, reset       ends the guest
//! fill BYTES SEED [STRIDE]           writes memory, a word each STRIDE bytes (8)
//! check BYTES SEED [STRIDE]          compares it
//! block DRIVE info | flush | scan SECTOR COUNT (reads, and drops it; how long that takes) | read SECTOR COUNT | write SECTOR COUNT SEED | check SECTOR COUNT SEED
//! time                               since the start, and of day
//! entropy BYTES                      of the device, in hexadecimal
//! network ADDRESS/PREFIX [GATEWAY]   answers from then on
//! reach ADDRESS:PORT [TEXT]          what a service says by itself, or to that
//! metadata PATH                      of the service at 169.254.169.254, with a token
//! identity                           who the host said this is
//! adopt HOSTNAME UNIX_NS ENTROPY     who it is now, after a restore
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;
use core::net::SocketAddrV4;
use core::str::FromStr;
use core::time::Duration;

use hearth_guest_protocol::message::{FailureCode, Outcome};
use smoltcp::wire::{Ipv4Address, Ipv4Cidr};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

use crate::Machine;
use crate::agent::{Agent, Identity, Refusal};
use crate::memory::pattern;
use crate::platform::{self, ClockSource};
use crate::session::{Manners, Work};
use crate::transport::{self, OneByOne};

/// The most that one command puts out at once, in bytes; `produce` has no such bound.
const OUTPUT_MAX: usize = 1024 * 1024;

/// Sectors of one request to a drive.
const REQUEST: usize = 128;

/// What a command says on standard output, or why it does not.
type Said = Result<Vec<u8>, String>;

/// What a command gives: what goes on, and output and error output so far.
type Executed = (Work, [Vec<u8>; 2]);

/// Executes a command. All but those that wait, echo or produce are over when this returns.
///
/// # Errors
/// There is no such command.
pub(crate) fn run(
    arguments: &[impl AsRef<[u8]>],
    agent: &mut Agent,
    machine: &mut Machine,
) -> Result<Executed, Refusal> {
    let words: Option<Vec<&str>> = arguments
        .iter()
        .map(|argument| core::str::from_utf8(argument.as_ref()).ok())
        .collect();
    let words = words.ok_or_else(|| (FailureCode::BadRequest, "arguments must be text".into()))?;
    let goes_on = |work| Ok((work, [Vec::new(), Vec::new()]));
    let said = match words[..] {
        ["wait"] => return goes_on(Work::Wait(Manners::Obedient)),
        ["stubborn"] => return goes_on(Work::Wait(Manners::Stubborn)),
        ["echo"] => return goes_on(Work::Echo),
        ["produce", bytes] => match number::<u64>(bytes) {
            Ok(bytes) => {
                return goes_on(Work::Produce {
                    left: bytes.div_ceil(8),
                    next: 0,
                });
            }
            Err(why) => Err(why),
        },
        ["status"] => Ok(status(agent, machine)),
        ["panic"] => panic!("as it was told"),
        ["reset"] => platform::reset(),
        ["fill", bytes, seed, ref stride @ ..] => fill(machine, bytes, seed, stride),
        ["check", bytes, seed, ref stride @ ..] => check(machine, bytes, seed, stride),
        ["block", drive, ref rest @ ..] => block(machine, drive, rest),
        ["time"] => Ok(time(machine)),
        ["entropy", bytes] => entropy(machine, bytes),
        ["network", address] => network(machine, address, None),
        ["network", address, gateway] => network(machine, address, Some(gateway)),
        ["reach", service] => reach(machine, service, ""),
        ["reach", service, text] => reach(machine, service, text),
        ["metadata", path] => metadata(machine, path),
        ["identity"] => Ok(identity(agent, machine)),
        ["adopt", hostname, clock, entropy] => adopt(agent, machine, [hostname, clock, entropy]),
        _ => {
            let message = format!(
                "no such command, or not with these arguments: {}",
                words.join(" ")
            );
            return Err((FailureCode::CommandNotFound, message));
        }
    };
    Ok(match said {
        Ok(output) => (Work::Done(Outcome::Exited(0)), [output, Vec::new()]),
        Err(why) => (
            Work::Done(Outcome::Exited(1)),
            [Vec::new(), format!("{why}\n").into_bytes()],
        ),
    })
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("not a number, or too large: {text}"))
}

fn status(agent: &Agent, machine: &Machine) -> Vec<u8> {
    let devices = &machine.devices;
    format!(
        "generation={}\nresets={}\npages_free={}\npages_touched={}\nballoon_pages={}\ndrives={}\nnetwork={}\nentropy={}\n",
        agent.identity.as_ref().map_or(0, |identity| identity.generation),
        agent.resets(),
        machine.pages.len() / crate::memory::PAGE,
        machine.pages.touched(),
        devices.balloon.as_ref().map_or(0, |balloon| balloon.given()),
        devices.blocks.len(),
        devices.network.is_some(),
        devices.entropy.is_some(),
    )
    .into_bytes()
}

/// Reads the arguments of `fill` and `check`: bytes, stride, seed.
fn range(bytes: &str, seed: &str, stride: &[&str]) -> Result<(usize, usize, u64), String> {
    let stride = match stride {
        [] => size_of::<u64>(),
        [stride] => number::<usize>(stride)?,
        _ => return Err("one stride at most".into()),
    };
    if !stride.is_multiple_of(size_of::<u64>()) || stride == 0 {
        return Err(format!("the stride is not made of words of 8 bytes: {stride}"));
    }
    Ok((number::<usize>(bytes)? & !7, stride, number(seed)?))
}

fn too_much(machine: &Machine) -> String {
    format!("there are {} bytes of memory to fill", machine.pages.len())
}

fn fill(machine: &mut Machine, bytes: &str, seed: &str, stride: &[&str]) -> Said {
    let (bytes, stride, seed) = range(bytes, seed, stride)?;
    match machine.pages.fill(bytes, stride, seed) {
        true => Ok(format!("filled={bytes}\n").into_bytes()),
        false => Err(too_much(machine)),
    }
}

fn check(machine: &mut Machine, bytes: &str, seed: &str, stride: &[&str]) -> Said {
    let (bytes, stride, seed) = range(bytes, seed, stride)?;
    let checked = machine.pages.check(bytes, stride, seed);
    let (wrong, sum) = checked.ok_or_else(|| too_much(machine))?;
    Ok(format!("wrong_words={wrong}\nchecksum={sum:016x}\n").into_bytes())
}

type Drive = VirtIOBlk<transport::Identity, OneByOne>;

fn block(machine: &mut Machine, drive: &str, request: &[&str]) -> Said {
    let count = machine.devices.blocks.len();
    let drive = machine.devices.blocks.get_mut(number::<usize>(drive)?);
    let drive = drive.ok_or_else(|| format!("there are {count} drives"))?;
    match *request {
        ["info"] => {
            Ok(format!("sectors={}\nread_only={}\n", drive.capacity(), drive.readonly()).into_bytes())
        }
        ["flush"] => drive
            .flush()
            .map(|()| Vec::new())
            .map_err(|error| format!("flush: {error}")),
        ["read", sector, sectors] => {
            let (sector, sectors) = sectors_of(drive, sector, sectors)?;
            let mut bytes = vec![0; sectors * SECTOR_SIZE];
            if bytes.len() > OUTPUT_MAX {
                return Err(format!("a read has {OUTPUT_MAX} bytes at most"));
            }
            each_request(sector, sectors, |sector, part| {
                drive.read_blocks(sector, &mut bytes[part])
            })?;
            Ok(bytes)
        }
        ["scan", sector, sectors] => {
            let (sector, sectors) = sectors_of(drive, sector, sectors)?;
            let mut bytes = vec![0; REQUEST * SECTOR_SIZE];
            let begin = machine.clock.uptime();
            each_request(sector, sectors, |sector, part| {
                drive.read_blocks(sector, &mut bytes[..part.len()])
            })?;
            let took = machine.clock.uptime().saturating_sub(begin);
            Ok(format!("took_us={}\n", took.as_micros()).into_bytes())
        }
        ["write", sector, sectors, seed] => {
            let ((sector, sectors), seed) = (sectors_of(drive, sector, sectors)?, number(seed)?);
            each_request(sector, sectors, |sector, part| {
                drive.write_blocks(sector, &sample(part.start, part.len(), seed))
            })?;
            Ok(format!("written={}\n", sectors * SECTOR_SIZE).into_bytes())
        }
        ["check", sector, sectors, seed] => {
            let ((sector, sectors), seed) = (sectors_of(drive, sector, sectors)?, number(seed)?);
            let mut wrong = 0;
            each_request(sector, sectors, |sector, part| {
                let mut bytes = vec![0; part.len()];
                drive.read_blocks(sector, &mut bytes)?;
                let expected = sample(part.start, part.len(), seed);
                if bytes != expected {
                    wrong += bytes.iter().zip(&expected).filter(|(a, b)| a != b).count();
                }
                Ok(())
            })?;
            Ok(format!("wrong_bytes={wrong}\n").into_bytes())
        }
        _ => Err(
            "block DRIVE info|flush|read SECTOR COUNT|write SECTOR COUNT SEED|check SECTOR COUNT SEED".into(),
        ),
    }
}

fn sectors_of(drive: &Drive, sector: &str, count: &str) -> Result<(usize, usize), String> {
    let (sector, count) = (number::<usize>(sector)?, number::<usize>(count)?);
    let end = sector
        .checked_add(count)
        .filter(|end| *end as u64 <= drive.capacity());
    match end {
        Some(_) => Ok((sector, count)),
        None => Err(format!("the drive has {} sectors", drive.capacity())),
    }
}

/// Cuts a run of sectors into requests: the first sector of each, and its bytes within the run.
fn each_request(
    first: usize,
    sectors: usize,
    mut act: impl FnMut(usize, core::ops::Range<usize>) -> virtio_drivers::Result,
) -> Result<(), String> {
    for offset in (0..sectors).step_by(REQUEST) {
        let end = sectors.min(offset + REQUEST);
        act(first + offset, offset * SECTOR_SIZE..end * SECTOR_SIZE)
            .map_err(|error| format!("sector {}: {error}", first + offset))?;
    }
    Ok(())
}

/// Returns bytes of a pattern, from an offset on.
fn sample(offset: usize, length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (word, index) in bytes.chunks_exact_mut(8).zip(offset as u64 / 8..) {
        word.copy_from_slice(&pattern(seed, index).to_le_bytes());
    }
    bytes
}

fn time(machine: &Machine) -> Vec<u8> {
    let source = match machine.clock.source() {
        ClockSource::Kvm => "kvm",
        ClockSource::Counter => "counter",
    };
    format!(
        "uptime_ns={}\nunix_ns={}\nsource={source}\ncounter={}\n",
        machine.clock.uptime().as_nanos(),
        machine.clock.of_day().as_nanos(),
        platform::counter(),
    )
    .into_bytes()
}

fn entropy(machine: &mut Machine, bytes: &str) -> Said {
    let mut random = vec![0; number::<usize>(bytes)?.min(OUTPUT_MAX / 4)];
    let device = machine
        .devices
        .entropy
        .as_mut()
        .ok_or("there is no entropy device")?;
    let mut filled = 0;
    while filled < random.len() {
        match device.request_entropy(&mut random[filled..]) {
            Ok(0) => return Err("the device gives nothing".into()),
            Ok(count) => filled += count,
            Err(error) => return Err(format!("the device refuses: {error}")),
        }
    }
    Ok(hexadecimal(&random).into_bytes())
}

fn hexadecimal(bytes: &[u8]) -> String {
    digits(bytes) + "\n"
}

fn digits(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2 + 1);
    for byte in bytes {
        // Text grows as long as there is memory.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn network(machine: &mut Machine, address: &str, gateway: Option<&str>) -> Said {
    let parsed =
        Ipv4Cidr::from_str(address).map_err(|()| format!("not an address with a prefix: {address}"))?;
    let gateway = gateway.map(Ipv4Address::from_str).transpose();
    let gateway = gateway.map_err(|error| format!("the gateway: {error}"))?;
    let network = machine.devices.network.as_mut();
    let network = network.ok_or("there is no network device")?;
    network.set_address(parsed, gateway);
    Ok(format!("mac={}\n", network.mac()).into_bytes())
}

fn reach(machine: &mut Machine, service: &str, text: &str) -> Said {
    let parsed = service.parse::<SocketAddrV4>();
    let parsed = parsed.map_err(|error| format!("{service}: {error}"))?;
    let network = machine.devices.network.as_mut();
    let network = network.ok_or("there is no network device")?;
    network.reach((*parsed.ip(), parsed.port()), text, &machine.clock)
}

/// Asks the metadata service as its version 2 wants it: first for a token, then with it.
fn metadata(machine: &mut Machine, path: &str) -> Said {
    let network = machine.devices.network.as_mut();
    let network = network.ok_or("there is no network device")?;
    let put =
        "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let token = network.ask_metadata(put, &machine.clock)?;
    let get = format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nX-metadata-token: {token}\r\n\r\n");
    let said = network.ask_metadata(&get, &machine.clock)?;
    Ok(format!("{said}\n").into_bytes())
}

fn identity(agent: &Agent, machine: &Machine) -> Vec<u8> {
    let identity = agent.identity.clone().unwrap_or_default();
    let mac = machine.devices.network.as_ref().map(|network| network.mac());
    format!(
        "hostname={}\nmachine_id={}\ngeneration={}\nunix_ns={}\nmac={}\nentropy={}",
        identity.hostname,
        identity.machine_id.map_or_else(String::new, |id| digits(&id)),
        identity.generation,
        machine.clock.of_day().as_nanos(),
        mac.map_or_else(String::new, |mac| format!("{mac}")),
        hexadecimal(&identity.entropy),
    )
    .into_bytes()
}

fn adopt(agent: &mut Agent, machine: &mut Machine, [hostname, clock, entropy]: [&str; 3]) -> Said {
    let clock = Duration::from_nanos(number(clock)?);
    let mut random = [0; 32];
    for (byte, digits) in random.iter_mut().zip(entropy.as_bytes().chunks(2)) {
        let digits = core::str::from_utf8(digits).map_err(|_| "the entropy is not hexadecimal")?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| "the entropy is not hexadecimal")?;
    }
    if entropy.len() != 2 * random.len() {
        return Err(format!(
            "the entropy has {} digits, not {}",
            entropy.len(),
            2 * random.len()
        ));
    }
    machine.clock.set(clock);
    agent.identity = Some(Identity {
        hostname: hostname.into(),
        entropy: random,
        machine_id: None,
        generation: agent
            .identity
            .as_ref()
            .map_or(1, |identity| identity.generation + 1),
    });
    Ok(identity(agent, machine))
}
