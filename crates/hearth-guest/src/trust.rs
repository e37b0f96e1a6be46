//! The certificates that an image's programs trust, and those that are added to them.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// Where programs of the usual distributions look: Debian, Alpine and Arch; Fedora and its kin; Alpine's LibreSSL; openSUSE. The first
/// is made where an image has none.
const BUNDLES: [&str; 4] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/cert.pem",
    "etc/ssl/ca-bundle.pem",
];

/// Where `update-ca-certificates` of Debian and Alpine finds what it is to keep, should it make the bundle anew.
pub(crate) const ANCHORS: &str = "/usr/local/share/ca-certificates/hearth.crt";

/// The most bytes of certificates.
pub(crate) const CERTIFICATES_MAX: u64 = 4 << 20;

/// The most bytes of a bundle: all that browsers trust take 300 KiB.
const BUNDLE_MAX: u64 = 64 << 20;

/// How a certificate ends (RFC 7468).
const END: &str = "-----END CERTIFICATE-----";

/// Adds certificates to every bundle that there is below a root, or makes one; returns the path of the first. What is there stays.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn install(root: &Path, certificates: &str) -> io::Result<String> {
    let mut first = None;
    for bundle in BUNDLES {
        let path = root.join(bundle);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            append(&path, certificates)?;
            first.get_or_insert(bundle);
        }
    }
    let bundle = match first {
        Some(bundle) => bundle,
        None => {
            make(&root.join(BUNDLES[0]), certificates)?;
            BUNDLES[0]
        }
    };
    make(&root.join(ANCHORS.trim_start_matches('/')), certificates)?;
    Ok(format!("/{bundle}"))
}

fn make(path: &Path, certificates: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, certificates)
}

/// Appends those that are not in a file: a machine that starts again has them already, and two paths may be one file.
fn append(path: &Path, certificates: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).open(path)?;
    let mut there = Vec::new();
    (&file).take(BUNDLE_MAX).read_to_end(&mut there)?;
    let there = String::from_utf8_lossy(&there);
    let mut added = String::new();
    if !there.is_empty() && !there.ends_with('\n') {
        added.push('\n');
    }
    for certificate in certificates.split_inclusive(END).map(str::trim) {
        if certificate.ends_with(END) && !there.contains(certificate) {
            added += certificate;
            added.push('\n');
        }
    }
    file.write_all(added.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn certificate(name: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{name}\n{END}\n")
    }

    #[test]
    fn a_bundle_gets_each_certificate_once_however_it_is_reached() {
        let root = tempfile::tempdir().unwrap();
        let certs = root.path().join("etc/ssl/certs");
        fs::create_dir_all(&certs).unwrap();
        let own = certificate("own");
        fs::write(certs.join("ca-certificates.crt"), own.trim_end()).unwrap();
        symlink("certs/ca-certificates.crt", root.path().join("etc/ssl/cert.pem")).unwrap();
        let added = certificate("one") + &certificate("two");
        for _ in 0..2 {
            let bundle = install(root.path(), &added).unwrap();
            assert_eq!(bundle, "/etc/ssl/certs/ca-certificates.crt");
        }
        let now = fs::read_to_string(certs.join("ca-certificates.crt")).unwrap();
        assert_eq!(now, own + &added);
        let anchors = root.path().join(ANCHORS.trim_start_matches('/'));
        assert_eq!(fs::read_to_string(anchors).unwrap(), added);
    }

    #[test]
    fn an_image_without_certificates_gets_a_bundle_and_one_of_another_kind_keeps_its_own() {
        let root = tempfile::tempdir().unwrap();
        let bundle = install(root.path(), &certificate("one")).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join(&bundle[1..])).unwrap(),
            certificate("one")
        );
        let other = tempfile::tempdir().unwrap();
        let path = other.path().join("etc/pki/tls/certs/ca-bundle.crt");
        make(&path, &certificate("own")).unwrap();
        assert_eq!(
            install(other.path(), &certificate("one")).unwrap(),
            "/etc/pki/tls/certs/ca-bundle.crt"
        );
        assert!(!other.path().join("etc/ssl").exists());
    }
}
