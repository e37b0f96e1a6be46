//! Flags about whether a workload works.

use clap::Args;

/// How to find out, and how often; what is left out is as the image's HEALTHCHECK says.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Health")]
pub(crate) struct HealthFlags {
    /// Line for the machine's '/bin/sh -c' that exits with 0 when the workload works
    #[arg(long, value_name = "LINE", group = "probe")]
    pub(crate) health_cmd: Option<String>,
    /// TCP port in the machine that takes connections when the workload works
    #[arg(long, value_name = "PORT", group = "probe")]
    pub(crate) health_tcp: Option<u16>,
    /// Page in the machine that answers with a status from 200 to 399 when the workload works, as in 8080/healthz
    #[arg(long, value_name = "[PORT][/PATH]", group = "probe")]
    pub(crate) health_http: Option<String>,
    /// Time between two probes, as in 500ms or 1m [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_interval: Option<String>,
    /// Time that a probe may take [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_timeout: Option<String>,
    /// Failures in a row that make a workload unhealthy [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) health_retries: Option<u32>,
    /// Time from the start in which failures do not count [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_start_period: Option<String>,
    /// Time between two probes in the start period [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) health_start_interval: Option<String>,
    /// Do not find out, whatever the image says
    #[arg(
        long,
        conflicts_with_all = [
            "probe",
            "health_interval",
            "health_timeout",
            "health_retries",
            "health_start_period",
            "health_start_interval",
        ]
    )]
    pub(crate) no_healthcheck: bool,
}
