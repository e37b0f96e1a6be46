//! A machine in QEMU with the agent as its first process: initramfs, image and disk are made here, from files of this
//! host. Without a kernel, the agent or a tool there is no machine, and the reason is printed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cpio::newc::{Builder, trailer};
use tempfile::TempDir;

use crate::client::Client;

/// How long anything may take under emulation on a busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The virtual machine and its files.
pub(crate) struct Machine {
    qemu: Child,
    listener: UnixListener,
    pub(crate) folder: TempDir,
}

impl Machine {
    /// Boots a machine with a fresh disk; `None` where that cannot be done, with the reason on standard error.
    pub(crate) fn boot() -> Option<(Self, Client)> {
        let folder = tempfile::tempdir().unwrap();
        match prepare(folder.path()) {
            Ok(()) => Some(Self::start(folder)),
            Err(reason) => {
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    /// Boots again with the same disk.
    pub(crate) fn boot_again(mut self) -> (Self, Client) {
        self.kill();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::start(folder)
    }

    fn start(folder: TempDir) -> (Self, Client) {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let _ = fs::remove_file(path("channel"));
        let listener = UnixListener::bind(path("channel")).unwrap();
        let kernel = std::env::var("HEARTH_TEST_KERNEL").unwrap();
        let image = path("image");
        let drive =
            |id: &str, file: &str, mode: &str| format!("if=none,id={id},format=raw,file={file},{mode}");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-M",
                "q35",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-m",
                "512",
                "-smp",
                "1",
            ])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", path("console"))])
            .args(["-kernel", &kernel, "-initrd", &path("initramfs")])
            .args(["-append", "console=ttyS0 quiet panic=-1 reboot=t"])
            .args(["-drive", &drive("image", &image, "readonly=on")])
            .args(["-device", "virtio-blk-pci,drive=image"])
            .args(["-drive", &drive("disk", &path("disk"), "cache=unsafe")])
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .args(["-device", "virtio-serial-pci"])
            .args([
                "-chardev",
                &format!("socket,id=ch,path={},server=off,reconnect=1", path("channel")),
            ])
            .args(["-device", "virtserialport,chardev=ch,name=hearth.0"])
            .stdin(Stdio::null());
        let qemu = command.spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let machine = Self {
            qemu,
            listener,
            folder,
        };
        (machine, Client::new(stream))
    }

    /// Waits for QEMU to connect again, after the client was dropped.
    pub(crate) fn reconnect(&self) -> Client {
        Client::new(self.listener.accept().unwrap().0)
    }

    /// What the guest has written on its console.
    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(self.folder.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until QEMU ends by itself; false when it does not.
    pub(crate) fn ends(&mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.qemu);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let timeout = PATIENCE.try_into().unwrap();
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 1
    }

    fn kill(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("console:\n{}", self.console());
        }
    }
}

/// Returns the agent's binary: named by the environment, or where cargo puts it.
fn agent() -> PathBuf {
    if let Some(path) = std::env::var_os("HEARTH_TEST_GUEST") {
        return path.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    target.join("x86_64-unknown-linux-musl/guest/hearth-guest")
}

fn prepare(folder: &Path) -> Result<(), String> {
    let kernel = std::env::var("HEARTH_TEST_KERNEL").map_err(|_| "HEARTH_TEST_KERNEL names no kernel")?;
    let modules = std::env::var("HEARTH_TEST_MODULES").map_err(|_| "HEARTH_TEST_MODULES names no folder")?;
    let agent = agent();
    for needed in [
        Path::new(&kernel),
        Path::new(&modules),
        &agent,
        Path::new("/bin/busybox"),
    ] {
        if !needed.exists() {
            return Err(format!("there is no {}", needed.display()));
        }
    }
    write_initramfs(&folder.join("initramfs"), &agent, Path::new(&modules))
        .map_err(|error| error.to_string())?;
    write_tree(&folder.join("tree")).map_err(|error| error.to_string())?;
    let name = |name: &str| folder.join(name).display().to_string();
    tool("mkfs.erofs", &["--quiet", &name("image"), &name("tree")])?;
    let disk = File::create(folder.join("disk")).and_then(|disk| disk.set_len(1 << 30));
    disk.map_err(|error| error.to_string())?;
    tool(
        "mkfs.ext4",
        &[
            "-q",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1",
            &name("disk"),
        ],
    )
}

fn tool(program: &str, arguments: &[&str]) -> Result<(), String> {
    let done = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status();
    match done {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

fn write_initramfs(path: &Path, agent: &Path, modules: &Path) -> std::io::Result<()> {
    let mut output = BufWriter::new(File::create(path)?);
    let mut add = |name: String, mode: u32, content: &[u8]| -> std::io::Result<()> {
        let mut writer = Builder::new(&name)
            .mode(mode)
            .write(&mut output, content.len() as u32);
        writer.write_all(content)?;
        writer.finish().map(drop)
    };
    add("modules".into(), 0o040_755, b"")?;
    add("init".into(), 0o100_755, &fs::read(agent)?)?;
    for module in fs::read_dir(modules)?.flatten() {
        let name = format!("modules/{}", module.file_name().to_string_lossy());
        add(name, 0o100_644, &fs::read(module.path())?)?;
    }
    trailer(output)?.flush()
}

/// Makes what is in the image: busybox, two users, and some odd files.
fn write_tree(root: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{PermissionsExt, symlink};
    for folder in ["bin", "etc", "tmp", "root", "home/app", "data/deep"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let list = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        let _ = symlink("busybox", root.join("bin").join(applet));
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\napp:x:1000:\nwheel:x:10:app\nstaff:x:50:app\n",
    )?;
    symlink(
        "../run/systemd/resolve/stub-resolv.conf",
        root.join("etc/resolv.conf"),
    )?;
    fs::write(root.join("data/plain"), "not a program")?;
    let script = |name: &str, content: &str, mode| {
        fs::write(root.join(name), content)?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode))
    };
    script("bin/no-interpreter", "#!/no/such/interpreter\n", 0o755)?;
    script("bin/no-program", "\u{1}\u{2}\u{3}", 0o755)?;
    fs::write(root.join("data/deep/file"), "content")?;
    fs::hard_link(root.join("data/deep/file"), root.join("data/deep/second name"))?;
    symlink("deep/file", root.join("data/link"))
}
