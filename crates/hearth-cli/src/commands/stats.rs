//! `stats`.

use std::process::ExitCode;

use hearth_api::ClientError;
use hearth_api::client::reader;
use hearth_api::v1::{MachineStats, StatsSample};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::arguments::Stats;
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Screen, Table};

/// Clears a terminal and goes to its beginning (ECMA-48, ED and CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Tells what machines use, once or again and again.
pub(super) async fn stats(node: &Node, arguments: &Stats) -> Result<ExitCode, CliError> {
    let stream = !arguments.no_stream;
    let body = node
        .call(async |client| client.stats(&arguments.machines, stream).await)
        .await?;
    let mut lines = BufReader::new(reader(body)).lines();
    let broken = |error: std::io::Error| ClientError::Stream(error.into());
    while let Some(line) = lines.next_line().await.map_err(broken)? {
        let sample: StatsSample = serde_json::from_str(&line)?;
        let screen = Screen::stdout();
        if arguments.json && stream {
            print::line(&line)?;
        } else if arguments.json {
            print::json(&sample)?;
        } else {
            let clear = if stream && screen.width.is_some() {
                CLEAR
            } else {
                ""
            };
            print::out(&format!("{clear}{}", table(&sample).render(screen)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(sample: &StatsSample) -> Table {
    let mut table = Table::new(&[
        ("NAME", Some(8)),
        ("CPU %", None),
        ("MEMORY", None),
        ("GUEST MEMORY", None),
        ("DISK", None),
        ("GUEST DISK", None),
        ("NET I/O", None),
        ("CHANNEL I/O", None),
        ("PROCS", None),
    ]);
    for machine in &sample.machines {
        table.push(row(machine));
    }
    table
}

/// What is not known is a dash: docker's.
fn row(machine: &MachineStats) -> [Cell; 9] {
    let known = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "--".to_owned()));
    let monitor = machine.monitor.as_ref();
    let guest = machine.guest.as_ref();
    let network = machine.network.as_ref();
    let of = |used: u64, total: u64| format!("{} / {}", size(used), size(total));
    let both = |received: u64, sent: u64| format!("{}/{}", size(received), size(sent));
    [
        Cell::from(&machine.name),
        known(
            monitor
                .and_then(|monitor| monitor.cpu_percent)
                .map(|percent| format!("{percent:.1}")),
        ),
        known(monitor.map(|monitor| size(monitor.memory_bytes))),
        known(guest.map(|guest| of(guest.memory_used_bytes, guest.memory_total_bytes))),
        Cell::from(size(machine.disk_bytes)),
        known(guest.map(|guest| of(guest.disk_used_bytes, guest.disk_total_bytes))),
        known(network.map(|network| both(network.received_bytes, network.sent_bytes))),
        known(monitor.map(|monitor| both(monitor.channel_received_bytes, monitor.channel_sent_bytes))),
        known(guest.map(|guest| guest.processes.to_string())),
    ]
}

/// Writes bytes in binary units with three digits, as in `23.4M`.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "K", "M", "G"] {
        if value < 999.5 {
            let digits = if unit == "B" || value >= 99.95 {
                0
            } else {
                usize::from(value < 9.995) + 1
            };
            return format!("{value:.digits$}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1}T")
}

#[cfg(test)]
mod tests {
    use hearth_api::v1::{GuestStats, MonitorStats, NetworkStats};

    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, expected) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "0.98K"),
            (1536, "1.50K"),
            (24_536_678, "23.4M"),
            (256 << 20, "256M"),
            (1000 << 20, "0.98G"),
            (2 << 40, "2.0T"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn the_table_fits_a_hundred_columns_and_says_what_is_not_known() {
        let full = MachineStats {
            id: "0123456789ab".into(),
            name: "web".into(),
            disk_bytes: 2_252_800,
            monitor: Some(MonitorStats {
                cpu_ns: 1_250_000_000,
                cpu_percent: Some(99.87),
                memory_bytes: 101 << 20,
                threads: 4,
                channel_received_bytes: 12_000_000,
                channel_sent_bytes: 4096,
            }),
            network: Some(NetworkStats {
                received_bytes: 34_000_000,
                received_packets: 30_000,
                received_dropped: 0,
                sent_bytes: 1_300_000,
                sent_packets: 20_000,
                sent_dropped: 3,
            }),
            guest: Some(GuestStats {
                cpu_ns: 1_000_000_000,
                memory_used_bytes: 43 << 20,
                memory_total_bytes: 216 << 20,
                disk_used_bytes: 49_152,
                disk_total_bytes: 2 << 30,
                processes: 3,
            }),
        };
        let stopped = MachineStats {
            name: "batch".into(),
            monitor: None,
            network: None,
            guest: None,
            ..full.clone()
        };
        let sample = StatsSample {
            taken_at: String::new(),
            machines: vec![full, stopped],
        };
        let expected = "\
NAME    CPU %   MEMORY   GUEST MEMORY   DISK    GUEST DISK      NET I/O       CHANNEL I/O   PROCS
web     99.9    101M     43.0M / 216M   2.15M   48.0K / 2.00G   32.4M/1.24M   11.4M/4.00K   3
batch   --      --       --             2.15M   --              --            --            --
";
        let screen = Screen {
            width: Some(100),
            colour: false,
        };
        assert_eq!(table(&sample).render(screen), expected);
    }
}
