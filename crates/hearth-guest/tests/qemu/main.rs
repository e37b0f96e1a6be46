//! The agent in a real machine. Needs QEMU, a kernel (`HEARTH_TEST_KERNEL`, an ELF or bzImage), a folder of modules
//! (`HEARTH_TEST_MODULES`: *.ko, loaded in the order of their names) and the agent, built for musl with the profile
//! `guest` (`HEARTH_TEST_GUEST` says where, if it is not in cargo's target folder).

mod client;
mod machine;

use hearth_guest_protocol::message::{Outcome, Role};

use client::{command, shell};
use machine::Machine;

#[test]
fn a_machine_boots_and_runs_its_workload_to_the_end() {
    let Some((machine, mut client)) = Machine::boot() else {
        return;
    };
    client.ready();
    let main = client.run(&command(
        Role::Main,
        &["sh", "-c", "echo $$; echo err >&2; exit 3"],
    ));
    assert_eq!((main.text().as_str(), &main.stderr[..]), ("1\n", &b"err\n"[..]));
    assert_eq!((main.ended_streams, main.outcome()), (2, Outcome::Exited(3)));
    assert!(
        machine.console().starts_with("hearth-guest "),
        "{}",
        machine.console()
    );
}

#[test]
fn processes_beside_the_workload_share_its_world() {
    let Some((_machine, mut client)) = Machine::boot() else {
        return;
    };
    client.with_workload();
    let seen = client.run(&shell(
        "cat /proc/1/cmdline | tr '\\0' ' '; hostname; ls /; mount; cat /etc/resolv.conf; id",
    ));
    println!("{}{}", seen.text(), String::from_utf8_lossy(&seen.stderr));
    assert!(seen.text().starts_with("sleep 100000 box\n"));
}
