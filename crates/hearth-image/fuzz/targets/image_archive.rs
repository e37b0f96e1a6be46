//! Archives: any bytes are refused or read within the limits, and what the `tar` crate writes is read as it was meant.

#![no_main]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use hearth_image::Limits;
use hearth_image::fuzzing::{Member, archive};
use libfuzzer_sys::fuzz_target;
use tar::{Builder, EntryType, Header};

const LIMITS: Limits = Limits {
    manifest_bytes: 4096,
    layers: 4,
    index_depth: 1,
    unpacked_bytes: 1 << 20,
    expansion: 256,
    expansion_free_bytes: 1 << 20,
    entries: 500,
    memory_bytes: 1 << 20,
    path_bytes: 512,
    depth: 16,
    xattr_bytes: 2048,
    header_bytes: 16 << 10,
};

const RECORD: usize = 512;
const CHECKSUM: std::ops::Range<usize> = 148..156;

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    match choice % 3 {
        0 => drop(archive(bytes, LIMITS)),
        1 => drop(archive(&mended(bytes.to_vec()), LIMITS)),
        _ => written_is_read(bytes),
    }
});

/// Makes the checksum of every record right that is not all zeros: no mutation finds it, and content does not care.
fn mended(mut bytes: Vec<u8>) -> Vec<u8> {
    for record in bytes.chunks_exact_mut(RECORD) {
        if record.iter().any(|&byte| byte != 0) {
            record[CHECKSUM].fill(b' ');
            let sum: u32 = record.iter().map(|&byte| u32::from(byte)).sum();
            record[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

/// Takes values off the input; zeros when it is used up.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    fn number(&mut self) -> u32 {
        (0..4).fold(0, |number, _| number << 8 | u32::from(self.byte()))
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A name without NUL, of one character at least and no slash at its end, long now and then.
    fn name(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte());
        let mut name: Vec<u8> = self.bytes(length).iter().map(|byte| (*byte).max(1)).collect();
        name.push(b'x');
        name
    }
}

fn written_is_read(bytes: &[u8]) {
    let mut source = Source(bytes);
    let mut builder = Builder::new(Vec::new());
    let mut expected = Vec::new();
    while !source.0.is_empty() && expected.len() < 20 {
        expected.push(write(&mut source, &mut builder));
    }
    let written = builder.into_inner().expect("room in memory");
    match archive(&written, LIMITS) {
        Ok(read) => assert_eq!(read, expected),
        // Together they may go over a limit.
        Err(error) => assert!(format!("{error:?}").contains("Limit") || format!("{error:?}").contains("Xattrs")),
    }
}

fn write(source: &mut Source<'_>, builder: &mut Builder<Vec<u8>>) -> Member {
    let (path, link) = (source.name(), source.name());
    let (pax, is_link) = (source.byte(), source.byte() % 4 == 0);
    let mut xattrs = BTreeMap::new();
    for _ in 0..pax % 3 {
        let name = format!("user.{}", source.byte());
        let length = usize::from(source.byte());
        xattrs.insert(name.into_bytes(), source.bytes(length).to_vec());
    }
    let mut header = Header::new_gnu();
    let mode = source.number() & 0o7777;
    let (uid, gid, mtime) = (source.number() >> 1, source.number() >> 1, source.number());
    header.set_mode(mode);
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    header.set_mtime(mtime.into());
    if !xattrs.is_empty() {
        let keys: Vec<_> = xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), &value[..]))
            .collect();
        builder
            .append_pax_extensions(keys.iter().map(|(key, value)| (key.as_str(), *value)))
            .expect("room in memory");
    }
    let content = if is_link {
        Vec::new()
    } else {
        let length = source.number() as usize % 2000;
        source.bytes(length).to_vec()
    };
    header.set_size(content.len() as u64);
    header.set_entry_type(if is_link { EntryType::Symlink } else { EntryType::Regular });
    let path = relative(path);
    // Long names go into entries of their own, in the form of GNU's tar.
    append_name(builder, b'L', &path, &mut header, 0);
    if is_link {
        append_name(builder, b'K', &link, &mut header, 157);
    }
    header.set_cksum();
    builder.append(&header, &content[..]).expect("room in memory");
    Member {
        path,
        link: if is_link { link } else { Vec::new() },
        mode: mode as u16,
        owner: (uid, gid),
        mtime: (mtime.into(), 0),
        xattrs,
        content,
    }
}

fn relative(path: Vec<u8>) -> Vec<u8> {
    path.into_iter().skip_while(|byte| *byte == b'/').collect()
}

fn append_name(builder: &mut Builder<Vec<u8>>, kind: u8, name: &[u8], header: &mut Header, at: usize) {
    let short = name.len().min(100);
    header.as_mut_bytes()[at..at + short].copy_from_slice(&name[..short]);
    if name.len() <= 100 {
        return;
    }
    let mut extension = Header::new_gnu();
    extension.set_entry_type(EntryType::new(kind));
    extension.set_size(name.len() as u64 + 1);
    extension.set_cksum();
    let content = [name, b"\0"].concat();
    builder.append(&extension, &content[..]).expect("room in memory");
}
