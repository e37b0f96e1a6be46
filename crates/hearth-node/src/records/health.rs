//! Health checks and their results: from the wire's types, which records keep, to the domain's, and back.

use std::time::Duration;

use hearth_api::v1;
use hearth_machine::{Health, HealthCheck, HealthOptions, HealthStatus, Probe, ProbeChoice, ProbeResult};

/// What runs a line of a request.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Reads what is asked for.
pub fn options(wire: &v1::HealthOptions) -> HealthOptions {
    let time = |milliseconds: Option<u64>| milliseconds.map(Duration::from_millis);
    HealthOptions {
        probe: wire
            .probe
            .as_ref()
            .map(|wire| probe(wire).map_or(ProbeChoice::Off, ProbeChoice::Own)),
        interval: time(wire.interval_ms),
        timeout: time(wire.timeout_ms),
        start_period: time(wire.start_period_ms),
        start_interval: time(wire.start_interval_ms),
        retries: wire.retries,
    }
}

fn probe(wire: &v1::HealthProbe) -> Option<Probe> {
    Some(match wire {
        v1::HealthProbe::None => return None,
        v1::HealthProbe::Command(command) => Probe::Command(command.clone()),
        v1::HealthProbe::Shell(line) => {
            let words = SHELL.iter().map(|&word| word.to_owned());
            Probe::Command(words.chain([line.clone()]).collect())
        }
        v1::HealthProbe::Tcp(port) => Probe::Tcp(*port),
        v1::HealthProbe::Http { port, path } => Probe::Http {
            port: *port,
            path: path.clone(),
        },
    })
}

/// Writes a check as a record has it.
pub fn check_fact(check: &HealthCheck) -> v1::HealthCheck {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    v1::HealthCheck {
        probe: match &check.probe {
            Probe::Command(command) => v1::HealthProbe::Command(command.clone()),
            Probe::Tcp(port) => v1::HealthProbe::Tcp(*port),
            Probe::Http { port, path } => v1::HealthProbe::Http {
                port: *port,
                path: path.clone(),
            },
        },
        interval_ms: milliseconds(check.interval),
        timeout_ms: milliseconds(check.timeout),
        start_period_ms: milliseconds(check.start_period),
        start_interval_ms: milliseconds(check.start_interval),
        retries: check.retries,
    }
}

/// Reads a check from a record; `None` for one that says that there is to be none.
pub fn check(fact: &v1::HealthCheck) -> Option<HealthCheck> {
    Some(HealthCheck {
        probe: probe(&fact.probe)?,
        interval: Duration::from_millis(fact.interval_ms),
        timeout: Duration::from_millis(fact.timeout_ms),
        start_period: Duration::from_millis(fact.start_period_ms),
        start_interval: Duration::from_millis(fact.start_interval_ms),
        retries: fact.retries,
    })
}

/// Writes what is known of a workload's health.
pub fn health_fact(health: &Health) -> v1::Health {
    let time = |unix_ns: u64| {
        let time = jiff::Timestamp::from_nanosecond(i128::from(unix_ns)).unwrap_or_default();
        time.to_string()
    };
    v1::Health {
        status: match health.status {
            HealthStatus::Starting => v1::HealthStatus::Starting,
            HealthStatus::Healthy => v1::HealthStatus::Healthy,
            HealthStatus::Unhealthy => v1::HealthStatus::Unhealthy,
        },
        failing_streak: health.failing_streak,
        log: health
            .results
            .iter()
            .map(|result| v1::HealthResult {
                started_at: time(result.began_unix_ns),
                ended_at: time(result.ended_unix_ns),
                exit_code: result.exit_code,
                output: result.output.clone(),
            })
            .collect(),
    }
}

/// Reads what an earlier node knew; a time that somebody edited is the beginning of time.
pub fn health(fact: &v1::Health) -> Health {
    let time = |text: &str| {
        let time: jiff::Timestamp = text.parse().unwrap_or_default();
        u64::try_from(time.as_nanosecond()).unwrap_or(0)
    };
    Health {
        status: match fact.status {
            v1::HealthStatus::Starting => HealthStatus::Starting,
            v1::HealthStatus::Healthy => HealthStatus::Healthy,
            v1::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
        },
        failing_streak: fact.failing_streak,
        results: fact
            .log
            .iter()
            .map(|result| ProbeResult {
                began_unix_ns: time(&result.started_at),
                ended_unix_ns: time(&result.ended_at),
                exit_code: result.exit_code,
                output: result.output.clone(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_and_its_results_survive_a_record() {
        let asked = v1::HealthOptions {
            probe: Some(v1::HealthProbe::Shell("curl -f localhost".to_owned())),
            interval_ms: Some(1500),
            retries: Some(4),
            ..v1::HealthOptions::default()
        };
        let asked = options(&asked);
        let whole = HealthCheck::of(&asked, None).unwrap();
        let expected = ["/bin/sh", "-c", "curl -f localhost"].map(str::to_owned);
        assert_eq!(whole.probe, Probe::Command(expected.to_vec()));
        assert_eq!(check(&check_fact(&whole)), Some(whole));
        let mut known = Health {
            failing_streak: 2,
            ..Health::default()
        };
        known.results.push_back(ProbeResult {
            began_unix_ns: 1_700_000_000_123_456_789,
            ended_unix_ns: 1_700_000_001_000_000_000,
            exit_code: -1,
            output: "late".to_owned(),
        });
        let fact = health_fact(&known);
        assert_eq!(fact.log[0].started_at, "2023-11-14T22:13:20.123456789Z");
        assert_eq!(health(&fact), known);
    }

    #[test]
    fn a_request_for_none_is_kept_apart_from_no_request() {
        let none = v1::HealthOptions {
            probe: Some(v1::HealthProbe::None),
            ..v1::HealthOptions::default()
        };
        assert_eq!(options(&none).probe, Some(ProbeChoice::Off));
        assert_eq!(options(&v1::HealthOptions::default()).probe, None);
    }
}
