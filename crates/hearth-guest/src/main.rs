//! The agent in the guest: PID 1 of every Linux machine, one thread, one event loop.
//!
//! ```text
//! main        boot, then the loop
//!   boot      mounts, kernel modules, limits; port finds the channel
//!   agent     frames and events in, sessions and control frames out
//!     machine   configure: clock, entropy, disks; stop: disks at rest
//!     session   one process, file operation or connection: its streams and its flow control; limit: its time
//!     outbox    what waits for the channel
//!     spawn     makes processes; child is what runs in them before execve (container, user, program, terminal)
//!     init      PID 1 of a workload that wants one: this binary, executed anew
//!     probe     what says whether a clone is a machine of its own: this binary, executed anew
//!     files     tar streams, in a child
//!     dial      connections to the loopback
//! timer       a time whose end wakes the loop
//! sys         every unsafe call
//! ```
//!
//! Single-threaded on purpose: so a forked child may run ordinary code before it executes the program.

mod agent;
mod backlog;
mod boot;
mod child;
mod connections;
mod console;
mod container;
mod core;
mod dial;
mod environment;
mod files;
mod init;
mod limit;
mod machine;
mod network;
mod outbox;
mod poller;
mod port;
mod probe;
mod processes;
mod program;
mod report;
mod session;
mod spawn;
mod stats;
mod stillness;
mod stop;
mod stream;
mod sys;
mod terminal;
mod timer;
mod trust;
mod uevents;
mod user;
mod waiting;
mod warmth;

fn main() {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if name == *init::NAME.to_string_lossy() {
        init::run(arguments);
    } else if name == *probe::NAME.to_string_lossy() {
        probe::run(arguments);
    }
    console::line(format_args!("hearth-guest {}", env!("CARGO_PKG_VERSION")));
    console::on_panic();
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        console::line(format_args!(
            "hearth-guest is the first process of a virtual machine, nothing else"
        ));
        std::process::exit(2);
    }
    let uptime = boot::uptime();
    let booted = boot::boot();
    match booted.and_then(|port| agent::Agent::new(port, uptime)) {
        Ok(mut agent) => agent.run(),
        Err(error) => console::fatal(format_args!("{error}")),
    }
}
