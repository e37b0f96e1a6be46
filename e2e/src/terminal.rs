//! A program under a terminal of its own, as a person sits before it.

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::captured::Captured;
use crate::command::{Invocation, Outcome, Running};

/// A terminal and the program under it.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    /// What it shows.
    pub screen: Captured,
    running: Running,
}

impl Invocation {
    /// Starts it under a terminal of so many rows and columns. All three of its standard streams are the terminal.
    ///
    /// # Errors
    /// There is no terminal, or the program cannot be started.
    pub fn on_terminal(self, rows: u16, columns: u16) -> Result<Terminal> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("cannot open a terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let keyboard = File::from(master);
        set_size(&keyboard, rows, columns)?;
        let slave = || -> Result<Stdio> {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            Ok(Stdio::from(open(&name, flags, Mode::empty())?))
        };
        let running = self.spawn_under([slave()?, slave()?, slave()?])?;
        Ok(Terminal {
            screen: Captured::of(keyboard.try_clone()?),
            keyboard,
            running,
        })
    }
}

/// Tells whether a terminal hands over each key as it is typed.
///
/// # Errors
/// It is gone.
pub fn is_raw(terminal: &File) -> Result<bool> {
    let settings = tcgetattr(terminal).context("cannot ask the terminal")?;
    Ok(!settings
        .local_modes
        .intersects(LocalModes::ICANON | LocalModes::ISIG))
}

fn set_size(terminal: &File, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).context("cannot set the terminal's size")
}

impl Terminal {
    /// Types.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        self.keyboard
            .write_all(text.as_bytes())
            .context("cannot type into the terminal")
    }

    /// Makes the window larger or smaller; the program hears of it by SIGWINCH.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        set_size(&self.keyboard, rows, columns)
    }

    /// Returns the terminal itself, to be asked [`is_raw`] when the program is gone.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn line(&self) -> Result<File> {
        Ok(self.keyboard.try_clone()?)
    }

    /// Waits for the program's end. The outcome's outputs are empty: everything is on the screen.
    ///
    /// # Errors
    /// The deadline passed.
    pub fn finish(self, deadline: Duration) -> Result<Outcome> {
        self.running
            .finish(deadline)
            .with_context(|| format!("on the screen: {}", crate::captured::tail(&self.screen.so_far())))
    }
}
