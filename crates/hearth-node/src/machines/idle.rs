//! Machines that end when they do nothing: `--idle-timeout`.
//!
//! The moment of the last sign of life is the modification time of a file in the machine's directory, renewed now and then, so that a
//! new node goes on counting where the old one was. It may be behind by a twentieth of the time-out, or a second.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::attend::TIMEOUT_GRACE;
use super::life::Order;
use crate::guest::Activity;

const FILE: &str = "activity";
/// The moment is written so many times in one time-out, at most once a second.
const NOTES: u32 = 20;

/// Goes on counting where an earlier node was; what a former start left is no news.
pub(super) fn go_on(directory: &Path, activity: &Activity) {
    let noted = std::fs::metadata(directory.join(FILE)).and_then(|metadata| metadata.modified());
    if let Ok(before) = noted.and_then(|noted| noted.elapsed().map_err(std::io::Error::other)) {
        activity.was_idle(before);
    }
}

/// Forgets what was noted: a start is a sign of life.
pub(super) fn forget(directory: &Path) {
    // Mostly it is not there.
    let _ = std::fs::remove_file(directory.join(FILE));
}

/// Waits until a guest has been idle for `limit`, and returns what is to be done then; for ever without a limit.
pub(super) async fn over(directory: &Path, activity: &Arc<Activity>, limit: Option<Duration>) -> Order {
    let Some(limit) = limit else {
        return std::future::pending().await;
    };
    let between = (limit / NOTES).max(Duration::from_secs(1));
    loop {
        let idle = activity.idle();
        if idle >= limit {
            break;
        }
        if let Err(error) = note(directory, idle) {
            tracing::warn!(directory = %directory.display(), %error, "a new node would count idle time from its own start");
        }
        tokio::time::sleep((limit - idle).min(between)).await;
    }
    Order::Stop {
        grace: TIMEOUT_GRACE,
        reason: Some(format!("it was idle for {} s", limit.as_secs())),
    }
}

fn note(directory: &Path, idle: Duration) -> std::io::Result<()> {
    let last = SystemTime::now()
        .checked_sub(idle)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let file = File::options()
        .create(true)
        .append(true)
        .open(directory.join(FILE))?;
    file.set_modified(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn idle_time_goes_on_with_a_new_node_and_begins_anew_with_a_start() {
        let root = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        note(root.path(), hour).unwrap();
        let found = Arc::new(Activity::default());
        go_on(root.path(), &found);
        assert!(found.idle() >= hour && found.idle() < hour + hour);
        let order = over(root.path(), &found, Some(hour)).await;
        assert!(matches!(order, Order::Stop { reason: Some(reason), .. } if reason.contains("3600")));
        forget(root.path());
        let started = Activity::default();
        go_on(root.path(), &started);
        assert!(started.idle() < hour);
    }
}
