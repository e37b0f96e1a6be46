//! The only caller of the operating system.

mod ambient;
pub mod cgroup;
pub mod command;
pub mod confine;
pub mod console;
pub mod datagram;
pub mod facts;
pub mod failpoint;
pub mod fence;
pub mod files;
pub mod fork;
pub mod kvm;
pub mod launch;
pub mod lock;
pub mod mapped;
pub mod memory_changes;
pub mod memory_image;
pub mod network_namespace;
pub mod own;
pub mod packet_socket;
pub mod page_faults;
pub mod passing;
pub mod peer;
pub mod poller;
pub mod process;
pub mod process_memory;
#[cfg(test)]
pub mod skip;
pub mod unix_socket;
pub mod usage;
pub mod watch;
