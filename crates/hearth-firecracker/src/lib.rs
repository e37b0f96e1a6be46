//! A client of Firecracker: typed requests over its API socket, the jailer's arguments, its metrics, its vsock.
//!
//! ```text
//! client     one request, one reply, one deadline; every call of the API
//! model      what the requests and replies say        (firecracker.yaml of v1.12.1)
//! jailer     command lines of jailer and Firecracker
//! metrics    what Firecracker writes about itself
//! vsock      how the host reaches a port of the guest
//! version    which versions this crate speaks to
//! ```
//!
//! It knows nothing of who uses it. It starts no process and touches no file: those are the caller's.

#![forbid(unsafe_code)]

pub mod client;
pub mod jailer;
pub mod metrics;
pub mod model;
mod socket;
pub mod version;
pub mod vsock;

pub use client::{Client, ClientError};
pub use metrics::Metrics;
pub use version::{Unsupported, Version};
