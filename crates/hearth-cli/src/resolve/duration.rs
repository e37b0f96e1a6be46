//! Time spans: a number of seconds, or units as in `1h30m`.

use jiff::{SignedDuration, Timestamp};

use super::ResolveError;

/// Parses a time span to whole seconds, rounded up; zero and what is negative are refused.
///
/// # Errors
/// Returns [`ResolveError::Duration`].
pub(super) fn seconds(text: &str) -> Result<u64, ResolveError> {
    let refused = || ResolveError::Duration(text.to_owned());
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds).filter(|&seconds| seconds > 0).ok_or_else(refused);
    }
    let span: jiff::SignedDuration = text.parse().map_err(|_| refused())?;
    if !span.is_positive() {
        return Err(refused());
    }
    Ok(span.as_secs().unsigned_abs() + u64::from(span.subsec_nanos() > 0))
}

/// Parses a time span to whole milliseconds, rounded up; zero and what is negative are refused.
///
/// # Errors
/// Returns [`ResolveError::Duration`].
pub(super) fn milliseconds(text: &str) -> Result<u64, ResolveError> {
    let refused = || ResolveError::Duration(text.to_owned());
    let span = span(text)
        .filter(SignedDuration::is_positive)
        .ok_or_else(refused)?;
    let nanoseconds = span.as_nanos().unsigned_abs();
    u64::try_from(nanoseconds.div_ceil(1_000_000)).map_err(|_| refused())
}

/// Parses a time, RFC 3339 or Unix, or a time span before `now`, as docker does; returns it as RFC 3339.
///
/// # Errors
/// Returns [`ResolveError::Moment`].
pub(crate) fn moment(text: &str, now: Timestamp) -> Result<String, ResolveError> {
    let unix = || {
        let (seconds, parts) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let nanoseconds = format!("{parts:0<9}").parse().ok();
        let whole = nanoseconds.filter(|_| digits(seconds) && digits(parts) && parts.len() <= 9)?;
        Timestamp::new(seconds.parse().ok()?, whole).ok()
    };
    let before = || now.checked_sub(span(text)?).ok();
    let moment = text.parse().ok().or_else(unix).or_else(before);
    let moment: Timestamp = moment.ok_or_else(|| ResolveError::Moment(text.to_owned()))?;
    Ok(moment.to_string())
}

/// Parses a number of seconds, or units.
fn span(text: &str) -> Option<SignedDuration> {
    let seconds = text.parse().ok().map(SignedDuration::from_secs);
    seconds.or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_whole_seconds_rounded_up() {
        for (text, expected) in [
            ("45", 45),
            ("30s", 30),
            ("5m", 300),
            ("1h30m", 5400),
            ("500ms", 1),
            ("1.5s", 2),
        ] {
            assert_eq!(seconds(text).ok(), Some(expected), "{text}");
        }
    }

    #[test]
    fn short_spans_are_milliseconds() {
        for (text, expected) in [("2", 2000), ("250ms", 250), ("1.5s", 1500), ("1us", 1)] {
            assert_eq!(milliseconds(text).ok(), Some(expected), "{text}");
        }
        assert!(milliseconds("0ms").is_err() && milliseconds("-1s").is_err());
    }

    #[test]
    fn a_moment_is_a_time_or_a_span_before_now() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-01-31T12:00:00.5+01:00", "2026-01-31T11:00:00.5Z"),
            ("1769860800", "2026-01-31T12:00:00Z"),
            ("1769860800.25", "2026-01-31T12:00:00.25Z"),
            ("90s", "2026-01-31T11:58:30Z"),
            ("1h30m", "2026-01-31T10:30:00Z"),
        ] {
            assert_eq!(moment(text, now).ok().as_deref(), Some(expected), "{text}");
        }
        for text in ["", "yesterday", "12:00", "1.2.3"] {
            assert!(moment(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_span_is_refused() {
        for text in ["", "0", "0s", "-5m", "m", "5x", "5 parsecs", "1e9"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
