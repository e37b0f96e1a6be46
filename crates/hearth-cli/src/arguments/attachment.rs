//! How a verb stays with a process: flags of the verbs that connect to one.

use clap::{ArgAction, Args};

/// Keys that leave the process running.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct KeyFlags {
    /// Keys that leave it running, as in ctrl-a,d; '' for none [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub(crate) detach_keys: Option<String>,
}

/// How to stay with a workload.
#[derive(Debug, Clone, Args)]
pub(crate) struct StayFlags {
    #[command(flatten)]
    pub(crate) keys: KeyFlags,
    /// Pass signals on to the workload; otherwise they end this program alone
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(crate) sig_proxy: bool,
}
