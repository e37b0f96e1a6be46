//! The guest's console: one line at the start, and one for each thing that went wrong. Nothing of a workload is ever
//! written here: no environment, no argument, no output.

use std::fmt;
use std::io::Write;

use rustix::system::{RebootCommand, reboot};

use crate::sys;

/// Writes one line.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let line = format!("{text}\n");
    // A console that is gone is nothing that could be told to anybody.
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// Writes one line of error.
macro_rules! complain {
    ($($argument:tt)*) => {
        $crate::console::line(format_args!("hearth-guest: {}", format_args!($($argument)*)))
    };
}
pub(crate) use complain;

/// Says what is wrong, and ends the machine.
pub(crate) fn fatal(text: fmt::Arguments<'_>) -> ! {
    complain!("fatal: {text}");
    restart()
}

/// Resets the machine; its monitor runs with "no reboot", so it ends.
pub(crate) fn restart() -> ! {
    loop {
        rustix::fs::sync();
        let _ = reboot(RebootCommand::Restart);
    }
}

/// Makes a panic end the machine (in the agent) or the process (in its children) instead of panicking the kernel.
pub(crate) fn on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        if sys::is_agent() {
            fatal(format_args!("defect at {place}"));
        }
        complain!("defect in a child at {place}");
        match sys::exit(125) {}
    }));
}
