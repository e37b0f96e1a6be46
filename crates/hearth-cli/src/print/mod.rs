//! What verbs print: tables, JSON, colours; and how it reaches standard output.

mod table;
mod time;

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::error::CliError;
use crate::terminal;

pub(crate) use table::{Cell, Table, shortened};
pub(crate) use time::{ago, since};

/// Something to look at: it works, but.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
/// Something that does not work.
pub(crate) const FAILURE: Style = AnsiColor::Red.on_default();
/// As it should be.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();

/// What standard output is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    /// Characters in a line; `None` when nobody looks.
    pub(crate) width: Option<usize>,
    /// Whether colours are wanted.
    pub(crate) colour: bool,
}

impl Screen {
    /// Looks at standard output and at NO_COLOR (no-color.org).
    pub(crate) fn stdout() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            width: terminal::output_width(),
            colour: io::stdout().is_terminal() && !set("NO_COLOR") && !dumb,
        }
    }

    /// Returns a text in a colour, where colours are wanted.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self.colour {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

/// Writes text to standard output.
///
/// # Errors
/// Returns [`CliError::Output`].
pub(crate) fn out(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(CliError::Output)
}

/// Writes a line to standard output.
///
/// # Errors
/// Returns [`CliError::Output`].
pub(crate) fn line(text: &str) -> Result<(), CliError> {
    out(&format!("{text}\n"))
}

/// Writes JSON for people and programs to standard output.
///
/// # Errors
/// Returns [`CliError::Output`], or [`CliError::Json`].
pub(crate) fn json(value: &impl Serialize) -> Result<(), CliError> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Writes a message to standard error; when nobody reads it, nothing is lost.
pub(crate) fn note(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Replaces control characters, but for line ends and tabs: what a guest or an image says must not command a terminal.
pub(crate) fn plain(text: &str) -> String {
    let harmless = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_only_where_they_are_wanted() {
        let screen = |colour| Screen { width: None, colour };
        assert_eq!(screen(false).paint(WARNING, "x"), "x");
        assert_eq!(screen(true).paint(WARNING, "x"), "\x1b[33mx\x1b[0m");
    }

    #[test]
    fn words_of_a_guest_cannot_command_the_terminal() {
        assert_eq!(
            plain("a\x1b]0;x\x07\n\tb\u{9b}"),
            "a\u{fffd}]0;x\u{fffd}\n\tb\u{fffd}"
        );
    }
}
