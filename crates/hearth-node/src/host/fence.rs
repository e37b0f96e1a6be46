//! What a program that is about to be started may reach of this host: made by the node, put up by the child (landlock(7)).
//!
//! For monitors of an ordinary user, which nothing else keeps from that user's files. Best effort: a kernel without landlock, or with
//! an older one, enforces what it knows.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

/// What may be done at a place; everything else, and everything elsewhere, is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A file may be executed.
    Execute,
    /// A file may be read.
    Read,
    /// A file may be read and written.
    Write,
    /// A device may be read, written and controlled.
    Device,
    /// In a directory files and sockets may be made, used and removed.
    Work,
}

/// Says why there is no fence.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The kernel refuses.
    #[error("cannot confine a program to its files (landlock)")]
    Rules(#[from] RulesetError),
    /// A place cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: PathFdError,
    },
}

/// A fence, for [`super::launch::Launch`].
#[derive(Debug)]
pub struct Fence(pub(super) OwnedFd);

impl Fence {
    /// Makes a fence around places, which must exist; none where the kernel has no landlock. Links are followed now. Programs
    /// within may not use TCP, reach abstract sockets, or signal others.
    ///
    /// # Errors
    /// [`FenceError`].
    pub fn around<'p>(
        places: impl IntoIterator<Item = (&'p Path, Reach)>,
    ) -> Result<Option<Self>, FenceError> {
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(ABI::V5))?
            .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
            .scope(Scope::from_all(ABI::V6))?
            .create()?;
        for (path, reach) in places {
            rules = add(rules, path, reach)?;
        }
        let ruleset: Option<OwnedFd> = rules.into();
        if ruleset.is_none() {
            tracing::warn!("this kernel has no landlock: monitors can reach the files of their user");
        }
        Ok(ruleset.map(Self))
    }
}

fn add(rules: RulesetCreated, path: &Path, reach: Reach) -> Result<RulesetCreated, FenceError> {
    let opened = PathFd::new(path).map_err(|source| FenceError::Open {
        path: path.to_owned(),
        source,
    })?;
    Ok(rules.add_rule(PathBeneath::new(opened, access(path, reach)))?)
}

fn access(path: &Path, reach: Reach) -> BitFlags<AccessFs> {
    let file = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    match reach {
        Reach::Execute => AccessFs::Execute | AccessFs::ReadFile,
        Reach::Read => AccessFs::ReadFile.into(),
        Reach::Write => file,
        Reach::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        // What only a directory can have is no right to a file.
        Reach::Work if !fs::metadata(path).is_ok_and(|metadata| metadata.is_dir()) => file,
        Reach::Work => {
            file | AccessFs::ReadDir | AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::RemoveFile
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs::File;
    use std::net::TcpListener;

    use landlock::{CompatLevel, Compatible as _};

    use super::*;
    use crate::host::launch::{Launch, launch};
    use crate::host::process::Exit;

    const SHELL: &str = "/bin/busybox";

    /// Runs a line of a shell behind a fence around its programs and `work`.
    async fn run(work: &Path, line: &str) -> Exit {
        let places = [
            (Path::new(SHELL), Reach::Execute),
            (work, Reach::Work),
            (Path::new("/dev/null"), Reach::Device),
        ];
        run_behind(Fence::around(places).unwrap(), work, line).await
    }

    async fn run_behind(fence: Option<Fence>, work: &Path, line: &str) -> Exit {
        let log = File::create(work.join("log")).unwrap();
        let arguments = ["sh", "-c", line].map(OsString::from).into();
        let process = launch(Launch {
            directory: Some(work.to_owned()),
            fence,
            ..Launch::of(SHELL.into(), arguments, log)
        });
        process.unwrap().wait().await.unwrap()
    }

    /// Tells what keeps a fence from being tried here.
    fn no_fence() -> Option<&'static str> {
        if !Path::new(SHELL).exists() {
            return Some("there is no /bin/busybox");
        }
        Fence::around([])
            .unwrap()
            .is_none()
            .then_some("this kernel has no landlock")
    }

    /// Tells whether this kernel enforces all of a fence, not only what is about files (landlock's ABI 6, Linux 6.12).
    fn is_whole() -> bool {
        let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let net = strict.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp);
        net.and_then(|rules| rules.scope(Scope::from_all(ABI::V6)))
            .is_ok()
    }

    #[tokio::test]
    async fn a_program_within_a_fence_uses_no_tcp_and_signals_nobody() {
        if let Some(why) = no_fence() {
            return crate::host::skip::skipped(why);
        }
        if !is_whole() {
            return crate::host::skip::skipped("this kernel's landlock knows no TCP or no signals");
        }
        let work = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let call = format!("{SHELL} nc 127.0.0.1 {port} < /dev/null");
        let signal = format!("kill -0 {}", std::process::id());

        let runs = run(work.path(), &format!("{SHELL} true")).await;
        assert_eq!(runs, Exit::Code(0), "programs within the fence run");
        assert_ne!(run(work.path(), &signal).await, Exit::Code(0));
        assert_ne!(run(work.path(), &call).await, Exit::Code(0));
        let came = listener.accept().map(drop).map_err(|error| error.kind());
        assert_eq!(came, Err(std::io::ErrorKind::WouldBlock));

        // Without a fence the same lines do it.
        listener.set_nonblocking(false).unwrap();
        let called = std::thread::spawn(move || listener.accept().map(drop));
        assert_eq!(run_behind(None, work.path(), &signal).await, Exit::Code(0));
        assert_eq!(run_behind(None, work.path(), &call).await, Exit::Code(0));
        called.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_program_reaches_what_is_within_its_fence_and_nothing_else() {
        if let Some(why) = no_fence() {
            return crate::host::skip::skipped(why);
        }
        let (work, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = other.path().join("secret");
        std::fs::write(&secret, "of somebody else").unwrap();
        std::os::unix::fs::symlink(&secret, work.path().join("link")).unwrap();
        assert_eq!(
            run(work.path(), "echo 1 > own && read x < own && [ $x = 1 ]").await,
            Exit::Code(0)
        );
        for line in [
            format!("read x < {}", secret.display()),
            "read x < link".to_owned(),
            format!("echo 1 > {}", secret.display()),
            format!("echo 1 > {}/new", other.path().display()),
            "read x < /proc/1/status".to_owned(),
            "exec /bin/sh -c true".to_owned(),
        ] {
            assert_ne!(run(work.path(), &line).await, Exit::Code(0), "{line}");
        }
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of somebody else");
    }
}
