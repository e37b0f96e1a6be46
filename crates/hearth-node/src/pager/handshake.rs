//! What Firecracker tells a page server: where in its memory which part of the image is to be.
//!
//! ```text
//! [{"base_host_virt_addr": 140000000000000, "size": 67108864, "offset": 0, "page_size": 4096, "page_size_kib": 4096}]
//! ```
//! One message of JSON on a Unix socket, with the userfaultfd (Firecracker, `docs/snapshotting/handling-page-faults-on-snapshot-resume.md`). Older
//! versions send `page_size_kib` alone, in bytes, whatever its name says. Firecracker may have been taken over by its
//! guest, so nothing here is believed.

use std::ops::Range;

use serde::Deserialize;

/// The longest message: more than a machine with [`REGIONS_MAX`] regions sends.
pub const MESSAGE_MAX: usize = 16 << 10;

/// Firecracker has two regions above 3 GiB of memory, one below.
const REGIONS_MAX: usize = 64;

/// Pages that there are on x86-64 and that Firecracker can use.
const SMALL_PAGE: u64 = 4 << 10;
const HUGE_PAGE: u64 = 2 << 20;

/// The end of what a process can address (x86-64 with five levels of page tables).
const ADDRESS_END: u64 = 1 << 56;

/// Says why a message is refused.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It is longer than any that is sensible.
    #[error("its message has more than {MESSAGE_MAX} bytes")]
    TooLong,
    /// It is no list of regions.
    #[error("its message is no list of memory regions")]
    Malformed(#[source] serde_json::Error),
    /// There are none, or too many.
    #[error("it has {0} memory regions, 1 to {REGIONS_MAX} are possible")]
    Regions(usize),
    /// Pages are of a size that there is not, or differ.
    #[error("its pages have {0} bytes, {SMALL_PAGE} or {HUGE_PAGE}, the same everywhere, are possible")]
    PageSize(u64),
    /// A region begins or ends within a page, is empty, or lies where no memory can be.
    #[error("its memory region {0} is not made of whole pages")]
    Unaligned(usize),
    /// A region is of another image.
    #[error("its memory region {index} ends at {end} of the image, which has {length} bytes")]
    BeyondImage {
        /// Which one.
        index: usize,
        /// Where it would end.
        end: u64,
        /// Bytes of the image.
        length: u64,
    },
    /// Two regions share memory, or a part of the image.
    #[error("two of its memory regions overlap")]
    Overlap,
}

/// A part of the machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    /// In the machine's monitor.
    address: u64,
    size: u64,
    /// In the image.
    offset: u64,
}

/// All memory of a machine, checked against the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    page_size: u64,
    /// By address.
    regions: Vec<Region>,
}

#[derive(Debug, Deserialize)]
struct Told {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

impl Memory {
    /// Reads a message; `None` when it is not all there.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn parse(message: &[u8], image_length: u64) -> Result<Option<Self>, HandshakeError> {
        if message.len() > MESSAGE_MAX {
            return Err(HandshakeError::TooLong);
        }
        match serde_json::from_slice(message) {
            Ok(told) => Self::check(told, image_length).map(Some),
            Err(error) if error.is_eof() => Ok(None),
            Err(error) => Err(HandshakeError::Malformed(error)),
        }
    }

    fn check(told: Vec<Told>, image_length: u64) -> Result<Self, HandshakeError> {
        let page_of = |told: &Told| told.page_size.or(told.page_size_kib).unwrap_or(SMALL_PAGE);
        let page_size = match told.first() {
            Some(first) if told.len() <= REGIONS_MAX => page_of(first),
            _ => return Err(HandshakeError::Regions(told.len())),
        };
        let is_wrong = |size: &u64| *size != page_size || ![SMALL_PAGE, HUGE_PAGE].contains(size);
        if let Some(wrong) = told.iter().map(page_of).find(is_wrong) {
            return Err(HandshakeError::PageSize(wrong));
        }
        let mut regions = Vec::with_capacity(told.len());
        for (index, told) in told.iter().enumerate() {
            regions.push(region(index, told, page_size, image_length)?);
        }
        regions.sort_by_key(|region| region.offset);
        let overlaps = |pair: &[Region], at: fn(&Region) -> u64| at(&pair[0]) + pair[0].size > at(&pair[1]);
        let in_image = regions
            .windows(2)
            .any(|pair| overlaps(pair, |region| region.offset));
        regions.sort_by_key(|region| region.address);
        if in_image
            || regions
                .windows(2)
                .any(|pair| overlaps(pair, |region| region.address))
        {
            return Err(HandshakeError::Overlap);
        }
        Ok(Self { page_size, regions })
    }

    /// Returns the bytes of a page.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Returns how much memory there is.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|region| region.size).sum()
    }

    /// Finds the page of an address; returns where it begins in the image.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        let region = self.regions.iter().find(|region| region.has_address(address))?;
        let page = (address - region.address) / self.page_size * self.page_size;
        Some(region.offset + page)
    }

    /// Finds an offset of the image; returns its address, and how many bytes follow in one piece.
    pub fn address_of(&self, offset: u64) -> Option<(u64, u64)> {
        let region = self.regions.iter().find(|region| region.has_offset(offset))?;
        let within = offset - region.offset;
        Some((region.address + within, region.size - within))
    }

    /// Returns the parts of the image that lie within addresses.
    pub fn offsets_of(&self, addresses: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.regions.iter().filter_map(move |region| {
            let begin = addresses.start.max(region.address);
            let end = addresses.end.min(region.address + region.size);
            (begin < end)
                .then(|| region.offset + (begin - region.address)..region.offset + (end - region.address))
        })
    }
}

impl Region {
    fn has_address(&self, address: u64) -> bool {
        (self.address..self.address + self.size).contains(&address)
    }

    fn has_offset(&self, offset: u64) -> bool {
        (self.offset..self.offset + self.size).contains(&offset)
    }
}

fn region(index: usize, told: &Told, page_size: u64, image_length: u64) -> Result<Region, HandshakeError> {
    let is_aligned = [told.base_host_virt_addr, told.size, told.offset]
        .iter()
        .all(|value| value.is_multiple_of(page_size));
    let address_end = told.base_host_virt_addr.checked_add(told.size);
    let is_memory = told.base_host_virt_addr > 0 && address_end.is_some_and(|end| end <= ADDRESS_END);
    if !is_aligned || told.size == 0 || !is_memory {
        return Err(HandshakeError::Unaligned(index));
    }
    let end = told.offset.saturating_add(told.size);
    if end > image_length {
        return Err(HandshakeError::BeyondImage {
            index,
            end,
            length: image_length,
        });
    }
    Ok(Region {
        address: told.base_host_virt_addr,
        size: told.size,
        offset: told.offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: u64 = 64 << 20;

    fn parse(text: &str) -> Result<Option<Memory>, HandshakeError> {
        Memory::parse(text.as_bytes(), IMAGE)
    }

    fn one(address: u64, size: u64, offset: u64, rest: &str) -> String {
        format!(r#"{{"base_host_virt_addr":{address},"size":{size},"offset":{offset}{rest}}}"#)
    }

    #[test]
    fn addresses_and_offsets_lead_to_each_other() {
        let text = format!(
            "[{},{}]",
            one(
                0x20_0000,
                0x1000,
                0x3000,
                ",\"page_size\":4096,\"page_size_kib\":4096"
            ),
            one(0x10_0000, 0x3000, 0, ",\"page_size_kib\":4096"),
        );
        let memory = parse(&text).unwrap().unwrap();
        assert_eq!((memory.size(), memory.page_size()), (0x4000, 4096));
        assert_eq!(memory.offset_of(0x10_1fff), Some(0x1000));
        assert_eq!(memory.offset_of(0x20_0001), Some(0x3000));
        assert_eq!(memory.offset_of(0x10_3000), None);
        assert_eq!(memory.address_of(0x1000), Some((0x10_1000, 0x2000)));
        assert_eq!(memory.address_of(0x3000), Some((0x20_0000, 0x1000)));
        assert_eq!(memory.address_of(0x4000), None);
        let all: Vec<_> = memory.offsets_of(0x10_2000..0x20_1000).collect();
        assert_eq!(all, [0x2000..0x3000, 0x3000..0x4000]);
    }

    #[test]
    fn a_message_that_is_not_all_there_is_waited_for() {
        let text = format!("[{}]", one(0x1000, 0x1000, 0, ""));
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end]).unwrap(), None, "{}", &text[..end]);
        }
        assert!(parse(&text).unwrap().is_some());
    }

    #[test]
    fn what_is_no_memory_of_this_image_is_refused_with_its_reason() {
        let huge = ",\"page_size\":2097152";
        let cases = [
            ("{}".to_owned(), "no list"),
            ("[]".to_owned(), "0 memory regions"),
            ("[1]".to_owned(), "no list"),
            (
                format!("[{}]", one(0x1000, 0x1000, 0, ",\"page_size\":8192")),
                "8192 bytes",
            ),
            (format!("[{}]", one(0x1000, 0x1000, 0, huge)), "whole pages"),
            (format!("[{}]", one(0x1000, 0x1001, 0, "")), "whole pages"),
            (format!("[{}]", one(0x1001, 0x1000, 0, "")), "whole pages"),
            (format!("[{}]", one(0x1000, 0, 0, "")), "whole pages"),
            (format!("[{}]", one(0, 0x1000, 0, "")), "whole pages"),
            (
                format!("[{}]", one(u64::MAX - 0xfff, 0x1000, 0, "")),
                "whole pages",
            ),
            (
                format!("[{}]", one(0x1000, 0x1000, IMAGE, "")),
                "which has 67108864 bytes",
            ),
            (
                format!("[{}]", one(0x1000, 0x1000, u64::MAX - 0xfff, "")),
                "of the image",
            ),
            (
                format!(
                    "[{},{}]",
                    one(0x1000, 0x2000, 0, ""),
                    one(0x2000, 0x1000, 0x5000, "")
                ),
                "overlap",
            ),
            (
                format!(
                    "[{},{}]",
                    one(0x1000, 0x2000, 0, ""),
                    one(0x9000, 0x1000, 0x1000, "")
                ),
                "overlap",
            ),
            (
                format!(
                    "[{},{}]",
                    one(0x1000, 0x1000, 0, ""),
                    one(0x20_0000, 0x20_0000, 0x20_0000, huge)
                ),
                "2097152 bytes",
            ),
            (
                format!("[{}]", vec![one(0x1000, 0x1000, 0, ""); 65].join(",")),
                "65 memory regions",
            ),
            (" ".repeat(MESSAGE_MAX + 1), "more than 16384 bytes"),
        ];
        for (text, reason) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
