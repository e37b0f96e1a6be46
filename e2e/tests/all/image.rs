//! Images: where they come from, what is refused, and that what others made runs.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Driver, Layout, Registry, TestNode, check, debian_python, is_soak, missing_program, skip};
use hearth_api::v1::Image;

use crate::support::{seconds, stay};

/// Tells why a test of foreign images cannot run here.
fn tools_missing() -> Option<&'static str> {
    missing_program(&["umoci", "skopeo", "docker-registry", "tar"])
}

#[test]
fn image_made_by_umoci_runs_as_it_says() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let layout = Layout::busybox()?;
    let script = "echo $GREETING $0 $1; id -un; id -Gn; pwd";
    let settings = [
        &[
            "--config.entrypoint",
            "sh",
            "--config.entrypoint",
            "-c",
            "--config.entrypoint",
            script,
        ][..],
        &[
            "--config.cmd",
            "zero",
            "--config.cmd",
            "one",
            "--config.env",
            "GREETING=hello",
        ],
        &[
            "--config.user",
            "ada",
            "--config.workingdir",
            "/home/ada",
            "--config.stopsignal",
            "SIGINT",
        ],
    ]
    .concat();
    layout.configure("base", "configured", &settings)?;
    // A layer that ends with its last byte of content.
    let inserted = tempfile::NamedTempFile::new()?;
    fs::write(&inserted, "put there\n")?;
    layout.insert("configured", inserted.path(), "/etc/inserted")?;
    check(TestNode::ready(Driver::Auto), |node| {
        let image = layout.reference("configured");
        let there = [
            "--rm",
            "-u",
            "root",
            "--entrypoint",
            "cat",
            &image,
            "/etc/inserted",
        ];
        assert_eq!(node.run(there).ok()?, "put there");
        let as_it_says = node.run(["--rm", &image]).ok()?;
        assert_eq!(as_it_says, "hello zero one\nada\nada engine\n/home/ada");
        let changed = node
            .run([
                "--rm",
                "-e",
                "GREETING=bye",
                "-w",
                "/tmp",
                "-u",
                "root",
                &image,
                "0",
                "1",
            ])
            .ok()?;
        assert_eq!(changed, "bye 0 1\nroot\nroot\n/tmp");
        // Another entrypoint takes the image's command with it.
        let replaced = node
            .run(["--rm", "--entrypoint", "echo", &image])
            .run()?
            .success()?;
        assert_eq!(replaced.stdout, b"\n");
        // Its stop signal is what `stop` sends.
        let script = "trap 'exit 9' INT; echo ready; while :; do sleep 3600 & wait $!; done";
        node.start(["--name", "m", "--entrypoint", "sh", &image, "-c", script])?;
        crate::support::logged(node, "m", "ready", 1)?;
        node.hearth(["stop", "-t", "60", "m"]).ok()?;
        assert_eq!(node.inspect("m")?.state.exit_code, Some(9));
        Ok(())
    })
}

#[test]
fn image_pushed_by_skopeo_runs_from_a_registry() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (Layout::busybox()?, Registry::start()?);
    registry.push(&layout.reference("base"), "tools/box:1")?;
    check(TestNode::ready(Driver::Auto), |node| {
        let name = registry.name("tools/box:1");
        assert_eq!(node.run(["--rm", &name, "echo", "pulled"]).ok()?, "pulled");
        let image = inspect(node, &name)?;
        assert_eq!(image.reference, name);
        let by_digest = format!("{}@{}", registry.name("tools/box"), image.digest);
        assert_eq!(node.run(["--rm", &by_digest, "echo", "same"]).ok()?, "same");
        let other = format!("{}@sha256:{:064}", registry.name("tools/box"), 0);
        node.run(["--rm", &other, "true"]).run()?.expect_code(125)?;
        let absent = registry.name("tools/absent:1");
        node.run(["--rm", &absent, "true"])
            .run()?
            .expect_code(125)?
            .complains("tools/absent")?;
        // What was fetched runs without the registry.
        drop(registry);
        node.run(["--rm", &name, "true"]).ok()?;
        node.run(["--rm", "--pull", "always", &name, "true"])
            .run()?
            .expect_code(125)?;
        node.run(["--rm", "--pull", "never", "never-seen", "true"])
            .run()?
            .expect_code(125)?
            .complains("never-seen")?;
        Ok(())
    })
}

fn inspect(node: &TestNode, reference: &str) -> Result<Image> {
    let text = node.hearth(["image", "inspect", reference]).ok()?;
    let mut images: Vec<Image> = serde_json::from_str(&text).with_context(|| text.clone())?;
    images.pop().context("an empty array")
}

#[test]
fn image_of_damaged_bytes_is_refused() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (Layout::busybox()?, Registry::start()?);
    registry.push(&layout.reference("base"), "box")?;
    check(TestNode::ready(Driver::Auto), |node| {
        let layer = registry.blobs().into_iter().next().context("an empty registry")?;
        let whole = fs::read(&layer)?;
        let name = registry.name("box");
        let refused = |reference: &str| -> Result<()> {
            node.run(["--rm", reference, "true"]).run()?.expect_code(125)?;
            node.hearth(["image", "inspect", reference])
                .run()?
                .expect_code(1)?;
            Ok(())
        };
        flip_a_bit(&layer)?;
        refused(&name)?;
        fs::write(&layer, &whole[..whole.len() / 2])?;
        refused(&name)?;
        fs::write(&layer, &whole)?;
        assert_eq!(node.run(["--rm", &name, "echo", "whole"]).ok()?, "whole");

        // What the store has already is not read again, wherever else it lies.
        node.hearth(["image", "rm", &name]).ok()?;
        let layer = layout.blobs()?.into_iter().next().context("an empty layout")?;
        let whole = fs::read(&layer)?;
        let reference = layout.reference("base");
        flip_a_bit(&layer)?;
        refused(&reference)?;
        fs::write(&layer, &whole[..whole.len() / 2])?;
        refused(&reference)?;
        Ok(())
    })
}

fn flip_a_bit(file: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[byte[0] ^ 1], middle)?;
    Ok(())
}

#[test]
fn image_of_another_architecture_is_refused() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let layout = Layout::busybox()?;
    layout.configure("base", "foreign", &["--architecture", "arm64"])?;
    check(TestNode::ready(Driver::Auto), |node| {
        node.run(["--rm", &layout.reference("foreign"), "true"])
            .run()?
            .expect_code(125)?
            .complains("arm64")?;
        Ok(())
    })
}

#[test]
fn image_that_is_nowhere_is_refused() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        let refused = |reference: &str, what: &str| {
            let outcome = node.run(["--rm", reference, "true"]).run()?;
            outcome.expect_code(125)?.complains(what)
        };
        refused("oci:/no/such/layout:1", "/no/such/layout")?;
        refused("docker-archive:/no/such/file", "/no/such/file")?;
        refused("dir:/no/such/directory", "/no/such/directory")?;
        // Nobody listens there.
        refused("localhost:1/box", "localhost:1")?;
        for nonsense in ["UPPER", "a b", "", "../x", "box@sha256:short"] {
            node.run(["--rm", nonsense, "true"]).run()?.expect_code(125)?;
        }
        Ok(())
    })
}

#[test]
fn image_comes_from_archives_and_directories() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let layout = Layout::busybox()?;
    check(TestNode::ready(Driver::Auto), |node| {
        let here = node.home().join("user");
        let archive = format!("docker-archive:{}", here.join("box.tar").display());
        e2e::Invocation::new("skopeo", ["copy", &layout.reference("base"), &archive]).ok()?;
        assert_eq!(node.run(["--rm", &archive, "echo", "archive"]).ok()?, "archive");
        let tree = here.join("tree");
        fs::create_dir_all(tree.join("bin"))?;
        fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
        let directory = format!("dir:{}", tree.display());
        let told = node
            .run(["--rm", &directory, "/bin/busybox", "echo", "directory"])
            .ok()?;
        assert_eq!(told, "directory");
        Ok(())
    })
}

#[test]
fn image_layers_remove_what_lower_ones_brought() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let layout = Layout::busybox()?;
    let change = tempfile::tempdir()?;
    fs::create_dir_all(change.path().join("home"))?;
    fs::create_dir_all(change.path().join("etc"))?;
    fs::write(change.path().join("home/.wh..wh..opq"), "")?;
    fs::write(change.path().join("home/new"), "new\n")?;
    fs::write(change.path().join("etc/.wh.group"), "")?;
    layout.add_layer("base", change.path())?;
    check(TestNode::ready(Driver::Auto), |node| {
        let script = "ls -A /home; test -e /etc/group || echo no group; test -e /etc/passwd && echo passwd";
        let told = node
            .run(["--rm", &layout.reference("base"), "sh", "-c", script])
            .ok()?;
        assert_eq!(told, "new\nno group\npasswd");
        Ok(())
    })
}

#[test]
fn image_store_is_listed_and_emptied() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        let images: Vec<Image> = serde_json::from_str(&node.hearth(["image", "ls", "--json"]).ok()?)?;
        assert_eq!(images.len(), 1);
        let busybox = &images[0];
        assert_eq!(*busybox, inspect(node, "busybox")?);
        ensure!(
            busybox.digest.starts_with("sha256:") && busybox.rootfs_bytes > 0,
            "{busybox:?}"
        );
        assert!(node.hearth(["image", "ls"]).ok()?.contains("busybox"));
        stay(node, "m")?;
        node.hearth(["image", "rm", "busybox"])
            .run()?
            .expect_code(1)?
            .complains("m")?;
        node.hearth(["rm", "-f", "m"]).ok()?;
        node.hearth(["image", "rm", "busybox"]).ok()?;
        assert_eq!(node.hearth(["image", "ls", "-q"]).ok()?, "");
        node.hearth(["image", "rm", "busybox"]).run()?.expect_code(1)?;
        Ok(())
    })
}

#[test]
fn image_store_is_a_layout_that_skopeo_reads() -> Result<()> {
    if let Some(program) = missing_program(&["skopeo"]) {
        return skip!("{program} is not installed");
    }
    check(TestNode::ready(Driver::Auto), |node| {
        let image = inspect(node, "busybox")?;
        let layout = node.location().data.join("images");
        let tag = &image.reference;
        let source = format!("oci:{}:docker.io/library/{tag}", layout.display());
        let manifest = e2e::Invocation::new("skopeo", ["inspect", "--raw", &source]).ok()?;
        assert_eq!(
            format!("sha256:{}", e2e::sha256(manifest.as_bytes())),
            image.digest
        );
        let copy = format!("dir:{}", node.home().join("user/copy").display());
        e2e::Invocation::new("skopeo", ["copy", &source, &copy]).ok()?;
        Ok(())
    })
}

#[test]
fn image_of_debian_with_python_runs() -> Result<()> {
    if let Some(program) = tools_missing().or(missing_program(&["mmdebstrap"])) {
        return skip!("{program} is not installed");
    }
    let reference = match debian_python() {
        Ok(reference) => reference,
        Err(error) => return skip!("no Debian can be made here: {error:#}"),
    };
    check(TestNode::ready(Driver::Auto), |node| {
        let told = node
            .run(["--rm", "-m", "512m", &reference, "one", "two words"])
            .deadline(seconds(300))
            .ok()?;
        assert_eq!(told, "[\"one\", \"two words\"]");
        assert_eq!(inspect(node, &reference)?.layers, 3);
        let script = "import os, ssl, hashlib; print(os.path.exists('/usr/share/doc'), os.path.exists('/usr/share/man'))";
        let told = node
            .run([
                "--rm",
                "-m",
                "512m",
                "--entrypoint",
                "python3",
                &reference,
                "-c",
                script,
            ])
            .ok()?;
        assert_eq!(told, "False True");
        Ok(())
    })
}

/// Holds `image pull` of a local layout against the ordinary way: skopeo copy, umoci unpack, mkfs.ext4 -d.
#[test]
fn image_preparation_is_quicker_than_the_ordinary_way() -> Result<()> {
    const ROUNDS: usize = 3;
    const RATIO: f64 = 0.4;
    if !is_soak() {
        return skip!("it takes a minute: `make soak` runs it");
    }
    if let Some(program) = tools_missing().or(missing_program(&["mmdebstrap", "mkfs.ext4"])) {
        return skip!("{program} is not installed");
    }
    let reference = debian_python()?;
    check(TestNode::ready(Driver::Auto), |node| {
        let (mut own, mut ordinary) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            own.push(node.hearth(["image", "pull", &reference]).run()?.success()?.took);
            node.hearth(["image", "rm", &reference]).ok()?;
            ordinary.push(prepare_by_hand(&reference)?);
        }
        own.sort();
        ordinary.sort();
        let (own, ordinary) = (own[ROUNDS / 2], ordinary[ROUNDS / 2]);
        let ratio = own.as_secs_f64() / ordinary.as_secs_f64();
        println!("debian-python: {own:.2?}, by hand {ordinary:.2?}, ratio {ratio:.2}");
        assert!(ratio <= RATIO, "{ratio}");
        Ok(())
    })
}

fn prepare_by_hand(reference: &str) -> Result<Duration> {
    let work = tempfile::tempdir()?;
    let path = |name: &str| work.path().join(name).display().to_string();
    let copy = format!("{}:latest", path("copy"));
    let (bundle, disk) = (path("bundle"), path("disk"));
    let begun = Instant::now();
    e2e::Invocation::new("skopeo", ["copy", reference, &format!("oci:{copy}")]).ok()?;
    e2e::Invocation::new("umoci", ["unpack", "--image", &copy, &bundle]).ok()?;
    let root = format!("{bundle}/rootfs");
    e2e::Invocation::new("mkfs.ext4", ["-q", "-d", &root, &disk, "1g"]).ok()?;
    Ok(begun.elapsed())
}
