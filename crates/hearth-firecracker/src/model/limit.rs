//! How much a device may do in a time.

use serde::{Deserialize, Serialize};

/// Limits of bytes and of operations, each for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiter {
    /// Tokens are bytes. Left out of an update: as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// A bucket that is filled at a steady rate: `size` tokens each `refill_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// The most tokens that it holds.
    pub size: u64,
    /// Tokens that it has beyond that, once, at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// How long an empty one takes to be full, in milliseconds.
    #[serde(rename = "refill_time")]
    pub refill_ms: u64,
}

impl TokenBucket {
    /// No limit: an update with it removes the one there was.
    pub const UNLIMITED: Self = Self {
        size: 0,
        one_time_burst: None,
        refill_ms: 0,
    };

    /// So many tokens a second, in bursts of a tenth of a second, so that a limit is felt evenly.
    pub const fn per_second(tokens: u64) -> Self {
        Self {
            size: tokens.div_ceil(10),
            one_time_burst: None,
            refill_ms: 100,
        }
    }
}
