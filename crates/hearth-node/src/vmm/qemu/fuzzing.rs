//! The door for the fuzz target in `fuzz/` to what a snapshot says of a monitor's state. Compiled with `--cfg fuzzing` only.

use super::state;

/// Returns a stream as far as it is about memory.
pub fn memory_part(stream: &[u8]) -> Option<&[u8]> {
    state::memory_part(stream)
}
