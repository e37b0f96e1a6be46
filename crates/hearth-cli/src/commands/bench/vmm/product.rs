//! Machines of the node beside Firecracker itself: what jail, disks and drivers add up to the first reply.

use hearth_api::v1::Stage;

use super::super::subjects::Bencher;
use crate::error::CliError;

/// The variable by which a node boots the bare guest. Machines of another kernel would be no comparison.
const BARE_GUEST: &str = "HEARTH_BARE_GUEST";

/// What a machine begins with.
#[derive(Clone, Copy)]
pub(super) enum Beginning {
    /// A boot.
    Boot,
    /// The template of its kind.
    Template,
}

impl Beginning {
    /// The stages from the monitor's spawn to the guest's first reply.
    const fn stages(self) -> [&'static str; 2] {
        match self {
            Self::Boot => ["vmm", "kernel"],
            Self::Template => ["restore", "hello"],
        }
    }
}

/// The node, where its machines are those of the bare guest.
pub(super) struct Product<'b> {
    bencher: &'b Bencher<'b>,
}

impl<'b> Product<'b> {
    /// Takes the node, where it is one for that, and has it make the template.
    pub(super) async fn of(bencher: &'b Bencher<'b>) -> Result<Option<Self>, CliError> {
        if std::env::var_os(BARE_GUEST).is_none() {
            return Ok(None);
        }
        let product = Self { bencher };
        // The first one boots, whatever it is to begin with.
        product.start("first", &[]).await?;
        Ok(Some(product))
    }

    /// Starts a machine, and returns how long it took to the first reply, in milliseconds.
    pub(super) async fn first_reply(&self, beginning: Beginning) -> Result<f64, CliError> {
        let flags: &[&str] = match beginning {
            Beginning::Boot => &["--no-template"],
            Beginning::Template => &[],
        };
        let stages = self.start("product", flags).await?;
        let counted = stages
            .iter()
            .filter(|stage| beginning.stages().contains(&stage.name.as_str()));
        Ok(counted.map(|stage| stage.duration_us as f64 / 1000.0).sum())
    }

    async fn start(&self, name: &str, flags: &[&str]) -> Result<Vec<Stage>, CliError> {
        let Bencher { node, machines, .. } = self.bencher;
        let name = machines.name(name);
        let mut arguments = machines.run_arguments(&name, self.bencher.memory);
        let more = ["-d", "--driver", "firecracker", "--network", "none"];
        let tail = [self.bencher.image, "wait"];
        arguments.extend(more.iter().chain(flags).chain(&tail).map(|&word| word.to_owned()));
        machines.time(&arguments).await?;
        let machine = node.call(async |client| client.inspect(&name).await).await?;
        node.call(async |client| client.remove(&name, true).await).await?;
        Ok(machine.stages)
    }
}
