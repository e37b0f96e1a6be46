//! A nasty image is in the guest what unpacking makes of it: path, type, mode, owner, attributes, size, time, device numbers,
//! content and hard links, as `e2e/src/bin/tree.rs` tells them on both sides.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use e2e::archive::{Archive, Entry};
use e2e::handmade::{self, HandMade, Layer, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, gzip, zstd};
use e2e::{Driver, Invocation, Layout, TestNode, check, is_soak, missing_program, skip};
use serde_json::Value;

use crate::support::seconds;

/// What the tree looks like, by path.
type Told = BTreeMap<String, Value>;

/// All layers that an image may have.
const LAYERS: usize = 127;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
const PRIVATE_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";

/// `cap_net_raw=ep`, version 2, as the kernel stores it.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// `u::rw-,u:1000:r--,g::r--,m::r--,o::---`, as the kernel stores it.
const ACL: &[u8] =
    b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

/// Files of every kind, name, owner and time.
fn kinds() -> Archive {
    let long = "n".repeat(255);
    let deep = format!("n/names/{}/file", vec!["d".repeat(90); 4].join("/"));
    Archive::new()
        .with(&Entry::dir("n/").mtime(1_000_000_001))
        .with(&Entry::file("n/plain", "plain\n"))
        .with(&Entry::dir("n/modes/").mode(0o1777))
        .with(&Entry::file("n/modes/setuid", "s").mode(0o4755))
        .with(&Entry::file("n/modes/setgid", "s").mode(0o2711).owner(0, 12))
        .with(&Entry::file("n/modes/none", "s").mode(0))
        .with(&Entry::file("n/modes/all", "s").mode(0o7777))
        .with(&Entry::dir("n/modes/inherits").mode(0o2770).owner(1, 2))
        .with(&Entry::file("n/owners-large", "").owner(4_294_967_294, 4_294_967_293))
        .pax(&[("uid", b"4294967293"), ("gid", b"2097152")])
        .with(&Entry::file("n/owners-pax", "").owner(1, 1))
        .with(&Entry::new(b'6', "n/fifo").mode(0o620).owner(3, 4))
        .with(&Entry::new(b'3', "n/null").mode(0o666).device(1, 3))
        .with(&Entry::new(b'3', "n/large").device(509, 1_048_575))
        .with(&Entry::new(b'4', "n/disk").mode(0o660).device(259, 70_000))
        .with(&Entry::dir("n/names/"))
        .with(&Entry::file(b"n/names/\xff\xfe\x80", "latin"))
        .with(&Entry::file("n/names/line\nfeed and \\ \x1b[31m", "odd"))
        .with(&Entry::file(format!("n/names/{long}"), "long"))
        .with(&Entry::file(&deep, "deep"))
        .with(&Entry::file("prefixed", "p").prefix(format!("n/{}", "p".repeat(120))))
        .pax(&[("path", b"n/names/\xc3\xa4 by pax"), ("linkpath", b"by/pax")])
        .with(&Entry::symlink("n/names/ascii", "x"))
        .with(&Entry::file("./n//odd/./spelt", "1"))
        .with(&Entry::file("/n/absolute", "2"))
        .with(&Entry::dir("n/slashed//"))
        .with(&Entry::file("n/implied/by/this", "3"))
        .with(&Entry::new(b'\0', "n/old").mode(0o600))
        .with(&Entry::file("n/twice", "first").mode(0o600))
        .with(&Entry::file("n/twice", "second").mode(0o640))
}

fn times(archive: Archive) -> Archive {
    let times: [(&str, &[u8]); 6] = [
        ("before", b"-1000000000"),
        ("fraction", b"1234567890.123456789"),
        ("negative-fraction", b"-1.25"),
        ("beyond-32-bit", b"5000000000.5"),
        ("zero", b"0"),
        ("long-fraction", b"7.0000000019999"),
    ];
    let archive = times.iter().fold(archive, |archive, (name, time)| {
        archive
            .pax(&[("mtime", time)])
            .with(&Entry::file(format!("n/times-{name}"), "t"))
    });
    archive
        .with(&Entry::file("n/times-octal", "t").mtime(4_294_967_296))
        .pax(&[("mtime", b"3.5")])
        .with(&Entry::symlink("n/times-link", "plain"))
}

fn attributes(archive: Archive) -> Archive {
    archive
        .pax(&[
            ("SCHILY.xattr.security.capability", CAPABILITY),
            ("SCHILY.xattr.user.text", b"line\nfeed=1"),
            ("SCHILY.xattr.user.empty", b""),
        ])
        .with(&Entry::file("n/capable", "x").mode(0o755))
        .pax(&[("SCHILY.xattr.user.directory", &[0, 255, 10])])
        .with(&Entry::dir("n/attributed"))
        .pax(&[("SCHILY.xattr.system.posix_acl_access", ACL)])
        .with(&Entry::file("n/listed", "x").mode(0o640))
        .pax(&[("SCHILY.xattr.user.large", &[b'v'; 2000])])
        .with(&Entry::file("n/much", "x"))
}

fn links(archive: Archive) -> Archive {
    archive
        .with(&Entry::symlink("n/chain-1", "chain-2"))
        .with(&Entry::symlink("n/chain-2", "./chain-3"))
        .with(&Entry::symlink("n/chain-3", "/n/plain"))
        .with(&Entry::symlink("n/circle", "circle"))
        .with(&Entry::symlink("n/dangling", "../nowhere"))
        .with(&Entry::symlink("n/far", "x/".repeat(450)))
        .with(&Entry::file("n/hard-a", "hard"))
        .with(&Entry::hard("n/hard-b", "n/hard-a"))
        .with(&Entry::hard("n/hard-link", "n/chain-1"))
        .with(&Entry::hard("n/hard-fifo", "./n/fifo"))
        .with(&Entry::file("n/usr/lib/own", "own"))
        .with(&Entry::symlink("n/lib", "usr/lib"))
        .with(&Entry::file("n/lib/through-own", "t"))
}

/// Bytes of a sparse file.
const SPARSE: u64 = 3_000_000;

/// Its stretches of data, and what they hold.
fn segments() -> (Vec<(u64, u64)>, String) {
    ((0..30).map(|n| (n * 100_000 + 7, 3)).collect(), "abc".repeat(30))
}

/// The same sparse file in each of the three forms of pax.
fn sparse(archive: Archive) -> Archive {
    let (segments, content) = segments();
    let size = SPARSE;
    let list: Vec<String> = segments
        .iter()
        .flat_map(|(offset, length)| [offset.to_string(), length.to_string()])
        .collect();
    let total = size.to_string();
    let mut zero = vec![("GNU.sparse.size", total.as_bytes())];
    for pair in list.chunks(2) {
        zero.push(("GNU.sparse.offset", pair[0].as_bytes()));
        zero.push(("GNU.sparse.numbytes", pair[1].as_bytes()));
    }
    let count = segments.len().to_string();
    zero.push(("GNU.sparse.numblocks", count.as_bytes()));
    let map = list.join(",");
    let mut in_content = format!("{count}\n{}\n", list.join("\n")).into_bytes();
    in_content.resize(in_content.len().next_multiple_of(512), 0);
    in_content.extend(content.as_bytes());
    archive
        .pax(&zero)
        .with(&Entry::file("n/sparse-0.0", &content))
        .pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.name", b"n/sparse-0.1"),
            ("GNU.sparse.size", total.as_bytes()),
            ("GNU.sparse.numblocks", count.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ])
        .with(&Entry::file("n/GNUSparseFile.1/sparse-0.1", &content))
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"n/sparse-1.0"),
            ("GNU.sparse.realsize", total.as_bytes()),
        ])
        .with(&Entry::file("n/GNUSparseFile.1/sparse-1.0", &in_content))
}

/// What later layers change.
fn base() -> Vec<u8> {
    let mut archive = sparse(links(attributes(times(kinds()))));
    for name in ["a", "b", "c", "sub/x", "sub/y"] {
        archive = archive
            .with(&Entry::file(format!("n/lower/{name}"), "lower"))
            .with(&Entry::file(format!("n/opaque/{name}"), "lower"))
            .with(&Entry::file(format!("n/opaque-first/{name}"), "lower"))
            .with(&Entry::file(format!("n/merged/{name}"), "lower").mode(0o600));
    }
    archive
        .with(&Entry::file("n/swapped", "file"))
        .with(&Entry::file("n/swapped-2/child", "in a directory"))
        .with(&Entry::file("n/removed", "gone"))
        .done()
}

fn change() -> Vec<u8> {
    Archive::new()
        .with(&Entry::file("n/.wh.removed", ""))
        .with(&Entry::file("n/lower/.wh.a", ""))
        .with(&Entry::file("n/lower/.wh.sub", ""))
        .with(&Entry::file("n/lower/.wh.b", ""))
        .with(&Entry::file("n/lower/b", "whiteout first"))
        .with(&Entry::file("n/lower/c", "whiteout last"))
        .with(&Entry::file("n/lower/.wh.c", ""))
        .with(&Entry::file("n/opaque/new", "upper"))
        .with(&Entry::file("n/opaque/.wh..wh..opq", ""))
        .with(&Entry::file("n/opaque-first/.wh..wh..opq", ""))
        .with(&Entry::file("n/opaque-first/new", "upper"))
        .with(&Entry::dir("n/swapped").mode(0o711))
        .with(&Entry::file("n/swapped/child", "1"))
        .with(&Entry::file("n/swapped-2", "now a file"))
        .with(&Entry::dir("n/merged").mode(0o700).owner(5, 6))
        .with(&Entry::file("n/merged/sub/z", "upper"))
        .with(&Entry::file("n/lib/through", "of another layer"))
        .with(&Entry::hard("n/hard-across", "n/hard-a"))
        .with(&Entry::hard("n/hard-through", "n/lib/own"))
        .with(&Entry::dir("n/attributed").mode(0o751))
        .with(&Entry::file("n/much", "without attributes"))
        .done()
}

fn change_back() -> Vec<u8> {
    Archive::new()
        .with(&Entry::file("n/swapped", "a file again").mode(0o444))
        .with(&Entry::dir("n/swapped-2"))
        .with(&Entry::file("n/swapped-2/other", "a directory again"))
        .with(&Entry::file("n/.wh.hard-b", ""))
        .with(&Entry::file("n/hard-link", "no link any more"))
        .with(&Entry::file("n/removed", "back"))
        .done()
}

/// What umoci 0.4.7 refuses, with what is right about it:
/// - type `7`: "Reserved to represent a file to which an implementation has associated some high-performance attribute.
///   Implementations without such extensions should treat this file as a regular file (type 0)" (pax(1), ustar format);
/// - type `S`: the image specification asks for more than ustar only in that layers are "tar archives" that GNU's and libarchive's
///   tar read, and this is GNU's own form.
fn beyond_umoci() -> Vec<u8> {
    let (segments, content) = segments();
    Archive::new()
        .with(&Entry::new(b'7', "n/contiguous"))
        .with(&Entry::file("n/sparse-gnu", content).sparse(&segments, SPARSE))
        .done()
}

/// Its place among the archives.
const BEYOND: usize = 6;

/// Directories that have an entry, and other directories that entries below them imply. umoci 0.4.7 restores the time of the last
/// one only that it makes, so these get the time of the unpacking. "mtime" is among the "Attributes that MUST be represented" of an
/// entry (image specification, "File Attributes"), so what the entry says is right.
const TIMES: [(&str, &str); 2] = [("", "1000000001.000000000"), ("names", "1000000000.000000000")];

fn check_times(expected: &mut Told, found: &mut Told) -> Result<()> {
    for (path, time) in TIMES {
        ensure!(found[path]["mtime"] == time, "{}", found[path]);
        for told in [&mut *expected, &mut *found] {
            if let Some(told) = told.get_mut(path) {
                told["mtime"] = Value::Null;
            }
        }
    }
    Ok(())
}

/// Takes what umoci refuses out of what the guest tells, and looks at it.
fn check_beyond_umoci(found: &mut Told) -> Result<()> {
    let contiguous = found.remove("contiguous").context("type 7 is a file")?;
    ensure!(
        contiguous["type"] == "RegularFile" && contiguous["size"] == 0,
        "{contiguous}"
    );
    let sparse = found.remove("sparse-gnu").context("type S is a file")?;
    let same = &found["sparse-1.0"];
    ensure!(
        sparse["type"] == "RegularFile"
            && (&sparse["size"], &sparse["sha256"]) == (&same["size"], &same["sha256"]),
        "{sparse}\n{same}"
    );
    Ok(())
}

/// The archives of the layers above busybox.
fn archives() -> Vec<Vec<u8>> {
    let many = if is_soak() { 65_000 } else { 1500 };
    let crowd = (0..many).fold(Archive::new(), |archive, n| {
        archive.with(&Entry::file(
            format!("n/crowd/{n:05}-{}", "x".repeat(n % 40)),
            n.to_string(),
        ))
    });
    let mut archives = vec![
        base(),
        change(),
        Vec::new(),
        vec![0; 1024],
        change_back(),
        crowd.done(),
        beyond_umoci(),
    ];
    while archives.len() < LAYERS - 1 {
        let n = archives.len();
        let fill = Archive::new()
            .with(&Entry::file(format!("n/fill/{n}"), "fill"))
            .with(&Entry::file("n/fill/last", n.to_string()));
        archives.push(fill.done());
    }
    archives
}

/// Compresses an archive in one of all ways, so that neighbours differ.
fn encoded(index: usize, archive: &[u8]) -> Layer {
    let (first, second) = archive.split_at(archive.len() / 3);
    let zstd_type = format!("{OCI_LAYER}+zstd");
    let garbage = b"garbage behind the end".to_vec();
    match index % 8 {
        0 => Layer::of(
            DOCKER_LAYER,
            archive,
            [gzip(first), gzip(b""), gzip(second)].concat(),
        ),
        1 => Layer::of(&zstd_type, archive, [zstd(first), zstd(second), garbage].concat()),
        2 => Layer::of(FOREIGN_LAYER, archive, [gzip(archive), vec![0; 700]].concat()),
        3 => Layer::plain(archive),
        4 => Layer::of(PRIVATE_LAYER, archive, [gzip(archive), garbage].concat()),
        5 => Layer::of(
            &zstd_type,
            archive,
            [b"\x50\x2a\x4d\x18\x02\0\0\0zz".to_vec(), zstd(archive)].concat(),
        ),
        // The media type is wrong, as in the wild.
        6 => Layer::of(DOCKER_LAYER, archive, zstd(archive)),
        _ => Layer::of(&format!("{OCI_LAYER}+gzip"), archive, gzip(archive)),
    }
}

/// Makes the image for umoci: OCI's manifest, each layer one gzip member.
fn for_umoci(base: &[Layer], archives: &[Vec<u8>]) -> Result<HandMade> {
    let gzipped = archives
        .iter()
        .enumerate()
        .map(|(index, archive)| if index == BEYOND { &[][..] } else { archive })
        .map(|archive| Layer::of(&format!("{OCI_LAYER}+gzip"), archive, gzip(archive)));
    let made = HandMade::new()?;
    let layers: Vec<_> = base.iter().cloned().chain(gzipped).collect();
    let mut manifest = made.manifest(&layers, &[OCI_MANIFEST, OCI_CONFIG])?;
    manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "nasty" });
    made.index(&[manifest])?;
    Ok(made)
}

/// Makes the image for hearth: docker's manifest in a list in an index, each layer in another form.
fn for_hearth(base: &[Layer], archives: &[Vec<u8>]) -> Result<HandMade> {
    let encoded = archives
        .iter()
        .enumerate()
        .map(|(index, archive)| encoded(index, archive));
    let made = HandMade::new()?;
    let layers: Vec<_> = base.iter().cloned().chain(encoded).collect();
    ensure!(layers.len() == LAYERS, "{} layers", layers.len());
    let mut manifest = made.manifest(&layers, &[DOCKER_MANIFEST, DOCKER_CONFIG])?;
    manifest["platform"] = serde_json::json!({ "os": "linux", "architecture": "amd64" });
    let other = made.blob(OCI_MANIFEST, b"for a machine that is none")?;
    let mut other = other.clone();
    other["platform"] = serde_json::json!({ "os": "linux", "architecture": "s390x" });
    let list = serde_json::json!({ "schemaVersion": 2, "manifests": [other, manifest] });
    let list = made.blob(DOCKER_LIST, list.to_string().as_bytes())?;
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [list] });
    let index = made.blob(OCI_INDEX, index.to_string().as_bytes())?;
    made.index(&[index])?;
    Ok(made)
}

fn parsed(lines: &str) -> Result<Told> {
    let one = |line: &str| -> Result<(String, Value)> {
        let told: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let path = told["path"].as_str().context("a path")?.to_owned();
        Ok((path, told))
    };
    lines.lines().map(one).collect()
}

/// Puts the program that tells a tree, with the libraries that it needs, into a directory.
fn teller(directory: &Path) -> Result<()> {
    let program = env!("CARGO_BIN_EXE_tree");
    fs::copy(program, directory.join("tree"))?;
    let needed = Invocation::new("ldd", [program]).ok()?;
    for word in needed.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = Path::new(word).file_name().context("a library has a name")?;
        fs::copy(word, directory.join(name))?;
    }
    Ok(())
}

fn told_in_guest(node: &TestNode, image: &HandMade) -> Result<Told> {
    let helper = node.home().join("user/helper");
    fs::create_dir(&helper)?;
    teller(&helper)?;
    node.hearth(["image", "pull", &image.reference()])
        .deadline(seconds(300))
        .ok()?;
    node.start(["--name", "m", &image.reference(), "sleep", "3600"])?;
    node.hearth(["cp", &helper.display().to_string(), "m:/"]).ok()?;
    let script = "cd /helper && exec ./ld-linux-x86-64.so.2 --library-path . ./tree /n";
    let told = node.exec(["m", "sh", "-c", script]).deadline(seconds(600)).ok()?;
    parsed(&told)
}

fn told_of_umoci(image: &HandMade) -> Result<Told> {
    let bundle = tempfile::tempdir()?;
    let (source, target) = (
        format!("{}:nasty", image.path().display()),
        bundle.path().join("bundle"),
    );
    Invocation::new(
        "umoci",
        ["unpack", "--image", &source, &target.display().to_string()],
    )
    .deadline(seconds(600))
    .ok()?;
    let root = target.join("rootfs/n").display().to_string();
    parsed(
        &Invocation::new(env!("CARGO_BIN_EXE_tree"), [&root])
            .deadline(seconds(300))
            .ok()?,
    )
}

/// Makes what no entry describes comparable: an implied directory has no time. umoci gives it that of the unpacking, hearth
/// the start of 1970; the specification says nothing.
fn without_implied_times(told: &mut Told) {
    const IMPLIED: [&str; 12] = [
        "crowd",
        "fill",
        "implied",
        "implied/by",
        "lower",
        "lower/sub",
        "merged/sub",
        "odd",
        "opaque",
        "opaque-first",
        "usr",
        "usr/lib",
    ];
    for (path, value) in told.iter_mut() {
        let long = path.starts_with("names/ddd") || path.starts_with("ppp") || path == "swapped-2";
        if (long || IMPLIED.contains(&path.as_str())) && value["type"] == "Directory" {
            value["mtime"] = Value::Null;
        }
    }
}

#[test]
fn a_nasty_image_is_what_unpacking_makes_of_it() -> Result<()> {
    if let Some(program) = missing_program(&["umoci", "tar", "ldd"]) {
        return skip!("{program} is not installed");
    }
    if !rustix::process::geteuid().is_root() {
        return skip!("only root can unpack owners and devices");
    }
    let busybox = Layout::busybox()?;
    let base = handmade::layers_of(Path::new(&busybox.path()), "base")?;
    let archives = archives();
    let mut expected = told_of_umoci(&for_umoci(&base, &archives)?)?;
    let image = for_hearth(&base, &archives)?;
    check(TestNode::ready(Driver::Auto), |node| {
        let mut found = told_in_guest(node, &image)?;
        check_beyond_umoci(&mut found)?;
        check_times(&mut expected, &mut found)?;
        without_implied_times(&mut expected);
        without_implied_times(&mut found);
        let paths = expected.keys().chain(found.keys());
        let differences: Vec<String> = paths
            .filter(|path| expected.get(*path) != found.get(*path))
            .map(|path| {
                format!(
                    "{path}\n  umoci:  {:?}\n  hearth: {:?}",
                    expected.get(path),
                    found.get(path)
                )
            })
            .collect();
        if !differences.is_empty() {
            bail!("{} differences:\n{}", differences.len(), differences.join("\n"));
        }
        println!("{} paths in {LAYERS} layers are the same", found.len());
        ensure!(found.len() > 1500, "{} paths", found.len());
        Ok(())
    })
}
