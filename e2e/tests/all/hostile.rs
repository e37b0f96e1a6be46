//! Archives and layouts of an attacker: each is refused with a word on why, within bounds of memory, disk and time, and leaves
//! nothing. `cargo test -p e2e -- --nocapture hostile` prints what each one cost.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::archive::{Archive, Entry};
use e2e::handmade::{HandMade, Layer, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest, gzip, zstd};
use e2e::{Driver, Outcome, TestNode, check, is_soak};
use serde_json::{Value, json};
use walkdir::WalkDir;

use crate::support::seconds;

const MIB: u64 = 1 << 20;

/// What one attack may cost the node.
#[derive(Clone, Copy)]
struct Bounds {
    memory: u64,
    disk: u64,
    time: Duration,
}

/// For what is refused at the first look.
const SMALL: Bounds = Bounds {
    memory: 64 * MIB,
    disk: 8 * MIB,
    time: seconds(30),
};

/// For what has to be read until a bound is reached: a zstd window, a million entries, 2 GiB of zeros.
const LARGE: Bounds = Bounds {
    memory: 900 * MIB,
    disk: 200 * MIB,
    time: seconds(180),
};

/// How an attack reaches the node.
enum Attack {
    /// A layout to pull.
    Layout(HandMade),
    /// An archive to pull.
    File(tempfile::NamedTempFile),
    /// What is loaded from a pipe, again and again without an end.
    Endless(tempfile::NamedTempFile),
}

struct Case {
    name: &'static str,
    /// What the refusal says.
    says: &'static str,
    bounds: Bounds,
    attack: Attack,
}

fn layer(archive: Archive) -> Result<Attack> {
    raw_layer(&archive.done())
}

fn raw_layer(archive: &[u8]) -> Result<Attack> {
    Ok(Attack::Layout(HandMade::image(&[Layer::plain(archive)])?))
}

/// A layer of one archive in a compressed form; that the `diff_id` is wrong comes out last.
fn blob(media_type: &str, blob: Vec<u8>) -> Result<Attack> {
    let layer = Layer::of(&format!("{OCI_LAYER}{media_type}"), b"", blob);
    Ok(Attack::Layout(HandMade::image(&[layer])?))
}

fn layout(make: impl FnOnce(&HandMade) -> Result<()>) -> Result<Attack> {
    let made = HandMade::new()?;
    make(&made)?;
    Ok(Attack::Layout(made))
}

fn small_layer() -> Vec<u8> {
    Archive::new().with(&Entry::file("f", "x")).done()
}

fn paths() -> Vec<(&'static str, &'static str, Result<Attack>)> {
    let file = |name: &str| layer(Archive::new().with(&Entry::file(name, "x")));
    let hard = |target: &str| layer(Archive::new().with(&Entry::hard("l", target)));
    vec![
        (
            "parent directories",
            "leads out of the image",
            file("../../etc/cron.d/x"),
        ),
        (
            "absolute parent directories",
            "leads out of the image",
            file("/a/../../x"),
        ),
        (
            "hard link out",
            "leads out of the image",
            hard("../../etc/shadow"),
        ),
        (
            "hard link to the host's file",
            "hard link to /etc/shadow",
            hard("/etc/shadow"),
        ),
        ("hard link to itself", "hard link to /l", hard("l")),
        (
            "hard link to a directory",
            "hard link to /d",
            layer(Archive::new().with(&Entry::dir("d")).with(&Entry::hard("l", "d"))),
        ),
        (
            "circle of symbolic links",
            "go in a circle",
            layer(
                Archive::new()
                    .with(&Entry::symlink("a", "b"))
                    .with(&Entry::symlink("b", "a"))
                    .with(&Entry::file("a/x", "x")),
            ),
        ),
        (
            "file as a directory",
            "not a directory",
            layer(
                Archive::new()
                    .with(&Entry::file("f", "x"))
                    .with(&Entry::file("f/x", "x")),
            ),
        ),
        (
            "root replaced",
            "replace the root directory",
            layer(Archive::new().with(&Entry::symlink("./", "x"))),
        ),
        (
            "600 directories deep",
            "directories deep",
            file(&"d/".repeat(600)),
        ),
        (
            "name of 300 bytes",
            "longer than 255 bytes",
            file(&"n".repeat(300)),
        ),
        (
            "path of 5000 bytes",
            "longer than 4095 bytes",
            file(&"n/".repeat(2500)),
        ),
        (
            "NUL in a path",
            "NUL byte",
            layer(
                Archive::new()
                    .pax(&[("path", b"a\0b")])
                    .with(&Entry::file("f", "x")),
            ),
        ),
        (
            "link target of 5000 bytes",
            "target of the symbolic link",
            layer(Archive::new().with(&Entry::symlink("l", "x".repeat(5000)))),
        ),
        ("whiteout of nothing", "whiteout without a name", file(".wh.")),
        (
            "whiteout of the parent",
            "whiteout without a name",
            file("d/.wh..."),
        ),
        (
            "links that multiply",
            "too many directories",
            layer(multiplying()),
        ),
    ]
}

/// Forty links of some thousand steps each, followed for each of many files.
fn multiplying() -> Archive {
    let mut archive = Archive::new().with(&Entry::symlink("l0", "./".repeat(1000)));
    for n in 1..40 {
        let target = format!("{}l{}", "./".repeat(1000), n - 1);
        archive = archive.with(&Entry::symlink(format!("l{n}"), target));
    }
    (0..2000).fold(archive, |archive, n| {
        archive.with(&Entry::file(format!("l39/{n}"), ""))
    })
}

fn numbers() -> Vec<(&'static str, &'static str, Result<Attack>)> {
    let pax =
        |key: &str, value: &[u8]| layer(Archive::new().pax(&[(key, value)]).with(&Entry::file("f", "x")));
    let mut negative = Archive::new().raw(&Entry::file("f", "x").size(1 << 62)).unended();
    negative[124..136].fill(0xff);
    let negative = resealed(negative);
    vec![
        ("negative size", "no valid size", raw_layer(&negative)),
        (
            "size of 4 EiB",
            "unpacked bytes",
            layer(Archive::new().raw(&Entry::file("f", "x").size(1 << 62))),
        ),
        (
            "size over 64 bits by pax",
            "value of size",
            pax("size", b"99999999999999999999"),
        ),
        (
            "size of 2^63 by pax",
            "unpacked bytes",
            pax("size", b"9223372036854775808"),
        ),
        ("owner 2^32-1", "no valid user id", pax("uid", b"4294967295")),
        ("owner -1", "value of uid", pax("uid", b"-1")),
        ("time that is none", "value of mtime", pax("mtime", b"soon")),
        (
            "device 5000:1",
            "no valid device number",
            layer(Archive::new().with(&Entry::new(b'3', "d").device(5000, 1))),
        ),
        (
            "entry of type Z",
            "none of a container image",
            layer(Archive::new().with(&Entry::new(b'Z', "z"))),
        ),
        (
            "size beyond the archive",
            "truncated",
            raw_layer(&Archive::new().raw(&Entry::file("f", "x").size(9999)).unended()),
        ),
        (
            "sparse file of 1 TiB",
            "unpacked bytes",
            layer(Archive::new().with(&Entry::file("f", "").sparse(&[], 1 << 40))),
        ),
        (
            "sparse segments that overlap",
            "map of the sparse file",
            layer(Archive::new().with(&Entry::file("f", "abcabc").sparse(&[(0, 3), (1, 3)], 9))),
        ),
        (
            "damaged checksum",
            "not one of a tar archive",
            raw_layer(&[b'x'; 2048]),
        ),
        (
            "pax records of 2 MiB",
            "bytes of header",
            pax("comment", &vec![b'x'; 2 << 20]),
        ),
        ("pax records without an end", "records", raw_layer(&damaged_pax())),
        (
            "attributes of 70 KiB",
            "extended attributes take more",
            pax("SCHILY.xattr.user.x", &vec![b'x'; 70_000]),
        ),
        (
            "long name of 1 GiB",
            "bytes of header",
            layer(Archive::new().raw(&Entry::new(b'L', "long").size(1 << 30))),
        ),
    ]
}

/// Makes the first header's checksum right.
fn resealed(mut archive: Vec<u8>) -> Vec<u8> {
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
    archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive
}

fn damaged_pax() -> Vec<u8> {
    Archive::new()
        .raw(&Entry::new(b'x', "pax").size(10))
        .bytes(&{
            let mut record = b"99 path=x\n".to_vec();
            record.resize(512, 0);
            record
        })
        .with(&Entry::file("f", "x"))
        .done()
}

fn documents() -> Vec<(&'static str, &'static str, Result<Attack>)> {
    let image = |change: fn(&HandMade, &mut Value, &mut Value) -> Result<()>| {
        layout(|made| {
            let archive = small_layer();
            let config = json!({ "architecture": "amd64", "os": "linux", "config": {},
                "rootfs": { "type": "layers", "diff_ids": [digest(&archive)] } });
            let mut config = made.blob(OCI_CONFIG, config.to_string().as_bytes())?;
            let mut layer = made.blob(OCI_LAYER, &archive)?;
            change(made, &mut config, &mut layer)?;
            let manifest = made.manifest_of(OCI_MANIFEST, &config, &[layer])?;
            made.index(&[manifest])
        })
    };
    vec![
        (
            "configuration of another size",
            "truncated",
            image(|_, config, _| set(config, "size", 9999)),
        ),
        (
            "layer of another size",
            "longer than",
            image(|_, _, layer| set(layer, "size", 10)),
        ),
        (
            "configuration of 100 MB by its size",
            "are said to have 100000000 bytes",
            image(|_, config, _| set(config, "size", 100_000_000)),
        ),
        (
            "layer of other content",
            "has the digest",
            image(|made, _, layer| {
                let path = made.blob_path(layer["digest"].as_str().unwrap_or_default());
                let mut content = fs::read(&path)?;
                content[600] ^= 1;
                Ok(fs::write(path, content)?)
            }),
        ),
        (
            "layer that is missing",
            "cannot read",
            image(|made, _, layer| {
                Ok(fs::remove_file(
                    made.blob_path(layer["digest"].as_str().unwrap_or_default()),
                )?)
            }),
        ),
        (
            "digest that is a path",
            "not valid JSON",
            image(|_, _, layer| set(layer, "digest", "sha256:../../../../etc/passwd")),
        ),
        (
            "digest of another kind",
            "SHA-256",
            image(|_, _, layer| set(layer, "digest", format!("sha512:{}", "a".repeat(128)))),
        ),
        ("layer of another archive", "unpacked it has the digest", {
            let layer = Layer {
                diff_id: digest(b"another"),
                ..Layer::plain(small_layer())
            };
            HandMade::image(&[layer]).map(Attack::Layout)
        }),
        (
            "configuration of other layers",
            "is for 0 layers",
            image(|made, config, _| {
                let other = json!({ "architecture": "amd64", "os": "linux", "config": {},
                    "rootfs": { "type": "layers", "diff_ids": [] } });
                *config = made.blob(OCI_CONFIG, other.to_string().as_bytes())?;
                Ok(())
            }),
        ),
    ]
}

fn manifests() -> Vec<(&'static str, &'static str, Result<Attack>)> {
    vec![
        (
            "128 layers",
            "128 layers",
            HandMade::image(&vec![Layer::plain(small_layer()); 128]).map(Attack::Layout),
        ),
        (
            "manifest of 100 MB",
            "longer than",
            layout(|made| {
                let manifest = made.blob(OCI_MANIFEST, &vec![b' '; 100_000_000])?;
                made.index(&[manifest])
            }),
        ),
        (
            "index of 100 MB",
            "longer than",
            layout(|made| {
                Ok(fs::write(
                    made.path().join("index.json"),
                    vec![b'['; 100_000_000],
                )?)
            }),
        ),
        (
            "index in an index, ten times",
            "nested more than",
            layout(|made| {
                let mut inner = json!({ "mediaType": OCI_MANIFEST, "digest": digest(b""), "size": 0 });
                for _ in 0..10 {
                    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner] });
                    inner = made.blob(OCI_INDEX, index.to_string().as_bytes())?;
                }
                made.index(&[inner])
            }),
        ),
        (
            "manifest that is an index, too",
            "both",
            layout(|made| {
                let both = json!({ "schemaVersion": 2, "manifests": [], "layers": [], "config": {} });
                let both = made.blob(OCI_MANIFEST, both.to_string().as_bytes())?;
                made.index(&[both])
            }),
        ),
        (
            "JSON a million deep",
            "not valid JSON",
            layout(|made| {
                let deep = made.blob(OCI_MANIFEST, "[".repeat(1_000_000).as_bytes())?;
                made.index(&[deep])
            }),
        ),
    ]
}

fn set(value: &mut Value, key: &str, to: impl Into<Value>) -> Result<()> {
    value[key] = to.into();
    Ok(())
}

fn cut() -> Vec<(&'static str, &'static str, Result<Attack>)> {
    let archive = Archive::new().with(&Entry::file("f", vec![7; 50_000])).done();
    let zipped = gzip(&archive);
    let framed = zstd(&archive);
    vec![
        (
            "gzip that is cut",
            "truncated",
            blob("+gzip", zipped[..zipped.len() - 20].to_vec()),
        ),
        (
            "zstd that is cut",
            "usable",
            blob("+zstd", framed[..framed.len() - 6].to_vec()),
        ),
        (
            "archive cut in its content",
            "truncated",
            raw_layer(&archive[..20_000]),
        ),
        ("archive cut in a header", "truncated", raw_layer(&archive[..300])),
        (
            "archive cut behind pax records",
            "truncated",
            raw_layer(&Archive::new().pax(&[("path", b"x")]).unended()[..1024]),
        ),
    ]
}

/// Files of 64 MiB each, a member or frame for each header and each content.
fn files_of(content: &[u8], compress: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let content = compress(&content.repeat((64 << 20) / content.len()));
    let header = |n: usize| {
        let entry = Entry::file(n.to_string(), "").size(64 << 20);
        compress(&Archive::new().raw(&entry).unended())
    };
    (0..64)
        .flat_map(|n| [header(n), content.clone()].concat())
        .collect()
}

/// 64 MiB of entries.
fn entries() -> Vec<u8> {
    let entries = (0..131_072).fold(Archive::new(), |archive, _| archive.raw(&Entry::file("f", "")));
    entries.unended()
}

/// A frame whose window is as large as is allowed, of an archive that is damaged behind 140 MiB.
fn large_window() -> Result<Vec<u8>> {
    let archive = Archive::new()
        .with(&Entry::file("f", vec![7; 140 << 20]))
        .bytes(&[b'!'; 512]);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
    encoder.window_log(27)?;
    std::io::Write::write_all(&mut encoder, &archive.done())?;
    Ok(encoder.finish()?)
}

/// What unpacks to much more than it is.
fn bombs() -> Result<Vec<Case>> {
    let frame = |archive: Vec<u8>, count: usize| zstd(&archive).repeat(count);
    let attributes = (0..100).fold(Archive::new(), |archive, _| {
        archive
            .pax(&[("SCHILY.xattr.user.x", &[b'x'; 60_000])])
            .raw(&Entry::dir("d"))
    });
    let names = (0..2000).fold(Archive::new(), |archive, _| {
        archive.with(&Entry::file("n/".repeat(120) + &"x".repeat(250), ""))
    });
    let window = b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0".to_vec();
    let mut cases = vec![
        (
            "4 GiB of zeros in 4 MiB of gzip",
            "unpacked bytes",
            LARGE,
            blob("+gzip", files_of(b"\0", gzip)),
        ),
        (
            "a billion entries in a layer",
            "entries",
            LARGE,
            blob("+zstd", frame(entries(), 7630)),
        ),
        (
            "attributes of 60 KiB, without an end",
            "names and attributes",
            LARGE,
            blob("+zstd", frame(attributes.unended(), 2000)),
        ),
        (
            "long names, without an end",
            "names and attributes",
            LARGE,
            blob("+zstd", frame(names.unended(), 2000)),
        ),
        (
            "zstd window of 2 GiB",
            "decompressed",
            SMALL,
            blob("+zstd", window),
        ),
        (
            "zstd window of 128 MiB, and damage",
            "not one of a tar archive",
            LARGE,
            blob("+zstd", large_window()?),
        ),
    ];
    if is_soak() {
        let bounds = Bounds {
            disk: 2200 * MIB,
            ..LARGE
        };
        cases.push((
            "4 GiB of letters in some KiB of zstd",
            "unpacked bytes",
            bounds,
            blob("+zstd", files_of(b"A", zstd)),
        ));
    }
    cases
        .into_iter()
        .map(|(name, says, bounds, attack)| {
            Ok(Case {
                name,
                says,
                bounds,
                attack: attack?,
            })
        })
        .collect()
}

/// Archives of images that are bombs themselves.
fn archives() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let streamed = tempfile::NamedTempFile::new()?;
    fs::write(streamed.path(), entries())?;
    cases.push(Case {
        name: "entries without an end, loaded from a pipe",
        says: "entries",
        // What came until then is put down.
        bounds: Bounds {
            disk: 700 * MIB,
            ..LARGE
        },
        attack: Attack::Endless(streamed),
    });
    let archive = tempfile::NamedTempFile::new()?;
    fs::write(
        archive.path(),
        Archive::new()
            .raw(&Entry::new(b'L', "long").size(1 << 30))
            .bytes(&[0; 4096])
            .unended(),
    )?;
    cases.push(Case {
        name: "docker archive with a name of 1 GiB",
        says: "bytes of header",
        bounds: SMALL,
        attack: Attack::File(archive),
    });
    Ok(cases)
}

fn cases() -> Result<Vec<Case>> {
    let looked_at = [paths(), numbers(), documents(), manifests(), cut()]
        .into_iter()
        .flatten();
    let mut cases = looked_at
        .map(|(name, says, attack)| {
            let attack = attack.with_context(|| name.to_owned())?;
            Ok(Case {
                name,
                says,
                bounds: SMALL,
                attack,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    cases.extend(bombs()?);
    cases.extend(archives()?);
    Ok(cases)
}

/// Watches how much of the disk a directory takes, until it is dropped.
struct Watch {
    peak: std::sync::Arc<AtomicU64>,
    over: std::sync::Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    fn over(directory: PathBuf) -> Self {
        let (peak, over) = (
            std::sync::Arc::new(AtomicU64::new(0)),
            std::sync::Arc::new(AtomicBool::new(false)),
        );
        let (its_peak, its_over) = (peak.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            while !its_over.load(Ordering::Relaxed) {
                its_peak.fetch_max(taken(&directory), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self {
            peak,
            over,
            thread: Some(thread),
        }
    }

    fn peak(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        self.peak.load(Ordering::Relaxed)
    }
}

fn taken(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let files = WalkDir::new(directory).into_iter().flatten();
    files
        .filter(|entry| entry.file_type().is_file())
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.blocks() * 512)
        .sum()
}

fn memory_peak(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kib.context("VmHWM is a number")? * 1024)
}

fn attack(node: &TestNode, case: &Case) -> Result<Outcome> {
    let call = match &case.attack {
        Attack::Layout(made) => node.hearth(["image", "pull", &made.reference()]),
        Attack::File(file) => node.hearth([
            "image",
            "pull",
            &format!("docker-archive:{}", file.path().display()),
        ]),
        Attack::Endless(file) => {
            let path = file.path().display();
            node.script(&format!(
                "set -o pipefail; while cat {path}; do :; done | hearth image load"
            ))
        }
    };
    call.deadline(case.bounds.time + seconds(60)).run()
}

fn hold(node: &TestNode, case: &Case, before: u64) -> Result<()> {
    let store = node.location().data.join("images");
    let pid = node.status()?.pid;
    // The peak is that of this case: the kernel forgets the older one (proc(5), clear_refs).
    fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let watch = Watch::over(store.clone());
    let outcome = attack(node, case)?;
    let disk = watch.peak().saturating_sub(before);
    let (memory, took) = (memory_peak(pid)?, outcome.took);
    let errors = outcome.errors();
    let said: Vec<_> = errors
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("try:"))
        .collect();
    println!(
        "{:45} | {:4} MiB | {:4} MiB | {:6.2} s | {}",
        case.name,
        memory / MIB,
        disk / MIB,
        took.as_secs_f64(),
        said.join(" ").replace(&store.display().to_string(), "STORE")
    );
    ensure!(
        outcome.code == 1,
        "{}: exit code {}: {errors}",
        case.name,
        outcome.code
    );
    ensure!(
        errors.contains(case.says),
        "{}: not {:?} but: {errors}",
        case.name,
        case.says
    );
    ensure!(
        memory <= case.bounds.memory,
        "{}: {memory} bytes of memory",
        case.name
    );
    ensure!(disk <= case.bounds.disk, "{}: {disk} bytes of disk", case.name);
    ensure!(took <= case.bounds.time, "{}: {took:?}", case.name);
    let left = taken(&store).saturating_sub(before);
    ensure!(left <= 64 << 10, "{}: {left} bytes are left", case.name);
    ensure!(
        node.status()?.pid == pid,
        "{}: the node is another one",
        case.name
    );
    Ok(())
}

#[test]
fn hostile_images_are_refused_within_bounds() -> Result<()> {
    let cases = cases()?;
    check(TestNode::ready(Driver::Auto), |node| {
        node.hearth(["image", "ls"]).ok()?;
        let store = node.location().data.join("images");
        let before = taken(&store);
        println!("{:45} | memory   | disk     | time     | refusal", "case");
        let mut failed = Vec::new();
        for case in &cases {
            if let Err(error) = hold(node, case, before) {
                failed.push(format!("{error:#}"));
            }
        }
        println!("{} cases", cases.len());
        ensure!(
            failed.is_empty(),
            "{} cases:\n{}",
            failed.len(),
            failed.join("\n")
        );
        assert_eq!(node.hearth(["image", "ls", "-q"]).ok()?, "busybox:latest");
        Ok(())
    })
}

/// What an attacker means for the host lies within the image.
#[test]
fn paths_and_links_out_of_an_image_lead_into_it() -> Result<()> {
    let mark = format!("/tmp/hearth-escape-{}", std::process::id());
    let archive = Archive::new()
        .with(&Entry::symlink("out", "../../../../../../.."))
        .with(&Entry::file(format!("out{mark}-link"), "x"))
        .with(&Entry::file(format!("{mark}-absolute"), "x"))
        .with(&Entry::symlink("up", "/"))
        .with(&Entry::file(format!("up{mark}-root"), "x"))
        .done();
    let image = HandMade::image(&[Layer::plain(archive)])?;
    check(TestNode::ready(Driver::Auto), |node| {
        node.hearth(["image", "pull", &image.reference()]).ok()?;
        for name in ["link", "absolute", "root"] {
            ensure!(!fs::exists(format!("{mark}-{name}"))?, "{name} is on the host");
        }
        Ok(())
    })
}
