//! Flow control: a sender spends credit, a receiver hands out more as it gets rid of what came.
//!
//! Each session has one window for its input and one for its output (standard output and error together). Both start
//! full at [`WINDOW`]; so nothing is asked for before the first byte, and a reader that stops reading costs its own
//! window and nobody else's.

/// The bytes of one session that may be under way in one direction.
///
/// 512 KiB carries 200 MB/s over the 2.5 ms that a round trip takes under emulation.
pub const WINDOW: u32 = 512 * 1024;

/// A sender's side: how many more bytes the peer can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit(u32);

/// Says that a peer granted more than a window, or sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke flow control: {0} bytes beyond its window")]
pub struct WindowExceeded(pub u32);

impl Default for Credit {
    fn default() -> Self {
        Self(WINDOW)
    }
}

impl Credit {
    /// Returns how many bytes may be sent now.
    pub const fn available(self) -> usize {
        self.0 as usize
    }

    /// Spends credit for `bytes` that are being sent; never more than [`Credit::available`].
    pub fn spend(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.available());
        self.0 = self.0.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Takes a grant of the peer.
    ///
    /// # Errors
    /// Returns [`WindowExceeded`] when the peer grants more than it was sent.
    pub fn grant(&mut self, bytes: u32) -> Result<(), WindowExceeded> {
        let sum = self.0.checked_add(bytes).filter(|&sum| sum <= WINDOW);
        self.0 = sum.ok_or(WindowExceeded(bytes))?;
        Ok(())
    }
}

/// A receiver's side: what came, and what of it is not yet granted anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// Bytes received and not consumed.
    held: u32,
    /// Bytes consumed and not yet granted anew.
    owed: u32,
}

impl Window {
    /// Takes note of bytes that came.
    ///
    /// # Errors
    /// Returns [`WindowExceeded`] when the peer sent more than it was granted.
    pub fn receive(&mut self, bytes: usize) -> Result<(), WindowExceeded> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let held = self
            .held
            .checked_add(bytes)
            .filter(|held| held + self.owed <= WINDOW);
        self.held = held.ok_or(WindowExceeded(bytes))?;
        Ok(())
    }

    /// Takes note of bytes that were consumed; returns a grant to send once it is worth a frame (a quarter window).
    pub fn consume(&mut self, bytes: usize) -> Option<u32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.held);
        self.held -= bytes;
        self.owed += bytes;
        (self.owed >= WINDOW / 4).then(|| core::mem::take(&mut self.owed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_and_a_receiver_never_lose_credit() {
        let (mut credit, mut window) = (Credit::default(), Window::default());
        let mut sent: u64 = 0;
        for step in 1..10_000_usize {
            let chunk = credit.available().min(step * 37 % 65_536);
            credit.spend(chunk);
            window.receive(chunk).unwrap();
            sent += chunk as u64;
            if let Some(grant) = window.consume(chunk) {
                credit.grant(grant).unwrap();
            }
            assert!(
                credit.available() + window.owed as usize == WINDOW as usize,
                "step {step}"
            );
        }
        assert!(sent > 10 * u64::from(WINDOW));
    }

    #[test]
    fn a_peer_that_sends_or_grants_too_much_is_found_out() {
        let mut window = Window::default();
        window.receive(WINDOW as usize).unwrap();
        assert_eq!(window.receive(1), Err(WindowExceeded(1)));
        assert_eq!(Credit::default().grant(1), Err(WindowExceeded(1)));
    }

    #[test]
    fn consumed_bytes_count_against_the_window_until_they_are_granted_anew() {
        let mut window = Window::default();
        window.receive(WINDOW as usize).unwrap();
        assert_eq!(window.consume(1000), None);
        assert_eq!(window.receive(1), Err(WindowExceeded(1)));
    }
}
