//! What goes over the network: cuts, retries, mirrors, and many pulls at once; `login` has who asks. Each test has
//! a registry of its own on the loopback, and most a server before it that does something wrong. Nothing is booted.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    Act, DEADLINE, Driver, Faulty, Invocation, Layout, Registry, Reply, Request, Seen, TestNode, check,
    is_soak, missing_program, random_bytes, sha256, skip,
};
use rustix::process::Signal;

use crate::support::seconds;

const MIB: usize = 1 << 20;

pub(crate) fn tools_missing() -> Option<&'static str> {
    missing_program(&["umoci", "skopeo", "docker-registry", "tar"])
}

/// A layout with an image `base` whose last layer is bytes that no compressor makes smaller.
fn large_image(bytes: usize) -> Result<Layout> {
    let layout = Layout::busybox()?;
    add_random_layer(&layout, "base", bytes)?;
    Ok(layout)
}

pub(crate) fn add_random_layer(layout: &Layout, tag: &str, bytes: usize) -> Result<()> {
    let tree = tempfile::tempdir()?;
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755))?;
    fs::write(tree.path().join(format!("random-{tag}")), random_bytes(bytes)?)?;
    layout.add_layer(tag, tree.path())
}

/// A node that nothing is set up in: images can be pulled, and machines are not wanted.
pub(crate) fn node() -> Result<TestNode> {
    TestNode::bare(Driver::Auto)
}

pub(crate) fn pull(node: &TestNode, image: &str) -> Invocation {
    node.hearth(["image", "pull", image])
}

/// Writes the settings of a node.
pub(crate) fn set(node: &TestNode, settings: &str) -> Result<()> {
    Ok(fs::write(node.home().join("hearth.toml"), settings)?)
}

/// Whether a request asks for the blob that a large image is mostly made of.
fn is_large(request: &Request, layer: &str) -> bool {
    request.path.contains(layer)
}

/// The digest of the largest blob of a layout, and its bytes.
fn largest(layout: &Layout) -> Result<(String, u64)> {
    let path = layout.blobs()?.into_iter().next().context("an empty layout")?;
    let name = path.file_name().context("a blob without a name")?;
    Ok((name.to_string_lossy().into_owned(), fs::metadata(&path)?.len()))
}

fn sent(seen: &[Seen], layer: &str) -> u64 {
    seen.iter()
        .filter(|seen| is_large(&seen.request, layer))
        .map(|seen| seen.sent)
        .sum()
}

/// What came of a blob so far, as the store keeps it.
fn partial(node: &TestNode, layer: &str) -> u64 {
    let path = node.location().data.join("images/partial").join(layer);
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Waits until the store has so many bytes of a blob.
fn wait_for_partial(node: &TestNode, layer: &str, bytes: u64) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while partial(node, layer) < bytes {
        ensure!(
            Instant::now() < end,
            "{} of {bytes} bytes came",
            partial(node, layer)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Nothing is left of downloads.
fn assert_nothing_partial(node: &TestNode) -> Result<()> {
    for directory in ["partial", "tmp"] {
        let left: Vec<_> = fs::read_dir(node.location().data.join("images").join(directory))?.collect();
        ensure!(left.is_empty(), "{directory}: {left:?}");
    }
    Ok(())
}

#[test]
fn pull_goes_on_where_a_connection_was_cut() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (large_image(8 * MIB)?, Registry::start()?);
    registry.push(&layout.reference("base"), "box")?;
    let (layer, size) = largest(&layout)?;
    check(node(), |node| {
        // Cut after each 1.5 MiB: more often than anything is tried without progress.
        let name = layer.clone();
        let front = Faulty::start(registry.port(), move |request| match is_large(request, &name) {
            true => Act::Cut(3 << 19),
            false => Act::Forward,
        })?;
        let image = front.name("box");
        pull(node, &image).ok()?;
        let requests: Vec<_> = front
            .blobs()
            .into_iter()
            .filter(|seen| is_large(&seen.request, &layer))
            .collect();
        ensure!(requests.len() as u64 == size.div_ceil(3 << 19), "{requests:?}");
        assert_eq!(sent(&requests, &layer), size, "bytes were sent twice");
        ensure!(requests.iter().skip(1).all(|seen| seen.status == 206));
        assert_nothing_partial(node)?;

        // A registry that knows no ranges sends all of it again.
        node.hearth(["image", "rm", &image]).ok()?;
        front.forget();
        let (name, mut times) = (layer.clone(), 0);
        front.rule(move |request| match is_large(request, &name) {
            true => {
                times += 1;
                if times <= 2 {
                    Act::Cut(3 << 20)
                } else {
                    Act::ForwardAll
                }
            }
            false => Act::Forward,
        });
        pull(node, &image).ok()?;
        let requests: Vec<_> = front
            .blobs()
            .into_iter()
            .filter(|seen| is_large(&seen.request, &layer))
            .collect();
        assert_eq!(
            requests.iter().map(|seen| seen.status).collect::<Vec<_>>(),
            [200, 206, 200]
        );

        // One that says 416 is asked for everything.
        node.hearth(["image", "rm", &image]).ok()?;
        front.forget();
        let (name, mut times) = (layer.clone(), 0);
        front.rule(move |request| match is_large(request, &name) {
            true => {
                times += 1;
                match times {
                    1 => Act::Cut(3 << 20),
                    2 => Act::Answer(Reply::status(416)),
                    _ => Act::Forward,
                }
            }
            false => Act::Forward,
        });
        pull(node, &image).ok()?;
        let requests: Vec<_> = front
            .blobs()
            .into_iter()
            .filter(|seen| is_large(&seen.request, &layer))
            .collect();
        assert_eq!(
            requests.iter().map(|seen| seen.status).collect::<Vec<_>>(),
            [200, 416, 200]
        );
        ensure!(requests[2].request.header("range").is_none());
        Ok(())
    })
}

#[test]
fn pull_tries_again_what_may_pass_and_nothing_else() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (Layout::busybox()?, Registry::start()?);
    registry.push(&layout.reference("base"), "box")?;
    check(node(), |node| {
        let mut times = 0;
        let front = Faulty::start(registry.port(), move |_| {
            times += 1;
            match times {
                1 => Act::Answer(Reply::status(429).header("Retry-After", "1")),
                2 => Act::Answer(Reply::status(503)),
                4 => Act::Answer(Reply::status(500)),
                _ => Act::Forward,
            }
        })?;
        let pulled = pull(node, &front.name("box")).run()?.success()?;
        ensure!(pulled.took >= seconds(1), "it did not wait: {:?}", pulled.took);
        // What lasts is asked once; a wish to wait for an hour is told.
        for (status, headers, what) in [
            (404, None, "does not know it"),
            (403, None, "refuses access"),
            (418, None, "418"),
            (429, Some("3600"), "wants us to wait 3600 s"),
        ] {
            front.forget();
            front.rule(move |_| {
                let reply = Reply::status(status);
                Act::Answer(match headers {
                    Some(after) => reply.header("Retry-After", after),
                    None => reply,
                })
            });
            pull(node, &front.name("other"))
                .run()?
                .expect_code(1)?
                .complains(what)?;
            assert_eq!(front.seen().len(), 1, "{status}");
        }
        // Six times, and no more.
        front.forget();
        front.rule(|_| Act::Answer(Reply::status(503)));
        pull(node, &front.name("other"))
            .run()?
            .expect_code(1)?
            .complains("out of order")?;
        assert_eq!(front.seen().len(), 6);
        Ok(())
    })
}

#[test]
fn pull_of_a_registry_that_trickles_ends() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (large_image(MIB)?, Registry::start()?);
    registry.push(&layout.reference("base"), "box")?;
    let (layer, _) = largest(&layout)?;
    check(node(), |node| {
        let front = Faulty::start(registry.port(), move |request| match is_large(request, &layer) {
            true => Act::Trickle,
            false => Act::Forward,
        })?;
        set(
            node,
            &format!("[registry.\"localhost:{}\"]\ntimeout-seconds = 1\n", front.port()),
        )?;
        pull(node, &front.name("box"))
            .run()?
            .expect_code(1)?
            .complains("next to nothing within 1 s")?;
        Ok(())
    })
}

#[test]
fn pull_refuses_damaged_and_lying_bytes() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (large_image(2 * MIB)?, Registry::start()?);
    registry.push(&layout.reference("base"), "box")?;
    let (layer, size) = largest(&layout)?;
    check(node(), |node| {
        let name = layer.clone();
        let front = Faulty::start(registry.port(), move |request| match is_large(request, &name) {
            true => Act::Damage,
            false => Act::Forward,
        })?;
        let image = front.name("box");
        pull(node, &image)
            .run()?
            .expect_code(1)?
            .complains("has the digest")?;
        assert_eq!(
            sent(&front.seen(), &layer),
            size,
            "a damaged blob is not fetched twice"
        );
        for (bytes, what) in [
            (vec![7; size as usize + 1], "longer than"),
            (vec![7; size as usize / 2], "truncated"),
            (Vec::new(), "truncated"),
        ] {
            let name = layer.clone();
            front.rule(move |request| match is_large(request, &name) {
                true => Act::Answer(Reply::status(200).body(bytes.clone())),
                false => Act::Forward,
            });
            pull(node, &image).run()?.expect_code(1)?.complains(what)?;
        }
        // A manifest of another digest than was asked for.
        let reference = format!("{}@sha256:{}", front.name("box"), sha256(b"another"));
        front.rule(|_| Act::Answer(Reply::status(200).body("{}")));
        pull(node, &reference)
            .run()?
            .expect_code(1)?
            .complains("has the digest")?;
        front.rule(|_| Act::Answer(Reply::status(200).body(vec![b' '; 5 * MIB])));
        pull(node, &image)
            .run()?
            .expect_code(1)?
            .complains("longer than 4194304 bytes")?;
        assert_nothing_partial(node)?;
        // What was damaged on the way is not kept for later.
        front.rule(|_| Act::Forward);
        pull(node, &image).ok()?;
        Ok(())
    })
}

#[test]
fn pull_asks_mirrors_first_and_the_registry_when_they_fail() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry, origin) = (large_image(2 * MIB)?, Registry::start()?, Registry::start()?);
    let (layer, _) = largest(&layout)?;
    registry.push(&layout.reference("base"), "hub/library/box:1")?;
    check(node(), |node| {
        let mirror = Faulty::start(registry.port(), |_| Act::Forward)?;
        let port = mirror.port();
        // Docker Hub cannot be reached from here, and need not be.
        set(
            node,
            &format!(
                "[registry.\"docker.io\"]\nmirrors = [\"http://127.0.0.1:1\", \"127.0.0.1:{port}/hub\"]\n"
            ),
        )?;
        pull(node, "box:1").ok()?;
        ensure!(
            mirror
                .seen()
                .iter()
                .all(|seen| seen.request.path.starts_with("/v2/hub/library/box/"))
        );

        // A mirror that has something damaged, one that ends in the middle, and the registry.
        node.hearth(["image", "rm", "box:1"]).ok()?;
        origin.push(&layout.reference("base"), "box:1")?;
        let front = Faulty::start(origin.port(), |_| Act::Forward)?;
        let (name, half) = (layer.clone(), Arc::new(AtomicU32::new(0)));
        mirror.forget();
        let counter = half.clone();
        mirror.rule(move |request| match is_large(request, &name) {
            true if counter.fetch_add(1, Ordering::Relaxed) == 0 => Act::Cut(MIB as u64),
            true => Act::Answer(Reply::status(410)),
            false => Act::Forward,
        });
        let name = layer.clone();
        let damaging = Faulty::start(registry.port(), move |request| match is_large(request, &name) {
            true => Act::Damage,
            false => Act::Forward,
        })?;
        let (one, two) = (damaging.port(), mirror.port());
        let own = front.port();
        set(
            node,
            &format!(
                "[registry.\"localhost:{own}\"]\nmirrors = [\"127.0.0.1:{one}/hub/library\", \"127.0.0.1:{two}/hub/library\"]\n"
            ),
        )?;
        pull(node, &front.name("box:1")).ok()?;
        let asked: Vec<_> = front.seen();
        ensure!(
            asked.len() == 1 && is_large(&asked[0].request, &layer),
            "{asked:?}"
        );
        let range = asked[0].request.header("range");
        ensure!(
            range == Some("bytes=1048576-"),
            "the registry does not go on where the mirror ended: {range:?}"
        );

        // When nobody serves, everybody is named.
        set(node, "[registry.\"localhost:1\"]\nmirrors = [\"127.0.0.1:2\"]\n")?;
        pull(node, "localhost:1/box")
            .run()?
            .expect_code(1)?
            .complains("the registry 127.0.0.1:2 cannot be reached")?
            .complains("the registry localhost:1 cannot be reached")?;
        // Settings that make no sense are told with their place, and keep the node from nothing else.
        set(node, "[registry.\"localhost:1\"]\nmirorrs = []\n")?;
        pull(node, "localhost:1/box")
            .run()?
            .expect_code(1)?
            .complains("hearth.toml")?
            .complains("line 2")?
            .complains("mirorrs")?;
        node.hearth(["image", "ls"]).ok()?;
        Ok(())
    })
}

#[test]
fn twenty_pulls_of_two_images_fetch_each_blob_once() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (large_image(4 * MIB)?, Registry::start()?);
    layout.configure("base", "other", &["--config.env", "OTHER=1"])?;
    add_random_layer(&layout, "other", 1000)?;
    for image in ["base", "other"] {
        registry.push(&layout.reference(image), image)?;
    }
    let (layer, _) = largest(&layout)?;
    check(node(), |node| {
        // The shared layer comes when everybody has asked.
        let name = layer.clone();
        let front = Faulty::start(registry.port(), move |request| match is_large(request, &name) {
            true => Act::Hold(1000),
            false => Act::Forward,
        })?;
        node.hearth(["image", "ls"]).ok()?;
        let images = ["base", "other"].map(|image| front.name(image));
        let mut running = Vec::new();
        for round in 0..20 {
            running.push(pull(node, &images[round % 2]).spawn()?);
        }
        front.wait_for(|seen| sent(seen, &layer) >= 1000)?;
        front.release();
        for pull in running {
            pull.finish(DEADLINE)?.success()?;
        }
        let blobs: Vec<_> = front.blobs().into_iter().map(|seen| seen.request.path).collect();
        let digest = |path: &String| path.rsplit('/').next().map(str::to_owned);
        let distinct: BTreeSet<_> = blobs.iter().filter_map(digest).collect();
        // Two configurations, and three layers of which two are shared.
        assert_eq!((blobs.len(), distinct.len()), (5, 5), "{blobs:?}");
        Ok(())
    })
}

#[test]
fn pull_goes_on_after_the_node_was_killed() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (large_image(8 * MIB)?, Registry::start()?);
    registry.push(&layout.reference("base"), "box")?;
    let (layer, size) = largest(&layout)?;
    let half = 4 << 20;
    check(node(), |node| {
        let name = layer.clone();
        let front = Faulty::start(registry.port(), move |request| match is_large(request, &name) {
            true => Act::Hold(half),
            false => Act::Forward,
        })?;
        let image = front.name("box");
        let first = pull(node, &image).spawn()?;
        wait_for_partial(node, &layer, half)?;
        kill_node(node)?;
        first.finish(DEADLINE)?.expect_code(1)?;
        node.hearth(["image", "inspect", &image]).run()?.expect_code(1)?;
        front.rule(|_| Act::Forward);
        let told = pull(node, &image).run()?.success()?;
        ensure!(told.errors().contains("of it there already"), "{}", told.errors());
        let requests: Vec<_> = front
            .blobs()
            .into_iter()
            .filter(|seen| is_large(&seen.request, &layer))
            .collect();
        let last = requests.last().context("no request")?;
        assert_eq!((last.status, last.sent), (206, size - half));
        assert_nothing_partial(node)?;
        // What lay there and is not what it should be, is fetched anew.
        node.hearth(["image", "rm", &image]).ok()?;
        let path = node.location().data.join("images/partial").join(&layer);
        fs::write(&path, random_bytes(MIB)?)?;
        pull(node, &image).ok()?;
        assert_nothing_partial(node)
    })
}

#[test]
fn pull_goes_on_however_often_the_node_is_killed() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let kills = if is_soak() { 40 } else { 3 };
    let (layout, registry) = (large_image(8 * MIB)?, Registry::start()?);
    registry.push(&layout.reference("base"), "box")?;
    let (layer, size) = largest(&layout)?;
    let mut offsets: Vec<u64> = random_bytes(8 * kills)?
        .chunks_exact(8)
        .map(|bytes| {
            bytes
                .iter()
                .fold(0, |sum, byte| (sum << 8 | u64::from(*byte)) % size)
        })
        .collect();
    offsets.sort_unstable();
    check(node(), |node| {
        let front = Faulty::start(registry.port(), |_| Act::Forward)?;
        let image = front.name("box");
        let mut before = 0;
        for &offset in &offsets {
            let (name, more) = (layer.clone(), offset - before);
            front.rule(move |request| match is_large(request, &name) {
                true => Act::Hold(more),
                false => Act::Forward,
            });
            let running = pull(node, &image).spawn()?;
            wait_for_partial(node, &layer, offset)?;
            // It also holds when nothing more is to come.
            front.wait_for(|seen| {
                seen.iter()
                    .any(|seen| is_large(&seen.request, &layer) && !seen.ended)
            })?;
            kill_node(node)?;
            running.finish(DEADLINE)?.expect_code(1)?;
            front.wait_for(|seen| seen.iter().all(|seen| seen.ended))?;
            before = offset;
        }
        front.rule(|_| Act::Forward);
        pull(node, &image).ok()?;
        println!(
            "{kills} kills, {} of {size} bytes sent",
            sent(&front.seen(), &layer)
        );
        assert_eq!(
            sent(&front.seen(), &layer),
            size,
            "bytes were sent twice, killed at {offsets:?}"
        );
        assert_nothing_partial(node)
    })
}

fn kill_node(node: &TestNode) -> Result<()> {
    let pid = i32::try_from(node.status()?.pid)?;
    let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
    Ok(rustix::process::kill_process(pid, Signal::KILL)?)
}

#[test]
fn pull_ends_with_its_last_client_and_a_later_one_goes_on() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (large_image(8 * MIB)?, Registry::start()?);
    registry.push(&layout.reference("base"), "box")?;
    let (layer, size) = largest(&layout)?;
    let half = 4 << 20;
    check(node(), |node| {
        let name = layer.clone();
        let front = Faulty::start(registry.port(), move |request| match is_large(request, &name) {
            true => Act::Hold(half),
            false => Act::Forward,
        })?;
        let image = front.name("box");
        let (first, second) = (pull(node, &image).spawn()?, pull(node, &image).spawn()?);
        wait_for_partial(node, &layer, half)?;
        first.signal(Signal::INT)?;
        first.finish(DEADLINE)?.expect_code(130)?;
        // Somebody still waits for it.
        ensure!(
            front
                .seen()
                .iter()
                .all(|seen| !is_large(&seen.request, &layer) || !seen.ended)
        );
        second.signal(Signal::INT)?;
        second.finish(DEADLINE)?.expect_code(130)?;
        front.wait_for(|seen| {
            seen.iter()
                .any(|seen| is_large(&seen.request, &layer) && seen.ended)
        })?;
        assert_eq!(partial(node, &layer), half);
        front.rule(|_| Act::Forward);
        pull(node, &image).ok()?;
        assert_eq!(sent(&front.seen(), &layer), size, "bytes were sent twice");
        assert_nothing_partial(node)
    })
}

#[test]
fn pull_reads_nested_indexes_dockers_manifests_and_layers_that_lie_elsewhere() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let layout = Layout::busybox()?;
    let blobs: Vec<(String, Vec<u8>)> = layout
        .blobs()?
        .into_iter()
        .map(|path| {
            Ok((
                path.file_name()
                    .context("no name")?
                    .to_string_lossy()
                    .into_owned(),
                fs::read(&path)?,
            ))
        })
        .collect::<Result<_>>()?;
    let layer = blobs[0].clone();
    let is_config =
        |bytes: &[u8]| e2e::contains(bytes, b"\"rootfs\"") && e2e::contains(bytes, b"\"diff_ids\"");
    let config = blobs
        .iter()
        .find(|(_, bytes)| is_config(bytes))
        .context("no configuration")?
        .clone();
    let elsewhere = Faulty::start(0, {
        let bytes = layer.1.clone();
        move |_| Act::Answer(Reply::status(200).body(bytes.clone()))
    })?;
    let url = format!("http://127.0.0.1:{}/layer", elsewhere.port());
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",
        "config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"sha256:{}","size":{}}},
        "layers":[{{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"sha256:{}","size":{},
        "urls":["file:///etc/passwd","{url}"]}}]}}"#,
        config.0,
        config.1.len(),
        layer.0,
        layer.1.len()
    );
    let index = |kind: &str, inner: &str, inner_kind: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[
            {{"mediaType":"{inner_kind}","digest":"sha256:{}","size":{},"platform":{{"os":"linux","architecture":"amd64"}}}},
            {{"mediaType":"{inner_kind}","digest":"sha256:{}","size":7,"platform":{{"os":"linux","architecture":"s390x"}}}}]}}"#,
            sha256(inner.as_bytes()),
            inner.len(),
            sha256(b"nothing")
        )
    };
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let inner = index(
        list,
        &manifest,
        "application/vnd.docker.distribution.manifest.v2+json",
    );
    let outer = index("application/vnd.oci.image.index.v1+json", &inner, list);
    let answers = [manifest, inner.clone(), outer.clone()];
    let registry = Faulty::start(0, move |request| {
        let name = request.path.rsplit('/').next().unwrap_or_default();
        let found = answers
            .iter()
            .find(|json| name == format!("sha256:{}", sha256(json.as_bytes())));
        match (name, found) {
            ("latest", _) => Act::Answer(Reply::status(200).body(outer.clone())),
            (_, Some(json)) => Act::Answer(Reply::status(200).body(json.clone())),
            (name, None) if name.ends_with(&config.0) => {
                Act::Answer(Reply::status(200).body(config.1.clone()))
            }
            _ => Act::Answer(Reply::status(404)),
        }
    })?;
    check(node(), |node| {
        pull(node, &registry.name("box")).ok()?;
        assert_eq!(elsewhere.seen().len(), 1);
        ensure!(elsewhere.seen()[0].request.header("authorization").is_none());
        Ok(())
    })
}
