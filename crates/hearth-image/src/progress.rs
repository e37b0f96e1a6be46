//! What a pull tells of its progress.

use std::sync::Arc;

use crate::Digest;

/// What is being done with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It comes from the registry, or is copied from a local source.
    Fetch,
    /// Its digest was right, and it is in the store.
    Stored,
    /// Its content goes into the root file system image.
    Unpack,
}

/// One step of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The blob.
    pub blob: Digest,
    /// Bytes of the blob that are done in this phase.
    pub done: u64,
    /// Bytes of the blob.
    pub total: u64,
    /// Bytes of them that were there before: they are no measure of speed.
    pub already: u64,
    /// What is being done.
    pub phase: Phase,
}

/// Is told of progress, several times per second and blob, from any thread. It must not block.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// Returns a sink that hears nothing.
pub fn no_progress() -> ProgressSink {
    Arc::new(|_| {})
}
