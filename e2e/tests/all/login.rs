//! Who asks a registry, and whom it is trusted to be: passwords, helpers, tokens, redirections, certificates. Nothing is booted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use e2e::{
    Act, Faulty, Invocation, Layout, PASSWORD, Registry, Reply, TestNode, USER, check, files_that_contain,
    missing_program, skip,
};

use crate::pull::{add_random_layer, node, pull, set, tools_missing};

/// Writes docker's configuration of the user whom [`TestNode`] calls hearth as.
fn docker_config(node: &TestNode, json: &str) -> Result<()> {
    let directory = node.home().join("user/.docker");
    fs::create_dir_all(&directory)?;
    Ok(fs::write(directory.join("config.json"), json)?)
}

fn pair(user: &str, password: &str) -> Result<String> {
    let text = format!("{user}:{password}");
    Invocation::new("base64", ["--wrap=0"]).stdin(text).ok()
}

#[test]
fn pull_takes_the_password_from_dockers_configuration_and_keeps_it_nowhere() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (Layout::busybox()?, Registry::private()?);
    registry.push(&layout.reference("base"), "team/box:1")?;
    let (image, host) = (
        registry.name("team/box:1"),
        format!("localhost:{}", registry.port()),
    );
    check(node().map(|node| node.with_env("HEARTH_LOG", "trace")), |node| {
        let login = format!("docker login {host}");
        pull(node, &image)
            .run()?
            .expect_code(1)?
            .complains("without a login")?
            .complains(&login)?;
        let config = |password: &str| -> Result<()> {
            let auth = pair(USER, password)?;
            docker_config(node, &format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#))
        };
        config("guessed")?;
        pull(node, &image)
            .run()?
            .expect_code(1)?
            .complains("does not accept")?
            .complains(&login)?;
        config(PASSWORD)?;
        pull(node, &image).ok()?;
        // Another file of another program, for a part of the registry.
        fs::remove_file(node.home().join("user/.docker/config.json"))?;
        node.hearth(["image", "rm", &image]).ok()?;
        let other = node.home().join("user/auth.json");
        let auth = pair(USER, PASSWORD)?;
        fs::write(
            &other,
            format!(r#"{{"auths":{{"{host}/team":{{"auth":"{auth}"}}}}}}"#),
        )?;
        pull(node, &image).env("REGISTRY_AUTH_FILE", &other).ok()?;
        fs::remove_file(&other)?;
        for secret in [PASSWORD, &auth] {
            let found = files_that_contain(node.home(), secret.as_bytes())?;
            ensure!(found.is_empty(), "{secret} is in {found:?}");
        }
        Ok(())
    })
}

#[test]
fn pull_asks_the_helpers_that_dockers_configuration_names() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (Layout::busybox()?, Registry::private()?);
    registry.push(&layout.reference("base"), "box")?;
    let (image, host) = (registry.name("box"), format!("localhost:{}", registry.port()));
    check(node(), |node| {
        let programs = node.home().join("user/bin");
        fs::create_dir_all(&programs)?;
        let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
        let helper = |script: &str| -> Result<()> {
            let file = programs.join("docker-credential-tests");
            fs::write(&file, format!("#!/bin/sh\n{script}\n"))?;
            Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
        };
        let refused = |what: &str| -> Result<()> {
            let outcome = pull(node, &image)
                .env("PATH", &path)
                .env("HEARTH_CREDENTIAL_HELPER_SECONDS", "1");
            outcome.run()?.expect_code(1)?.complains(what).map(drop)
        };
        docker_config(node, r#"{"credsStore":"tests"}"#)?;
        refused("there is no program docker-credential-tests")?;
        helper("echo credentials not found in native keychain; exit 1")?;
        refused("without a login")?;
        helper("echo the vault is sealed; exit 3")?;
        refused("the vault is sealed")?;
        helper("echo nonsense")?;
        refused("makes no sense")?;
        helper("exec sleep 60")?;
        refused("has not answered within 1 s")?;
        docker_config(node, r#"{"credsStore":"../../tests"}"#)?;
        refused("is not the name of a program")?;
        // It gets the verb as its argument, and the registry on its input.
        docker_config(
            node,
            &format!(r#"{{"credHelpers":{{"{host}":"tests"}},"credsStore":"absent"}}"#),
        )?;
        helper(&format!(
            "[ \"$1 $(cat)\" = 'get {host}' ] && echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'"
        ))?;
        pull(node, &image).env("PATH", &path).ok()?;
        Ok(())
    })
}

/// A registry that wants tokens, with a token server: the first token is good for so many requests, the next one for all.
struct Tokens {
    server: Faulty,
    given: Arc<AtomicU32>,
}

impl Tokens {
    fn start(upstream: u16, password: Option<String>, good_for: u32) -> Result<Self> {
        let given = Arc::new(AtomicU32::new(0));
        let (counter, mut used) = (given.clone(), 0);
        let port = Arc::new(AtomicU32::new(0));
        let own_port = port.clone();
        let server = Faulty::start(upstream, move |request| {
            let authorization = request.header("authorization");
            if request.path.starts_with("/token") {
                let expected = password.as_ref().map(|pair| format!("Basic {pair}"));
                if expected.as_deref() != authorization {
                    return Act::Answer(Reply::status(401));
                }
                let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
                return Act::Answer(
                    Reply::status(200).body(format!(r#"{{"token":"number-{number}","expires_in":300}}"#)),
                );
            }
            let newest = counter.load(Ordering::Relaxed);
            let good = format!("Bearer number-{newest}");
            used += 1;
            if authorization == Some(&good) && (used <= good_for || newest > 1) {
                return Act::Forward;
            }
            let challenge = format!(
                "Bearer realm=\"http://127.0.0.1:{}/token?of=tests\",service=\"tests\",scope=\"repository:team/box:pull\"",
                own_port.load(Ordering::Relaxed)
            );
            Act::Answer(Reply::status(401).header("WWW-Authenticate", challenge))
        })?;
        port.store(u32::from(server.port()), Ordering::Relaxed);
        Ok(Self { server, given })
    }
}

#[test]
fn pull_gets_tokens_and_new_ones_when_they_are_not_good_any_more() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (Layout::busybox()?, Registry::start()?);
    for _ in 0..4 {
        add_random_layer(&layout, "base", 1000)?;
    }
    registry.push(&layout.reference("base"), "team/box:1")?;
    let auth = pair(USER, PASSWORD)?;
    check(node(), |node| {
        let open = Tokens::start(registry.port(), None, u32::MAX)?;
        let image = open.server.name("team/box:1");
        pull(node, &image).ok()?;
        assert_eq!(open.given.load(Ordering::Relaxed), 1);
        let asked = open
            .server
            .seen()
            .into_iter()
            .find(|seen| seen.request.path.starts_with("/token"));
        let path = asked.context("no token was asked for")?.request.path;
        for part in [
            "of=tests",
            "service=tests",
            "scope=repository%3Ateam%2Fbox%3Apull",
        ] {
            ensure!(path.contains(part), "{path}");
        }
        node.hearth(["image", "rm", &image]).ok()?;

        let private = Tokens::start(registry.port(), Some(auth.clone()), 3)?;
        let image = private.server.name("team/box:1");
        pull(node, &image)
            .run()?
            .expect_code(1)?
            .complains("without a login")?;
        let host = format!("localhost:{}", private.server.port());
        docker_config(node, &format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#))?;
        pull(node, &image).ok()?;
        // Four layers come at a time: all of them that are refused share one new token.
        assert_eq!(private.given.load(Ordering::Relaxed), 2);
        for seen in private.server.seen() {
            let basic = seen
                .request
                .header("authorization")
                .is_some_and(|text| text.starts_with("Basic"));
            ensure!(
                !basic || seen.request.path.starts_with("/token"),
                "the password went to the registry: {seen:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn pull_exchanges_an_identity_token() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (Layout::busybox()?, Registry::start()?);
    registry.push(&layout.reference("base"), "box")?;
    check(node(), |node| {
        let port = Arc::new(AtomicU32::new(0));
        let own_port = port.clone();
        let server = Faulty::start(registry.port(), move |request| {
            if request.path == "/token" {
                let fields = String::from_utf8_lossy(&request.body).into_owned();
                let good = [
                    "grant_type=refresh_token",
                    "refresh_token=from+a%26login",
                    "service=tests",
                ];
                return Act::Answer(
                    match request.method == "POST" && good.iter().all(|field| fields.contains(field)) {
                        true => Reply::status(200).body(r#"{"access_token":"short"}"#),
                        false => Reply::status(400).body(r#"{"error":"invalid_grant"}"#),
                    },
                );
            }
            if request.header("authorization") == Some("Bearer short") {
                return Act::Forward;
            }
            let port = own_port.load(Ordering::Relaxed);
            let challenge = format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"tests\"");
            Act::Answer(Reply::status(401).header("WWW-Authenticate", challenge))
        })?;
        port.store(u32::from(server.port()), Ordering::Relaxed);
        let host = format!("localhost:{}", server.port());
        let login = |token: &str| {
            docker_config(
                node,
                &format!(r#"{{"auths":{{"{host}":{{"identitytoken":"{token}"}}}}}}"#),
            )
        };
        login("of yesterday")?;
        pull(node, &server.name("box"))
            .run()?
            .expect_code(1)?
            .complains("does not accept")?;
        login("from a&login")?;
        pull(node, &server.name("box")).ok()?;
        Ok(())
    })
}

#[test]
fn pull_names_a_token_server_that_is_down() -> Result<()> {
    let challenge = "Bearer realm=\"http://127.0.0.1:1/token\",service=\"tests\"";
    let server = Faulty::start(0, move |_| {
        Act::Answer(Reply::status(401).header("WWW-Authenticate", challenge))
    })?;
    let odd = Faulty::start(0, |_| {
        Act::Answer(Reply::status(401).header("WWW-Authenticate", "Negotiate"))
    })?;
    let leading = Faulty::start(0, |_| {
        let challenge = "Bearer realm=\"file:///etc/passwd\"";
        Act::Answer(Reply::status(401).header("WWW-Authenticate", challenge))
    })?;
    check(node(), |node| {
        pull(node, &server.name("box"))
            .run()?
            .expect_code(1)?
            .complains("token server 127.0.0.1:1")?;
        pull(node, &odd.name("box"))
            .run()?
            .expect_code(1)?
            .complains("Negotiate")?;
        pull(node, &leading.name("box"))
            .run()?
            .expect_code(1)?
            .complains("no place for a token server")?;
        Ok(())
    })
}

#[test]
fn pull_follows_redirections_and_takes_no_authorization_along() -> Result<()> {
    if let Some(program) = tools_missing() {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (Layout::busybox()?, Registry::private()?);
    registry.push(&layout.reference("base"), "box")?;
    let auth = pair(USER, PASSWORD)?;
    check(node(), |node| {
        // The storage asks for nothing, and gives what the layout has.
        let blobs = Path::new(&layout.path()).join("blobs/sha256");
        let storage = Faulty::start(0, move |request| {
            let name = request.path.rsplit(':').next().unwrap_or_default();
            match fs::read(blobs.join(name)) {
                Ok(bytes) => Act::Answer(Reply::status(200).body(bytes)),
                Err(_) => Act::Answer(Reply::status(404)),
            }
        })?;
        let target = storage.port();
        let front = Faulty::start(registry.port(), move |request| match request.is_blob() {
            true => {
                let to = format!("http://127.0.0.1:{target}{}", request.path);
                Act::Answer(Reply::status(307).header("Location", to))
            }
            false => Act::Forward,
        })?;
        let host = format!("localhost:{}", front.port());
        docker_config(node, &format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#))?;
        pull(node, &front.name("box")).ok()?;
        ensure!(
            front
                .blobs()
                .iter()
                .all(|seen| seen.request.header("authorization").is_some())
        );
        let fetched = storage.seen();
        ensure!(fetched.len() >= 2, "{fetched:?}");
        for seen in &fetched {
            ensure!(seen.request.header("authorization").is_none(), "{seen:?}");
            ensure!(seen.request.header("referer").is_none(), "{seen:?}");
        }
        // A storage that wants a password gets none, whatever it calls itself.
        node.hearth(["image", "rm", &front.name("box")]).ok()?;
        storage.forget();
        storage.rule(|_| Act::Answer(Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\"")));
        pull(node, &front.name("box"))
            .run()?
            .expect_code(1)?
            .complains(&format!("127.0.0.1:{target}"))?;
        ensure!(
            storage
                .seen()
                .iter()
                .all(|seen| seen.request.header("authorization").is_none())
        );
        // A ring is left after some rounds.
        front.rule(|request| Act::Answer(Reply::status(302).header("Location", request.path.clone())));
        pull(node, &front.name("box"))
            .run()?
            .expect_code(1)?
            .complains("too many")?;
        Ok(())
    })
}

#[test]
fn pull_trusts_the_authorities_that_are_set() -> Result<()> {
    if let Some(program) = tools_missing().or(missing_program(&["openssl"])) {
        return skip!("{program} is not installed");
    }
    let (layout, registry) = (Layout::busybox()?, Registry::with_tls()?);
    registry.push(&layout.reference("base"), "box")?;
    check(node(), |node| {
        let table = format!(
            "[registry.\"localhost:{}\"]\nplain-http = false\n",
            registry.port()
        );
        set(node, &table)?;
        pull(node, &registry.name("box"))
            .run()?
            .expect_code(1)?
            .complains("no trusted connection")?
            .complains("ca = \"FILE\"")?;
        set(
            node,
            &format!("{table}ca = \"{}\"\n", registry.authority().display()),
        )?;
        pull(node, &registry.name("box")).ok()?;
        set(node, &format!("{table}ca = \"absent.pem\"\n"))?;
        pull(node, &registry.name("box"))
            .run()?
            .expect_code(1)?
            .complains("absent.pem")?;
        Ok(())
    })
}
