//! The host's end of the guest channel: one connection, many sessions.
//!
//! ```text
//!   Guest (handle, cloned freely) --frames--> writer task --> byte stream --> hearth-guest
//!     |  open() -> Session                                        |
//!     `-- sessions: id -> Inbox  <--- reader task <---------------'
//! ```
//! The reader never waits for anybody: a session's bytes go into its inbox, which flow control bounds to one window. Who
//! reads the inbox grants credit; so a slow reader stops its own session and no other. Above this module nobody knows
//! whether the bytes travel by virtio-serial or vsock.

mod activity;
mod channel;
mod inbox;
mod renew;
mod session;
mod stillness;

#[cfg(test)]
mod tests;

pub use activity::Activity;
pub use channel::{ConnectError, Guest, GuestInfo, RequestError, Traffic};
pub use renew::HungUp;
pub use session::{Input, Session, SessionEvent, Stream};
