//! The terminal that a person sits at: its size, and raw mode that is always undone.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether standard input is a terminal.
pub(crate) fn is_input() -> bool {
    io::stdin().is_terminal()
}

/// Returns the size of the terminal that output goes to, or else input comes from: rows and columns.
pub(crate) fn size() -> Option<(u16, u16)> {
    size_of(io::stdout()).or_else(|| size_of(io::stdin()))
}

/// Returns a terminal's size: rows and columns; `None` for what is no terminal or does not know.
fn size_of(descriptor: impl AsFd) -> Option<(u16, u16)> {
    let size = tcgetwinsize(descriptor).ok()?;
    Some((size.ws_row, size.ws_col)).filter(|&(rows, columns)| rows > 0 && columns > 0)
}

/// Returns how many characters fit in a line of standard output; `None` when it is no terminal.
pub(crate) fn output_width() -> Option<usize> {
    size_of(io::stdout()).map(|(_, columns)| usize::from(columns))
}

/// Keeps standard input in raw mode; dropped, on a panic too, it puts back what was.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Switches standard input to raw mode: every key goes to the machine, ^C too.
    ///
    /// # Errors
    /// Returns the terminal's error.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing put back.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
