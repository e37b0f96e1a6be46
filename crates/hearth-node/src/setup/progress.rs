//! What set-up tells about itself while it works, for progress bars and logs.

use std::fmt;
use std::sync::Arc;

/// One thing that set-up does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Asks the distribution for a package.
    FindPackage,
    /// Downloads it.
    Download,
    /// Takes files out of it.
    Unpack,
    /// Checks that what a kernel build needs is there.
    CheckTools,
    /// Configures a kernel build.
    Configure,
    /// Builds a kernel.
    Compile,
    /// Takes the kernel out of its image and checks it.
    Kernel,
    /// Collects the modules that a guest needs.
    Modules,
    /// Checks the guest agent.
    Agent,
    /// Writes the initramfs.
    Initramfs,
    /// Looks for Firecracker, checks and installs it.
    Firecracker,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FindPackage => "find package",
            Self::Download => "download",
            Self::Unpack => "unpack",
            Self::CheckTools => "check tools",
            Self::Configure => "configure",
            Self::Compile => "compile",
            Self::Kernel => "kernel",
            Self::Modules => "modules",
            Self::Agent => "agent",
            Self::Initramfs => "initramfs",
            Self::Firecracker => "firecracker",
        })
    }
}

/// What `done` and `total` count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Files, modules, steps of a build.
    Items,
}

/// One event of set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A step is under way. The first event of a step has `done` 0.
    Running {
        /// The step.
        step: Step,
        /// How much of it is done.
        done: u64,
        /// How much there is to do, when that is known.
        total: Option<u64>,
        /// What both count.
        unit: Unit,
    },
    /// A step is done.
    Finished {
        /// The step.
        step: Step,
        /// What came of it, in a few words.
        detail: String,
    },
}

/// The listener, shared with the threads that do the work.
#[derive(Clone)]
pub(super) struct Listener(Arc<dyn Fn(Progress) + Send + Sync>);

impl Listener {
    pub(super) fn to(listener: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }

    pub(super) fn say(&self, event: Progress) {
        (self.0)(event);
    }

    pub(super) fn begin(&self, step: Step) {
        self.say(Progress::Running {
            step,
            done: 0,
            total: None,
            unit: Unit::Items,
        });
    }

    pub(super) fn finish(&self, step: Step, detail: impl fmt::Display) {
        self.say(Progress::Finished {
            step,
            detail: detail.to_string(),
        });
    }
}
