//! Layers in, tree out: what is built is read back by `crate::erofs::read`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;

use tar::{Builder, EntryType, Header};
use tempfile::NamedTempFile;

use super::{ArchiveError, EntryError, Job, LayerBlob, MergeError, RootfsError, build};
use crate::erofs::{self, Found, Kind};
use crate::{Digest, Limits};

/// Writes one layer.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, path: &str, link: &str, content: &str) -> Self {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o700
        } else {
            0o600
        });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content.as_bytes()).unwrap();
        self
    }

    fn dir(self, path: &str) -> Self {
        self.add(EntryType::Directory, path, "", "")
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.add(EntryType::Regular, path, "", content)
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, path, target, "")
    }

    fn hard(self, path: &str, target: &str) -> Self {
        self.add(EntryType::Link, path, target, "")
    }

    /// Adds pax records before the next entry.
    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn build_image(layers: &[Vec<u8>]) -> Result<(File, BTreeMap<Vec<u8>, Found>), RootfsError> {
    let files: Vec<NamedTempFile> = layers
        .iter()
        .map(|layer| {
            let mut file = NamedTempFile::new().unwrap();
            file.write_all(layer).unwrap();
            file
        })
        .collect();
    let blobs: Vec<LayerBlob> = files
        .iter()
        .map(|file| LayerBlob {
            digest: Digest::of(b""),
            path: file.path().to_owned(),
            diff_id: None,
        })
        .collect();
    let (image, _) = build(Job {
        layers: &blobs,
        output: tempfile::tempfile().unwrap(),
        output_path: "image".as_ref(),
        uuid: [0; 16],
        limits: Limits::default(),
        progress: &|_, _| {},
    })?;
    let tree = erofs::read(&image).expect("a sound file system");
    Ok((image, tree))
}

fn built(layers: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Found> {
    build_image(layers).unwrap().1
}

/// Describes a tree, a path each: directories end in a slash, links show their target, files their content.
fn shown(tree: &BTreeMap<Vec<u8>, Found>) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let one = |(path, found): (&Vec<u8>, &Found)| {
        let path = text(path).trim_start_matches('/').to_owned();
        match &found.kind {
            Kind::Directory => format!("{path}/"),
            Kind::Regular(content) => format!("{path}={}", text(content)),
            Kind::Symlink(target) => format!("{path}->{}", text(target)),
            Kind::Special(number) => format!("{path}#{number}"),
        }
    };
    tree.iter()
        .filter(|(path, _)| !path.is_empty())
        .map(one)
        .collect()
}

fn trees(layers: &[Vec<u8>]) -> Vec<String> {
    shown(&built(layers))
}

fn refusal(layers: &[Vec<u8>]) -> MergeError {
    match build_image(layers) {
        Err(RootfsError::Entry {
            source: EntryError::Merge(error),
            ..
        }) => error,
        other => panic!("{:?}", other.map(|(_, tree)| shown(&tree))),
    }
}

#[test]
fn a_whiteout_hides_lower_layers_and_never_its_own() {
    let base = Layer::new().dir("d").file("d/a", "1").file("d/b", "1").done();
    let before = Layer::new().file("d/.wh.a", "").file("d/a", "2").done();
    let after = Layer::new().file("d/a", "2").file("d/.wh.a", "").done();
    for upper in [before, after] {
        assert_eq!(trees(&[base.clone(), upper]), ["d/", "d/a=2", "d/b=1"]);
    }
    let opaque_last = Layer::new().file("d/c", "2").file("d/.wh..wh..opq", "").done();
    let opaque_first = Layer::new().file("d/.wh..wh..opq", "").file("d/c", "2").done();
    for upper in [opaque_last, opaque_first] {
        assert_eq!(trees(&[base.clone(), upper]), ["d/", "d/c=2"]);
    }
    // The directory itself goes, and comes again as an implied one.
    let replaced = Layer::new().file("d/c", "2").file(".wh.d", "").done();
    let tree = built(&[base.clone(), replaced]);
    assert_eq!(shown(&tree), ["d/", "d/c=2"]);
    assert_eq!((tree[&b"/d"[..]].mode & 0o7777, tree[&b"/d"[..]].uid), (0o755, 0));
    let gone = Layer::new().file(".wh.d", "").done();
    assert_eq!(trees(&[base, gone]), Vec::<String>::new());
}

#[test]
fn what_a_whiteout_has_hidden_comes_back_only_from_above() {
    let base = Layer::new().file("d/a", "1").done();
    let without = Layer::new().file(".wh.d", "").done();
    let again = Layer::new().file("d/b", "3").done();
    assert_eq!(trees(&[base, without, again]), ["d/", "d/b=3"]);
}

#[test]
fn files_and_directories_replace_each_other_across_layers() {
    let file = Layer::new().file("x", "1").done();
    let directory = Layer::new().dir("x").file("x/y", "2").done();
    let file_again = Layer::new().file("x", "3").done();
    assert_eq!(trees(&[file.clone(), directory.clone()]), ["x/", "x/y=2"]);
    assert_eq!(trees(&[file.clone(), directory, file_again]), ["x=3"]);
    let below = Layer::new().file("x/y", "2").done();
    assert_eq!(refusal(&[file, below]), MergeError::NotADirectory("x".into()));
}

#[test]
fn entries_below_a_link_lie_where_it_leads() {
    let base = Layer::new()
        .dir("usr/lib")
        .file("usr/lib/a", "1")
        .symlink("lib", "usr/lib")
        .done();
    let upper = Layer::new().file("lib/b", "2").done();
    let expected = ["lib->usr/lib", "usr/", "usr/lib/", "usr/lib/a=1", "usr/lib/b=2"];
    assert_eq!(trees(&[base.clone(), upper]), expected);
    // The link comes later than what it leads to, and before what lies below it.
    let usr = Layer::new().file("usr/lib/a", "1").done();
    let link = Layer::new().symlink("lib", "/usr/lib").done();
    let below = Layer::new().file("lib/b", "3").done();
    let expected = ["lib->/usr/lib", "usr/", "usr/lib/", "usr/lib/a=1", "usr/lib/b=3"];
    assert_eq!(trees(&[usr, link.clone(), below]), expected);
    // A whiteout follows the link, too; a directory entry replaces it, and what went through it stays.
    let whiteout = Layer::new().file("lib/.wh.a", "").done();
    let expected = ["lib->usr/lib", "usr/", "usr/lib/"];
    assert_eq!(trees(&[base.clone(), whiteout]), expected);
    let through = Layer::new().file("lib/b", "2").done();
    let directory = Layer::new().dir("lib").file("lib/c", "3").done();
    let expected = [
        "lib/",
        "lib/c=3",
        "usr/",
        "usr/lib/",
        "usr/lib/a=1",
        "usr/lib/b=2",
    ];
    assert_eq!(trees(&[base, through, directory]), expected);
    // One that leads nowhere makes what is missing, never outside.
    let out = Layer::new()
        .symlink("out", "../../../etc/cron.d")
        .file("out/job", "1")
        .done();
    let expected = [
        "etc/",
        "etc/cron.d/",
        "etc/cron.d/job=1",
        "out->../../../etc/cron.d",
    ];
    assert_eq!(trees(&[out]), expected);
}

#[test]
fn hard_links_refer_to_what_was_there_when_they_came() {
    let base = Layer::new().file("a", "1").hard("b", "a").file("a", "2").done();
    assert_eq!(trees(std::slice::from_ref(&base)), ["a=2", "b=1"]);
    let upper = Layer::new()
        .hard("c", "b")
        .symlink("l", "a")
        .hard("m", "l")
        .done();
    let tree = built(&[base.clone(), upper.clone()]);
    assert_eq!(shown(&tree), ["a=2", "b=1", "c=1", "l->a", "m->a"]);
    let nid = |path: &[u8]| tree[path].nid;
    assert_eq!((nid(b"/b"), nid(b"/l")), (nid(b"/c"), nid(b"/m")));
    assert_eq!((tree[&b"/b"[..]].links, tree[&b"/a"[..]].links), (2, 1));
    // The other names stay when one goes or is written anew.
    let last = Layer::new().file(".wh.b", "").file("l", "3").done();
    let tree = built(&[base, upper, last]);
    assert_eq!(shown(&tree), ["a=2", "c=1", "l=3", "m->a"]);
    assert!(
        tree.values()
            .all(|found| found.links == 1 || found.kind == Kind::Directory)
    );
}

#[test]
fn links_to_nothing_to_themselves_and_in_circles_are_refused() {
    let target = |text: &str| MergeError::LinkTarget(text.into());
    assert_eq!(refusal(&[Layer::new().hard("a", "b").done()]), target("/b"));
    assert_eq!(refusal(&[Layer::new().hard("a", "a").done()]), target("/a"));
    let file = Layer::new().file("a", "1").hard("a", "a").done();
    assert_eq!(refusal(&[file]), target("/a"));
    assert_eq!(
        refusal(&[Layer::new().dir("d").hard("a", "d").done()]),
        target("/d")
    );
    let inside = Layer::new().file("d/a", "1").hard("d", "d/a").done();
    assert_eq!(refusal(&[inside]), target("/d/a"));
    let circle = Layer::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", "1")
        .done();
    assert!(matches!(refusal(&[circle]), MergeError::SymlinkLoop(_)));
    let deeper = Layer::new().symlink("a", "a/a").file("a/x", "1").done();
    assert!(matches!(refusal(&[deeper]), MergeError::SymlinkLoop(_)));
    assert_eq!(
        refusal(&[Layer::new().file(".wh.", "").done()]),
        MergeError::Whiteout
    );
    assert_eq!(
        refusal(&[Layer::new().file("./", "").symlink(".", "x").done()]),
        MergeError::Root
    );
}

#[test]
fn links_that_multiply_are_given_up_soon() {
    // Each name is 40 links that lead through a thousand directories each.
    let mut layer = Layer::new().symlink("l0", &"./".repeat(49));
    for n in 1..40 {
        layer = layer.symlink(&format!("l{n}"), &format!("{}l{}", "./".repeat(47), n - 1));
    }
    for n in 0..15_000 {
        layer = layer.file(&format!("l39/{n}"), "");
    }
    let error = refusal(&[layer.done()]);
    assert_eq!(error, MergeError::SymlinkWork);
}

#[test]
fn whiteouts_of_one_layer_look_through_a_directory_once() {
    let base = Layer::new().file("d/old", "1").done();
    let mut upper = Layer::new();
    for n in 0..3000 {
        upper = upper.file(&format!("d/{n}"), "");
    }
    // Without, that is 3000 times 3000 look-ups, at every depth.
    for _ in 0..3000 {
        upper = upper.file("d/.wh..wh..opq", "").file(".wh.d", "");
    }
    let begun = std::time::Instant::now();
    let tree = built(&[base, upper.done()]);
    assert_eq!(tree.len(), 3002);
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn missing_parents_and_odd_spellings_are_taken_as_meant() {
    let layer = Layer::new()
        .file("./a/b/c", "1")
        .dir("/d/")
        .file("d//./e", "2")
        .file("x/../y", "3")
        .add(EntryType::Regular, "f/", "", "")
        .done();
    let tree = built(&[layer]);
    let expected = ["a/", "a/b/", "a/b/c=1", "d/", "d/e=2", "f/", "y=3"];
    assert_eq!(shown(&tree), expected);
    assert_eq!(
        (tree[&b"/a/b"[..]].mode, tree[&b"/d"[..]].mode),
        (0o40755, 0o40700)
    );
}

#[test]
fn owners_times_and_attributes_are_kept_whatever_they_are() {
    let capability: &[u8] = b"\x01\0\0\x02\0\x20\n=\0\0\0\0\0\0\0\0\0\0\0\0";
    let records: [(&str, &[u8]); 7] = [
        ("uid", b"4294967294"),
        ("gid", b"4294967293"),
        ("mtime", b"-1234567890.25"),
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.user.empty", b""),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.other", b"t"),
    ];
    let layer = Layer::new()
        .pax(&records)
        .file("f", "x")
        .pax(&records[2..])
        .dir("d");
    let tree = built(&[layer.pax(&[("mtime", b"9999999999.5")]).symlink("l", "f").done()]);
    let file = &tree[&b"/f"[..]];
    assert_eq!((file.uid, file.gid), (u32::MAX - 1, u32::MAX - 2));
    assert_eq!(file.mtime, (-1_234_567_891, 750_000_000));
    for path in [&b"/f"[..], b"/d"] {
        let xattrs = &tree[path].xattrs;
        assert_eq!(xattrs[&b"security.capability"[..]], capability);
        let names: Vec<_> = xattrs.keys().map(|name| String::from_utf8_lossy(name)).collect();
        assert_eq!(names, ["security.capability", "trusted.other"]);
    }
    assert_eq!(tree[&b"/l"[..]].mtime, (9_999_999_999, 500_000_000));
    // The upper layer's word on a directory counts, and it has none on attributes.
    let upper = Layer::new().dir("d").done();
    let base = Layer::new().pax(&records[2..]).dir("d").file("d/x", "1").done();
    let tree = built(&[base, upper]);
    assert!(tree[&b"/d"[..]].xattrs.is_empty() && tree.contains_key(&b"/d/x"[..]));
    let nobody = Layer::new().pax(&[("uid", b"4294967295")]).file("f", "x").done();
    assert!(matches!(
        build_image(&[nobody]),
        Err(RootfsError::Archive {
            source: ArchiveError::Field { field: "user id", .. },
            ..
        })
    ));
}

#[test]
fn sparse_files_of_every_format_have_their_holes() {
    let whole = {
        let mut content = vec![0; 10_000];
        content[4096..4099].copy_from_slice(b"abc");
        content[9997..].copy_from_slice(b"xyz");
        content
    };
    let map = "4096,3,9997,3";
    let pairs: [(&str, &[u8]); 5] = [
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"9997"),
        ("GNU.sparse.numbytes", b"3"),
    ];
    let zero_one: [(&str, &[u8]); 3] = [
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.map", map.as_bytes()),
        ("GNU.sparse.name", b"b"),
    ];
    let one_zero: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"10000"),
        ("GNU.sparse.name", b"c"),
    ];
    let in_content = format!("{:\0<512}abcxyz", "2\n4096\n3\n9997\n3\n");
    let layer = Layer::new()
        .pax(&pairs)
        .file("a", "abcxyz")
        .pax(&zero_one)
        .file("GNUSparseFile.0/b", "abcxyz")
        .pax(&one_zero)
        .file("GNUSparseFile.0/c", &in_content)
        .file("d", "plain");
    let tree = built(&[layer.done()]);
    for path in [&b"/a"[..], b"/b", b"/c"] {
        assert_eq!(tree[path].kind, Kind::Regular(whole.clone()));
    }
    assert_eq!(tree[&b"/d"[..]].kind, Kind::Regular(b"plain".to_vec()));
}

#[test]
fn content_that_is_replaced_takes_no_room_on_the_disk() {
    use std::os::unix::fs::MetadataExt as _;
    let large = "large".repeat(1 << 20);
    let layers = [
        Layer::new().file("a", &large).file("a", &large).done(),
        Layer::new().file("a", &large).done(),
        Layer::new().file(".wh.a", "").file("b", "small").done(),
    ];
    let (image, tree) = build_image(&layers).unwrap();
    assert_eq!(shown(&tree), ["b=small"]);
    let used = image.metadata().unwrap().blocks() * 512;
    assert!(used < 1 << 20, "{used} bytes");
}

#[test]
fn compressed_layers_end_with_their_last_member() {
    let archive = Layer::new().file("a", "1").done();
    let (first, second) = archive.split_at(700);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::stream::encode_all(bytes, 1).unwrap();
    let skippable: &[u8] = b"\x50\x2a\x4d\x18\x03\0\0\0xyz";
    let garbage: &[u8] = b"\0\0\0 not a member";
    let good = [
        gzip(&archive),
        [gzip(first), gzip(second)].concat(),
        [gzip(first), gzip(b""), gzip(second), garbage.to_vec()].concat(),
        [gzip(&archive), vec![0; 100_000]].concat(),
        [gzip(&archive), b"\x1f".to_vec()].concat(),
        zstd(&archive),
        [skippable, &zstd(first), skippable, &zstd(second), garbage].concat(),
        [&archive[..], garbage].concat(),
        archive[..1024].to_vec(),
    ];
    for (index, layer) in good.into_iter().enumerate() {
        assert_eq!(trees(&[layer]), ["a=1"], "{index}");
    }
    let whole = gzip(&archive);
    let mut flipped = whole.clone();
    let crc = flipped.len() - 8;
    flipped[crc] ^= 1;
    let bad = [
        whole[..whole.len() - 9].to_vec(),
        flipped,
        zstd(&archive)[..40].to_vec(),
        archive[..300].to_vec(),
    ];
    for (index, layer) in bad.into_iter().enumerate() {
        let error = build_image(&[layer]);
        assert!(matches!(error, Err(RootfsError::Archive { .. })), "{index}");
    }
    assert_eq!(
        trees(&[Vec::new(), vec![0; 1024], gzip(&[0; 10_240])]),
        Vec::<String>::new()
    );
}

#[test]
fn an_archive_may_end_with_its_content_and_no_earlier() {
    let whole = Layer::new().file("a", "1").file("b", "22").done();
    // Header, content and padding of the first, header and content of the second.
    let content_ends = 3 * 512 + 2;
    for end in [content_ends, content_ends + 100, 4 * 512, 5 * 512] {
        assert_eq!(trees(&[whole[..end].to_vec()]), ["a=1", "b=22"], "{end}");
    }
    for end in [513 - 100, 512, content_ends - 1] {
        let refused = build_image(&[whole[..end].to_vec()]).map(|(_, tree)| shown(&tree));
        let is_cut = matches!(
            &refused,
            Err(RootfsError::Archive {
                source: ArchiveError::Truncated { .. },
                ..
            })
        );
        assert!(is_cut, "{end}: {refused:?}");
    }
}
