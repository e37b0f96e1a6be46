//! A guest that stands still for a snapshot, and is made another machine.

use std::time::{Duration, Instant};

use hearth_guest_protocol::message::{self, Clock, Freeze, HardwareAddress, Renew, Status};
use hearth_guest_protocol::{CONTROL, GENERATION_ADDRESS, GENERATION_PROCESSES, GENERATION_STILL, Kind};

use super::channel::{Guest, RequestError};

/// How late a clock may be that was set; and how often that is tried on a busy host.
const CLOCK_LATE: Duration = Duration::from_millis(3);
const CLOCK_TRIES: u32 = 20;

impl Guest {
    /// Lets processes and file system stand still, for so long at most.
    ///
    /// # Errors
    /// Returns [`RequestError`]; they go on then, at the latest when that time is over.
    pub async fn freeze(&self, at_most: Duration, deadline: Duration) -> Result<(), RequestError> {
        self.check_still()?;
        let at_most_ms = u32::try_from(at_most.as_millis()).unwrap_or(u32::MAX);
        let request = Freeze { at_most_ms };
        self.status(Kind::Freeze, &request, deadline).await.map(drop)
    }

    /// Lets what stands still go on. Tells whether it stood still until now.
    ///
    /// # Errors
    /// Returns [`RequestError`].
    pub async fn thaw(&self, deadline: Duration) -> Result<bool, RequestError> {
        self.check_still()?;
        let status = self.status(Kind::Thaw, &(), deadline).await?;
        Ok(matches!(status, Status::Thawed { was_frozen: true }))
    }

    /// Makes a guest that stands still another machine; its processes still do afterwards.
    ///
    /// # Errors
    /// Returns [`RequestError`], also when it does not stand still any more.
    pub async fn renew(&self, renew: &Renew, deadline: Duration) -> Result<(), RequestError> {
        self.check_still()?;
        self.status(Kind::Renew, renew, deadline).await.map(drop)
    }

    /// Gives the guest's network interface a hardware address; an older agent keeps the one that it has.
    pub async fn set_hardware_address(&self, address: [u8; 6]) {
        let mut frame = Vec::new();
        let known = self.shared.info.generation >= GENERATION_ADDRESS;
        let address = HardwareAddress(address);
        if known && message::encode(Kind::HardwareAddress, CONTROL, &address, &mut frame).is_ok() {
            self.send(frame).await;
        }
    }

    /// Steps the guest's wall clock to the host's. An agent that does not know how keeps its own.
    pub async fn step_clock(&self, unix_ns: u64) {
        let mut frame = Vec::new();
        let known = self.shared.info.generation >= GENERATION_PROCESSES;
        if known && message::encode(Kind::Clock, CONTROL, &Clock { unix_ns }, &mut frame).is_ok() {
            self.send(frame).await;
        }
    }

    /// Steps the guest's wall clock to what `now` tells, and again where the way there took longer than its time may be late.
    ///
    /// # Errors
    /// Returns [`RequestError`].
    pub async fn set_clock(&self, now: impl Fn() -> u64, deadline: Duration) -> Result<(), RequestError> {
        for _ in 0..CLOCK_TRIES {
            let begun = Instant::now();
            self.step_clock(now()).await;
            self.ping(deadline).await?;
            if begun.elapsed() <= CLOCK_LATE {
                break;
            }
        }
        Ok(())
    }

    /// Tells whether the guest's agent can stand still.
    pub fn can_stand_still(&self) -> bool {
        self.shared.info.generation >= GENERATION_STILL
    }

    fn check_still(&self) -> Result<(), RequestError> {
        match self.can_stand_still() {
            true => Ok(()),
            false => Err(RequestError::OlderAgent),
        }
    }
}
