//! What a machine's monitor may take of the host: its limits, and when they come into force.

use hearth_api::v1::Border;
use hearth_machine::Spec;

use super::life::{Plan, chain, process_id};
use crate::host::cgroup::Limits;
use crate::records::VmmFact;
use crate::vmm::ProcessId;

/// What a monitor may hold beside its guest's memory: QEMU itself, its buffers, and the page cache of its disks.
const MONITOR_BYTES: u64 = 256 << 20;
/// What an emulating monitor may hold more: the code that it has translated (`tb-size` of its command line).
const TRANSLATED_BYTES: u64 = 256 << 20;
/// Threads of a monitor beside one for each virtual processor: 64 that wait for disks at most, and a few of its own.
const MONITOR_THREADS: u64 = 128;

/// Returns the limits of a machine's monitor.
fn of(spec: &Spec, border: Border) -> Limits {
    let translated = match border {
        Border::Kvm => 0,
        Border::Emulated => TRANSLATED_BYTES,
    };
    let shape = spec.shape();
    Limits {
        quota_us: spec.cpus.quota_us_per_100ms(),
        weight_milli: spec.cpus.milli(),
        memory: spec.memory.bytes() + MONITOR_BYTES + translated,
        tasks: u64::from(shape.vcpus) + MONITOR_THREADS,
    }
}

/// Puts the limits in force, once the guest is up: what was asked for is the workload's share, and a boot within a quota takes
/// many times as long. The kernel may take milliseconds to move a process, for which no start waits.
pub(super) fn impose(plan: &mut Plan, vmm: VmmFact) {
    let limits = of(&plan.spec, plan.border);
    let (id, parts) = (plan.id, plan.parts.clone());
    plan.limiting = Some(tokio::task::spawn_blocking(move || {
        if ProcessId::of(process_id(vmm).pid).ok().flatten() != Some(process_id(vmm)) {
            return; // It is gone already, and its number may be another's.
        }
        if let Err(error) = parts.groups.limit(&id.to_string(), vmm.pid, &limits) {
            tracing::warn!(machine = %id, error = %chain(&error), "the machine runs without a limit");
        }
    }));
}

/// Waits until nothing is done to the machine's groups any more.
pub(super) async fn settled(plan: &mut Plan) {
    if let Some(limiting) = plan.limiting.take() {
        // It does not panic, and nobody aborts it.
        let _ = limiting.await;
    }
}

#[cfg(test)]
mod tests {
    use hearth_api::v1::MachineSpec;
    use hearth_machine::{ByteSize, HostLimits};

    use super::*;
    use crate::records::spec;

    #[test]
    fn a_monitor_may_hold_its_guests_memory_and_a_stated_amount_more() {
        let host = HostLimits {
            memory: ByteSize::from_mib(1024),
            guest_memory: ByteSize::from_mib(1024),
            processors: 2,
        };
        let asked = MachineSpec {
            cpu_milli: Some(1500),
            memory_bytes: Some(512 << 20),
            ..MachineSpec::default()
        };
        let spec = spec::check(&asked, host).unwrap();
        let limits = of(&spec, Border::Kvm);
        assert_eq!(limits.memory, 768 << 20);
        assert_eq!((limits.quota_us, limits.weight_milli), (Some(150_000), 1500));
        assert_eq!(limits.tasks, 130);
        assert_eq!(of(&spec, Border::Emulated).memory, 1024 << 20);
    }
}
