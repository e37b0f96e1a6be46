//! What an image says of its process: a checked, plain struct, from the JSON of OCI and docker configurations and
//! back.

use std::collections::BTreeMap;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::Digest;

/// What runs in an image unless the user says otherwise. No string holds a NUL byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Comes before [`ImageConfig::cmd`].
    pub entrypoint: Vec<String>,
    /// The command, or the arguments of the entry point.
    pub cmd: Vec<String>,
    /// Names and values, in the image's order; names are not empty and hold no `=`.
    pub env: Vec<(String, String)>,
    /// `USER[:GROUP]`, names or numbers of the image.
    pub user: Option<String>,
    /// An absolute path.
    pub working_dir: Option<String>,
    /// A name as `SIGTERM`, or a number.
    pub stop_signal: Option<String>,
    /// The author's labels.
    pub labels: BTreeMap<String, String>,
    /// Paths that docker mounts anonymous volumes on; sorted.
    pub volumes: Vec<String>,
    /// Ports as `8080/tcp`; sorted.
    pub exposed_ports: Vec<String>,
    /// How to tell whether the process works.
    pub healthcheck: Option<Healthcheck>,
    /// What runs a line of [`HealthTest::Shell`]; docker's SHELL, `/bin/sh -c` when empty.
    pub shell: Vec<String>,
}

/// Docker's HEALTHCHECK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// What is run.
    pub test: HealthTest,
    /// Time between two tests; `None` for the default.
    pub interval: Option<Duration>,
    /// Time for one test; `None` for the default.
    pub timeout: Option<Duration>,
    /// Time from the start in which failures do not count; `None` for the default.
    pub start_period: Option<Duration>,
    /// Time between two tests in the start period; `None` for the default.
    pub start_interval: Option<Duration>,
    /// Failures in a row until the process counts as unhealthy; `None` for the default.
    pub retries: Option<u32>,
}

/// What a health check runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthTest {
    /// Nothing: a base image's check is switched off.
    Disabled,
    /// A command with its arguments.
    Command(Vec<String>),
    /// A line for the image's shell.
    Shell(String),
}

/// Says why an image's configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not JSON of the right shape.
    #[error("the image configuration is not valid JSON of its kind")]
    Json(#[source] serde_json::Error),
    /// A field holds a NUL byte, which no argument or variable can.
    #[error("{0} of the image configuration contains a NUL byte")]
    Nul(&'static str),
    /// A variable without a name.
    #[error("the image configuration sets a variable without a name: {0:?}")]
    Variable(String),
    /// A health check of an unknown form.
    #[error("the image configuration has a health check of an unknown form: {0:?}")]
    Healthcheck(Vec<String>),
    /// The digest of a layer's archive is not SHA-256.
    #[error("the image configuration names the archive of a layer by {0:?}, which is not a SHA-256 digest")]
    DiffId(String),
    /// Configuration and manifest do not belong together.
    #[error("the image configuration is for {configuration} layers, and the manifest has {manifest}")]
    Layers {
        /// How many the configuration names.
        configuration: usize,
        /// How many the manifest names.
        manifest: usize,
    },
}

/// A configuration with what else Hearth needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParsedConfig {
    pub(crate) config: ImageConfig,
    pub(crate) os: String,
    pub(crate) architecture: String,
    /// As RFC 3339 has it.
    pub(crate) created: Option<String>,
    pub(crate) diff_ids: Vec<String>,
}

/// The part of docker's configuration that the OCI specification leaves out.
#[derive(Debug, Default, Deserialize)]
struct DockerConfiguration {
    config: Option<DockerExecution>,
}

#[derive(Debug, Default, Deserialize)]
struct DockerExecution {
    #[serde(rename = "Healthcheck")]
    healthcheck: Option<DockerHealthcheck>,
    #[serde(rename = "Shell")]
    shell: Option<Vec<String>>,
}

/// Times are in nanoseconds; 0 is the default.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DockerHealthcheck {
    #[serde(deserialize_with = "nullable")]
    test: Vec<String>,
    interval: u64,
    timeout: u64,
    start_period: u64,
    start_interval: u64,
    retries: u32,
}

fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Parses the JSON of an image configuration.
pub(crate) fn parse(json: &[u8]) -> Result<ParsedConfig, ConfigError> {
    let configuration: ImageConfiguration = serde_json::from_slice(json).map_err(ConfigError::Json)?;
    let docker: DockerConfiguration = serde_json::from_slice(json).map_err(ConfigError::Json)?;
    let execution = configuration.config().clone().unwrap_or_default();
    let docker = docker.config.unwrap_or_default();
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let sorted = |list: &Option<Vec<String>>| {
        let mut list = list.clone().unwrap_or_default();
        list.sort_unstable();
        list
    };
    let config = ImageConfig {
        entrypoint: execution.entrypoint().clone().unwrap_or_default(),
        cmd: execution.cmd().clone().unwrap_or_default(),
        env: variables(execution.env().as_deref().unwrap_or_default())?,
        user: filled(execution.user()),
        working_dir: filled(execution.working_dir()).map(absolute),
        stop_signal: filled(execution.stop_signal()),
        labels: execution
            .labels()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        volumes: sorted(execution.volumes()),
        exposed_ports: sorted(execution.exposed_ports()),
        healthcheck: docker.healthcheck.map(health).transpose()?.flatten(),
        shell: docker.shell.unwrap_or_default(),
    };
    config.check()?;
    Ok(ParsedConfig {
        config,
        os: configuration.os().to_string(),
        architecture: configuration.architecture().to_string(),
        created: configuration.created().clone(),
        diff_ids: configuration.rootfs().diff_ids().clone(),
    })
}

impl ParsedConfig {
    /// Returns the digests of the archives of all layers, of which the manifest has so many.
    pub(crate) fn layers(&self, manifest: usize) -> Result<Vec<Digest>, ConfigError> {
        let configuration = self.diff_ids.len();
        if configuration != manifest {
            return Err(ConfigError::Layers {
                configuration,
                manifest,
            });
        }
        let parse = |text: &String| {
            let refused = |_| ConfigError::DiffId(text.chars().take(100).collect());
            text.parse().map_err(refused)
        };
        self.diff_ids.iter().map(parse).collect()
    }
}

/// Docker takes a relative working directory as below the root.
fn absolute(path: String) -> String {
    if path.starts_with('/') {
        path
    } else {
        format!("/{path}")
    }
}

fn variables(list: &[String]) -> Result<Vec<(String, String)>, ConfigError> {
    list.iter()
        .map(|text| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            if name.is_empty() {
                return Err(ConfigError::Variable(text.clone()));
            }
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn health(docker: DockerHealthcheck) -> Result<Option<Healthcheck>, ConfigError> {
    let test = match docker
        .test
        .split_first()
        .map(|(kind, rest)| (kind.as_str(), rest))
    {
        // An empty test inherits the base image's, which the builder has resolved: nothing is left to say.
        None => return Ok(None),
        Some(("NONE", _)) => HealthTest::Disabled,
        Some(("CMD", command)) if !command.is_empty() => HealthTest::Command(command.to_vec()),
        Some(("CMD-SHELL", [line])) => HealthTest::Shell(line.clone()),
        Some(_) => return Err(ConfigError::Healthcheck(docker.test)),
    };
    let time = |nanoseconds: u64| (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds));
    Ok(Some(Healthcheck {
        test,
        interval: time(docker.interval),
        timeout: time(docker.timeout),
        start_period: time(docker.start_period),
        start_interval: time(docker.start_interval),
        retries: (docker.retries > 0).then_some(docker.retries),
    }))
}

impl ImageConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let optional = |text: &Option<String>| text.iter().any(|text| text.contains('\0'));
        let any = |list: &[String]| list.iter().any(|text| text.contains('\0'));
        let pairs = |mut list: Box<dyn Iterator<Item = (&String, &String)> + '_>| {
            list.any(|(name, value)| name.contains('\0') || value.contains('\0'))
        };
        let test = self.healthcheck.as_ref().is_some_and(|check| match &check.test {
            HealthTest::Disabled => false,
            HealthTest::Command(command) => any(command),
            HealthTest::Shell(line) => line.contains('\0'),
        });
        let faults = [
            ("Entrypoint", any(&self.entrypoint)),
            ("Cmd", any(&self.cmd)),
            (
                "Env",
                pairs(Box::new(self.env.iter().map(|(name, value)| (name, value)))),
            ),
            ("User", optional(&self.user)),
            ("WorkingDir", optional(&self.working_dir)),
            ("StopSignal", optional(&self.stop_signal)),
            ("Labels", pairs(Box::new(self.labels.iter()))),
            ("Volumes", any(&self.volumes)),
            ("ExposedPorts", any(&self.exposed_ports)),
            ("Healthcheck", test),
            ("Shell", any(&self.shell)),
        ];
        match faults.iter().find(|(_, fault)| *fault) {
            Some((field, _)) => Err(ConfigError::Nul(field)),
            None => Ok(()),
        }
    }

    /// Makes the JSON of an image configuration for layers with these digests of their unpacked archives.
    pub(crate) fn to_json(&self, created: &str, architecture: &str, diff_ids: &[String]) -> Vec<u8> {
        let set = |list: &[String]| {
            list.iter()
                .map(|key| (key.clone(), serde_json::json!({})))
                .collect()
        };
        let env: Vec<_> = self
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let fields = [
            (
                "Entrypoint",
                (!self.entrypoint.is_empty()).then(|| self.entrypoint.clone().into()),
            ),
            ("Cmd", (!self.cmd.is_empty()).then(|| self.cmd.clone().into())),
            ("Env", (!env.is_empty()).then(|| env.into())),
            ("User", self.user.clone().map(Into::into)),
            ("WorkingDir", self.working_dir.clone().map(Into::into)),
            ("StopSignal", self.stop_signal.clone().map(Into::into)),
            (
                "Labels",
                (!self.labels.is_empty()).then(|| serde_json::json!(self.labels)),
            ),
            (
                "Volumes",
                (!self.volumes.is_empty()).then(|| serde_json::Value::Object(set(&self.volumes))),
            ),
            (
                "ExposedPorts",
                (!self.exposed_ports.is_empty()).then(|| serde_json::Value::Object(set(&self.exposed_ports))),
            ),
            (
                "Shell",
                (!self.shell.is_empty()).then(|| self.shell.clone().into()),
            ),
            (
                "Healthcheck",
                self.healthcheck
                    .as_ref()
                    .map(|check| serde_json::json!(check.to_docker())),
            ),
        ];
        let execution: serde_json::Map<String, serde_json::Value> = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect();
        let document = serde_json::json!({
            "created": created,
            "architecture": architecture,
            "os": "linux",
            "config": execution,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        document.to_string().into_bytes()
    }
}

impl HealthTest {
    /// Returns what is run, `shell` in front of a line for it; `None` for nothing.
    pub fn command(&self, shell: &[String]) -> Option<Vec<String>> {
        match self {
            Self::Disabled => None,
            Self::Command(command) => Some(command.clone()),
            Self::Shell(line) => {
                let mut command = shell.to_vec();
                if command.is_empty() {
                    command = ["/bin/sh", "-c"].map(str::to_owned).to_vec();
                }
                command.push(line.clone());
                Some(command)
            }
        }
    }
}

impl Healthcheck {
    fn to_docker(&self) -> DockerHealthcheck {
        let time = |time: Option<Duration>| {
            time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        };
        let test = match &self.test {
            HealthTest::Disabled => vec!["NONE".to_owned()],
            HealthTest::Command(command) => std::iter::once("CMD".to_owned())
                .chain(command.iter().cloned())
                .collect(),
            HealthTest::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
        };
        DockerHealthcheck {
            test,
            interval: time(self.interval),
            timeout: time(self.timeout),
            start_period: time(self.start_period),
            start_interval: time(self.start_interval),
            retries: self.retries.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_configuration_is_read_whole() {
        let json = br#"{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05Z","config":{
            "User":"www-data:www-data","ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Env":["PATH=/bin","A=b=c","EMPTY"],
            "Entrypoint":["/init"],"Cmd":["a","b"],"Volumes":{"/data":{}},"WorkingDir":"srv","Labels":{"k":"v"},
            "StopSignal":"SIGQUIT","Shell":["/bin/bash","-c"],"Healthcheck":{"Test":["CMD-SHELL","curl localhost"],"Interval":5000000000,
            "Retries":3}},"rootfs":{"type":"layers","diff_ids":["sha256:x"]},"history":[]}"#;
        let parsed = parse(json).unwrap();
        let config = &parsed.config;
        assert_eq!(
            (parsed.os.as_str(), parsed.architecture.as_str()),
            ("linux", "amd64")
        );
        let env: Vec<_> = config.env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(env, [("PATH", "/bin"), ("A", "b=c"), ("EMPTY", "")]);
        assert_eq!(config.working_dir.as_deref(), Some("/srv"));
        assert_eq!(config.exposed_ports, ["443/tcp", "80/tcp"]);
        let check = config.healthcheck.as_ref().unwrap();
        assert_eq!(check.test, HealthTest::Shell("curl localhost".into()));
        assert_eq!(
            check.test.command(&config.shell).unwrap(),
            ["/bin/bash", "-c", "curl localhost"]
        );
        assert_eq!(
            (check.interval, check.timeout, check.retries),
            (Some(Duration::from_secs(5)), None, Some(3))
        );

        let again = config.to_json("2024-01-02T03:04:05Z", "amd64", &parsed.diff_ids);
        assert_eq!(parse(&again).unwrap(), parsed);
    }

    #[test]
    fn every_form_of_health_check_is_read() {
        let check = |json: &str| {
            let json = format!(
                r#"{{"architecture":"amd64","os":"linux","config":{{"Healthcheck":{json}}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
            );
            parse(json.as_bytes()).unwrap().config.healthcheck
        };
        let none = check(r#"{"Test":["NONE"]}"#).unwrap();
        assert_eq!(none.test.command(&[]), None);
        let whole = check(
            r#"{"Test":["CMD","probe","-q"],"Interval":1500000000,"Timeout":1000001,"StartPeriod":60000000000,
            "StartInterval":2000000000,"Retries":7}"#,
        );
        let whole = whole.unwrap();
        assert_eq!(whole.test.command(&[]).unwrap(), ["probe", "-q"]);
        assert_eq!(whole.interval, Some(Duration::from_millis(1500)));
        assert_eq!(whole.timeout, Some(Duration::from_nanos(1_000_001)));
        assert_eq!(whole.start_period, Some(Duration::from_secs(60)));
        assert_eq!(whole.start_interval, Some(Duration::from_secs(2)));
        assert_eq!(whole.retries, Some(7));
        let line = check(r#"{"Test":["CMD-SHELL","a | b"]}"#).unwrap();
        assert_eq!(line.test.command(&[]).unwrap(), ["/bin/sh", "-c", "a | b"]);
        assert_eq!((line.interval, line.retries), (None, None));
        assert_eq!(check(r#"{"Test":[],"Interval":1}"#), None);
    }

    #[test]
    fn nulls_and_gaps_are_defaults() {
        let json = br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":null,"Volumes":null,
            "Healthcheck":{"Test":null}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert_eq!(parse(json).unwrap().config, ImageConfig::default());
    }

    #[test]
    fn hostile_values_are_refused() {
        let with = |config: &str| {
            let json = format!(
                r#"{{"architecture":"amd64","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
            );
            parse(json.as_bytes()).unwrap_err().to_string()
        };
        assert!(with(r#"{"Cmd":["a\u0000b"]}"#).contains("Cmd"));
        assert!(with(r#"{"Env":["A=\u0000"]}"#).contains("Env"));
        assert!(with(r#"{"Env":["=x"]}"#).contains("without a name"));
        assert!(with(r#"{"Healthcheck":{"Test":["WHAT"]}}"#).contains("health check"));
        assert!(with(r#"{"Cmd":"x"}"#).contains("JSON"));
    }
}
