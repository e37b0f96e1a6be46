//! The public contract of a Hearth node: wire types, paths, the OpenAPI document, and a typed client.
//!
//! ```text
//! v1/         what JSON says: requests, views, errors           (serde, JSON Schema)
//! endpoint    every path, once: the router, the client and the OpenAPI document are made from it
//! stream      frames on an upgraded connection: terminals, attach, exec, logs
//! client      HTTP/1.1 over the node's Unix socket
//! location    where a node's socket, data and run time directories lie
//! ```
//! Nothing here knows how a node does what it is asked.

#![forbid(unsafe_code)]

pub mod client;
pub mod endpoint;
pub mod location;
pub mod openapi;
pub mod stream;
pub mod v1;

pub use client::{Client, ClientError};
pub use location::{Location, LocationError};
