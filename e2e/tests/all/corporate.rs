//! Networks of companies: a proxy that stands before the internet, and an authority whose certificates nobody else knows.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use e2e::{
    Driver, TestNode, check, debian_python, files_that_contain, missing_program, random_bytes, sha256, skip,
};

use crate::network::{expected, reached};
use crate::node::kill;
use crate::stage::{PRIVATE, WEB, on_stage};
use crate::support::logged;

#[test]
fn the_hosts_proxy_is_handed_on_and_reached_and_nothing_beside_it() -> Result<()> {
    on_stage(|node, _| {
        let password = sha256(&random_bytes(32)?);
        let proxy = format!("http://agent:{password}@{PRIVATE}:8080");
        let run = |name: &str, more: &[&str]| {
            let head = ["run", "-d", "--name", name];
            let tail = ["busybox", "sleep", "3600"];
            node.hearth(head.iter().chain(more).chain(&tail))
                .env("http_proxy", &proxy)
                .env("HTTPS_PROXY", &proxy)
                .env("NO_PROXY", "localhost,.corp")
                .run()
        };
        run("m", &["--http-proxy"])?.success()?;
        let said = node.exec(["m", "env"]).ok()?;
        for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"] {
            ensure!(
                said.lines().any(|line| line == format!("{name}={proxy}")),
                "{name} is not in {said}"
            );
        }
        for name in ["no_proxy", "NO_PROXY"] {
            ensure!(said.contains(&format!("{name}=localhost,.corp")), "{said}");
        }
        // Of the private address the proxy's port alone.
        let open = expected(&[PRIVATE], &[8080]);
        ensure!(reached(node, "m", &[PRIVATE])? == open);
        let policy = node.inspect("m")?.spec.policy.map(|policy| policy.allow);
        ensure!(policy == Some(vec![format!("{PRIVATE}:8080")]), "{policy:?}");
        // Where nothing else is allowed, it still is.
        run("locked", &["--policy", "locked", "--http-proxy=host"])?.success()?;
        ensure!(reached(node, "locked", &[PRIVATE, WEB])? == open);
        // Nobody has it who does not ask for it.
        run("without", &[])?.success()?;
        ensure!(
            !node
                .exec(["without", "env"])
                .ok()?
                .to_lowercase()
                .contains("_proxy")
        );
        ensure!(reached(node, "without", &[PRIVATE])?.is_empty());
        ensure!(node.inspect("without")?.template.is_some(), "it is no clone");
        for directory in ["templates", "snapshots"] {
            let path = node.home().join(directory);
            if path.exists() {
                let found = files_that_contain(&path, password.as_bytes())?;
                ensure!(found.is_empty(), "{found:?}");
            }
        }
        run("other", &["--http-proxy=http://127.0.0.1:3128"])?
            .expect_code(125)?
            .complains("loopback")?;
        run("other", &["--http-proxy=proxy"])?
            .expect_code(125)?
            .complains("with a port")?;
        run("other", &["--network", "none", "--http-proxy"])?
            .expect_code(125)?
            .complains("--http-proxy needs a network")?;
        Ok(())
    })
}

/// Serves TLS for localhost, with a certificate of the authority.
const SERVE: &str = r#"
import http.server, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/dev/shm/site.pem")
server = http.server.HTTPServer(("127.0.0.1", 443), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("serves TLS", flush=True)
server.serve_forever()
"#;

/// Asks it, trusting what the variable or the first argument says.
const ASK: &str = "import ssl, sys, urllib.request as r; \
    print(r.urlopen('https://localhost/', context=ssl.create_default_context(cafile=(sys.argv[1:] or [None])[0])).status)";

/// Makes an authority, `ca.pem`, and a certificate for localhost with its key, `site.pem`.
fn authority(directory: &Path) -> Result<()> {
    let openssl = |line: &str| -> Result<()> {
        let said = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(directory)
            .output()?;
        ensure!(
            said.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&said.stderr)
        );
        Ok(())
    };
    fs::write(directory.join("names"), "subjectAltName=DNS:localhost")?;
    openssl("req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=Hearth-test -keyout ca.key -out ca.pem")?;
    openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout site.key -out site.csr")?;
    openssl(
        "x509 -req -in site.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile names -out site.crt",
    )?;
    let site =
        fs::read_to_string(directory.join("site.key"))? + &fs::read_to_string(directory.join("site.crt"))?;
    Ok(fs::write(directory.join("site.pem"), site)?)
}

#[test]
fn certificates_of_an_authority_are_trusted_where_they_were_given() -> Result<()> {
    if let Some(program) = missing_program(&["openssl"]) {
        return skip!("{program} is not installed");
    }
    let image = match debian_python() {
        Ok(image) => image,
        Err(error) => return skip!("no image of Debian can be made here: {error:#}"),
    };
    let directory = tempfile::tempdir()?;
    authority(directory.path())?;
    check(TestNode::ready(Driver::Qemu), |node| {
        let file = |name: &str| directory.path().join(name).display().to_string();
        let start = |name: &str, more: &[&str]| -> Result<()> {
            let serve = format!("SERVE={SERVE}");
            let head = ["run", "-d", "--name", name, "-m", "512m", "-e", &serve];
            let tail = [
                "--entrypoint",
                "sh",
                &image,
                "-c",
                "until test -s /dev/shm/site.pem; do sleep 0.1; done; exec python3 -c \"$SERVE\"",
            ];
            node.hearth(head.iter().chain(more).chain(&tail)).ok()?;
            node.hearth(["cp", &file("site.pem"), &format!("{name}:/dev/shm/site.pem")])
                .ok()?;
            logged(node, name, "serves TLS", 1)
        };
        let ca = file("ca.pem");
        start("plain", &[])?;
        node.exec(["plain", "python3", "-c", ASK])
            .run()?
            .expect_code(1)?
            .complains("CERTIFICATE_VERIFY_FAILED")?;
        start("m", &["--ca-cert", &ca])?;
        ensure!(node.exec(["m", "python3", "-c", ASK]).ok()?.trim() == "200");
        // Also who goes by the usual file, and nothing of the environment.
        let bundle = "/etc/ssl/certs/ca-certificates.crt";
        let by_file = ["m", "env", "-u", "SSL_CERT_FILE", "python3", "-c", ASK, bundle];
        ensure!(node.exec(by_file).ok()?.trim() == "200");
        let said = node.exec(["m", "env"]).ok()?;
        for name in ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"] {
            ensure!(said.contains(&format!("{name}={bundle}")), "{said}");
        }
        ensure!(
            said.contains("NODE_EXTRA_CA_CERTS=/usr/local/share/ca-certificates/hearth.crt"),
            "{said}"
        );
        // Once, however often it starts; and the image's own stay.
        let count = || node.exec(["m", "grep", "-c", "BEGIN CERTIFICATE", bundle]).ok();
        let before = count()?;
        ensure!(before.trim().parse::<usize>()? > 50, "{before}");
        node.hearth(["restart", "-t", "0", "m"]).ok()?;
        ensure!(count()? == before);
        // The files came before the workload, whose session the next node finds all the same.
        kill(node)?;
        ensure!(count()? == before);
        let plain = node
            .exec(["plain", "grep", "-c", "BEGIN CERTIFICATE", bundle])
            .ok()?;
        ensure!(plain.trim().parse::<usize>()? + 1 == before.trim().parse::<usize>()?);
        elsewhere(node, &ca)?;
        refusals(node, directory.path())
    })
}

/// An image without certificates gets a file of its own; what a user says of a variable stays; a root that cannot be written has them, too.
fn elsewhere(node: &TestNode, ca: &str) -> Result<()> {
    let script = "cmp /etc/ssl/certs/ca-certificates.crt /usr/local/share/ca-certificates/hearth.crt && echo $SSL_CERT_FILE $CURL_CA_BUNDLE";
    let flags = [
        "--rm",
        "--read-only",
        "--ca-cert",
        ca,
        "-e",
        "SSL_CERT_FILE=/mine",
    ];
    let said = node
        .run(flags.into_iter().chain(["busybox", "sh", "-c", script]))
        .ok()?;
    ensure!(
        said.trim() == "/mine /etc/ssl/certs/ca-certificates.crt",
        "{said}"
    );
    Ok(())
}

fn refusals(node: &TestNode, directory: &Path) -> Result<()> {
    fs::write(directory.join("text"), "no certificate")?;
    let whole = fs::read_to_string(directory.join("ca.pem"))?;
    fs::write(directory.join("torn"), whole.replacen("\nMII", "\nMIJ", 1))?;
    for (name, word) in [
        ("text", "no PEM certificate"),
        ("site.pem", "private key"),
        ("torn", "certificate 1 in it is cut off or damaged"),
        ("absent", "No such file"),
    ] {
        let path = directory.join(name).display().to_string();
        node.run(["--rm", "--ca-cert", &path, "busybox", "true"])
            .run()?
            .expect_code(125)?
            .complains(word)?;
    }
    Ok(())
}
