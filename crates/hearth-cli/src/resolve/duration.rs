//! Time spans: a number of seconds, or units as in `1h30m`.

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
    fn what_is_not_a_span_is_refused() {
        for text in ["", "0", "0s", "-5m", "m", "5x", "5 parsecs", "1e9"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
