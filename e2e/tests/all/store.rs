//! The image store: names, archives that others write and read, and what goes when.

use std::fs;

use anyhow::{Result, ensure};
use e2e::{Driver, Invocation, Layout, TestNode, check, missing_program, skip};
use hearth_api::v1::{Image, PrunedImages};

use crate::support::stay;

fn images(node: &TestNode) -> Result<Vec<Image>> {
    Ok(serde_json::from_str(
        &node.hearth(["image", "ls", "--json"]).ok()?,
    )?)
}

fn prune(node: &TestNode, more: &[&str]) -> Result<PrunedImages> {
    let head = ["image", "prune", "--force", "--json"];
    let told = node.hearth(head.iter().chain(more)).ok()?;
    Ok(serde_json::from_str(&told)?)
}

/// Returns the files of the store, by directory and name.
fn files(node: &TestNode) -> Result<Vec<String>> {
    let store = node.location().data.join("images");
    let mut found = Vec::new();
    for directory in ["blobs/sha256", "rootfs", "tmp", "partial"] {
        for entry in fs::read_dir(store.join(directory)).into_iter().flatten() {
            found.push(format!("{directory}/{}", entry?.file_name().display()));
        }
    }
    Ok(found)
}

#[test]
fn an_image_goes_with_its_last_name() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        let before = files(node)?;
        node.hearth(["image", "tag", "busybox", "app:1"]).ok()?;
        let listed = images(node)?;
        let names: Vec<_> = listed.iter().map(|image| image.reference.as_str()).collect();
        assert_eq!(names, ["app:1", "busybox:latest"]);
        assert_eq!(listed[0].digest, listed[1].digest);
        assert_eq!(
            listed[0].unique_bytes, listed[0].size_bytes,
            "names share, images do not"
        );
        assert_eq!(listed[0].layer_list[0].images, 1);
        stay(node, "m")?;
        node.hearth(["image", "rm", "busybox"]).ok()?;
        assert_eq!(files(node)?, before, "the other name keeps it");
        node.hearth(["image", "rm", "app:1"])
            .run()?
            .expect_code(1)?
            .complains("in use by m")?;
        assert_eq!(prune(node, &["--all"])?.images, Vec::<String>::new());
        node.hearth(["image", "rm", "--force", "app:1"]).ok()?;
        assert_eq!(files(node)?, Vec::<String>::new());
        // The machine has what it needs.
        node.hearth(["stop", "-t", "0", "m"]).ok()?;
        node.hearth(["start", "m"]).ok()?;
        assert_eq!(node.exec(["m", "echo", "here"]).ok()?, "here");
        for name in ["app@sha256:0", "oci:./layout", "UPPER"] {
            node.hearth(["image", "tag", "app:1", name])
                .run()?
                .expect_code(1)?;
        }
        Ok(())
    })
}

#[test]
fn images_that_share_layers_say_so_and_prune_takes_what_nothing_needs() -> Result<()> {
    if let Some(program) = missing_program(&["umoci", "tar"]) {
        return skip!("{program} is not installed");
    }
    let layout = Layout::busybox()?;
    let more = tempfile::tempdir()?;
    fs::write(more.path().join("more"), "more\n")?;
    layout.configure("base", "other", &["--config.env", "A=1"])?;
    layout.add_layer("other", more.path())?;
    check(TestNode::ready(Driver::Auto), |node| {
        let (base, other) = (layout.reference("base"), layout.reference("other"));
        node.hearth(["image", "pull", &base]).ok()?;
        let alone = images(node)?.into_iter().find(|image| image.reference == base);
        let alone = alone.map(|image| (image.size_bytes, image.unique_bytes));
        ensure!(alone.is_some_and(|(size, unique)| size == unique), "{alone:?}");
        node.hearth(["image", "pull", &other]).ok()?;
        let listed = images(node)?;
        let with = listed.iter().find(|image| image.reference == other);
        let layers: Vec<_> = with
            .into_iter()
            .flat_map(|image| image.layer_list.iter().map(|layer| layer.images))
            .collect();
        assert_eq!(layers, [2, 1]);
        for image in listed.iter().filter(|image| image.reference.starts_with("oci:")) {
            ensure!(image.unique_bytes < 100_000, "busybox is shared: {image:?}");
        }
        node.hearth(["image", "prune"])
            .run()?
            .expect_code(1)?
            .complains("--force")?;
        let nothing = prune(node, &[])?;
        assert_eq!((nothing.images.len(), nothing.freed_bytes), (0, Some(0)));
        // What a crash could leave.
        let store = node.location().data.join("images");
        fs::write(store.join("blobs/sha256").join("0".repeat(64)), vec![1; 100_000])?;
        fs::write(store.join("rootfs/old.v1.erofs"), vec![1; 100_000])?;
        let pruned = prune(node, &[])?;
        ensure!(pruned.freed_bytes >= Some(200_000), "{pruned:?}");
        stay(node, "m")?;
        let pruned = prune(node, &["--all"])?;
        assert_eq!(pruned.images, [base, other]);
        assert_eq!(images(node)?.len(), 1, "busybox is in use");
        Ok(())
    })
}

#[test]
fn saved_images_are_read_by_others_and_by_ourselves() -> Result<()> {
    if let Some(program) = missing_program(&["skopeo", "umoci", "tar", "gzip"]) {
        return skip!("{program} is not installed");
    }
    check(TestNode::ready(Driver::Auto), |node| {
        let at = |name: &str| node.home().join("user").join(name).display().to_string();
        node.hearth(["image", "tag", "busybox", "localhost/app:2"]).ok()?;
        let before = images(node)?;
        let (saved, zipped) = (at("saved.tar"), at("saved.tar.gz"));
        node.hearth(["image", "save", "-o", &saved, "busybox", "localhost/app:2"])
            .ok()?;
        let raw = |source: &str| {
            Invocation::new("skopeo", ["inspect", "--raw", source])
                .run()?
                .success()
        };
        let manifest = raw(&format!("oci-archive:{saved}:latest"))?.stdout;
        assert_eq!(format!("sha256:{}", e2e::sha256(&manifest)), before[0].digest);
        Invocation::new(
            "skopeo",
            [
                "copy",
                &format!("docker-archive:{saved}:busybox:latest"),
                &format!("dir:{}", at("copy")),
            ],
        )
        .ok()?;
        node.script(&format!(
            "hearth image save busybox localhost/app:2 | gzip > {zipped}"
        ))
        .ok()?;
        for load in [
            format!("hearth image load -i {saved}"),
            format!("hearth image load < {zipped}"),
        ] {
            prune(node, &["--all"])?;
            assert_eq!(images(node)?, []);
            assert_eq!(node.script(&load).ok()?, "busybox:latest\nlocalhost/app:2");
            assert_eq!(images(node)?, before, "{load}");
        }
        assert_eq!(
            node.run(["--rm", "localhost/app:2", "echo", "runs"]).ok()?,
            "runs"
        );
        loads_what_others_save(node, &saved)?;
        umoci_unpacks(node)
    })
}

/// umoci reads the layout that is in the archive: of an image with gzip layers, as it knows no others.
fn umoci_unpacks(node: &TestNode) -> Result<()> {
    let at = |name: &str| node.home().join("user").join(name).display().to_string();
    let made = Layout::busybox()?;
    let base = made.reference("base");
    node.hearth(["image", "pull", &base]).ok()?;
    node.hearth(["image", "tag", &base, "localhost/gzip:7"]).ok()?;
    let (saved, layout, bundle) = (at("gzip.tar"), at("layout"), at("bundle"));
    node.hearth(["image", "save", "-o", &saved, "localhost/gzip:7"])
        .ok()?;
    fs::create_dir(&layout)?;
    Invocation::new("tar", ["-xf", &saved, "-C", &layout]).ok()?;
    let image = format!("{layout}:7");
    let rootless = if rustix::process::geteuid().is_root() {
        None
    } else {
        Some("--rootless")
    };
    let arguments = ["unpack", "--image", &image]
        .into_iter()
        .chain(rootless)
        .chain([&*bundle]);
    Invocation::new("umoci", arguments).ok()?;
    ensure!(fs::exists(at("bundle/rootfs/bin/busybox"))?, "umoci unpacks it");
    Ok(())
}

fn loads_what_others_save(node: &TestNode, saved: &str) -> Result<()> {
    let at = |name: &str| node.home().join("user").join(name).display().to_string();
    let source = format!("docker-archive:{saved}:busybox:latest");
    let (docker, oci) = (at("docker.tar"), at("oci.tar"));
    Invocation::new(
        "skopeo",
        ["copy", &source, &format!("docker-archive:{docker}:named:3")],
    )
    .ok()?;
    Invocation::new("skopeo", ["copy", &source, &format!("oci-archive:{oci}:4")]).ok()?;
    assert_eq!(node.hearth(["image", "load", "-i", &docker]).ok()?, "named:3");
    node.hearth(["image", "load", "-i", &oci])
        .run()?
        .expect_code(1)?
        .complains("--tag")?;
    assert_eq!(
        node.hearth(["image", "load", "-i", &oci, "-t", "named:4"]).ok()?,
        "named:4"
    );
    node.hearth(["image", "load", "-i", saved, "-t", "named:5"])
        .run()?
        .expect_code(1)?
        .complains("2 images")?;
    let none = at("none");
    fs::write(&none, "no archive at all, and so on, and so on".repeat(100))?;
    node.hearth(["image", "load", "-i", &none])
        .run()?
        .expect_code(1)?
        .complains("not one of a tar archive")?;
    node.hearth(["image", "save", "-o", &at("x"), "nothing"])
        .run()?
        .expect_code(1)?
        .complains("not in the store")?;
    ensure!(!fs::exists(at("x"))?, "nothing is left");
    for name in ["named:3", "named:4"] {
        assert_eq!(node.run(["--rm", name, "echo", name]).ok()?, name);
    }
    Ok(())
}
