//! The pages that a machine touches first, in their order, as a file beside the image.
//!
//! ```text
//! 0 "HRTHWSET"   8 page size u64   16 length of the image u64   24 count u64   32 page numbers u32 ...   end CRC-32 u32
//! ```
//! Little endian. The file saves time and nothing else, so what is wrong with it is a warning; and it is read as if somebody
//! else had written it.

/// The file's first bytes; the last one is the version of its format.
const MAGIC: [u8; 8] = *b"HRTHWS\0\x01";
const HEADER: usize = 32;
const NUMBER: usize = 4;

/// Says why a file is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WorkingSetError {
    /// It is of another program, or of another version.
    #[error("it is no working set")]
    Magic,
    /// It is shorter or longer than it says.
    #[error("it has another length than it says")]
    Length,
    /// Bits of it have changed.
    #[error("its checksum is wrong")]
    Checksum,
    /// It is of another image.
    #[error("it is of an image of {0} bytes")]
    OtherImage(u64),
    /// It names pages that there are not, or one twice.
    #[error("page {0} of it is not in the image, or twice in it")]
    Page(u32),
}

/// Pages in the order in which they were touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingSet {
    /// Bytes of a page.
    pub page_size: u64,
    /// Numbers of pages of the image.
    pub pages: Vec<u32>,
}

impl WorkingSet {
    /// Writes the file.
    pub fn encode(&self, image_length: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.pages.len() * NUMBER + NUMBER);
        bytes.extend(MAGIC);
        for value in [self.page_size, image_length, self.pages.len() as u64] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(self.pages.iter().flat_map(|page| page.to_le_bytes()));
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`WorkingSetError`].
    pub fn decode(bytes: &[u8], image_length: u64) -> Result<Self, WorkingSetError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(WorkingSetError::Magic);
        }
        let (content, checksum) = bytes
            .split_last_chunk::<NUMBER>()
            .ok_or(WorkingSetError::Length)?;
        let (header, numbers) = content.split_at_checked(HEADER).ok_or(WorkingSetError::Length)?;
        if u32::from_le_bytes(*checksum) != crc32fast::hash(content) {
            return Err(WorkingSetError::Checksum);
        }
        let field = |index: usize| {
            let at = index * size_of::<u64>();
            let bytes = header[at..at + size_of::<u64>()].try_into();
            bytes.map_or(0, u64::from_le_bytes)
        };
        let (page_size, length, count) = (field(1), field(2), field(3));
        if length != image_length || page_size == 0 {
            return Err(WorkingSetError::OtherImage(length));
        }
        let (numbers, rest) = numbers.as_chunks::<NUMBER>();
        if !rest.is_empty() || numbers.len() as u64 != count {
            return Err(WorkingSetError::Length);
        }
        let pages: Vec<u32> = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let whole = image_length / page_size;
        let mut sorted = pages.clone();
        sorted.sort_unstable();
        let beyond = sorted.last().filter(|page| u64::from(**page) >= whole);
        let twice = sorted
            .windows(2)
            .find(|pair| pair[0] == pair[1])
            .map(|pair| &pair[0]);
        match beyond.or(twice) {
            Some(page) => Err(WorkingSetError::Page(*page)),
            None => Ok(Self { page_size, pages }),
        }
    }

    /// Returns how long a file can be at most for an image of this length.
    pub fn file_length_max(image_length: u64) -> u64 {
        let pages = image_length / 4096;
        (HEADER + NUMBER) as u64 + pages * NUMBER as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: u64 = 1 << 20;

    fn set(pages: &[u32]) -> WorkingSet {
        WorkingSet {
            page_size: 4096,
            pages: pages.to_vec(),
        }
    }

    #[test]
    fn what_was_written_is_read_in_its_order() {
        for pages in [&[][..], &[0], &[255, 3, 4, 0]] {
            let bytes = set(pages).encode(IMAGE);
            assert_eq!(WorkingSet::decode(&bytes, IMAGE), Ok(set(pages)));
            assert!(bytes.len() as u64 <= WorkingSet::file_length_max(IMAGE));
        }
    }

    #[test]
    fn a_file_with_any_bit_changed_or_any_byte_missing_is_refused() {
        let bytes = set(&[7, 1, 200]).encode(IMAGE);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(WorkingSet::decode(&changed, IMAGE).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(
                WorkingSet::decode(&bytes[..length], IMAGE).is_err(),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn pages_that_there_are_not_and_other_images_are_refused() {
        let decode = |set: WorkingSet| WorkingSet::decode(&set.encode(IMAGE), IMAGE);
        assert_eq!(decode(set(&[1, 256])), Err(WorkingSetError::Page(256)));
        assert_eq!(decode(set(&[9, 1, 9])), Err(WorkingSetError::Page(9)));
        let other = set(&[1]).encode(2 * IMAGE);
        assert_eq!(
            WorkingSet::decode(&other, IMAGE),
            Err(WorkingSetError::OtherImage(2 * IMAGE))
        );
        let none = WorkingSet {
            page_size: 0,
            pages: Vec::new(),
        };
        assert_eq!(decode(none), Err(WorkingSetError::OtherImage(IMAGE)));
    }
}
