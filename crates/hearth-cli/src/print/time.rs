//! Times in docker's words: `3 minutes`, `About an hour`.

use jiff::Timestamp;

/// Returns how long ago an RFC 3339 time was, as in `2 hours ago`; the time itself when it makes no sense.
pub(crate) fn ago(text: &str, now: Timestamp) -> String {
    match since(text, now) {
        Some(span) => format!("{span} ago"),
        None => text.to_owned(),
    }
}

/// Returns how long it has been since an RFC 3339 time, as in `2 hours`.
pub(crate) fn since(text: &str, now: Timestamp) -> Option<String> {
    let then: Timestamp = text.parse().ok()?;
    let seconds = now.as_second().saturating_sub(then.as_second());
    Some(words(seconds.max(0).unsigned_abs()))
}

/// docker's units.HumanDuration.
fn words(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_in_dockers_words() {
        for (seconds, expected) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (3 * 86400, "3 days"),
            (20 * 86400, "2 weeks"),
            (90 * 86400, "3 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(words(seconds), expected);
        }
    }

    #[test]
    fn a_time_that_is_none_is_shown_as_it_is() {
        let now: Timestamp = "2025-01-01T00:02:05Z".parse().unwrap();
        assert_eq!(ago("2025-01-01T00:00:00.5Z", now), "2 minutes ago");
        assert_eq!(ago("2026-01-01T00:00:00Z", now), "Less than a second ago");
        assert_eq!(ago("yesterday", now), "yesterday");
    }
}
