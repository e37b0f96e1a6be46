//! Amounts: bytes, thousandths of a processor, and the shape of a virtual machine that follows from them.

use std::fmt;
use std::str::FromStr;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// An amount of memory or disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// Says why a text is not an amount of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: a whole number of bytes, or one with b, k, m, g or t behind it, as in 512m")]
pub struct InvalidByteSize(String);

impl ByteSize {
    /// Makes an amount of so many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Makes an amount of so many MiB (2^20 bytes).
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib * MIB)
    }

    /// Returns the amount in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Returns the amount in MiB, rounded up: a guest gets at least what was asked for.
    pub const fn mib_rounded_up(self) -> u64 {
        self.0.div_ceil(MIB)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 >= unit {
                let tenths = self.0 / (unit / 10).max(1) % 10;
                let whole = self.0 / unit;
                return if self.0.is_multiple_of(unit) {
                    write!(f, "{whole} {name}")
                } else {
                    write!(f, "{whole}.{tenths} {name}")
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    /// Parses docker's notation: `1048576`, `1024k`, `512m`, `2g`, each optionally with `b` or `ib`, in binary units.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || InvalidByteSize(text.to_owned());
        let lower = text.to_ascii_lowercase();
        let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = lower.split_at(digits);
        let unit = match suffix {
            "" | "b" => 1,
            "k" | "kb" | "kib" => KIB,
            "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => GIB,
            "t" | "tb" | "tib" => TIB,
            _ => return Err(refused()),
        };
        let number: u64 = number.parse().map_err(|_| refused())?;
        number.checked_mul(unit).map(Self).ok_or_else(refused)
    }
}

/// A share of processor time, in thousandths of one processor (Kubernetes' milli-units).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CpuMilli(u32);

/// Says why a text is not an amount of processors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number of CPUs: 1m to 512000m, or 0.001 to 512, as in 500m, 1 or 1.5")]
pub struct InvalidCpu(String);

impl CpuMilli {
    /// The most that one machine may ask for: 512 processors.
    pub const MAX: Self = Self(512_000);

    /// Makes a share of so many thousandths; `None` when it is nothing, or more than [`CpuMilli::MAX`].
    pub const fn from_milli(milli: u32) -> Option<Self> {
        if milli == 0 || milli > Self::MAX.0 {
            None
        } else {
            Some(Self(milli))
        }
    }

    /// Returns the share in thousandths of a processor.
    pub const fn milli(self) -> u32 {
        self.0
    }

    /// Returns how many virtual processors carry this share: 500m and 1000m are one, 1001m are two.
    pub const fn vcpus(self) -> u32 {
        self.0.div_ceil(1000)
    }

    /// Returns the quota within a period of 100 ms, in microseconds (cgroup `cpu.max`), when the share is less than
    /// its whole virtual processors.
    pub const fn quota_us_per_100ms(self) -> Option<u64> {
        if self.0.is_multiple_of(1000) {
            None
        } else {
            Some(self.0 as u64 * 100)
        }
    }
}

impl fmt::Display for CpuMilli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            write!(f, "{}", self.0 / 1000)
        } else {
            write!(f, "{}m", self.0)
        }
    }
}

impl FromStr for CpuMilli {
    type Err = InvalidCpu;

    /// Parses `500m`, `2` and `1.5`; at most three digits behind the point, so that nothing is rounded.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || InvalidCpu(text.to_owned());
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let milli: u64 = if let Some(number) = text.strip_suffix('m') {
            Some(number)
                .filter(|n| digits(n))
                .and_then(|n| n.parse().ok())
                .ok_or_else(refused)?
        } else {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
            if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
                return Err(refused());
            }
            let fraction: u64 = format!("{fraction:0<3}").parse().map_err(|_| refused())?;
            let whole: u64 = whole.parse().map_err(|_| refused())?;
            whole
                .checked_mul(1000)
                .and_then(|w| w.checked_add(fraction))
                .ok_or_else(refused)?
        };
        u32::try_from(milli)
            .ok()
            .and_then(Self::from_milli)
            .ok_or_else(refused)
    }
}

/// What a virtual machine monitor is asked to build: whole processors and whole MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Virtual processors, at least one.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl Shape {
    /// Derives the shape from what was asked for.
    pub const fn of(cpus: CpuMilli, memory: ByteSize) -> Self {
        Self {
            vcpus: cpus.vcpus(),
            memory_mib: memory.mib_rounded_up(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_convert_exactly() {
        let size: ByteSize = "536870912".parse().unwrap();
        assert_eq!(size.mib_rounded_up(), 512);
        assert_eq!("512m".parse(), Ok(size));
        assert_eq!(size.to_string(), "512 MiB");
        assert_eq!(ByteSize::from_bytes(MIB + 1).mib_rounded_up(), 2);
        assert_eq!(ByteSize::from_bytes(3 * GIB / 2).to_string(), "1.5 GiB");
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "m", "-1", "1.5g", "1 g", "1x", "99999999999t"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn half_a_processor_is_one_vcpu_with_a_quota() {
        let half: CpuMilli = "500m".parse().unwrap();
        assert_eq!((half.vcpus(), half.quota_us_per_100ms()), (1, Some(50_000)));
        assert_eq!("0.5".parse(), Ok(half));
        let two: CpuMilli = "2".parse().unwrap();
        assert_eq!(
            (two.milli(), two.vcpus(), two.quota_us_per_100ms()),
            (2000, 2, None)
        );
        assert_eq!("1.001".parse::<CpuMilli>().map(CpuMilli::vcpus), Ok(2));
    }

    #[test]
    fn what_is_not_a_cpu_share_is_refused() {
        for text in [
            "",
            "0",
            "0m",
            "-1",
            "1.0001",
            "513",
            "m",
            ".5",
            "1.",
            "500mm",
            "4294968296m",
        ] {
            assert!(text.parse::<CpuMilli>().is_err(), "{text}");
        }
    }
}
