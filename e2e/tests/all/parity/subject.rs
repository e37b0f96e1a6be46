//! Who is asked. Both sides take docker's command line, so they differ in their program only.

use std::time::Duration;

use anyhow::Result;
use e2e::{Invocation, Outcome, Podman, Terminal, TestNode};

/// Makes a call of arguments.
type Call<'a> = Box<dyn Fn(Vec<&str>) -> Invocation + Send + Sync + 'a>;

/// One side.
pub(super) struct Subject<'a> {
    call: Call<'a>,
    image: String,
    /// How many processes at once are a fair load: each of podman's is three.
    pub(super) crowd: usize,
}

/// How fast a person types.
const BETWEEN_KEYS: Duration = Duration::from_millis(200);

/// The settings of the second machine.
const WORLD: [&str; 13] = [
    "--init",
    "--read-only",
    "--tmpfs=/scratch:size=1m,mode=750",
    "--tmpfs=/home/ada:exec",
    "--add-host=db:10.1.2.3",
    "--ulimit=nofile=100:200",
    "--ulimit=nproc=1024:1024",
    "--group-add=engine",
    "--group-add=77",
    "--hostname=lighthouse",
    "--env=FROM_RUN=1",
    "--workdir=/tmp",
    "--user=ada",
];

impl<'a> Subject<'a> {
    /// Hearth.
    pub(super) fn hearth(node: &'a TestNode, image: String) -> Self {
        let call = move |arguments: Vec<&str>| match arguments.split_first() {
            Some((&"run", rest)) => node.run(rest),
            _ => node.hearth(arguments),
        };
        Self {
            call: Box::new(call),
            image,
            crowd: 50,
        }
    }

    /// podman.
    pub(super) fn podman(podman: &'a Podman) -> Self {
        Self {
            call: Box::new(|arguments| podman.call(arguments)),
            image: podman.image().to_owned(),
            crowd: 10,
        }
    }

    /// Starts a plain machine `m`, and one with settings `w`.
    pub(super) fn prepare(&self) -> Result<()> {
        let stay = [self.image.as_str(), "sleep", "3600"];
        self.call(&["run", "-d", "--name", "m", "--env=INHERITED=yes"], &stay)
            .ok()?;
        let flags: Vec<&str> = ["run", "-d", "--name", "w"].into_iter().chain(WORLD).collect();
        self.call(&flags, &stay).ok()?;
        Ok(())
    }

    /// Names a call.
    pub(super) fn call(&self, head: &[&str], rest: &[&str]) -> Invocation {
        (self.call)([head, rest].concat())
    }

    /// Names a process beside the workload of the plain machine.
    pub(super) fn exec(&self, flags: &[&str], command: &[&str]) -> Invocation {
        self.call(&[&["exec"], flags, &["m"]].concat(), command)
    }

    /// Names a process beside the workload of the machine with settings.
    pub(super) fn world(&self, flags: &[&str], command: &[&str]) -> Invocation {
        self.call(&[&["exec"], flags, &["w"]].concat(), command)
    }

    /// Names a machine of its own that is removed when it ends.
    pub(super) fn run(&self, flags: &[&str], command: &[&str]) -> Invocation {
        let head = [&["run", "--rm"], flags, &[self.image.as_str()]].concat();
        self.call(&head, command)
    }

    /// Names a machine that stays when it ends.
    pub(super) fn keep(&self, flags: &[&str], command: &[&str]) -> Invocation {
        let head = [&["run"], flags, &[self.image.as_str()]].concat();
        self.call(&head, command)
    }

    /// Types ctrl-a d, as a person does: podman knows keys only that come one by one.
    pub(super) fn leave(&self, terminal: &mut Terminal) -> Result<()> {
        terminal.type_in("\x01")?;
        std::thread::sleep(BETWEEN_KEYS);
        terminal.type_in("d")
    }

    /// Waits until a process of the plain machine has these arguments; false when none comes.
    pub(super) fn goes_on(&self, arguments: &str) -> Result<bool> {
        let script = format!(
            "for i in $(seq 20); do ps -o args | grep -q '^{arguments}' && exit 0; sleep 0.1; done; exit 1"
        );
        Ok(self.exec(&[], &["sh", "-c", &script]).run()?.code == 0)
    }

    /// Waits until no process of the plain machine has these arguments, and says so.
    pub(super) fn fate(&self, arguments: &str) -> Result<String> {
        let script = format!(
            "for i in $(seq 20); do ps -o args | grep -q '^{arguments}' || exit 0; sleep 0.1; done; exit 1"
        );
        let gone = self.exec(&[], &["sh", "-c", &script]).run()?.code == 0;
        Ok(if gone { "gone" } else { "goes on" }.to_owned())
    }
}

/// Returns an exit code and what was printed.
pub(super) fn seen(outcome: &Outcome) -> String {
    format!("{} {}", outcome.code, String::from_utf8_lossy(&outcome.stdout))
}
