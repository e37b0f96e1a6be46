//! The steps of a pull and of a removal, told to whoever watches: tests end the process at one, or have it fail.

use std::io;
use std::sync::OnceLock;

/// Takes the name of a step that was done; an error fails what it is a step of.
pub type StepWatch = fn(&str) -> io::Result<()>;

static WATCH: OnceLock<StepWatch> = OnceLock::new();

/// Has every step of this process told to `watch`; the first call counts.
pub fn watch_steps(watch: StepWatch) {
    WATCH.get_or_init(|| watch);
}

/// Tells that a step was done.
pub(crate) fn reached(name: &str) -> io::Result<()> {
    WATCH.get().map_or(Ok(()), |watch| watch(name))
}
