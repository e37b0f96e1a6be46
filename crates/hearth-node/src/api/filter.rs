//! What filters mean: which machines and which events they pick. Parsed by `hearth_machine::Filters`.

use hearth_api::v1;
use hearth_machine::Filters;
use jiff::Timestamp;

use crate::records::MachineRecord;

/// Keys for lists of machines.
pub(super) const MACHINES: &[&str] = &["id", "name", "label", "status", "exited", "ancestor"];
/// Keys for `prune`.
pub(super) const PRUNE: &[&str] = &["label", "label!", "until"];
/// Keys for events.
pub(super) const EVENTS: &[&str] = &["event", "machine", "container", "label", "image"];

/// Tells whether machines are asked for that may not run.
pub(super) fn asks_for_rest(filters: &Filters) -> bool {
    ["status", "exited"]
        .iter()
        .any(|key| !filters.values(key).is_empty())
}

/// Tells whether a machine is to be shown.
pub(super) fn shows(filters: &Filters, machine: &v1::Machine) -> bool {
    let status = serde_json::to_value(machine.state.status).unwrap_or_default();
    filters.allows("id", |id| machine.id.starts_with(id))
        && filters.allows("name", |part| machine.name.contains(part))
        && filters.allows_labels("label", &machine.spec.labels)
        && filters.allows("status", |wanted| status == wanted)
        && filters.allows("exited", |code| {
            machine.state.exit_code.is_some_and(|has| has.to_string() == code)
        })
        && filters.allows("ancestor", |image| is_image(image, &machine.spec.image))
}

/// Tells whether a machine that rests is to be removed; `until` are the filter's moments.
pub(super) fn is_pruned(filters: &Filters, until: &[Timestamp], record: &MachineRecord) -> bool {
    let created: Option<Timestamp> = record.created_at.parse().ok();
    filters.allows_labels("label", &record.spec.labels)
        && !filters.has_any_label("label!", &record.spec.labels)
        && until
            .iter()
            .all(|moment| created.is_some_and(|created| created < *moment))
}

/// Tells whether an event is to be told.
pub(super) fn tells(filters: &Filters, event: &v1::Event) -> bool {
    let is_machine = |wanted: &str| event.name == wanted || event.machine.starts_with(wanted);
    filters.allows("event", |action| action == event.action.name())
        && filters.allows("machine", is_machine)
        && filters.allows("container", is_machine)
        && filters.allows_labels("label", &event.labels)
        && filters.allows("image", |image| is_image(image, &event.image))
}

/// A tag that is not said is any.
fn is_image(wanted: &str, image: &str) -> bool {
    let behind = image.strip_prefix(wanted);
    behind.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
}

/// Reads a moment: RFC 3339, seconds since 1970, or a time span back from now.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    let refused = || format!("{text:?} is no time: RFC 3339, seconds since 1970 and spans as in 10m are");
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Timestamp::from_second(seconds).map_err(|_| refused());
    }
    let span: jiff::SignedDuration = text.parse().map_err(|_| refused())?;
    Timestamp::now().checked_sub(span).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_its_tag_is_any_tag_of_it() {
        assert!(is_image("busybox", "busybox"));
        assert!(is_image("busybox", "busybox:1.36"));
        assert!(!is_image("busybox", "busybox2:1"));
        assert!(!is_image("busybox:1", "busybox:1.36"));
    }

    #[test]
    fn times_are_moments_seconds_or_spans() {
        assert_eq!(time("1970-01-01T00:00:10Z"), time("10"));
        let span = time("1h").unwrap();
        assert!(span < Timestamp::now() && span > time("2h").unwrap());
        for text in ["", "soon", "10 parsecs"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
