//! Whether a workload works: how it is found out, and what follows from what was found. Docker's rules.
//!
//! ```text
//!              passed                       passed
//!   Starting ----------> Healthy <------------------------.
//!      |                    |                              \
//!      `--------------------`-- `retries` failures in a row --> Unhealthy
//! ```
//! While it is starting, failures do not count until the start period is over. Once it has passed, they count.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ImageHealthCheck;

/// How many of the last results are kept.
pub const RESULTS: usize = 5;
/// How much of what a probe says is kept, in bytes.
pub const OUTPUT_MAX: usize = 4096;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// The least time that a check may be given: docker's.
const LEAST: Duration = Duration::from_millis(1);
/// The longest path of a probe by HTTP, in bytes.
const PATH_MAX: usize = 1024;

/// How to find out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A program beside the workload; it passes when it exits with 0. Never empty.
    Command(Vec<String>),
    /// A connection to a port on the guest's loopback; it passes when somebody takes it.
    Tcp(u16),
    /// A GET request to a port on the guest's loopback; it passes with a status from 200 to 399.
    Http {
        /// The port.
        port: u16,
        /// Path and query, beginning with a slash.
        path: String,
    },
}

/// Which probe is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeChoice {
    /// None at all, whatever the image says.
    Off,
    /// This one instead of the image's.
    Own(Probe),
}

/// What is asked for of a health check; what is absent is the image's, and docker's default where the image says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthOptions {
    /// How to find out.
    pub probe: Option<ProbeChoice>,
    /// Time between two probes.
    pub interval: Option<Duration>,
    /// Time that one may take.
    pub timeout: Option<Duration>,
    /// Time from the start in which failures do not count.
    pub start_period: Option<Duration>,
    /// Time between two probes in the start period.
    pub start_interval: Option<Duration>,
    /// Failures in a row until the workload counts as unhealthy.
    pub retries: Option<u32>,
}

/// Says what of a health check cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HealthError {
    /// Nothing to run.
    #[error("a health check needs a command")]
    NoCommand,
    /// A NUL byte where the kernel takes none.
    #[error("the command of a health check must not contain a NUL byte")]
    Nul,
    /// No port.
    #[error("port 0 cannot be probed: 1 to 65535 can")]
    Port,
    /// Not a path.
    #[error(
        "{0:?} is not a path to ask for: one that begins with a slash, of printable ASCII without blanks, is"
    )]
    Path(String),
    /// Too little time.
    #[error("the {0} of a health check is 1 ms at least")]
    Time(&'static str),
    /// It could never fail.
    #[error("the retries of a health check are 1 at least")]
    Retries,
}

/// A health check, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// How to find out.
    pub probe: Probe,
    /// From a probe's end to the next one.
    pub interval: Duration,
    /// Time that one may take.
    pub timeout: Duration,
    /// Time from the start in which failures do not count.
    pub start_period: Duration,
    /// The interval in the start period, until a probe has passed.
    pub start_interval: Duration,
    /// Failures in a row until the workload counts as unhealthy.
    pub retries: u32,
}

/// How a workload does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthStatus {
    /// No probe has passed yet.
    Starting,
    /// The last probe that counts has passed.
    Healthy,
    /// So many probes in a row have failed.
    Unhealthy,
}

/// What one probe has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// When it began, in nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// When it ended.
    pub ended_unix_ns: u64,
    /// 0 when it has passed; the program's exit code, 1 without a program; -1 when it did not come to an end.
    pub exit_code: i32,
    /// What it said, or what kept it from saying anything.
    pub output: String,
}

/// What is known of a workload's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How it does.
    pub status: HealthStatus,
    /// Failures in a row that count.
    pub failing_streak: u32,
    /// The last results, oldest first.
    pub results: VecDeque<ProbeResult>,
}

impl HealthOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// Returns the first thing that cannot be.
    pub fn check(&self) -> Result<(), HealthError> {
        match &self.probe {
            None | Some(ProbeChoice::Off) => {}
            Some(ProbeChoice::Own(probe)) => probe.check()?,
        }
        let times = [
            ("interval", self.interval),
            ("timeout", self.timeout),
            ("start interval", self.start_interval),
        ];
        let short = times
            .iter()
            .find(|(_, time)| time.is_some_and(|time| time < LEAST));
        if let Some((name, _)) = short {
            return Err(HealthError::Time(name));
        }
        match self.retries {
            Some(0) => Err(HealthError::Retries),
            _ => Ok(()),
        }
    }
}

impl Probe {
    fn check(&self) -> Result<(), HealthError> {
        let is_path = |path: &str| {
            path.starts_with('/')
                && path.len() <= PATH_MAX
                && path.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match self {
            Self::Command(command) if command.first().is_none_or(String::is_empty) => {
                Err(HealthError::NoCommand)
            }
            Self::Command(command) if command.iter().any(|text| text.contains('\0')) => Err(HealthError::Nul),
            Self::Tcp(0) | Self::Http { port: 0, .. } => Err(HealthError::Port),
            Self::Http { path, .. } if !is_path(path) => Err(HealthError::Path(path.clone())),
            _ => Ok(()),
        }
    }
}

impl HealthCheck {
    /// Puts a check together of what was asked for and what the image says, field by field; `None` when there is none. A time or
    /// number of the image's that cannot be counts as none.
    pub fn of(asked: &HealthOptions, image: Option<&ImageHealthCheck>) -> Option<Self> {
        let probe = match &asked.probe {
            Some(ProbeChoice::Off) => return None,
            Some(ProbeChoice::Own(probe)) => probe.clone(),
            None => Probe::Command(image?.command.clone().filter(|command| !command.is_empty())?),
        };
        let time = |asked: Option<Duration>, image: Option<Duration>, least: Duration, usual: Duration| {
            asked.or(image.filter(|&time| time >= least)).unwrap_or(usual)
        };
        let of_image = |field: fn(&ImageHealthCheck) -> Option<Duration>| image.and_then(field);
        let retries = image
            .and_then(|image| image.retries)
            .filter(|&retries| retries > 0);
        Some(Self {
            probe,
            interval: time(asked.interval, of_image(|image| image.interval), LEAST, INTERVAL),
            timeout: time(asked.timeout, of_image(|image| image.timeout), LEAST, TIMEOUT),
            start_period: time(
                asked.start_period,
                of_image(|image| image.start_period),
                Duration::ZERO,
                Duration::ZERO,
            ),
            start_interval: time(
                asked.start_interval,
                of_image(|image| image.start_interval),
                LEAST,
                START_INTERVAL,
            ),
            retries: asked.retries.or(retries).unwrap_or(RETRIES),
        })
    }
}

impl HealthStatus {
    /// Returns docker's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl Default for Health {
    /// A workload that was just started.
    fn default() -> Self {
        Self {
            status: HealthStatus::Starting,
            failing_streak: 0,
            results: VecDeque::new(),
        }
    }
}

impl Health {
    /// Takes a result in. `age` is the time from the workload's start to the probe's. Returns the status if it is another one
    /// now.
    pub fn take(&mut self, check: &HealthCheck, result: ProbeResult, age: Duration) -> Option<HealthStatus> {
        let before = self.status;
        let passed = result.exit_code == 0;
        while self.results.len() >= RESULTS {
            self.results.pop_front();
        }
        self.results.push_back(result);
        if passed {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else if self.status != HealthStatus::Starting || age >= check.start_period {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        (self.status != before).then_some(self.status)
    }

    /// Returns how long to wait before the next probe, `age` after the workload's start.
    pub fn pause_before_next(&self, check: &HealthCheck, age: Duration) -> Duration {
        if self.status == HealthStatus::Starting && age < check.start_period {
            check.start_interval
        } else {
            check.interval
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn check() -> HealthCheck {
        HealthCheck {
            probe: Probe::Tcp(80),
            interval: 10 * SECOND,
            timeout: SECOND,
            start_period: 20 * SECOND,
            start_interval: 2 * SECOND,
            retries: 2,
        }
    }

    fn result(exit_code: i32) -> ProbeResult {
        ProbeResult {
            began_unix_ns: 0,
            ended_unix_ns: 1,
            exit_code,
            output: String::new(),
        }
    }

    /// Feeds results, each with the second in which its probe began; returns what is told after each.
    fn told(results: &[(i32, u32)]) -> Vec<&'static str> {
        let mut health = Health::default();
        let feed = |&(code, second): &(i32, u32)| {
            health.take(&check(), result(code), second * SECOND);
            health.status.name()
        };
        results.iter().map(feed).collect()
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_until_a_probe_has_passed() {
        assert_eq!(told(&[(1, 1), (1, 5), (1, 19)]), ["starting"; 3]);
        assert_eq!(
            told(&[(1, 19), (1, 20), (1, 30)]),
            ["starting", "starting", "unhealthy"]
        );
        assert_eq!(
            told(&[(0, 1), (1, 2), (-1, 3)]),
            ["healthy", "healthy", "unhealthy"]
        );
    }

    #[test]
    fn one_probe_that_passes_makes_healthy_and_begins_the_count_anew() {
        let results = [
            (1, 30),
            (0, 40),
            (7, 50),
            (0, 60),
            (1, 70),
            (1, 80),
            (1, 90),
            (0, 100),
        ];
        assert_eq!(
            told(&results),
            [
                "starting",
                "healthy",
                "healthy",
                "healthy",
                "healthy",
                "unhealthy",
                "unhealthy",
                "healthy"
            ]
        );
    }

    #[test]
    fn only_a_change_is_told_and_only_the_last_results_are_kept() {
        let mut health = Health::default();
        assert_eq!(
            health.take(&check(), result(0), SECOND),
            Some(HealthStatus::Healthy)
        );
        for code in 1..=7 {
            let changed = health.take(&check(), result(code), SECOND);
            assert_eq!(changed, (code == 2).then_some(HealthStatus::Unhealthy));
        }
        let codes: Vec<_> = health.results.iter().map(|result| result.exit_code).collect();
        assert_eq!(codes, [3, 4, 5, 6, 7]);
        assert_eq!(health.failing_streak, 7);
    }

    #[test]
    fn probes_come_sooner_while_it_is_starting() {
        let mut health = Health::default();
        assert_eq!(health.pause_before_next(&check(), SECOND), 2 * SECOND);
        assert_eq!(health.pause_before_next(&check(), 20 * SECOND), 10 * SECOND);
        health.take(&check(), result(0), SECOND);
        assert_eq!(health.pause_before_next(&check(), SECOND), 10 * SECOND);
    }

    fn image() -> ImageHealthCheck {
        ImageHealthCheck {
            command: Some(vec!["probe".to_owned()]),
            interval: Some(3 * SECOND),
            timeout: Some(Duration::ZERO),
            start_period: None,
            start_interval: None,
            retries: Some(0),
        }
    }

    #[test]
    fn what_is_asked_for_goes_over_the_images_field_by_field() {
        let asked = HealthOptions {
            interval: Some(SECOND),
            retries: Some(9),
            ..HealthOptions::default()
        };
        let check = HealthCheck::of(&asked, Some(&image())).unwrap();
        assert_eq!(check.probe, Probe::Command(vec!["probe".to_owned()]));
        assert_eq!((check.interval, check.retries), (SECOND, 9));
        let plain = HealthCheck::of(&HealthOptions::default(), Some(&image())).unwrap();
        assert_eq!(
            (plain.interval, plain.timeout, plain.retries),
            (3 * SECOND, TIMEOUT, RETRIES)
        );
        let own = HealthOptions {
            probe: Some(ProbeChoice::Own(Probe::Tcp(1))),
            ..HealthOptions::default()
        };
        assert_eq!(HealthCheck::of(&own, None).unwrap().probe, Probe::Tcp(1));
    }

    #[test]
    fn there_is_no_check_where_nobody_asks_for_one_or_somebody_for_none() {
        let off = HealthOptions {
            probe: Some(ProbeChoice::Off),
            ..HealthOptions::default()
        };
        assert_eq!(HealthCheck::of(&off, Some(&image())), None);
        assert_eq!(HealthCheck::of(&HealthOptions::default(), None), None);
        let none = ImageHealthCheck {
            command: None,
            ..image()
        };
        assert_eq!(HealthCheck::of(&HealthOptions::default(), Some(&none)), None);
    }

    #[test]
    fn what_cannot_be_probed_is_refused() {
        let refused = |probe: Probe| {
            let options = HealthOptions {
                probe: Some(ProbeChoice::Own(probe)),
                ..HealthOptions::default()
            };
            options.check().unwrap_err()
        };
        assert_eq!(refused(Probe::Command(Vec::new())), HealthError::NoCommand);
        assert_eq!(refused(Probe::Command(vec!["a\0".to_owned()])), HealthError::Nul);
        assert_eq!(refused(Probe::Tcp(0)), HealthError::Port);
        for path in ["", "x", "/a b", "/a\r\nHost: x", "/ä"] {
            let path = path.to_owned();
            let probe = Probe::Http {
                port: 1,
                path: path.clone(),
            };
            assert_eq!(refused(probe), HealthError::Path(path));
        }
        let quick = HealthOptions {
            interval: Some(Duration::ZERO),
            ..HealthOptions::default()
        };
        assert_eq!(quick.check(), Err(HealthError::Time("interval")));
        let never = HealthOptions {
            retries: Some(0),
            ..HealthOptions::default()
        };
        assert_eq!(never.check(), Err(HealthError::Retries));
    }
}
