//! `events`.

use std::process::ExitCode;

use hearth_api::client::EventOptions;
use hearth_api::v1::{Event, EventLine};

use crate::arguments::Events;
use crate::error::CliError;
use crate::node::Node;
use crate::print;

/// Prints what happens, until the stream's end.
pub(super) async fn events(node: &Node, arguments: Events) -> Result<ExitCode, CliError> {
    let options = EventOptions {
        since: arguments.since,
        until: arguments.until,
        filters: arguments.filter,
    };
    let mut events = node.call(async |client| client.events(&options).await).await?;
    while let Some(line) = events.next().await? {
        match line {
            EventLine::Event(event) if arguments.json => print::line(&serde_json::to_string(&event)?)?,
            EventLine::Event(event) => print::line(&shown(&event))?,
            EventLine::Lost(_) if arguments.json => print::line(&serde_json::to_string(&line)?)?,
            EventLine::Lost(count) => print::line(&format!("... {count} events are not kept any more"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One line: time, action, id, and what belongs to it.
fn shown(event: &Event) -> String {
    let own = [("name", &event.name), ("image", &event.image)];
    let all = own.into_iter().chain(
        event
            .attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value)),
    );
    let words: Vec<_> = all
        .map(|(name, value)| format!("{name}={}", one_line(value)))
        .collect();
    format!(
        "{} {} {} ({})",
        event.time,
        event.action.name(),
        event.machine,
        words.join(", ")
    )
}

fn one_line(text: &str) -> String {
    print::plain(text).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use hearth_api::v1::EventAction;

    use super::*;

    #[test]
    fn an_event_is_one_line_without_control_bytes() {
        let event = Event {
            sequence: 7,
            time: "2026-01-01T00:00:00.000000001Z".into(),
            action: EventAction::Die,
            machine: "0123456789ab".into(),
            name: "web".into(),
            image: "busybox".into(),
            labels: Default::default(),
            attributes: [("reason".to_owned(), "a\nb\u{1b}[2J".to_owned())].into(),
        };
        let line = shown(&event);
        assert!(line.starts_with(
            "2026-01-01T00:00:00.000000001Z die 0123456789ab (name=web, image=busybox, reason=a"
        ));
        assert!(!line.contains(['\n', '\u{1b}']), "{line:?}");
    }
}
