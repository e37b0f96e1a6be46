//! What is measured, and how.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use hearth_api::v1::{PruneTemplates, Stage};
use tokio::io::AsyncReadExt;

use super::BenchError;
use super::bare_clone::BareClone;
use super::baseline::Bare;
use super::figures::{Report, Unit, milliseconds, rate};
use super::machines::{Machines, finish, line};
use crate::error::CliError;
use crate::node::Node;

/// Machines that run at once for the node's memory.
const CROWD: u64 = 8;
/// Machines that keep the host's processors busy, and the memory of each: the least that a kernel and a shell get on with.
const BUSY: u32 = 20;
const BUSY_MEMORY: u64 = 80 << 20;
/// How often, and how many times, it is asked whether a clone stands by.
const STANDBY_LOOK: Duration = Duration::from_millis(20);
const STANDBY_LOOKS: u32 = 100;
/// Execs in a row that warm up nothing but the page cache.
const WARM_UP: u32 = 2;
/// How often bytes are moved: a long stretch each time.
pub(super) const TRANSFERS: u32 = 5;
/// Processes that the guest makes by itself, for one sample.
const SPAWNS: u32 = 20;
/// What idles.
pub(super) const IDLE_PROGRAM: [&str; 2] = ["sleep", "86400"];
/// What a machine has whose memory is to hold the file of `copy` twice, beside the file.
const ROOM: u64 = 256 << 20;

/// What all subjects need.
pub(super) struct Bencher<'n> {
    pub(super) node: &'n Node,
    pub(super) machines: &'n Machines<'n>,
    pub(super) image: &'n str,
    /// Of machines, in bytes.
    pub(super) memory: u64,
    pub(super) runs: u32,
    /// Bytes that are moved at a time.
    pub(super) size: u64,
    /// Another image.
    pub(super) beside: Option<&'n str>,
    /// What is executed.
    pub(super) code: Option<&'n Path>,
}

impl Bencher<'_> {
    /// Cold starts from the prompt to the prompt, in turn with bare QEMU, and where their time goes.
    pub(super) async fn run(&self, report: &mut Report) -> Result<(), CliError> {
        let bare = self.bare().await?;
        let (mut starts, mut bare_times) = (Starts::default(), Vec::new());
        for turn in 0..self.runs {
            self.start(turn, &["--no-template"], &mut starts).await?;
            bare_times.push(milliseconds(bare.first_line().await?));
        }
        let against = "bare QEMU to the guest's first line";
        report.add_against(
            "run true, cold",
            Unit::Milliseconds,
            &starts.times,
            against,
            &bare_times,
        );
        starts.tell("run", report);
        Ok(())
    }

    /// Starts of a template, in turn with bare clones of it. Each has a clone that stands by, as one who is not in a hurry finds it.
    pub(super) async fn clones(&self, report: &mut Report) -> Result<(), CliError> {
        let bare = self.bare_clone().await?;
        // The first with a network boots. What stands by of another kind goes: it would be taken for the one that is waited for.
        self.start(self.runs, &[], &mut Starts::default()).await?;
        let useless = PruneTemplates { all: false };
        self.node
            .call(async |client| client.template_prune(&useless).await)
            .await?;
        self.start(self.runs, &[], &mut Starts::default()).await?;
        for _ in 0..if self.beside.is_some() { 2 } else { 0 } {
            self.start_beside(self.runs, &mut Starts::default()).await?;
        }
        let (mut starts, mut bare_times, mut beside) = (Starts::default(), Vec::new(), Starts::default());
        let kinds = 1 + u32::from(self.beside.is_some());
        for turn in 0..self.runs {
            self.stood_by(kinds).await?;
            bare_times.push(milliseconds(bare.first_reply().await?));
            self.start(turn, &[], &mut starts).await?;
            self.stood_by(kinds).await?;
            self.start_beside(turn, &mut beside).await?;
        }
        let against = "bare QEMU clone without a network to the agent's first reply";
        report.add_against(
            "run true, clone",
            Unit::Milliseconds,
            &starts.times,
            against,
            &bare_times,
        );
        starts.tell("clone", report);
        if let Some(image) = self.beside {
            let name = format!("run true, clone of {image}");
            report.add_against(
                &name,
                Unit::Milliseconds,
                &beside.times,
                self.image,
                &starts.times,
            );
        }
        Ok(())
    }

    /// Waits until so many clones stand by; not for long, as this node may have been told to keep none.
    pub(super) async fn stood_by(&self, count: u32) -> Result<(), CliError> {
        for _ in 0..STANDBY_LOOKS {
            let status = self.node.call(async |client| client.node_status().await).await?;
            if status.standing_by >= count {
                break;
            }
            tokio::time::sleep(STANDBY_LOOK).await;
        }
        Ok(())
    }

    /// Takes after the machines of a template.
    pub(super) async fn bare_clone(&self) -> Result<BareClone, CliError> {
        // The first of these may boot, and makes the template; the second one waits for that.
        let first = self.apart("first").await?;
        let model = self.apart("model").await?;
        let machine = self
            .node
            .call(async |client| client.inspect(&model).await)
            .await?;
        let template = machine.template.ok_or(BenchError::NoTemplate)?;
        let data = self
            .node
            .call(async |client| client.node_status().await)
            .await?
            .data;
        let template = Path::new(&data).join("templates").join(template);
        let bare = BareClone::like(machine.state.pid.unwrap_or_default(), &template)?;
        for name in [&first, &model] {
            self.node
                .call(async |client| client.remove(name, true).await)
                .await?;
        }
        Ok(bare)
    }

    /// Runs `true` in a machine of its own, and takes down where its time went.
    pub(super) async fn start(&self, turn: u32, more: &[&str], starts: &mut Starts) -> Result<(), CliError> {
        self.start_of(self.image, turn, more, starts).await
    }

    /// The same of the other image, if there is one.
    async fn start_beside(&self, turn: u32, starts: &mut Starts) -> Result<(), CliError> {
        match self.beside {
            Some(image) => self.start_of(image, turn, &[], starts).await,
            None => Ok(()),
        }
    }

    async fn start_of(
        &self,
        image: &str,
        turn: u32,
        more: &[&str],
        starts: &mut Starts,
    ) -> Result<(), CliError> {
        let name = self.machines.name(turn);
        let mut arguments = self.machines.run_arguments(&name, self.memory);
        arguments.extend(more.iter().map(|&flag| flag.to_owned()));
        arguments.extend([image.to_owned(), "true".to_owned()]);
        let took = milliseconds(self.machines.time(&arguments).await?);
        let machine = self.node.call(async |client| client.inspect(&name).await).await?;
        starts.add(took, &machine.stages);
        self.node
            .call(async |client| client.remove(&name, true).await)
            .await
    }

    /// A process beside the workload, from the prompt to the prompt.
    pub(super) async fn exec(&self, report: &mut Report) -> Result<(), CliError> {
        let machine = self.idle("exec", self.memory).await?;
        let arguments = ["exec", &machine, "true"];
        let spawns = format!("i=0; while [ $i -lt {SPAWNS} ]; do /bin/true; i=$((i+1)); done");
        let nothing = ["exec", &machine, "sh", "-c", ":"];
        let alone = ["exec", &machine, "sh", "-c", &spawns];
        for _ in 0..WARM_UP {
            self.machines.time(&arguments).await?;
            self.machines.time(&alone).await?;
        }
        let (mut times, mut own) = (Vec::new(), Vec::new());
        for turn in 0..self.runs * 5 {
            times.push(milliseconds(self.machines.time(&arguments).await?));
            if turn % 5 == 0 {
                let empty = self.machines.time(&nothing).await?;
                let full = self.machines.time(&alone).await?;
                own.push(milliseconds(full.saturating_sub(empty)) / f64::from(SPAWNS));
            }
        }
        let against = "fork, execve and wait inside the guest";
        report.add_against("exec true", Unit::Milliseconds, &times, against, &own);
        Ok(())
    }

    /// The same while machines beside it keep the host's processors busy.
    pub(super) async fn busy(&self, report: &mut Report) -> Result<(), CliError> {
        let machine = self.idle("asked", self.memory).await?;
        let arguments = ["exec", &machine, "true"];
        let mut calm = Vec::new();
        for turn in 0..WARM_UP + self.runs * 5 {
            let took = milliseconds(self.machines.time(&arguments).await?);
            calm.extend((turn >= WARM_UP).then_some(took));
        }
        let mut names = Vec::new();
        for turn in 0..BUSY {
            let name = self.machines.name(format!("busy-{turn}"));
            let mut run = self.machines.run_arguments(&name, BUSY_MEMORY);
            let command = ["--detach", self.image, "sh", "-c", "while :; do :; done"];
            run.extend(command.map(str::to_owned));
            self.machines.time(&run).await?;
            names.push(name);
        }
        let mut times = Vec::new();
        for turn in 0..WARM_UP + self.runs * 5 {
            let took = milliseconds(self.machines.time(&arguments).await?);
            times.extend((turn >= WARM_UP).then_some(took));
        }
        for name in &names {
            self.node
                .call(async |client| client.remove(name, true).await)
                .await?;
        }
        let name = format!("exec true, {BUSY} machines busy");
        report.add_against(&name, Unit::Milliseconds, &times, "nothing else runs", &calm);
        Ok(())
    }

    /// Bytes through the guest channel.
    pub(super) async fn channel(&self, report: &mut Report) -> Result<(), CliError> {
        let machine = self.idle("channel", self.memory).await?;
        let blocks = self.size >> 16;
        let zeros = format!("dd if=/dev/zero bs=65536 count={blocks} 2>/dev/null");
        let pipe = format!("{zeros} | cat >/dev/null");
        let inside = ["exec", &machine, "sh", "-c", &pipe];
        let (mut out, mut into, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TRANSFERS {
            out.push(rate(
                blocks << 16,
                self.out_of(&machine, &zeros, blocks << 16).await?,
            ));
            into.push(rate(blocks << 16, self.into(&machine, blocks << 16).await?));
            own.push(rate(blocks << 16, self.machines.time(&inside).await?));
        }
        let against = "a pipe inside the guest";
        let unit = Unit::MegabytesPerSecond;
        report.add_against("channel: guest to host", unit, &out, against, &own);
        report.add_against("channel: host to guest", unit, &into, against, &own);
        Ok(())
    }

    /// A large file, both ways.
    pub(super) async fn copy(&self, report: &mut Report) -> Result<(), CliError> {
        let machine = self.idle("copy", self.memory.max(2 * self.size + ROOM)).await?;
        let directory = std::env::temp_dir();
        let here = directory.join(self.machines.name("file"));
        let back = directory.join(self.machines.name("back"));
        let moved = self.copy_file(report, &machine, &here, &back).await;
        for path in [&here, &back] {
            // Most often one of them was never made.
            let _ = std::fs::remove_file(path);
        }
        moved
    }

    async fn copy_file(
        &self,
        report: &mut Report,
        machine: &str,
        here: &Path,
        back: &Path,
    ) -> Result<(), CliError> {
        write_random(here, self.size).map_err(|source| BenchError::File {
            path: here.display().to_string(),
            source,
        })?;
        let there = format!("{machine}:/tmp/file");
        let (here, back) = (here.display().to_string(), back.display().to_string());
        let copy = ["exec", machine, "cp", "/tmp/file", "/tmp/copy"];
        let (mut out, mut into, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TRANSFERS {
            into.push(rate(self.size, self.machines.time(&["cp", &here, &there]).await?));
            own.push(rate(self.size, self.machines.time(&copy).await?));
            out.push(rate(self.size, self.machines.time(&["cp", &there, &back]).await?));
        }
        let against = "cp inside the guest";
        let unit = Unit::MegabytesPerSecond;
        report.add_against("cp: host to guest", unit, &into, against, &own);
        report.add_against("cp: guest to host", unit, &out, against, &own);
        Ok(())
    }

    /// What the node itself holds, before and with machines.
    pub(super) async fn memory(&self, report: &mut Report) -> Result<(), CliError> {
        // What a node keeps for good once it has run a machine is its own.
        let first = self.idle("first", self.memory).await?;
        self.node
            .call(async |client| client.remove(&first, true).await)
            .await?;
        let idle = self.node_kibibytes().await?;
        let mut names = Vec::new();
        for turn in 0..CROWD {
            names.push(self.idle(&format!("crowd-{turn}"), self.memory).await?);
        }
        let crowded = self.node_kibibytes().await?;
        for name in &names {
            self.node
                .call(async |client| client.remove(name, true).await)
                .await?;
        }
        report.add("node: resident memory", Unit::Kibibytes, &[idle]);
        let each = (crowded - idle) / CROWD as f64;
        report.add("node: for each machine", Unit::Kibibytes, &[each]);
        Ok(())
    }

    pub(super) async fn node_kibibytes(&self) -> Result<f64, CliError> {
        let status = self.node.call(async |client| client.node_status().await).await?;
        Ok(status.rss_bytes as f64 / 1024.0)
    }

    /// Returns the name of a machine whose workload waits.
    pub(super) async fn idle(&self, suffix: &str, memory: u64) -> Result<String, CliError> {
        let name = self.machines.name(suffix);
        let mut arguments = self.machines.run_arguments(&name, memory);
        arguments.extend(["--detach", self.image].map(str::to_owned));
        arguments.extend(IDLE_PROGRAM.map(str::to_owned));
        self.machines.time(&arguments).await?;
        Ok(name)
    }

    /// Returns the name of a machine that waits, and has no network: a bare one could not have its card without a TAP.
    async fn apart(&self, suffix: &str) -> Result<String, CliError> {
        let name = self.machines.name(suffix);
        let mut arguments = self.machines.run_arguments(&name, self.memory);
        let command = ["--network", "none", "--detach", self.image, "sleep", "86400"];
        arguments.extend(command.map(str::to_owned));
        self.machines.time(&arguments).await?;
        Ok(name)
    }

    async fn bare(&self) -> Result<Bare, CliError> {
        let name = self.idle("model", self.memory).await?;
        let machine = self.node.call(async |client| client.inspect(&name).await).await?;
        let bare = Bare::like(machine.state.pid.unwrap_or_default())?;
        self.node
            .call(async |client| client.remove(&name, true).await)
            .await?;
        Ok(bare)
    }

    pub(super) async fn out_of(
        &self,
        machine: &str,
        source: &str,
        size: u64,
    ) -> Result<Duration, BenchError> {
        let arguments = ["exec", machine, "sh", "-c", source];
        let broken = |source| BenchError::Program {
            line: line(&arguments),
            source,
        };
        let begun = Instant::now();
        let mut child = self.machines.pipes(&arguments)?;
        let mut moved = 0;
        if let Some(mut output) = child.stdout.take() {
            moved = tokio::io::copy(&mut output, &mut tokio::io::sink())
                .await
                .map_err(broken)?;
        }
        finish(child, &arguments).await?;
        if moved == size {
            return Ok(begun.elapsed());
        }
        Err(BenchError::Short {
            line: line(&arguments),
            moved,
            expected: size,
        })
    }

    async fn into(&self, machine: &str, size: u64) -> Result<Duration, BenchError> {
        let arguments = ["exec", "-i", machine, "sh", "-c", "cat >/dev/null"];
        let broken = |source| BenchError::Program {
            line: line(&arguments),
            source,
        };
        let begun = Instant::now();
        let mut child = self.machines.pipes(&arguments)?;
        if let Some(mut input) = child.stdin.take() {
            let mut zeros = tokio::io::repeat(0).take(size);
            tokio::io::copy(&mut zeros, &mut input).await.map_err(broken)?;
        }
        finish(child, &arguments).await?;
        Ok(begun.elapsed())
    }
}

/// What starts took in all, and in each of their stages.
#[derive(Default)]
pub(super) struct Starts {
    times: Vec<f64>,
    stages: BTreeMap<usize, (String, Vec<f64>)>,
    rest: Vec<f64>,
}

impl Starts {
    fn add(&mut self, took: f64, stages: &[Stage]) {
        let mut known = 0.0;
        for (index, stage) in stages.iter().enumerate() {
            let time = milliseconds(Duration::from_micros(stage.duration_us));
            known += time;
            let (_, samples) = self
                .stages
                .entry(index)
                .or_insert_with(|| (stage.name.clone(), Vec::new()));
            samples.push(time);
        }
        self.times.push(took);
        self.rest.push(took - known);
    }

    /// Returns what they took in all.
    pub(super) fn times(&self) -> &[f64] {
        &self.times
    }

    /// Returns what a stage of them took.
    pub(super) fn stage(&self, name: &str) -> &[f64] {
        let mut stages = self.stages.values();
        stages.find(|(of, _)| of == name).map_or(&[], |(_, times)| times)
    }

    fn tell(&self, what: &str, report: &mut Report) {
        for (name, samples) in self.stages.values() {
            report.add(&format!("{what}: {name}"), Unit::Milliseconds, samples);
        }
        report.add(&format!("{what}: the rest"), Unit::Milliseconds, &self.rest);
    }
}

/// Writes bytes that nothing on the way could make smaller.
fn write_random(path: &Path, size: u64) -> std::io::Result<()> {
    let mut random = File::open("/dev/urandom")?.take(size);
    let mut file = File::create_new(path)?;
    std::io::copy(&mut random, &mut file)?;
    file.flush()
}
