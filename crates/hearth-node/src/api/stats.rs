//! What machines use, a line of JSON for each look.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use hearth_api::v1;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Service;
use super::error::ApiError;
use super::progress::received;
use crate::machines::{Machine, Machines, Usage};

/// Looks that wait for the client.
const QUEUE: usize = 2;
/// Milliseconds between two looks: docker's, and the least that processor time, counted in hundredths of a second, is good for.
const INTERVAL_DEFAULT: u64 = 1000;
const INTERVAL_LEAST: u64 = 100;

#[derive(Debug, Deserialize)]
pub(super) struct StatsQuery {
    machines: Option<String>,
    #[serde(default)]
    stream: bool,
    interval_ms: Option<u64>,
}

pub(super) async fn stats(
    State(service): State<Service>,
    query: Result<Query<StatsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let named = query.machines.as_ref().map(|names| {
        let names = names.split(',').filter(|name| !name.is_empty());
        names
            .map(|name| service.machines.find(name))
            .collect::<Result<Vec<_>, _>>()
    });
    let looker = Looker {
        named: named.transpose()?,
        machines: service.machines.clone(),
        seen: BTreeMap::new(),
    };
    let interval = query.interval_ms.unwrap_or(INTERVAL_DEFAULT).max(INTERVAL_LEAST);
    let (lines, receiver) = mpsc::channel(QUEUE);
    let shutdown = service.shutdown.clone();
    let looking = look_on(looker, Duration::from_millis(interval), query.stream, lines);
    service.tasks.spawn(shutdown.run_until_cancelled_owned(looking));
    let body = Body::from_stream(received(receiver));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Looks again and again. The first look is for the second one's processor time, and is not told.
async fn look_on(mut looker: Looker, interval: Duration, stream: bool, lines: mpsc::Sender<Bytes>) {
    let mut clock = tokio::time::interval(interval);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    clock.tick().await;
    looker.look().await;
    loop {
        tokio::select! {
            _ = clock.tick() => {}
            () = lines.closed() => return,
        }
        let sample = looker.look().await;
        let Ok(mut line) = serde_json::to_vec(&sample) else {
            return;
        };
        line.push(b'\n');
        // Fails only when the client is gone.
        if lines.send(line.into()).await.is_err() || !stream {
            return;
        }
    }
}

/// Who looks at machines, and what it saw the last time.
struct Looker {
    machines: Machines,
    /// All that run when none is named.
    named: Option<Vec<Machine>>,
    /// Processor time by machine, and when it was taken.
    seen: BTreeMap<String, (Instant, Duration)>,
}

impl Looker {
    async fn look(&mut self) -> v1::StatsSample {
        let alive = |machine: &Machine| machine.view().state.is_alive();
        let machines = match &self.named {
            Some(named) => named.clone(),
            None => self.machines.list().into_iter().filter(alive).collect(),
        };
        let looks = machines.into_iter().map(|machine| async move {
            let usage = machine.usage().await;
            (machine.view(), usage, Instant::now())
        });
        let looks = futures_util::future::join_all(looks).await;
        let mut seen = BTreeMap::new();
        let told = looks.into_iter().map(|(view, usage, now)| {
            let id = view.record.id.clone();
            let before = self.seen.get(&id);
            let percent = usage
                .monitor
                .zip(before)
                .and_then(|(monitor, before)| percent(*before, (now, monitor.cpu)));
            if let Some(monitor) = usage.monitor {
                seen.insert(id.clone(), (now, monitor.cpu));
            }
            machine_stats(id, view.record.name.clone(), &usage, percent)
        });
        let machines = told.collect();
        self.seen = seen;
        v1::StatsSample {
            taken_at: jiff::Timestamp::now().to_string(),
            machines,
        }
    }
}

/// Returns the processor time between two looks in percent of one processor; `None` when it went back: another monitor's.
fn percent(before: (Instant, Duration), now: (Instant, Duration)) -> Option<f64> {
    let taken = now.1.checked_sub(before.1)?.as_secs_f64();
    let passed = now.0.duration_since(before.0).as_secs_f64();
    (passed > 0.0).then(|| (taken / passed * 10_000.0).round() / 100.0)
}

fn machine_stats(id: String, name: String, usage: &Usage, cpu_percent: Option<f64>) -> v1::MachineStats {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    v1::MachineStats {
        id,
        name,
        disk_bytes: usage.disk,
        monitor: usage.monitor.map(|monitor| v1::MonitorStats {
            cpu_ns: nanoseconds(monitor.cpu),
            cpu_percent,
            memory_bytes: monitor.pss,
            threads: monitor.threads,
            channel_received_bytes: usage.traffic.received,
            channel_sent_bytes: usage.traffic.sent,
        }),
        network: usage.network.map(|network| v1::NetworkStats {
            received_bytes: network.received.bytes,
            received_packets: network.received.packets,
            received_dropped: network.received.dropped,
            sent_bytes: network.sent.bytes,
            sent_packets: network.sent.packets,
            sent_dropped: network.sent.dropped,
        }),
        guest: usage.guest.map(|guest| v1::GuestStats {
            cpu_ns: guest.cpu_ns,
            memory_used_bytes: guest.memory_total.saturating_sub(guest.memory_available),
            memory_total_bytes: guest.memory_total,
            disk_used_bytes: guest.disk_total.saturating_sub(guest.disk_free),
            disk_total_bytes: guest.disk_total,
            processes: guest.processes,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_told_in_percent_of_one_processor() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let told = |before, after| percent((now, before), (now + 2 * second, after));
        assert_eq!(told(second, 4 * second), Some(150.0));
        assert_eq!(told(second, second), Some(0.0));
        assert_eq!(told(second, Duration::ZERO), None);
    }
}
