//! A time whose end wakes the event loop.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::console::complain;

/// A timer (timerfd_create(2)), readable at its end. It goes off once.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// Makes a timer that is not set.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn new() -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        timerfd_create(TimerfdClockId::Monotonic, flags).map(Self)
    }

    /// Sets it anew, whatever it was set to; no time at all is over at once.
    pub(crate) fn set(&self, after: Duration) {
        // For the kernel a time of zero is none.
        self.set_time(after.max(Duration::from_nanos(1)));
    }

    /// Makes it one that is not set. An end that has come and was not read is forgotten.
    pub(crate) fn unset(&self) {
        self.set_time(Duration::ZERO);
    }

    fn set_time(&self, after: Duration) {
        let none = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let time = Itimerspec {
            it_interval: none,
            it_value: Timespec::try_from(after).unwrap_or(none),
        };
        if let Err(errno) = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &time) {
            complain!("cannot set a timer: {errno}");
        }
    }

    /// Takes note of its end; tells whether that has come since it was set, or since this was asked last.
    pub(crate) fn take_end(&self) -> bool {
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count[..]).is_ok()
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn wait(timer: &Timer) -> bool {
        let limit = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(timer, PollFlags::IN)], Some(&limit)).unwrap() == 1
    }

    #[test]
    fn no_time_at_all_is_over_once() {
        let timer = Timer::new().unwrap();
        assert!(!timer.take_end());
        timer.set(Duration::ZERO);
        assert!(wait(&timer));
        assert!(timer.take_end());
        assert!(!timer.take_end());
    }

    #[test]
    fn an_end_that_nobody_has_read_is_forgotten_with_the_time() {
        let timer = Timer::new().unwrap();
        timer.set(Duration::from_millis(1));
        assert!(wait(&timer));
        timer.unset();
        assert!(!timer.take_end());
        timer.set(Duration::from_millis(1));
        assert!(wait(&timer));
        timer.set(Duration::from_secs(3600));
        assert!(!timer.take_end());
    }
}
