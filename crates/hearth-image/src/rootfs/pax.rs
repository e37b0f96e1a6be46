//! Pax extended header records: `LENGTH KEY=VALUE\n`, where only the length says where a record ends.

use std::collections::BTreeMap;

use super::sparse::Segment;

/// What pax records say of the next entry. Later records override earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The real name of a sparse file; `path` is a stand-in then.
    pub(crate) sparse_name: Option<Vec<u8>>,
    sparse_version: (Option<u64>, Option<u64>),
    /// Bytes of a sparse file, holes included.
    sparse_size: Option<u64>,
    sparse_map: Option<Vec<Segment>>,
    /// The first half of a segment, in format 0.0.
    sparse_offset: Option<u64>,
    xattr_bytes: usize,
}

/// How GNU's tar says in pax records that a file is sparse ("Storing Sparse Files" of its manual).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PaxSparse {
    /// Formats 0.0 and 0.1: the map is in the records.
    Records { size: u64, map: Vec<Segment> },
    /// Format 1.0: the map comes before the content.
    Content { size: u64 },
}

/// Says why pax records are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PaxError {
    /// A record does not follow `LENGTH KEY=VALUE`.
    #[error("a record is not of the form LENGTH KEY=VALUE")]
    Record,
    /// A value is not of its key's form.
    #[error("the value of {0} is not valid")]
    Value(String),
    /// Extended attributes are over the limit.
    #[error("the extended attributes take more than {0} bytes")]
    Xattrs(usize),
    /// A sparse file of a format that no tar has written so far.
    #[error("it is a sparse file of a format other than 0.0, 0.1 and 1.0")]
    SparseFormat,
    /// A sparse file without its size, or with half a segment.
    #[error("what it says of a sparse file is not complete")]
    SparseIncomplete,
    /// More segments than the header's limit allows.
    #[error("the sparse file has more than {0} segments")]
    SparseSegments(usize),
}

/// Segments of one sparse file whose map is in records: what fits 1 MiB of them.
const SEGMENTS_MAX: usize = 64 << 10;

impl Pax {
    /// Adds all records of one extended header.
    pub(crate) fn parse(&mut self, mut records: &[u8], xattr_limit: usize) -> Result<(), PaxError> {
        while !records.is_empty() {
            let (record, rest) = split_record(records).ok_or(PaxError::Record)?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or(PaxError::Record)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            if self.xattr_bytes > xattr_limit {
                return Err(PaxError::Xattrs(xattr_limit));
            }
            records = rest;
        }
        Ok(())
    }

    /// Takes back what an earlier record said: pax(1), "If the <value> field is zero length, it shall delete any header
    /// block field, previously entered extended header value, or global extended header value of the same name."
    fn unset(&mut self, key: &[u8]) {
        match key {
            b"path" => self.path = None,
            b"GNU.sparse.name" => self.sparse_name = None,
            b"linkpath" => self.link = None,
            b"size" => self.size = None,
            b"uid" => self.uid = None,
            b"gid" => self.gid = None,
            b"mtime" => self.mtime = None,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.remove(name);
                }
            }
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        if value.is_empty() && key != b"GNU.sparse.map" {
            self.unset(key);
            return Ok(());
        }
        let invalid = || PaxError::Value(String::from_utf8_lossy(key).into_owned());
        let number = || unsigned(value).map(Some).ok_or_else(invalid);
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = Some(timestamp(value).ok_or_else(invalid)?),
            b"GNU.sparse.major" => self.sparse_version.0 = number()?,
            b"GNU.sparse.minor" => self.sparse_version.1 = number()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = number()?,
            b"GNU.sparse.offset" => self.sparse_offset = number()?,
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse_offset.take().ok_or(PaxError::SparseIncomplete)?;
                let length = unsigned(value).ok_or_else(invalid)?;
                self.push_segment(Segment { offset, length })?;
            }
            b"GNU.sparse.map" => {
                self.sparse_map = Some(Vec::new());
                let numbers: Option<Vec<u64>> = value
                    .split(|byte| *byte == b',')
                    .filter(|_| !value.is_empty())
                    .map(unsigned)
                    .collect();
                for pair in numbers.ok_or_else(invalid)?.chunks(2) {
                    let [offset, length] = *pair else {
                        return Err(PaxError::SparseIncomplete);
                    };
                    self.push_segment(Segment { offset, length })?;
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    // What an overridden record took stays counted: no archive of ours overrides any.
                    self.xattr_bytes += name.len() + value.len() + 8;
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }
}

impl Pax {
    fn push_segment(&mut self, segment: Segment) -> Result<(), PaxError> {
        let map = self.sparse_map.get_or_insert_default();
        if map.len() >= SEGMENTS_MAX {
            return Err(PaxError::SparseSegments(SEGMENTS_MAX));
        }
        map.push(segment);
        Ok(())
    }

    /// Says whether and how the file is sparse, as GNU's and Go's readers decide it.
    pub(crate) fn take_sparse(&mut self) -> Result<Option<PaxSparse>, PaxError> {
        let size = self.sparse_size.ok_or(PaxError::SparseIncomplete);
        match (self.sparse_version, self.sparse_map.take()) {
            ((Some(1), Some(0)), _) => Ok(Some(PaxSparse::Content { size: size? })),
            ((None | Some(0), None | Some(0 | 1)), Some(map)) => {
                if self.sparse_offset.is_some() {
                    return Err(PaxError::SparseIncomplete);
                }
                Ok(Some(PaxSparse::Records { size: size?, map }))
            }
            ((None, None), None) => Ok(None),
            // A file without any data has an empty map, and no record of it.
            ((Some(0), Some(0 | 1)), None) => Ok(Some(PaxSparse::Records {
                size: size?,
                map: Vec::new(),
            })),
            _ => Err(PaxError::SparseFormat),
        }
    }
}

/// Splits the first record off; without its length and its line feed.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(unsigned(&records[..blank])?).ok()?;
    let record = records.get(blank + 1..length)?;
    Some((record.strip_suffix(b"\n")?, &records[length..]))
}

fn unsigned(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Parses `[-]SECONDS[.FRACTION]`; the nanoseconds count upwards, for negative times too.
fn timestamp(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(unsigned(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next().filter(|fraction| !fraction.is_empty()) {
        unsigned(&fraction[..fraction.len().min(9)])?;
        let digit = |at: usize| u32::from(fraction.get(at).map_or(0, |byte| byte - b'0'));
        nanoseconds = (0..9).fold(0, |value, at| value * 10 + digit(at));
    }
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length += 1;
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    fn parse(records: &[u8]) -> Result<Pax, PaxError> {
        let mut pax = Pax::default();
        pax.parse(records, 1000).map(|()| pax)
    }

    #[test]
    fn a_value_may_hold_line_feeds_and_equals_signs() {
        let capability = b"\x01\n=\0\n";
        let records = [
            record("SCHILY.xattr.security.capability", capability),
            record("path", b"a=b"),
        ]
        .concat();
        let pax = parse(&records).unwrap();
        assert_eq!(
            pax.xattrs,
            BTreeMap::from([(b"security.capability".to_vec(), capability.to_vec())])
        );
        assert_eq!(pax.path.as_deref(), Some(&b"a=b"[..]));
    }

    #[test]
    fn an_empty_value_takes_back_what_was_said() {
        let said = [
            record("path", b"a"),
            record("uid", b"7"),
            record("SCHILY.xattr.user.a", b"1"),
            record("SCHILY.xattr.user.b", b"2"),
            record("path", b""),
            record("uid", b""),
            record("SCHILY.xattr.user.a", b""),
        ];
        let pax = parse(&said.concat()).unwrap();
        assert_eq!((pax.path, pax.uid), (None, None));
        assert_eq!(pax.xattrs, BTreeMap::from([(b"user.b".to_vec(), b"2".to_vec())]));
    }

    #[test]
    fn times_have_nanoseconds_and_signs() {
        assert_eq!(timestamp(b"12"), Some((12, 0)));
        assert_eq!(timestamp(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(timestamp(b"12.0000000019"), Some((12, 1)));
        assert_eq!(timestamp(b"-1.25"), Some((-2, 750_000_000)));
        for text in [&b""[..], b"-", b"1.x", b"x", b"99999999999999999999"] {
            assert_eq!(timestamp(text), None);
        }
    }

    #[test]
    fn every_format_of_sparse_files_is_told_apart() {
        let sparse = |records: &[(&str, &str)]| {
            let records: Vec<u8> = records
                .iter()
                .flat_map(|(key, value)| record(&format!("GNU.sparse.{key}"), value.as_bytes()))
                .collect();
            parse(&records).and_then(|mut pax| pax.take_sparse())
        };
        let map = [(1, 2), (5, 0)].map(|(offset, length)| Segment { offset, length });
        let expected = Ok(Some(PaxSparse::Records {
            size: 9,
            map: map.to_vec(),
        }));
        let pairs = [
            ("offset", "1"),
            ("numbytes", "2"),
            ("offset", "5"),
            ("numbytes", "0"),
        ];
        let zero_zero = [&[("size", "9"), ("numblocks", "2")][..], &pairs].concat();
        assert_eq!(sparse(&zero_zero), expected);
        assert_eq!(sparse(&[("size", "9"), ("map", "1,2,5,0")]), expected);
        let one_zero = [("major", "1"), ("minor", "0"), ("realsize", "9")];
        assert_eq!(sparse(&one_zero), Ok(Some(PaxSparse::Content { size: 9 })));
        assert_eq!(sparse(&[]), Ok(None));
        let refused = [
            (&[("map", "1,2")][..], PaxError::SparseIncomplete),
            (&[("size", "9"), ("map", "1,2,5")], PaxError::SparseIncomplete),
            (&[("size", "9"), ("numbytes", "1")], PaxError::SparseIncomplete),
            (
                &[("major", "2"), ("minor", "0"), ("realsize", "9")],
                PaxError::SparseFormat,
            ),
        ];
        for (records, expected) in refused {
            assert_eq!(sparse(records), Err(expected), "{records:?}");
        }
        let huge = "0,0,".repeat(SEGMENTS_MAX) + "0,0";
        assert_eq!(
            sparse(&[("size", "9"), ("map", &huge)]),
            Err(PaxError::SparseSegments(SEGMENTS_MAX))
        );
    }

    #[test]
    fn damaged_records_are_refused() {
        for records in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"0 a=b\n",
            b"6 ab\n",
            b"x a=b\n",
            b"6 a=b\n\0",
            b"3 \n",
        ] {
            assert!(parse(records).is_err(), "{records:?}");
        }
        assert_eq!(
            parse(&record("uid", b"-1")).err(),
            Some(PaxError::Value("uid".into()))
        );
        let big = record("SCHILY.xattr.user.big", &[0; 2000]);
        assert_eq!(parse(&big).err(), Some(PaxError::Xattrs(1000)));
    }
}
