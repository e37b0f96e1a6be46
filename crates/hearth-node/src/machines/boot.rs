//! The start of a machine: from a disk and a kernel to a workload that runs. Each step is a stage that `hearth inspect` shows.
//!
//! What is acquired here is released by the life that asked for the start, on every way out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hearth_api::v1::Stage;
use hearth_guest_protocol::message::Configure;
use hearth_machine::{ExtraHost, MacAddress, NetworkMode};
use serde_bytes::ByteBuf;

use super::error::StartError;
use super::life::{GUEST_DEADLINE, Plan, Running, Workload, chain, dirs, host_user, vm_fact};
use super::limits;
use super::log::LogWriter;
use super::output::now_unix_ns;
use super::restore;
use super::session;
use super::standby;
use super::templates::{self, Beginning};
use super::trust;
use crate::guest::{Guest, RequestError, SessionEvent};
use crate::host::{console, failpoint, files, own};
use crate::images::ROOTFS_FILESYSTEM;
use crate::network::{self, Wanted};
use crate::records::BootFact;
use crate::setup::{AgentState, Artefacts, BootSet};
use crate::snapshots::{Moment, TemplateId, Turn};
use crate::vmm::{
    BootRequest, Devices, DiskAccess, DiskAttachment, Driver, Machine as _, MachineDirs, NetworkAttachment,
    Vm, Vmm as _, VmmExit,
};

/// What a machine is called of which a template is taken, until it gets a name.
const NOBODYS_NAME: &str = "localhost";

/// The end of the console that goes into an error, in bytes.
const CONSOLE_TAIL: u64 = 2048;

/// How long a guest may take to be told the time.
const CLOCK_LATE: Duration = Duration::from_millis(20);

/// Measures the stages of a start.
pub(super) struct Stages {
    since: Instant,
    list: Vec<Stage>,
}

impl Stages {
    pub(super) fn begin() -> Self {
        Self {
            since: Instant::now(),
            list: Vec::new(),
        }
    }

    /// Returns those that are over, and forgets them.
    pub(super) fn take(&mut self) -> Vec<Stage> {
        std::mem::take(&mut self.list)
    }

    pub(super) fn end(&mut self, name: &str) {
        let now = Instant::now();
        let took = now.duration_since(self.since);
        self.since = now;
        let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.list.push(Stage {
            name: name.to_owned(),
            duration_us,
        });
    }
}

/// A virtual machine that has just been made.
pub(super) struct PoweredOn {
    pub(super) vm: Vm,
    pub(super) beginning: Beginning,
    /// What it booted with, or what it is made of did.
    pub(super) boot: BootFact,
}

/// Makes the virtual machine: what was captured where that is to go on, a clone where there is a template, or booted.
pub(super) async fn power_on(plan: &Plan, stages: &mut Stages) -> Result<PoweredOn, StartError> {
    let (parts, id) = (&plan.parts, plan.id);
    let boots = guest_files(&parts.artefacts).await?;
    let dirs = dirs(&parts.layout, id);
    let driver = parts.drivers.select(plan.spec.driver).await?.driver;
    if let Some(powered_on) = stood_by(plan, &driver, boots.set.as_ref(), stages).await {
        return Ok(powered_on);
    }
    // Behind that: what is left of one that does not serve goes with these.
    make_directories(&dirs)?;
    let devices = devices(plan).await?;
    if devices.network.is_some() {
        stages.end("network");
    }
    let request = BootRequest {
        id,
        shape: plan.spec.shape(),
        kernel: boots.kernel,
        initramfs: boots.initramfs,
        append: String::new(),
        tracked: false,
        disks: vec![
            DiskAttachment {
                path: parts.layout.machine_rootfs(id),
                access: DiskAccess::ReadOnly,
            },
            DiskAttachment {
                path: parts.layout.machine_disk(id),
                access: DiskAccess::ReadWrite,
            },
        ],
        devices,
        dirs,
        user: host_user(id),
    };
    let boot = boot_fact(&driver, boots.set.as_ref());
    if let Some(source) = &plan.source {
        templates::make_disk(plan, None).await?;
        stages.end("disk");
        let vm = restore::restore(plan, &driver, &request, source).await?;
        stages.end("restore");
        return Ok(PoweredOn {
            vm,
            beginning: Beginning::Snapshot,
            boot: source.boot.clone(),
        });
    }
    let beginning = match templates::turn(plan, &driver, boots.set.as_ref()).await {
        Turn::Use(ready) => {
            stages.end("template");
            if let Some((vm, model)) = templates::clone(plan, &driver, &request, ready, stages).await? {
                let beginning = Beginning::Template(model);
                return Ok(PoweredOn { vm, beginning, boot });
            }
            Beginning::Boot
        }
        Turn::Make(building) => Beginning::BootForTemplate(building),
        Turn::Without => Beginning::Boot,
    };
    templates::make_disk(plan, None).await?;
    stages.end("disk");
    let vm = driver.boot(&request).await.map_err(StartError::Boot)?;
    stages.end("vmm");
    Ok(PoweredOn { vm, beginning, boot })
}

/// Takes on the virtual machine that stands by for this one, where there is one.
async fn stood_by(
    plan: &Plan,
    driver: &Driver,
    set: Option<&BootSet>,
    stages: &mut Stages,
) -> Option<PoweredOn> {
    let key = templates::key(plan, driver, set, Moment::Configured).ok();
    let ready = plan
        .parts
        .standbys
        .take(plan, key.as_ref().map(TemplateId::of))
        .await?;
    let standby::Ready {
        vm,
        guest,
        model,
        boot,
        mut unless,
    } = ready;
    if let Err(error) = vm.resume().await {
        tracing::warn!(machine = %plan.id, error = %chain(&error), "what stood by for it does not go on");
        standby::abandon(plan, &vm).await;
        return None;
    }
    unless.disarm();
    stages.end("standby");
    Some(PoweredOn {
        vm,
        beginning: Beginning::Standby(model, guest),
        boot,
    })
}

/// Says what a machine of this driver boots with.
pub(super) fn boot_fact(driver: &Driver, set: Option<&BootSet>) -> BootFact {
    let capabilities = driver.capabilities();
    let digest = |of: fn(&BootSet) -> String| set.map(of).unwrap_or_default();
    BootFact {
        kernel: digest(|set| set.kernel_digest.to_string()),
        initramfs: digest(|set| set.initramfs_digest.to_string()),
        version: capabilities.version.clone(),
        fingerprint: capabilities.fingerprint.clone(),
    }
}

/// Makes what a machine has beyond disks and its channel.
async fn devices(plan: &Plan) -> Result<Devices, StartError> {
    let spec = &plan.spec;
    let network = match spec.network {
        NetworkMode::None => None,
        mode => {
            let in_host = network::leads_out(mode);
            let networks = &plan.parts.networks;
            let network = networks.acquire(plan.id, &Wanted::of(spec)).await?;
            Some(NetworkAttachment {
                namespace: network.namespace,
                tap: network.tap,
                mac: MacAddress::of(plan.id),
                rate: spec.net_rate.filter(|_| !in_host),
            })
        }
    };
    Ok(Devices {
        network,
        disk_rate: spec.disk_rate,
        metadata: spec.metadata.clone(),
    })
}

/// What a guest boots with.
struct GuestFiles {
    kernel: PathBuf,
    /// Absent where the kernel is its own agent.
    initramfs: Option<PathBuf>,
    /// Absent likewise.
    set: Option<BootSet>,
}

/// Finds what the guest boots with, the newest agent in it.
async fn guest_files(artefacts: &Artefacts) -> Result<GuestFiles, StartError> {
    if let Some(guest) = artefacts.bare_guest() {
        return Ok(GuestFiles {
            kernel: guest.to_owned(),
            initramfs: None,
            set: None,
        });
    }
    let mut set = artefacts.boot_set()?;
    if matches!(set.agent, AgentState::Changed { .. }) {
        artefacts.refresh_agent().await.map_err(StartError::Agent)?;
        set = artefacts.boot_set()?;
    }
    Ok(GuestFiles {
        kernel: set.kernel.clone(),
        initramfs: Some(set.initramfs.clone()),
        set: Some(set),
    })
}

fn make_directories(dirs: &MachineDirs) -> Result<(), StartError> {
    let memory = dirs.memory.parent().unwrap_or(&dirs.memory);
    for path in [dirs.run.as_path(), memory] {
        files::make_directory(path, own::passage_mode()).map_err(|source| StartError::Directory {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Waits for the guest's greeting, takes a template where that is to be done, and makes the guest this machine.
pub(super) async fn meet(
    plan: &Plan,
    vm: &Vm,
    beginning: Beginning,
    stages: &mut Stages,
) -> Result<Guest, StartError> {
    let booted = matches!(beginning, Beginning::Boot | Beginning::BootForTemplate(_));
    let begun = Instant::now();
    let guest = match &beginning {
        Beginning::Standby(_, guest) => guest.clone(),
        _ => greet(plan, vm).await?,
    };
    failpoint::pass("start-greeted");
    if booted {
        plan.parts.pace.booted_in(begun.elapsed());
        stages.end("kernel");
    } else if !beginning.stood_by() {
        stages.end("hello");
    }
    let is_configured = match beginning {
        Beginning::Standby(..) => true,
        Beginning::Template(model) => model.moment == Moment::Configured,
        Beginning::BootForTemplate(building) => {
            let moment = building.moment();
            if moment == Moment::Configured {
                let nobodys = configuration(NOBODYS_NAME, &[], NetworkMode::None)?;
                guest.configure(&nobodys, GUEST_DEADLINE).await?;
                stages.end("configure");
            }
            templates::take(plan, vm, &guest, building).await?;
            stages.end("template");
            moment == Moment::Configured
        }
        Beginning::Snapshot | Beginning::Boot => false,
    };
    if is_configured {
        let begun = Instant::now();
        guest
            .renew(&restore::renewal(plan, None)?, GUEST_DEADLINE)
            .await?;
        if begun.elapsed() > CLOCK_LATE {
            // As late may be the time in it.
            guest.set_clock(now_unix_ns, GUEST_DEADLINE).await?;
        }
        stages.end("renew");
    } else {
        let hostname = session::hostname(&plan.spec, plan.id);
        let own = configuration(&hostname, &plan.spec.container.hosts, plan.spec.network)?;
        guest.configure(&own, GUEST_DEADLINE).await?;
        stages.end("configure");
    }
    failpoint::pass("start-configured");
    Ok(guest)
}

/// Starts the workload.
pub(super) async fn set_up(
    plan: &mut Plan,
    vm: &Vm,
    guest: Guest,
    stages: &mut Stages,
) -> Result<Workload, StartError> {
    // A log that cannot be begun is a full disk, most often: better said now than later.
    let directory = plan.parts.layout.machine_data(plan.id);
    let log = LogWriter::begin(&directory, plan.spec.log.bytes(), now_unix_ns()).map_err(|source| {
        StartError::Write {
            path: super::log::path(&directory),
            source,
        }
    })?;
    let hostname = session::hostname(&plan.spec, plan.id);
    limits::impose(plan, vm_fact(vm));
    let trusted = trust::install(&guest, &plan.spec.certificates).await?;
    let process = trust::beneath(&plan.process, &trusted);
    let environment = session::environment(&process, &hostname, plan.secrets.iter());
    let container = &plan.spec.container;
    let launch = session::workload(&plan.process, &environment, container, plan.terminal, &plan.io);
    let mut workload = guest.launch(&launch).await?;
    let started = tokio::time::timeout(GUEST_DEADLINE, workload.next()).await;
    match started.map_err(|_| RequestError::Timeout(GUEST_DEADLINE))? {
        SessionEvent::Started { .. } => {}
        SessionEvent::Failed(failure) => return Err(StartError::Workload(failure)),
        _ => return Err(RequestError::ChannelLost.into()),
    }
    failpoint::pass("start-executed");
    stages.end("start");
    let input = workload.input();
    let running = Running {
        guest,
        input,
        stages: stages.take(),
        template: None,
        boot: None,
        ports: Vec::new(),
    };
    Ok(Workload {
        running,
        session: workload,
        log: Some(log),
    })
}

/// Waits for the guest's greeting: until the deadline, or until the monitor dies.
pub(super) async fn greet(plan: &Plan, vm: &Vm) -> Result<Guest, StartError> {
    let limit = plan.parts.pace.boot_deadline(plan.border);
    let greeting = async {
        let stream = vm.connect_guest().await.map_err(crate::guest::ConnectError::Io)?;
        let (reader, writer) = stream.into_split();
        Guest::connect(reader, writer, &plan.parts.tasks).await
    };
    tokio::select! {
        greeted = tokio::time::timeout(limit, greeting) => match greeted {
            Ok(Ok(guest)) => Ok(guest),
            // A monitor that dies closes the stream, too: its own words say more.
            Ok(Err(error)) => match tokio::time::timeout(Duration::from_secs(1), vm.wait()).await {
                Ok(exit) => Err(StartError::DiedInBoot { words: words(plan, exit) }),
                Err(_) => Err(error.into()),
            },
            Err(_) => Err(StartError::NoHello { limit, console: console_tail(plan) }),
        },
        exit = vm.wait() => Err(StartError::DiedInBoot { words: words(plan, exit) }),
    }
}

/// What a monitor that died said last; where it said nothing, what the guest's kernel said.
pub(super) fn words(plan: &Plan, exit: std::io::Result<VmmExit>) -> String {
    let monitor = last_words(exit);
    if monitor.trim().is_empty() {
        console_tail(plan)
    } else {
        monitor
    }
}

pub(super) fn last_words(exit: std::io::Result<VmmExit>) -> String {
    exit.map_or_else(|error| error.to_string(), |exit| exit.last_words)
}

fn console_tail(plan: &Plan) -> String {
    let path = dirs(&plan.parts.layout, plan.id).console_log();
    let tail = console::tail(&path, CONSOLE_TAIL).unwrap_or_default();
    // A serial console ends its lines for a terminal.
    String::from_utf8_lossy(&tail).replace('\r', "")
}

/// Says what makes a booted guest a machine of this name.
fn configuration(hostname: &str, hosts: &[ExtraHost], network: NetworkMode) -> Result<Configure, StartError> {
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy)
        .map_err(|error| crate::guest::ConnectError::Io(std::io::Error::other(error)))?;
    Ok(Configure {
        hostname: hostname.to_owned(),
        image_device: "/dev/vda".to_owned(),
        image_filesystem: ROOTFS_FILESYSTEM.to_owned(),
        disk_device: "/dev/vdb".to_owned(),
        hosts: ByteBuf::from(session::hosts_file(hostname, hosts).into_bytes()),
        resolv_conf: ByteBuf::from(session::resolver_file(network).into_bytes()),
        clock_unix_ns: now_unix_ns(),
        entropy,
    })
}
