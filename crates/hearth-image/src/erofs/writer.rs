//! Places blocks and inodes in the image file.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::disk::{self, BLOCK, Dirent, INODE, Inode, LINKS_OFFSET, Layout, NID_STEP, Super, mode};

/// Metadata blocks that are set aside at a time: enough that listing a directory reads neighbours, few enough that
/// an image of one file stays small.
const REGION_BLOCKS: u64 = 16;
/// Metadata blocks that are kept open for what still fits; 128 KiB of memory.
const OPEN_BLOCKS: usize = 32;
/// Bytes collected before one write.
const BUFFER: usize = 1 << 20;
/// An all-zero stretch of this length is left out, so that the host's file system stores a hole.
const HOLE: usize = 64 << 10;
const ROOT_BLOCK: u64 = 1;

/// Names an inode within the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nid(u64);

impl Nid {
    /// Returns the number that directory entries hold.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    fn offset(self) -> u64 {
        self.0 * NID_STEP
    }
}

/// A regular file that is in the image: its inode, and the bytes of the image that hold its whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) nid: Nid,
    first: u64,
    length: u64,
}

/// Owner, mode, time and attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Type and permission bits, as in `stat(2)`.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970, and nanoseconds.
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    /// As [`disk::encode_xattrs`] gives them.
    pub(crate) xattrs: Box<[u8]>,
}

/// Where a directory will be written once the node ids of its children are known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirectoryPlace {
    pub(crate) nid: Nid,
    /// Offset of the whole blocks of its content.
    blocks: u64,
    /// Offset of the tail of its content behind the inode; `None` when it has none there.
    tail: Option<u64>,
}

/// A metadata block that is not yet in the file.
struct OpenBlock {
    number: u64,
    used: usize,
    bytes: Box<[u8; BLOCK]>,
}

/// Writes one image.
pub(crate) struct Writer {
    file: File,
    /// Data that is not yet in the file; it begins at the offset `written`.
    buffer: Vec<u8>,
    written: u64,
    open: Vec<OpenBlock>,
    region: Range<u64>,
    inodes: u32,
    root: Option<Nid>,
}

impl Writer {
    /// Begins an image in an empty file.
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(BUFFER + BLOCK),
            written: (ROOT_BLOCK + 1) * BLOCK as u64,
            open: Vec::new(),
            region: 0..0,
            inodes: 0,
            root: None,
        }
    }

    /// Writes a regular file of exactly `size` bytes.
    ///
    /// # Errors
    /// [`CopyError::Content`] when `content` fails or ends early, [`CopyError::Image`] when the image cannot be written.
    pub(crate) fn regular(
        &mut self,
        attributes: &Attributes,
        size: u64,
        content: &mut impl Read,
    ) -> Result<Stored, CopyError> {
        let head = INODE + attributes.xattrs.len();
        let tail = (size % BLOCK as u64) as usize;
        let inline = tail > 0 && head + tail <= BLOCK;
        let first = self.next_block()?;
        let whole = if inline { size - tail as u64 } else { size };
        self.append(whole, content)?;
        self.pad()?;
        let mut last = [0; BLOCK];
        let last = &mut last[..if inline { tail } else { 0 }];
        content.read_exact(last).map_err(CopyError::Content)?;
        let layout = if inline {
            Layout::Inline(first)
        } else {
            Layout::Plain(first)
        };
        Ok(Stored {
            nid: self.place(attributes, layout, size, 1, last)?,
            first: u64::from(first) * BLOCK as u64,
            length: whole.next_multiple_of(BLOCK as u64),
        })
    }

    /// Gives back the room that the blocks of a file took which nothing refers to any more. The image keeps its length
    /// and gets a hole, where the host's file system makes some.
    pub(crate) fn discard(&mut self, file: &Stored) -> io::Result<()> {
        self.inodes = self.inodes.saturating_sub(1);
        if file.length == 0 {
            return Ok(());
        }
        if file.first + file.length > self.written {
            self.flush()?;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, file.first, file.length) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes a symbolic link.
    pub(crate) fn symlink(&mut self, attributes: &Attributes, target: &[u8]) -> Result<Nid, CopyError> {
        let stored = self.regular(attributes, target.len() as u64, &mut &*target)?;
        Ok(stored.nid)
    }

    /// Writes a device node, or a fifo when `number` is 0.
    pub(crate) fn special(&mut self, attributes: &Attributes, number: u32) -> io::Result<Nid> {
        self.place(attributes, Layout::Device(number), 0, 1, &[])
    }

    /// Sets the link count of an inode that was written with one link.
    pub(crate) fn set_links(&mut self, nid: Nid, links: u32) -> io::Result<()> {
        self.patch(nid.offset() + LINKS_OFFSET, &links.to_le_bytes())
    }

    /// Sets a place aside for a directory of `size` bytes. The first one is the root directory.
    pub(crate) fn reserve_directory(
        &mut self,
        attributes: &Attributes,
        size: u64,
        links: u32,
    ) -> io::Result<DirectoryPlace> {
        let head = INODE + attributes.xattrs.len();
        let tail = (size % BLOCK as u64) as usize;
        let inline = tail > 0 && head + tail <= BLOCK;
        let whole = if inline {
            size / BLOCK as u64
        } else {
            size.div_ceil(BLOCK as u64)
        };
        let first = self.next_block()?;
        self.skip_blocks(whole)?;
        let zeros = [0; BLOCK];
        let zeros = &zeros[..if inline { tail } else { 0 }];
        let layout = if inline {
            Layout::Inline(first)
        } else {
            Layout::Plain(first)
        };
        let nid = self.place(attributes, layout, size, links, zeros)?;
        self.root.get_or_insert(nid);
        Ok(DirectoryPlace {
            nid,
            blocks: u64::from(first) * BLOCK as u64,
            tail: inline.then_some(nid.offset() + head as u64),
        })
    }

    /// Writes the entries of a directory, sorted by name, into its place.
    pub(crate) fn fill_directory(
        &mut self,
        place: &DirectoryPlace,
        entries: &[Dirent<'_>],
    ) -> io::Result<()> {
        let content = disk::encode_directory(entries);
        let whole = match place.tail {
            Some(_) => content.len() / BLOCK * BLOCK,
            None => content.len(),
        };
        if whole > 0 {
            self.file.write_all_at(&content[..whole], place.blocks)?;
        }
        match place.tail {
            Some(tail) => self.patch(tail, &content[whole..]),
            None => Ok(()),
        }
    }

    /// Writes what is still open, and the super block. Returns the file and its length in bytes.
    pub(crate) fn finish(mut self, uuid: [u8; 16]) -> io::Result<(File, u64)> {
        self.flush()?;
        for block in std::mem::take(&mut self.open) {
            self.close(&block)?;
        }
        let end = self.written.max(self.region.end * BLOCK as u64);
        self.file.set_len(end)?;
        let root = self
            .root
            .ok_or_else(|| io::Error::other("an image needs a root directory"))?;
        let superblock = Super {
            root_nid: u16::try_from(root.0).map_err(io::Error::other)?,
            inodes: u64::from(self.inodes),
            blocks: block_number(end / BLOCK as u64)?,
            uuid,
        };
        self.file.write_all_at(&superblock.encode(), 0)?;
        Ok((self.file, end))
    }

    /// Puts an inode, its attributes and its inline tail where they fit.
    fn place(
        &mut self,
        attributes: &Attributes,
        layout: Layout,
        size: u64,
        links: u32,
        tail: &[u8],
    ) -> io::Result<Nid> {
        self.inodes = self
            .inodes
            .checked_add(1)
            .ok_or_else(|| io::Error::other("too many inodes"))?;
        let inode = Inode {
            layout,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            mtime_nsec: attributes.mtime_nsec,
            size,
            links,
            number: self.inodes,
            xattr_bytes: attributes.xattrs.len(),
        };
        let parts = [&inode.encode()[..], &attributes.xattrs, tail];
        let is_root = self.root.is_none() && attributes.mode & mode::TYPE == mode::DIRECTORY;
        let length = parts.iter().map(|part| part.len()).sum();
        let offset = if is_root {
            self.place_root(&parts, length)?
        } else if length <= BLOCK {
            self.place_small(&parts, length)?
        } else {
            self.place_large(&parts, length)?
        };
        Ok(Nid(offset / NID_STEP))
    }

    /// The root's node id has 16 bits only, so its block was set aside at the start.
    fn place_root(&mut self, parts: &[&[u8]], length: usize) -> io::Result<u64> {
        if length > BLOCK {
            return Err(io::Error::other(
                "the attributes of the root directory take more than a block",
            ));
        }
        self.open.push(OpenBlock {
            number: ROOT_BLOCK,
            used: 0,
            bytes: Box::new([0; BLOCK]),
        });
        let last = self.open.len() - 1;
        Ok(self.put_into(last, parts))
    }

    fn place_small(&mut self, parts: &[&[u8]], length: usize) -> io::Result<u64> {
        let fits = |block: &OpenBlock| block.used + length <= BLOCK;
        let best = (0..self.open.len())
            .filter(|i| fits(&self.open[*i]))
            .max_by_key(|i| self.open[*i].used);
        let index = match best {
            Some(index) => index,
            None => self.open_block()?,
        };
        Ok(self.put_into(index, parts))
    }

    /// Attributes of more than a block: the inode begins blocks of its own.
    fn place_large(&mut self, parts: &[&[u8]], length: usize) -> io::Result<u64> {
        self.flush()?;
        let offset = self.written;
        let bytes = parts.concat();
        self.file.write_all_at(&bytes, offset)?;
        self.written += length.next_multiple_of(BLOCK) as u64;
        Ok(offset)
    }

    fn put_into(&mut self, index: usize, parts: &[&[u8]]) -> u64 {
        let block = &mut self.open[index];
        let start = block.used;
        let mut at = start;
        for part in parts {
            block.bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        block.used = at.next_multiple_of(NID_STEP as usize);
        block.number * BLOCK as u64 + start as u64
    }

    /// Opens a metadata block, and closes the fullest one when there are too many.
    fn open_block(&mut self) -> io::Result<usize> {
        if self.open.len() >= OPEN_BLOCKS {
            let fullest = (0..self.open.len())
                .max_by_key(|i| self.open[*i].used)
                .unwrap_or(0);
            let block = self.open.swap_remove(fullest);
            self.close(&block)?;
        }
        if self.region.is_empty() {
            let start = u64::from(self.next_block()?);
            self.skip_blocks(REGION_BLOCKS)?;
            self.region = start..start + REGION_BLOCKS;
        }
        let number = self.region.start;
        self.region.start += 1;
        self.open.push(OpenBlock {
            number,
            used: 0,
            bytes: Box::new([0; BLOCK]),
        });
        Ok(self.open.len() - 1)
    }

    fn close(&self, block: &OpenBlock) -> io::Result<()> {
        self.file
            .write_all_at(&block.bytes[..], block.number * BLOCK as u64)
    }

    /// Overwrites bytes of a metadata block, wherever it is.
    fn patch(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (number, at) = (offset / BLOCK as u64, (offset % BLOCK as u64) as usize);
        match self.open.iter_mut().find(|block| block.number == number) {
            Some(block) => {
                block.bytes[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            None => self.file.write_all_at(bytes, offset),
        }
    }

    fn next_block(&self) -> io::Result<u32> {
        block_number((self.written + self.buffer.len() as u64) / BLOCK as u64)
    }

    fn skip_blocks(&mut self, count: u64) -> io::Result<()> {
        if count > 0 {
            self.flush()?;
            self.written += count * BLOCK as u64;
        }
        Ok(())
    }

    fn append(&mut self, mut length: u64, content: &mut impl Read) -> Result<(), CopyError> {
        while length > 0 {
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
            let start = self.buffer.len();
            let room = (BUFFER - start) as u64;
            self.buffer.resize(start + room.min(length) as usize, 0);
            content
                .read_exact(&mut self.buffer[start..])
                .map_err(CopyError::Content)?;
            length -= (self.buffer.len() - start) as u64;
        }
        Ok(())
    }

    fn pad(&mut self) -> io::Result<()> {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
        if self.buffer.len() >= BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Writes the buffer out, but not its long stretches of zeros.
    fn flush(&mut self) -> io::Result<()> {
        let start = self.written;
        for (index, piece) in self.buffer.chunks(HOLE).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(piece, start + (index * HOLE) as u64)?;
            }
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Says which side of a copy into the image failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The content could not be read, or ended early.
    #[error("cannot read the content")]
    Content(#[source] io::Error),
    /// The image could not be written.
    #[error("cannot write the image")]
    Image(#[from] io::Error),
}

fn block_number(block: u64) -> io::Result<u32> {
    u32::try_from(block).map_err(|_| io::Error::other("the image would be larger than 16 TiB"))
}
