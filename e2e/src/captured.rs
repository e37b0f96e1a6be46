//! What a program prints, collected while it runs, so that a test can wait for a part of it.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::text::contains;

/// A stream that a thread reads to its end.
#[derive(Debug, Clone)]
pub struct Captured {
    /// Guards what was read so far. The reader is a thread that blocks in `read`: it could not answer questions.
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Captured {
    /// Begins to read. The thread ends with the stream, that is, with the last process that holds its other end.
    pub(crate) fn of(mut source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                match source.read(&mut buffer) {
                    Ok(count) if count > 0 => {
                        writer.lock().bytes.extend_from_slice(&buffer[..count]);
                        writer.changed.notify_all();
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // A terminal without programs ends with EIO.
                    _ => break,
                }
            }
            writer.lock().ended = true;
            writer.changed.notify_all();
        });
        Self { shared }
    }

    /// A stream that ends at once.
    pub(crate) fn nothing() -> Self {
        Self::of(std::io::empty())
    }

    /// Returns what was read so far.
    pub fn so_far(&self) -> Vec<u8> {
        self.shared.lock().bytes.clone()
    }

    /// Waits for the end of the stream and returns all of it.
    ///
    /// # Errors
    /// The deadline passed: some process still holds the other end.
    pub fn all(&self, deadline: Duration) -> Result<Vec<u8>> {
        self.wait(
            deadline,
            |state| state.ended.then(|| state.bytes.clone()),
            "its end",
        )
    }

    /// Waits until `needle` has been printed.
    ///
    /// # Errors
    /// The stream ended without it, or the deadline passed.
    pub fn wait_for(&self, needle: &str, deadline: Duration) -> Result<()> {
        self.wait_for_times(needle, 1, deadline)
    }

    /// Waits until `needle` has been printed so many times.
    ///
    /// # Errors
    /// The stream ended before, or the deadline passed.
    pub fn wait_for_times(&self, needle: &str, times: usize, deadline: Duration) -> Result<()> {
        let found = |state: &State| {
            let text = String::from_utf8_lossy(&state.bytes);
            (text.matches(needle).count() >= times).then_some(())
        };
        self.wait(deadline, found, &format!("{needle:?} ({times} times)"))
    }

    fn wait<T>(&self, deadline: Duration, find: impl Fn(&State) -> Option<T>, what: &str) -> Result<T> {
        let end = Instant::now() + deadline;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = find(&state) {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended {
                    "the stream ended"
                } else {
                    "the deadline passed"
                };
                bail!("waiting for {what}, {why} after: {}", tail(&state.bytes));
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Tells whether `needle` has been printed so far.
    pub fn has(&self, needle: &str) -> bool {
        contains(&self.shared.lock().bytes, needle.as_bytes())
    }
}

/// Returns the last bytes of an output as text, for an error message.
pub(crate) fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(4000);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}
