//! What Firecracker writes about itself: a JSON object a line, once a minute and on request.
//!
//! Counters are what was added since the line before, so a machine's total is the sum of its lines ([`Metrics::add`]).
//! What a line has and this type does not is passed over; what it lacks counts as zero: versions differ in both.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Says that a metrics file is none.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the metrics is not what Firecracker writes")]
pub struct MetricsError {
    /// Counts from 1.
    pub line: usize,
    /// What is wrong with it.
    #[source]
    pub source: serde_json::Error,
}

/// Makes a set of counters: each a field, and sums of all of them.
macro_rules! counters {
    ($(#[$of:meta])* $name:ident { $($(#[$doc:meta])* $field:ident,)* }) => {
        $(#[$of])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
        #[serde(default)]
        pub struct $name { $($(#[$doc])* pub $field: u64,)* }

        impl $name {
            fn add(&mut self, later: &Self) {
                $(self.$field = self.$field.saturating_add(later.$field);)*
            }
        }
    };
}

counters! {
    /// A drive, or all of them.
    Block {
        /// Requests that failed.
        execute_fails,
        /// Requests that made no sense.
        invalid_reqs_count,
        /// Flushes.
        flush_count,
        /// Bytes read.
        read_bytes,
        /// Bytes written.
        write_bytes,
        /// Reads.
        read_count,
        /// Writes.
        write_count,
        /// Changes of the drive by the host.
        update_count,
        /// Times that a limit was hit.
        rate_limiter_throttled_events,
    }
}

counters! {
    /// A network interface, or all of them.
    Network {
        /// Bytes that the guest received.
        rx_bytes_count,
        /// Packets that it received.
        rx_packets_count,
        /// Receptions that failed.
        rx_fails,
        /// Times that its limit was hit.
        rx_rate_limiter_throttled,
        /// Bytes that the guest sent.
        tx_bytes_count,
        /// Packets that it sent.
        tx_packets_count,
        /// Transmissions that failed.
        tx_fails,
        /// Times that its limit was hit.
        tx_rate_limiter_throttled,
        /// Packets with another address than the interface's.
        tx_spoofed_mac_count,
        /// Writes to the TAP that failed.
        tap_write_fails,
        /// Reads from the TAP that failed.
        tap_read_fails,
    }
}

counters! {
    /// The channel.
    Vsock {
        /// Bytes to the guest.
        rx_bytes_count,
        /// Bytes from the guest.
        tx_bytes_count,
        /// Packets to the guest.
        rx_packets_count,
        /// Packets from the guest.
        tx_packets_count,
        /// Connections made.
        conns_added,
        /// Connections broken off.
        conns_killed,
        /// Connections gone.
        conns_removed,
    }
}

counters! {
    /// The balloon.
    BalloonActivity {
        /// Requests that gave pages to the host.
        inflate_count,
        /// Requests that took some back.
        deflate_count,
        /// Statistics of the guest.
        stats_updates_count,
        /// Statistics that made no sense.
        stats_update_fails,
    }
}

counters! {
    /// The source of entropy.
    EntropyActivity {
        /// Bytes given.
        entropy_bytes,
        /// Requests.
        entropy_event_count,
        /// Requests that failed.
        entropy_event_fails,
        /// Times that the limit was hit.
        entropy_rate_limiter_throttled,
    }
}

counters! {
    /// Reasons why a processor left the guest.
    Vcpu {
        /// Reads from ports.
        exit_io_in,
        /// Writes to ports.
        exit_io_out,
        /// Reads from devices.
        exit_mmio_read,
        /// Writes to devices.
        exit_mmio_write,
        /// What could not be handled.
        failures,
    }
}

counters! {
    /// Metrics and log lines that were lost.
    LoggerActivity {
        /// Metrics.
        missed_metrics_count,
        /// Log lines.
        missed_log_count,
        /// Metrics that could not be written.
        metrics_fails,
        /// Log lines that could not be written.
        log_fails,
    }
}

/// How long the last of each took, in microseconds; zero when there was none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Latencies {
    /// A full snapshot, from the request on.
    pub full_create_snapshot: u64,
    /// A diff snapshot.
    pub diff_create_snapshot: u64,
    /// A restore.
    pub load_snapshot: u64,
    /// A pause.
    pub pause_vm: u64,
    /// An end of a pause.
    pub resume_vm: u64,
    /// A full snapshot, within the monitor.
    pub vmm_full_create_snapshot: u64,
    /// A diff snapshot, within the monitor.
    pub vmm_diff_create_snapshot: u64,
    /// A restore, within the monitor.
    pub vmm_load_snapshot: u64,
}

/// How the process started, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ApiServer {
    /// From the start the jailer tells to the API.
    pub process_startup_time_us: u64,
    /// The processor's time for it.
    pub process_startup_time_cpu_us: u64,
}

/// Calls that the filter stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Seccomp {
    /// How many; the first one ends the process.
    pub num_faults: u64,
}

/// The monitor itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Vmm {
    /// Events of devices; a counter.
    pub device_events: u64,
    /// Panics.
    pub panic_count: u64,
}

/// One line, or the sum of several.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Line")]
pub struct Metrics {
    /// When it was written, in milliseconds since 1970.
    pub utc_timestamp_ms: u64,
    /// How the process started.
    pub api_server: ApiServer,
    /// All drives.
    pub block: Block,
    /// Each drive, by its id.
    pub blocks: BTreeMap<String, Block>,
    /// All network interfaces.
    pub network: Network,
    /// Each network interface, by its id.
    pub networks: BTreeMap<String, Network>,
    /// The channel.
    pub vsock: Vsock,
    /// The balloon.
    pub balloon: BalloonActivity,
    /// The source of entropy.
    pub entropy: EntropyActivity,
    /// Processors.
    pub vcpu: Vcpu,
    /// What was lost.
    pub logger: LoggerActivity,
    /// How long things took.
    pub latencies: Latencies,
    /// Calls that were stopped.
    pub seccomp: Seccomp,
    /// The monitor itself.
    pub vmm: Vmm,
}

/// A line as it is written: a drive's counters are under `block_` and its id, an interface's under `net_` and its id.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Line {
    utc_timestamp_ms: u64,
    api_server: ApiServer,
    block: Block,
    net: Network,
    vsock: Vsock,
    balloon: BalloonActivity,
    entropy: EntropyActivity,
    vcpu: Vcpu,
    logger: LoggerActivity,
    latencies_us: Latencies,
    seccomp: Seccomp,
    vmm: Vmm,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

impl From<Line> for Metrics {
    fn from(line: Line) -> Self {
        Self {
            utc_timestamp_ms: line.utc_timestamp_ms,
            api_server: line.api_server,
            block: line.block,
            blocks: each(&line.others, "block_"),
            network: line.net,
            networks: each(&line.others, "net_"),
            vsock: line.vsock,
            balloon: line.balloon,
            entropy: line.entropy,
            vcpu: line.vcpu,
            logger: line.logger,
            latencies: line.latencies_us,
            seccomp: line.seccomp,
            vmm: line.vmm,
        }
    }
}

fn each<T: for<'de> Deserialize<'de>>(others: &BTreeMap<String, Value>, prefix: &str) -> BTreeMap<String, T> {
    let named = others.iter().filter_map(|(name, value)| {
        let id = name.strip_prefix(prefix)?;
        Some((id.to_owned(), T::deserialize(value).ok()?))
    });
    named.collect()
}

impl Metrics {
    /// Reads a metrics file. A last line without its end is one that is being written, and is left out.
    ///
    /// # Errors
    /// Returns [`MetricsError`] for the first line that makes no sense.
    pub fn parse(text: &str) -> Result<Vec<Self>, MetricsError> {
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let lines = whole.zip(1..).filter(|(line, _)| !line.trim().is_empty());
        lines
            .map(|(text, line)| serde_json::from_str(text).map_err(|source| MetricsError { line, source }))
            .collect()
    }

    /// Adds a later line: counters are summed, the rest is taken over where the line has it.
    pub fn add(&mut self, later: &Self) {
        self.utc_timestamp_ms = later.utc_timestamp_ms;
        self.block.add(&later.block);
        self.network.add(&later.network);
        self.vsock.add(&later.vsock);
        self.balloon.add(&later.balloon);
        self.entropy.add(&later.entropy);
        self.vcpu.add(&later.vcpu);
        self.logger.add(&later.logger);
        for (id, block) in &later.blocks {
            self.blocks.entry(id.clone()).or_default().add(block);
        }
        for (id, network) in &later.networks {
            self.networks.entry(id.clone()).or_default().add(network);
        }
        // Stored values are told again on each line.
        self.api_server = later.api_server;
        self.latencies = later.latencies;
        self.seccomp = later.seccomp;
        self.vmm = Vmm {
            device_events: self.vmm.device_events.saturating_add(later.vmm.device_events),
            panic_count: later.vmm.panic_count,
        };
    }

    /// Sums the lines of a file; `None` when there are none.
    ///
    /// # Errors
    /// As [`Metrics::parse`].
    pub fn total(text: &str) -> Result<Option<Self>, MetricsError> {
        let mut lines = Self::parse(text)?.into_iter();
        let Some(mut total) = lines.next() else {
            return Ok(None);
        };
        lines.for_each(|line| total.add(&line));
        Ok(Some(total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_LINES: &str = concat!(
        r#"{"utc_timestamp_ms":10,"block":{"read_bytes":512,"unheard_of":1},"block_root":{"read_bytes":512},"#,
        r#""net":{"tx_bytes_count":7},"net_eth0":{"tx_bytes_count":7},"latencies_us":{"pause_vm":5},"#,
        r#""vmm":{"device_events":2,"panic_count":0},"something_new":{"a":[1]}}"#,
        "\n",
        r#"{"utc_timestamp_ms":20,"block":{"read_bytes":100,"write_bytes":1},"block_root":{"read_bytes":100},"#,
        r#""latencies_us":{"pause_vm":6},"vmm":{"device_events":3}}"#,
        "\n",
    );

    #[test]
    fn lines_are_read_and_what_is_unknown_is_passed_over() {
        let lines = Metrics::parse(TWO_LINES).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].block.read_bytes, 512);
        assert_eq!(lines[0].networks["eth0"].tx_bytes_count, 7);
        assert_eq!(lines[1].vsock, Vsock::default());
    }

    #[test]
    fn counters_are_summed_and_the_rest_is_the_last() {
        let total = Metrics::total(TWO_LINES).unwrap().unwrap();
        assert_eq!((total.block.read_bytes, total.block.write_bytes), (612, 1));
        assert_eq!(total.blocks["root"].read_bytes, 612);
        assert_eq!((total.latencies.pause_vm, total.vmm.device_events), (6, 5));
        assert_eq!(total.utc_timestamp_ms, 20);
    }

    #[test]
    fn a_line_that_is_being_written_is_left_out_and_a_broken_one_is_named() {
        assert_eq!(Metrics::parse(r#"{"utc_timestamp_ms":1"#).unwrap(), []);
        assert_eq!(Metrics::total("").unwrap(), None);
        let error = Metrics::parse("{}\nnothing\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 2 of the metrics is not what Firecracker writes"
        );
    }
}
