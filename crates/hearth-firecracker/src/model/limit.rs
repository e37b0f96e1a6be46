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

    /// So many tokens a second, in bursts of a quarter of a second. Firecracker looks at an empty bucket again after 100 ms, so one that
    /// holds no more than that loses what is left in it, and whatever the look is late: a tenth of the rate and more.
    pub const fn per_second(tokens: u64) -> Self {
        Self {
            size: tokens.div_ceil(4),
            one_time_burst: None,
            refill_ms: 250,
        }
    }

    /// So many bytes a second, in bursts of a quarter of a second, or of what one request may have: of a request that is larger than its
    /// bucket Firecracker lets what is in the bucket go for nothing, which doubles the rate at worst.
    pub const fn bytes_per_second(bytes: u64) -> Self {
        const REQUEST: u64 = 64 << 10;
        let steady = Self::per_second(bytes);
        if bytes == 0 || steady.size >= REQUEST {
            return steady;
        }
        Self {
            size: REQUEST,
            one_time_burst: None,
            refill_ms: (REQUEST * 1000).div_ceil(bytes),
        }
    }
}
