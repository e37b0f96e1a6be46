//! A memory image: a file that is only read, with holes where memory is zero.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::host::files;
use crate::host::mapped::MappedFile;

/// Says why an image is not served.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be read.
    #[error("cannot read the memory image {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a file, or empty.
    #[error("the memory image {} is not a file with content", .0.display())]
    NoContent(PathBuf),
    /// It has lost a part, or is of another snapshot.
    #[error(
        "the memory image {} has {length} bytes, and the snapshot is of {expected}: it was cut off or belongs to another; take the snapshot anew",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes that it has.
        length: u64,
        /// Bytes that it should have.
        expected: u64,
    },
}

/// An image that was opened.
#[derive(Debug)]
pub(super) struct Image {
    mapped: MappedFile,
    /// Where it is not a hole, in order.
    data: Vec<Range<u64>>,
    /// A page of zeros; as large as the largest that was asked for.
    zeros: OnceCell<Vec<u8>>,
}

impl Image {
    /// Opens an image, of exactly `expected` bytes where that is known.
    pub(super) fn open(path: &Path, expected: Option<u64>) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read {
            path: path.to_owned(),
            source,
        };
        let file = open_checked(path, expected)?;
        Ok(Self {
            data: files::data_of(&file).map_err(read)?,
            mapped: MappedFile::new(&file).map_err(read)?,
            zeros: OnceCell::new(),
        })
    }

    /// Returns its bytes.
    pub(super) fn length(&self) -> u64 {
        self.mapped.bytes().len() as u64
    }

    /// Returns the bytes of a part, which is within the image.
    pub(super) fn part(&self, offset: u64, length: u64) -> &[u8] {
        &self.mapped.bytes()[offset as usize..(offset + length) as usize]
    }

    /// Tells whether a part is zero, without a look at what is a hole.
    pub(super) fn is_zero(&self, offset: u64, length: u64) -> bool {
        let next = self.data.partition_point(|data| data.end <= offset);
        let is_hole = self
            .data
            .get(next)
            .is_none_or(|data| data.start >= offset + length);
        is_hole || *self.part(offset, length) == *self.zeros(length)
    }

    /// Returns so many zeros; a page.
    pub(super) fn zeros(&self, length: u64) -> &[u8] {
        let zeros = self.zeros.get_or_init(|| vec![0; (2 << 20) as usize]);
        &zeros[..length as usize]
    }
}

/// Opens an image and looks at its length.
pub(super) fn open_checked(path: &Path, expected: Option<u64>) -> Result<File, ImageError> {
    let read = |source| ImageError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(ImageError::NoContent(path.to_owned()));
    }
    match expected {
        Some(expected) if expected != metadata.len() => Err(ImageError::Length {
            path: path.to_owned(),
            length: metadata.len(),
            expected,
        }),
        _ => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn holes_and_pages_of_zeros_are_zero_and_others_are_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file.as_file().write_all_at(&[0; 4096], 4096).unwrap();
        file.as_file().write_all_at(b"x", (64 << 10) + 4095).unwrap();
        let image = Image::open(file.path(), Some(1 << 20)).unwrap();
        let zero: Vec<_> = (0..256)
            .filter(|page| !image.is_zero(page * 4096, 4096))
            .collect();
        assert_eq!(zero, [16]);
        assert_eq!(image.part(64 << 10, 4096)[4095], b'x');
    }

    #[test]
    fn an_image_of_another_length_is_refused_with_both_lengths() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            Image::open(file.path(), None),
            Err(ImageError::NoContent(_))
        ));
        file.as_file().set_len(8192).unwrap();
        let error = Image::open(file.path(), Some(12288)).unwrap_err().to_string();
        assert!(
            error.contains("has 8192 bytes") && error.contains("of 12288"),
            "{error}"
        );
        let error = Image::open(Path::new("/nowhere"), None).unwrap_err();
        assert!(matches!(error, ImageError::Read { .. }), "{error}");
    }
}
