//! What runs in a machine: the image's defaults and what was asked for, put together by docker's rules.

use std::time::Duration;

use crate::{Signal, Spec};

/// How an image wants to be run, as far as a process is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageDefaults {
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub command: Vec<String>,
    /// ENV.
    pub environment: Vec<String>,
    /// WORKDIR; `/` when empty.
    pub working_directory: String,
    /// USER; root when empty.
    pub user: String,
    /// STOPSIGNAL.
    pub stop_signal: Option<String>,
    /// HEALTHCHECK.
    pub health_check: Option<ImageHealthCheck>,
}

/// How an image wants it to be found out whether its workload works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHealthCheck {
    /// What is run, the image's shell put in front of a line for it; `None` when the image says that there is to be no
    /// check (`HEALTHCHECK NONE`). Never empty.
    pub command: Option<Vec<String>>,
    /// Time between two checks; `None` for the default, here and below.
    pub interval: Option<Duration>,
    /// Time that one check may take.
    pub timeout: Option<Duration>,
    /// Time from the start in which failures do not count.
    pub start_period: Option<Duration>,
    /// Time between two checks in the start period.
    pub start_interval: Option<Duration>,
    /// Failures in a row until the workload counts as unhealthy.
    pub retries: Option<u32>,
}

/// The workload's process, complete but for its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments; empty when nothing runs, and the machine holds.
    pub arguments: Vec<String>,
    /// `NAME=value`, each name once.
    pub environment: Vec<String>,
    /// Absolute path.
    pub working_directory: String,
    /// `name|uid[:group|gid]`; root when empty.
    pub user: String,
    /// Asks it to end.
    pub stop_signal: Signal,
}

/// Says that neither the image nor the request names a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no command: the image names none, and none was given")]
pub struct NoCommand;

/// The search path of a process whose image and request name none; docker's.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Process {
    /// Puts a process together: an entrypoint given drops the image's command, a command given replaces it; the environment
    /// is the image's with the request's over it. An image's STOPSIGNAL that is no signal counts as none.
    ///
    /// # Errors
    /// Returns [`NoCommand`] when there is nothing to run.
    pub fn of(spec: &Spec, image: &ImageDefaults) -> Result<Self, NoCommand> {
        let mut arguments = spec
            .entrypoint
            .clone()
            .unwrap_or_else(|| image.entrypoint.clone());
        if !spec.command.is_empty() {
            arguments.extend(spec.command.iter().cloned());
        } else if spec.entrypoint.is_none() {
            arguments.extend(image.command.iter().cloned());
        }
        if spec.hold {
            arguments.clear();
        } else if arguments.first().is_none_or(String::is_empty) {
            return Err(NoCommand);
        }
        // The image's signal is for the image's program.
        let from_image = image.stop_signal.as_ref().filter(|_| !spec.hold);
        let from_image = from_image.and_then(|text| text.parse().ok());
        let default_directory = if image.working_directory.is_empty() {
            "/"
        } else {
            &image.working_directory
        };
        Ok(Self {
            arguments,
            environment: merge_environment(&image.environment, &spec.environment),
            working_directory: spec
                .working_directory
                .clone()
                .unwrap_or_else(|| default_directory.to_owned()),
            user: spec.user.clone().unwrap_or_else(|| image.user.clone()),
            stop_signal: spec.stop_signal.or(from_image).unwrap_or(Signal::TERM),
        })
    }
}

/// Lays `over` on `base`: each name once, in the order of first mention, the last value wins; a PATH is always there.
pub fn merge_environment(base: &[String], over: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
    let mut merged: Vec<String> = Vec::with_capacity(base.len() + over.len() + 1);
    for entry in base.iter().chain(over) {
        match merged.iter_mut().find(|known| name(known) == name(entry)) {
            Some(known) => known.clone_from(entry),
            None => merged.push(entry.clone()),
        }
    }
    if !merged.iter().any(|entry| name(entry) == "PATH") {
        merged.push(DEFAULT_PATH.to_owned());
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::{DISK_DEFAULT, LOG_DEFAULT, MEMORY_DEFAULT};
    use crate::{CpuMilli, DriverChoice, HealthOptions, RestartPolicy};

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn spec(entrypoint: Option<&[&str]>, command: &[&str]) -> Spec {
        Spec {
            hold: false,
            command: texts(command),
            entrypoint: entrypoint.map(texts),
            environment: vec![],
            working_directory: None,
            user: None,
            hostname: None,
            labels: BTreeMap::new(),
            cpus: CpuMilli::from_milli(1000).unwrap(),
            memory: MEMORY_DEFAULT,
            disk: DISK_DEFAULT,
            timeout: None,
            idle_timeout: None,
            restart: RestartPolicy::No,
            driver: DriverChoice::Auto,
            stop_signal: None,
            ports: Vec::new(),
            container: crate::Container::default(),
            log: LOG_DEFAULT,
            network: crate::NetworkMode::None,
            networks: Vec::new(),
            uplink: None,
            policy: crate::Policy::default(),
            name_servers: Vec::new(),
            certificates: Vec::new(),
            net_rate: None,
            disk_rate: None,
            metadata: None,
            memory_backend: crate::MemoryBackend::File,
            health: HealthOptions::default(),
        }
    }

    #[test]
    fn entrypoint_and_command_combine_as_in_docker() {
        let image = ImageDefaults {
            entrypoint: texts(&["e"]),
            command: texts(&["c"]),
            ..ImageDefaults::default()
        };
        type Case<'a> = (Option<&'a [&'a str]>, &'a [&'a str], &'a [&'a str]);
        let golden: [Case; 5] = [
            (None, &[], &["e", "c"]),
            (None, &["x"], &["e", "x"]),
            (Some(&["n"]), &[], &["n"]),
            (Some(&["n"]), &["x"], &["n", "x"]),
            (Some(&[]), &["x"], &["x"]),
        ];
        for (entrypoint, command, expected) in golden {
            let process = Process::of(&spec(entrypoint, command), &image).unwrap();
            assert_eq!(process.arguments, expected);
        }
        assert_eq!(Process::of(&spec(Some(&[]), &[]), &image), Err(NoCommand));
    }

    #[test]
    fn a_machine_that_holds_runs_nothing_whatever_its_image_says() {
        let image = ImageDefaults {
            command: texts(&["c"]),
            environment: texts(&["A=1"]),
            stop_signal: Some("SIGQUIT".into()),
            ..ImageDefaults::default()
        };
        let mut spec = spec(None, &[]);
        spec.hold = true;
        for image in [image, ImageDefaults::default()] {
            let process = Process::of(&spec, &image).unwrap();
            assert_eq!((process.arguments.len(), process.stop_signal), (0, Signal::TERM));
        }
    }

    #[test]
    fn the_requests_environment_wins_and_a_path_is_always_there() {
        let merged = merge_environment(&texts(&["A=1", "B=2"]), &texts(&["B=3", "C=", "B=4"]));
        assert_eq!(merged, ["A=1", "B=4", "C=", DEFAULT_PATH]);
        assert_eq!(merge_environment(&texts(&["PATH=/x"]), &[]), ["PATH=/x"]);
    }

    #[test]
    fn the_stop_signal_is_the_requests_then_the_images_then_term() {
        let mut image = ImageDefaults {
            command: texts(&["c"]),
            ..ImageDefaults::default()
        };
        let mut spec = spec(None, &[]);
        assert_eq!(Process::of(&spec, &image).unwrap().stop_signal, Signal::TERM);
        image.stop_signal = Some("SIGQUIT".into());
        assert_eq!(Process::of(&spec, &image).unwrap().stop_signal.number(), 3);
        spec.stop_signal = Some(Signal::KILL);
        assert_eq!(Process::of(&spec, &image).unwrap().stop_signal, Signal::KILL);
    }
}
