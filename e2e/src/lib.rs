//! The harness of the end-to-end tests: nodes with a home of their own, the `hearth` they are used through, registries and
//! images to feed them, and a search for what they leave behind.
//!
//! ```text
//! check(TestNode::ready, |node| ...)      one test: make a node, use it, close it; a leak fails the test
//!        |                   `-- node.hearth([...]).run()   the command line, with a deadline
//!        |-- setup      a home with kernel, agent and the image `busybox`, made once per build of hearth
//!        |-- permits    as many nodes at once as this host runs machines without starving them
//!        |-- podman     the reference that Hearth is held beside
//!        `-- leaks      processes, mounts, loop devices, sockets, memory and cgroups of a closed node
//! ```
//! The tests themselves are in `tests/all`. `HEARTH_E2E_BINARY` names another `hearth` to test, `HEARTH_E2E_KEEP=1` keeps
//! homes, `HEARTH_E2E_SOAK=1` makes the long tests long, with `HEARTH_E2E_METAL=1` what cannot run here fails.

pub mod archive;
mod bare;
mod binary;
mod captured;
mod command;
mod faulty;
pub mod handmade;
mod image;
mod leaks;
mod node;
mod permits;
mod podman;
mod registry;
mod setup;
mod skip;
mod terminal;
mod text;
mod tree;
mod user;

pub use bare::BareGuest;
pub use binary::hearth_binary;
pub use captured::Captured;
pub use command::{DEADLINE, Invocation, Outcome, Running};
pub use faulty::{Act, Faulty, Reply, Request, Seen};
pub use image::{Layout, debian_python};
pub use node::{Driver, NO_STANDBYS, TestNode, check};
pub use permits::is_quiet;
pub use podman::Podman;
pub use registry::{PASSWORD, Registry, USER};
pub use skip::{is_metal, is_soak, missing_program, report_skipped};
pub use terminal::{Terminal, is_raw};
pub use text::{contains, random_bytes, sha256};
pub use tree::{files_that_contain, link_tree};
