//! Firecracker itself: what its boots and restores cost, and memory from `hearth pager` against memory from the file.
//!
//! Each figure of the pager stands beside the same calls to the same Firecracker with the file, in turn; so do machines of the node, where
//! that boots the bare guest (`HEARTH_BARE_GUEST`).

mod firecracker;
mod guest;
mod handler;
mod product;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::process::{Child, Command};

use super::BenchError;
use super::figures::{Report, Unit, milliseconds};
use super::subjects::Bencher;
use crate::arguments::Bench;
use crate::error::CliError;
use firecracker::{Machine, Memory, Subject};
use product::{Beginning, Product};

/// What machines of the node are held against.
const ITSELF: &str = "Firecracker by itself";
/// Machines that are made of one at once.
const CROWD: usize = 25;
/// Restores for each cold start of the other subjects: they are short.
const RESTORES: u32 = 5;
/// Bytes of guest memory that are filled before the snapshot and looked at after, a word of each page; and their pages.
const FILLED: &str = "16777216";
const PAGES: f64 = 4096.0;
/// The first number of sessions of restored guests, which still have those of before.
const SESSION: u32 = 100;

/// Says why Firecracker was not measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmmError {
    /// There is nothing to boot.
    #[error(
        "`hearth bench vmm` needs --firecracker FILE and --guest FILE (`cargo xtask bare-guest` makes one)"
    )]
    NoGuest,
    /// A program cannot be started, or its directory cannot be made.
    #[error("cannot run {}", program.display())]
    Program {
        /// Which one.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Firecracker refused.
    #[error(transparent)]
    Firecracker(#[from] hearth_firecracker::ClientError),
    /// The guest is not reached.
    #[error(transparent)]
    Vsock(#[from] hearth_firecracker::vsock::VsockError),
    /// The connection to the guest broke.
    #[error("the connection to the guest broke")]
    Channel(#[source] std::io::Error),
    /// The guest does not say what the test guest says.
    #[error("the guest does not answer as `bare-guest` does")]
    Guest,
    /// A page server.
    #[error("the page server does not come up")]
    Pager,
}

/// A pager of its own; dropped, it ends.
struct Pager {
    socket: PathBuf,
    _child: Child,
}

impl Pager {
    async fn start(
        directory: &Path,
        image: &Path,
        name: &str,
        replay: Option<&Path>,
    ) -> Result<Self, VmmError> {
        let program = std::env::current_exe().unwrap_or_else(|_| "hearth".into());
        let socket = directory.join(name);
        let mut command = Command::new(&program);
        command
            .args(["pager", "--image"])
            .arg(image)
            .arg("--socket")
            .arg(&socket);
        if let Some(path) = replay {
            command.arg("--working-set").arg(path);
        }
        let spawned = command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let child = spawned.map_err(|source| VmmError::Program { program, source })?;
        listens(&socket).await?;
        Ok(Self {
            socket,
            _child: child,
        })
    }
}

/// Waits until a page server has made its socket.
async fn listens(socket: &Path) -> Result<(), VmmError> {
    let begun = Instant::now();
    while !socket.exists() {
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(VmmError::Pager);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// A directory that goes with the bench.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // Nobody is there to be told.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Samples of one way to get memory.
#[derive(Default)]
struct Samples {
    ready: Vec<f64>,
    crowd: Vec<f64>,
    pss: Vec<f64>,
    pages: Vec<f64>,
}

/// Measures.
pub(super) async fn vmm(
    arguments: &Bench,
    bencher: &Bencher<'_>,
    report: &mut Report,
) -> Result<(), CliError> {
    let product = Product::of(bencher).await?;
    let directory = Directory(std::env::temp_dir().join(format!("hbench-{}", std::process::id())));
    let subject = subject(arguments, &directory).map_err(BenchError::from)?;
    let (mut boots, mut machines) = (Vec::new(), Vec::new());
    for turn in 0..arguments.runs {
        let begun = Instant::now();
        let booted = subject.boot(&format!("b{turn}")).await;
        boots.push(milliseconds(begun.elapsed()));
        let (machine, _) = booted.map_err(BenchError::from)?;
        machine.end().await;
        if let Some(product) = &product {
            machines.push(product.first_reply(Beginning::Boot).await?);
        }
    }
    report.add("vmm: spawn to first reply", Unit::Milliseconds, &boots);
    report.add_against(
        "vmm: spawn to first reply, a machine of the node",
        Unit::Milliseconds,
        &machines,
        ITSELF,
        &boots,
    );
    let handler = arguments.handler.as_deref();
    restores(&subject, product.as_ref(), handler, arguments.runs, report).await
}

fn subject(arguments: &Bench, directory: &Directory) -> Result<Subject, VmmError> {
    let (Some(firecracker), Some(guest)) = (&arguments.firecracker, &arguments.guest) else {
        return Err(VmmError::NoGuest);
    };
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|source| VmmError::Program {
            program: path.clone(),
            source,
        })
    };
    std::fs::create_dir(&directory.0).map_err(|source| VmmError::Program {
        program: directory.0.clone(),
        source,
    })?;
    Ok(Subject {
        firecracker: absolute(firecracker)?,
        guest: absolute(guest)?,
        memory_mib: arguments.memory.bytes() >> 20,
        directory: directory.0.clone(),
    })
}

async fn restores(
    subject: &Subject,
    product: Option<&Product<'_>>,
    handler: Option<&Path>,
    runs: u32,
    report: &mut Report,
) -> Result<(), CliError> {
    let source = saved(subject).await.map_err(BenchError::from)?;
    let pagers = Pagers::start(subject, &source).await.map_err(BenchError::from)?;
    let ways = [
        Memory::File,
        Memory::Pager(&pagers.plain.socket),
        Memory::Pager(&pagers.replay.socket),
    ];
    let (mut samples, mut machines) = <([Samples; 3], Vec<f64>)>::default();
    let mut theirs = Samples::default();
    // In turn, so that what else the host does meets all of them.
    for _ in 0..runs * RESTORES {
        for (way, samples) in ways.iter().zip(&mut samples) {
            let restored = one(subject, &source, *way, samples).await;
            restored.map_err(BenchError::from)?;
        }
        if let Some(program) = handler {
            let restored = handler::restore(program, subject, &source, &mut theirs).await;
            restored.map_err(BenchError::from)?;
        }
        if let Some(product) = product {
            machines.push(product.first_reply(Beginning::Template).await?);
        }
    }
    for _ in 0..runs {
        for (way, samples) in ways.iter().zip(&mut samples) {
            let restored = crowd(subject, &source, *way, samples).await;
            restored.map_err(BenchError::from)?;
        }
    }
    tell(report, &samples);
    tell_beside(report, &samples[1], &theirs);
    report.add_against(
        "vmm: restore to first reply, a machine of the node",
        Unit::Milliseconds,
        &machines,
        ITSELF,
        &samples[0].ready,
    );
    Ok(())
}

/// Boots a machine that fills memory, and saves it.
async fn saved(subject: &Subject) -> Result<Machine, VmmError> {
    let (source, mut guest) = subject.boot("source").await?;
    guest.settle().await?;
    guest.run(SESSION - 1, &["fill", FILLED, "3", "4096"]).await?;
    source.save().await?;
    Ok(source)
}

/// Pagers of one image: one that knows nothing, one that has recorded a machine.
struct Pagers {
    plain: Pager,
    replay: Pager,
}

impl Pagers {
    async fn start(subject: &Subject, source: &Machine) -> Result<Self, VmmError> {
        let image = source.memory();
        let set = subject.directory.join("set");
        std::fs::create_dir(&set).map_err(|source| VmmError::Program {
            program: set.clone(),
            source,
        })?;
        let set = set.join("working-set");
        let plain = Pager::start(&subject.directory, &image, "plain", None).await?;
        let replay = Pager::start(&subject.directory, &image, "replay", Some(&set)).await?;
        // The first machine is recorded: up to its first reply, which is what a restore waits for.
        drop(
            subject
                .restore("recorded", source, Memory::Pager(&replay.socket))
                .await?,
        );
        while !set.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Self { plain, replay })
    }
}

/// A restore up to the first reply; then the guest looks at each page that was filled.
async fn one(
    subject: &Subject,
    source: &Machine,
    way: Memory<'_>,
    samples: &mut Samples,
) -> Result<(), VmmError> {
    let begun = Instant::now();
    let (machine, mut guest) = subject.restore("one", source, way).await?;
    samples.ready.push(milliseconds(begun.elapsed()));
    let begun = Instant::now();
    guest.run(SESSION, &["check", FILLED, "3", "4096"]).await?;
    samples.pages.push(PAGES / begun.elapsed().as_secs_f64());
    machine.end().await;
    Ok(())
}

/// Many at once, until all have replied; and what memory each takes.
async fn crowd(
    subject: &Subject,
    source: &Machine,
    way: Memory<'_>,
    samples: &mut Samples,
) -> Result<(), VmmError> {
    let begun = Instant::now();
    let names: Vec<_> = (0..CROWD).map(|index| format!("c{index}")).collect();
    let machines = try_join_all(names.iter().map(|name| subject.restore(name, source, way))).await?;
    samples.crowd.push(milliseconds(begun.elapsed()));
    samples
        .pss
        .extend(machines.iter().filter_map(|(machine, _)| machine.pss_kibibytes()));
    Ok(())
}

/// The pager beside the other page server; nothing where there was none.
fn tell_beside(report: &mut Report, pager: &Samples, theirs: &Samples) {
    if theirs.ready.is_empty() {
        return;
    }
    let against = "the other page server";
    let name = "vmm: restore to first reply, pager and other";
    report.add_against(name, Unit::Milliseconds, &pager.ready, against, &theirs.ready);
    let name = "vmm: pages touched first, pager and other";
    report.add_against(name, Unit::PerSecond, &pager.pages, against, &theirs.pages);
}

fn tell(report: &mut Report, [file, plain, replay]: &[Samples; 3]) {
    report.add("vmm: restore to first reply", Unit::Milliseconds, &file.ready);
    let mut both = |what: &str, unit, pick: fn(&Samples) -> &Vec<f64>| {
        for (way, samples) in [("pager", plain), ("pager, replay", replay)] {
            let name = format!("vmm: {what}, {way}");
            report.add_against(&name, unit, pick(samples), "memory from the file", pick(file));
        }
    };
    both("restore to first reply", Unit::Milliseconds, |samples| {
        &samples.ready
    });
    both("25 restores at once", Unit::Milliseconds, |samples| {
        &samples.crowd
    });
    both("memory of each of 25", Unit::Kibibytes, |samples| &samples.pss);
    both("pages touched first", Unit::PerSecond, |samples| &samples.pages);
}
