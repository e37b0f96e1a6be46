//! The balloon, which takes memory from the guest.

use serde::{Deserialize, Serialize};

/// The balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// What the host wants, in MiB.
    pub amount_mib: u32,
    /// Whether the guest may take memory back when it has none left.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in seconds; 0 for never. What is 0 at the start stays so.
    #[serde(rename = "stats_polling_interval_s", default)]
    pub statistics_interval_s: u16,
}

/// Another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BalloonUpdate {
    /// What the host wants, in MiB.
    pub amount_mib: u32,
}

/// Another interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BalloonStatisticsUpdate {
    /// How often the guest is asked, in seconds.
    #[serde(rename = "stats_polling_interval_s")]
    pub statistics_interval_s: u16,
}

/// How large the balloon is, and what the guest said of its memory. What it did not say is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct BalloonStatistics {
    /// What the host wants, in pages of 4 KiB.
    pub target_pages: u32,
    /// What it has, in pages.
    pub actual_pages: u32,
    /// What the host wants, in MiB.
    pub target_mib: u32,
    /// What it has, in MiB.
    pub actual_mib: u32,
    /// Swapped in, in bytes.
    pub swap_in: Option<u64>,
    /// Swapped out, in bytes.
    pub swap_out: Option<u64>,
    /// Faults that waited for a disk.
    pub major_faults: Option<u64>,
    /// Faults that did not.
    pub minor_faults: Option<u64>,
    /// Unused, in bytes.
    pub free_memory: Option<u64>,
    /// All there is, in bytes.
    pub total_memory: Option<u64>,
    /// What can be had without swapping, in bytes.
    pub available_memory: Option<u64>,
    /// What caches of disks take, in bytes.
    pub disk_caches: Option<u64>,
    /// Huge pages that were had.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that were not to be had.
    pub hugetlb_failures: Option<u64>,
}
