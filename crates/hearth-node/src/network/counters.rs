//! What has gone through a machine's network, and what did not get through: as the kernel counts it at the TAP and in queues and rules, all of
//! which begin with the machine's namespace and end with it.

use hearth_machine::MachineId;

use super::links::{Links, UPLINK};
use super::{NetworkError, Networks, namespace_error};
use crate::host::network_namespace::{NetworkNamespace, TAP};

/// What has gone one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    /// Bytes of frames.
    pub bytes: u64,
    /// Frames; with offloads one may be as long as many packets.
    pub packets: u64,
    /// Packets that were refused, or found a queue full.
    pub dropped: u64,
}

/// The network of one machine, as the machine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// To the machine.
    pub received: Way,
    /// From the machine.
    pub sent: Way,
}

impl Networks {
    /// Returns what has gone through the network of a machine with this monitor; `None` where it has none.
    pub async fn counters(&self, id: MachineId, monitor: i32) -> Option<Counters> {
        let table = std::fs::read_to_string(format!("/proc/{monitor}/net/dev")).ok()?;
        let mut counters = at_tap(&table)?;
        // One that leads nowhere has neither rules nor a rate.
        let Some(guard) = self.guard(id) else {
            return Some(counters);
        };
        let dropped = async {
            let namespace = NetworkNamespace::of_process(monitor);
            let links = namespace.and_then(|namespace| Links::within(&namespace));
            let links = links.map_err(namespace_error("look at a machine's network"))?;
            let refused = guard.dropped().map_err(namespace_error("read a counter"))?;
            Ok::<_, NetworkError>([
                links.overflowed(TAP).await?,
                refused + links.overflowed(UPLINK).await?,
            ])
        };
        match dropped.await {
            Ok([received, sent]) => {
                counters.received.dropped += received;
                counters.sent.dropped += sent;
            }
            // It may be about to end; then it has no interfaces any more.
            Err(error) => tracing::debug!(machine = %id, %error, "what was dropped is not counted"),
        }
        Some(counters)
    }
}

/// Reads the TAP's line of a table, see proc_pid_net(5): what arrives there comes from the machine.
fn at_tap(table: &str) -> Option<Counters> {
    let mut lines = table.lines().filter_map(|line| line.split_once(':'));
    let (_, line) = lines.find(|(name, _)| name.trim() == TAP)?;
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let way = |at: usize| {
        Some(Way {
            bytes: *numbers.get(at)?,
            packets: *numbers.get(at + 1)?,
            dropped: *numbers.get(at + 3)?,
        })
    };
    Some(Counters {
        sent: way(0)?,
        received: way(8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_at_the_tap_was_sent_by_the_machine() {
        let table = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       9       9    0    0    0     0          0         0        9       9    0    0    0     0       0          0
  tap0:    1000      10    0    1    0     0          0         0     2000      20    0    2    0     0       0          0
";
        let expected = Counters {
            sent: Way {
                bytes: 1000,
                packets: 10,
                dropped: 1,
            },
            received: Way {
                bytes: 2000,
                packets: 20,
                dropped: 2,
            },
        };
        assert_eq!(at_tap(table), Some(expected));
        assert_eq!(at_tap("  lo: 1 2"), None);
        assert_eq!(at_tap("tap0: 1 2"), None);
    }
}
