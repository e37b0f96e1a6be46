//! Who wants to hear of a piece of work that several have asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{Digest, Phase, Progress, ProgressSink};

/// Those who hear of one piece of work. Who comes late is told how far it is.
#[derive(Default)]
pub(super) struct Audience {
    /// Guards who listens and what was told last, never across an await; the work tells from several threads.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seats: HashMap<u64, ProgressSink>,
    next: u64,
    last: HashMap<(Digest, Phase), Progress>,
}

/// A place in an audience; left when it is dropped.
pub(super) struct Seat {
    audience: Arc<Audience>,
    number: u64,
}

impl Audience {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place.
    pub(super) fn join(self: Arc<Self>, sink: ProgressSink) -> Seat {
        let mut state = self.state();
        for progress in state.last.values() {
            sink(*progress);
        }
        let number = state.next;
        state.next += 1;
        state.seats.insert(number, sink);
        drop(state);
        Seat {
            audience: self,
            number,
        }
    }

    /// Returns the sink that everybody hears.
    pub(super) fn sink(self: &Arc<Self>) -> ProgressSink {
        let audience = Arc::clone(self);
        Arc::new(move |progress: Progress| {
            let mut state = audience.state();
            state.last.insert((progress.blob, progress.phase), progress);
            for sink in state.seats.values() {
                sink(progress);
            }
        })
    }
}

impl Seat {
    /// Returns the audience.
    pub(super) fn audience(&self) -> &Arc<Audience> {
        &self.audience
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.audience.state().seats.remove(&self.number);
    }
}

/// One audience for each blob that is fetched; forgotten when nobody is in it.
#[derive(Default)]
pub(super) struct Audiences {
    /// Guards the table only, never across an await.
    table: Mutex<HashMap<Digest, Weak<Audience>>>,
}

impl Audiences {
    /// Takes a place in a blob's audience.
    pub(super) fn join(&self, blob: Digest, sink: ProgressSink) -> Seat {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, audience| audience.strong_count() > 0);
        let audience = table.get(&blob).and_then(Weak::upgrade).unwrap_or_else(|| {
            let audience = Arc::default();
            table.insert(blob, Arc::downgrade(&audience));
            audience
        });
        audience.join(sink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hear_and_who_comes_late_is_told_the_last_word() {
        let heard: Arc<Mutex<Vec<(char, u64)>>> = Arc::default();
        let listener = |name: char| -> ProgressSink {
            let heard = heard.clone();
            Arc::new(move |progress| heard.lock().unwrap().push((name, progress.done)))
        };
        let blob = Digest::of(b"");
        let told = |done| Progress {
            blob,
            done,
            total: 9,
            already: 0,
            phase: Phase::Fetch,
        };
        let audiences = Audiences::default();
        let first = audiences.join(blob, listener('a'));
        let sink = first.audience().sink();
        sink(told(1));
        let second = audiences.join(blob, listener('b'));
        drop(first);
        sink(told(2));
        drop((second, sink));
        assert_eq!(*heard.lock().unwrap(), [('a', 1), ('b', 1), ('b', 2)]);
        // Nobody was left: the next one begins with nothing.
        drop(audiences.join(blob, listener('c')));
        assert_eq!(heard.lock().unwrap().len(), 3);
    }
}
