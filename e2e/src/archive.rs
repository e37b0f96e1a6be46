//! Tar archives written by hand: what tar programs write, and what only an attacker would.

/// Bytes of a record.
const RECORD: usize = 512;

/// The time of entries that do not say: in 2001.
const MTIME: u64 = 1_000_000_000;

/// One entry of an archive, as it is to be written.
#[derive(Debug, Clone)]
pub struct Entry {
    kind: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    mode: u64,
    owner: (u64, u64),
    mtime: u64,
    size: Option<u64>,
    device: (u64, u64),
    content: Vec<u8>,
    prefix: Vec<u8>,
    sparse: Option<(Vec<(u64, u64)>, u64)>,
}

impl Entry {
    /// Makes an entry of a type, by its letter.
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            owner: (0, 0),
            mtime: MTIME,
            size: None,
            device: (0, 0),
            content: Vec::new(),
            prefix: Vec::new(),
            sparse: None,
        }
    }

    /// Makes a regular file.
    pub fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self {
            content: content.as_ref().to_vec(),
            ..Self::new(b'0', name)
        }
    }

    /// Makes a directory.
    pub fn dir(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    /// Makes a symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'2', name).link(target).mode(0o777)
    }

    /// Makes a hard link.
    pub fn hard(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'1', name).link(target)
    }

    /// Sets the target of a link.
    pub fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }

    /// Sets the permission bits.
    pub fn mode(mut self, mode: u64) -> Self {
        self.mode = mode;
        self
    }

    /// Sets owner and group.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// Sets the time.
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// Sets the size that the header tells, whatever the content has.
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// Sets the numbers of a device.
    pub fn device(mut self, major: u64, minor: u64) -> Self {
        self.device = (major, minor);
        self
    }

    /// Sets ustar's prefix, which goes before the name.
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().to_vec();
        self
    }

    /// Makes the file a sparse one in GNU's old form, of so many bytes; the content is what the segments store.
    pub fn sparse(mut self, segments: &[(u64, u64)], size: u64) -> Self {
        self.kind = b'S';
        self.sparse = Some((segments.to_vec(), size));
        self
    }
}

/// An archive that grows.
#[derive(Debug, Default)]
pub struct Archive(Vec<u8>);

impl Archive {
    /// Begins an archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry; names and links that a header has no room for go before it as GNU's tar writes them.
    pub fn with(mut self, entry: &Entry) -> Self {
        if entry.name.len() > 100 {
            self = self.gnu(b'L', &entry.name);
        }
        if entry.link.len() > 100 {
            self = self.gnu(b'K', &entry.link);
        }
        self.raw(entry)
    }

    /// Adds an entry; what its header has no room for is cut off.
    pub fn raw(mut self, entry: &Entry) -> Self {
        let mut header = [0; RECORD];
        put(&mut header, 0, &entry.name, 100);
        number(&mut header[100..108], entry.mode);
        number(&mut header[108..116], entry.owner.0);
        number(&mut header[116..124], entry.owner.1);
        number(
            &mut header[124..136],
            entry.size.unwrap_or(entry.content.len() as u64),
        );
        number(&mut header[136..148], entry.mtime);
        header[156] = entry.kind;
        put(&mut header, 157, &entry.link, 100);
        let mut more: &[(u64, u64)] = &[];
        match &entry.sparse {
            Some((segments, size)) => {
                put(&mut header, 257, b"ustar  \0", 8);
                let (first, rest) = segments.split_at(segments.len().min(4));
                map(&mut header[386..482], first);
                header[482] = u8::from(!rest.is_empty());
                number(&mut header[483..495], *size);
                more = rest;
            }
            None => {
                put(&mut header, 257, b"ustar\x0000", 8);
                put(&mut header, 345, &entry.prefix, 155);
            }
        }
        if matches!(entry.kind, b'3' | b'4') {
            number(&mut header[329..337], entry.device.0);
            number(&mut header[337..345], entry.device.1);
        }
        seal(&mut header);
        self.0.extend(header);
        while !more.is_empty() {
            let (these, rest) = more.split_at(more.len().min(21));
            let mut record = [0; RECORD];
            map(&mut record[..504], these);
            record[504] = u8::from(!rest.is_empty());
            self.0.extend(record);
            more = rest;
        }
        self.content(&entry.content)
    }

    /// Adds pax records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let content: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| {
                let body = key.len() + value.len() + 3;
                let mut length = body + 1;
                while length != body + length.to_string().len() {
                    length += 1;
                }
                [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
            })
            .collect();
        self.raw(&Entry::file("pax", content).kind(b'x'))
    }

    /// Adds a long name (`L`) or link (`K`) for the next entry, as GNU's tar writes it.
    pub fn gnu(self, kind: u8, name: &[u8]) -> Self {
        let content = [name, b"\0"].concat();
        self.raw(&Entry::file("././@LongLink", content).kind(kind))
    }

    /// Adds bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Ends the archive.
    pub fn done(mut self) -> Vec<u8> {
        self.0.extend([0; 2 * RECORD]);
        self.0
    }

    /// Returns what there is so far, without an end.
    pub fn unended(self) -> Vec<u8> {
        self.0
    }

    fn content(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(RECORD), 0);
        self
    }
}

impl Entry {
    fn kind(mut self, kind: u8) -> Self {
        self.kind = kind;
        self
    }
}

fn put(header: &mut [u8], at: usize, bytes: &[u8], room: usize) {
    let bytes = &bytes[..bytes.len().min(room)];
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes octal digits, or GNU's base-256 where they do not fit.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let octal = format!("{value:0digits$o}");
    if octal.len() <= digits {
        field[..digits].copy_from_slice(octal.as_bytes());
        field[digits] = 0;
        return;
    }
    field.fill(0);
    let bytes = value.to_be_bytes();
    let at = field.len().saturating_sub(bytes.len());
    let from = bytes.len().saturating_sub(field.len());
    field[at..].copy_from_slice(&bytes[from..]);
    field[0] |= 0x80;
}

fn map(area: &mut [u8], segments: &[(u64, u64)]) {
    for (slot, (offset, length)) in area.chunks_exact_mut(24).zip(segments) {
        number(&mut slot[..12], *offset);
        number(&mut slot[12..], *length);
    }
}

fn seal(header: &mut [u8; RECORD]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
