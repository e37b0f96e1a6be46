//! `update`: arguments to a request.

use hearth_api::v1;

use super::{ResolveError, duration, run};
use crate::arguments::Update;

/// Resolves what is to be different.
///
/// # Errors
/// Returns [`ResolveError`] for the first argument that makes no sense, and when nothing is to be different.
pub(crate) fn update(arguments: &Update) -> Result<v1::UpdateMachine, ResolveError> {
    let request = v1::UpdateMachine {
        labels: run::labels(&arguments.label)?,
        remove_labels: arguments.remove_label.clone(),
        restart: arguments.restart.clone(),
        timeout_seconds: arguments.timeout.as_deref().map(limit).transpose()?,
        idle_timeout_seconds: arguments.idle_timeout.as_deref().map(limit).transpose()?,
        policy: None,
    };
    if request == v1::UpdateMachine::default() {
        return Err(ResolveError::NoChange);
    }
    Ok(request)
}

/// On the wire, zero is none.
fn limit(text: &str) -> Result<u64, ResolveError> {
    match text {
        "none" => Ok(0),
        text => duration::seconds(text),
    }
}
