//! Requests and replies as they are on the wire.

use serde::Serialize;
use serde_json::{Value, json};

use super::*;

fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

fn wire(message: &impl Serialize) -> Value {
    serde_json::to_value(message).unwrap()
}

#[test]
fn machines_are_written_so() {
    assert_eq!(
        wire(&MachineConfiguration::new(2, 512)),
        json!({"vcpu_count": 2, "mem_size_mib": 512, "smt": false, "track_dirty_pages": false, "huge_pages": "None"})
    );
    let update = MachineConfigurationUpdate {
        memory_mib: Some(256),
        huge_pages: Some(HugePages::TwoMib),
        ..Default::default()
    };
    assert_eq!(wire(&update), json!({"mem_size_mib": 256, "huge_pages": "2M"}));
    let boot = BootSource {
        kernel: "vmlinux".into(),
        initramfs: None,
        arguments: Some(String::new()),
    };
    assert_eq!(
        wire(&boot),
        json!({"kernel_image_path": "vmlinux", "boot_args": ""})
    );
}

#[test]
fn flags_of_the_processor_are_written_so() {
    let configuration = CpuConfiguration {
        kvm_capabilities: vec!["!171".into()],
        cpuid_modifiers: vec![CpuidModifier {
            leaf: 7,
            subleaf: 0,
            flags: 1,
            modifiers: vec![CpuidRegisterModifier {
                register: CpuidRegister::Ebx,
                bitmap: "0bx00100xxx1xxxxxxxxxxxxxxxxxxxxx1".parse().unwrap(),
            }],
        }],
        msr_modifiers: vec![MsrModifier {
            addr: 0x10a,
            bitmap: "0b0000".parse().unwrap(),
        }],
    };
    let expected = json!({
        "kvm_capabilities": ["!171"],
        "cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0x0", "flags": 1,
            "modifiers": [{"register": "ebx", "bitmap": "0bx00100xxx1xxxxxxxxxxxxxxxxxxxxx1"}]}],
        "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b0000"}],
    });
    assert_eq!(wire(&configuration), expected);
    assert_eq!(
        serde_json::from_value::<CpuConfiguration>(expected).unwrap(),
        configuration
    );
    for text in ["", "0b", "0b2", "1x0", "0b_"] {
        assert!(text.parse::<Bitmap>().is_err(), "{text:?}");
    }
}

#[test]
fn drives_are_written_so_and_read_back() {
    let drive = Drive::of_file(id("root_1"), "rootfs.img", Access::ReadOnly);
    let expected = json!({"drive_id": "root_1", "is_root_device": false, "cache_type": "Writeback",
        "path_on_host": "rootfs.img", "is_read_only": true, "io_engine": "Sync"});
    assert_eq!(wire(&drive), expected);
    // Firecracker also tells what is not there.
    let mut told = expected;
    told["socket"] = Value::Null;
    told["partuuid"] = Value::Null;
    assert_eq!(serde_json::from_value::<Drive>(told).unwrap(), drive);
    let other = json!({"drive_id": "v", "is_root_device": false, "cache_type": "Unsafe", "socket": "v.sock",
        "path_on_host": null, "is_read_only": null, "io_engine": null, "rate_limiter": null});
    assert_eq!(
        serde_json::from_value::<Drive>(other).unwrap().backend,
        DriveBackend::VhostUser {
            socket: "v.sock".into()
        }
    );
    let update = DriveUpdate {
        id: id("root_1"),
        path_on_host: None,
        rate_limiter: Some(RateLimiter {
            bandwidth: Some(TokenBucket::bytes_per_second(1_000_000)),
            ops: None,
        }),
    };
    assert_eq!(
        wire(&update),
        json!({"drive_id": "root_1", "rate_limiter": {"bandwidth": {"size": 250_000, "refill_time": 250}}})
    );
}

#[test]
fn a_bucket_of_bytes_holds_what_one_request_may_have() {
    let bucket = |bytes| {
        let TokenBucket { size, refill_ms, .. } = TokenBucket::bytes_per_second(bytes);
        (size, refill_ms)
    };
    assert_eq!(bucket(1 << 20), (256 << 10, 250));
    assert_eq!(bucket(256 << 10), (64 << 10, 250));
    assert_eq!(bucket(64 << 10), (64 << 10, 1000));
    assert_eq!(bucket(1), (64 << 10, 65_536_000));
    assert_eq!(bucket(0), (0, 250));
}

#[test]
fn networks_and_channels_are_written_so() {
    let interface = NetworkInterface {
        id: id("eth0"),
        tap: "tap0".into(),
        guest_mac: None,
        rx_rate_limiter: None,
        tx_rate_limiter: Some(RateLimiter {
            bandwidth: None,
            ops: Some(TokenBucket {
                size: 5,
                one_time_burst: Some(9),
                refill_ms: 1000,
            }),
        }),
    };
    assert_eq!(
        wire(&interface),
        json!({"iface_id": "eth0", "host_dev_name": "tap0",
            "tx_rate_limiter": {"ops": {"size": 5, "one_time_burst": 9, "refill_time": 1000}}})
    );
    let vsock = Vsock {
        guest_cid: 3,
        socket: "v.sock".into(),
    };
    assert_eq!(wire(&vsock), json!({"guest_cid": 3, "uds_path": "v.sock"}));
    assert_eq!(wire(&Entropy::default()), json!({}));
    let mmds = MmdsConfiguration {
        version: MmdsVersion::V2,
        network_interfaces: vec![id("eth0")],
        ipv4_address: Some([169, 254, 1, 2].into()),
    };
    assert_eq!(
        wire(&mmds),
        json!({"version": "V2", "network_interfaces": ["eth0"], "ipv4_address": "169.254.1.2"})
    );
}

#[test]
fn snapshots_are_written_so() {
    let snapshot = Snapshot {
        kind: SnapshotKind::Diff,
        state: "state".into(),
        memory: "memory".into(),
    };
    assert_eq!(
        wire(&snapshot),
        json!({"snapshot_type": "Diff", "snapshot_path": "state", "mem_file_path": "memory"})
    );
    let mut load = LoadSnapshot::of_files("state", "memory");
    assert_eq!(
        wire(&load),
        json!({"snapshot_path": "state", "mem_backend": {"backend_type": "File", "backend_path": "memory"},
            "enable_diff_snapshots": false, "resume_vm": true})
    );
    load.memory = MemoryBackend::Uffd("uffd.sock".into());
    load.network_overrides = vec![NetworkOverride {
        id: id("eth0"),
        tap: "tap7".into(),
    }];
    assert_eq!(
        wire(&load),
        json!({"snapshot_path": "state", "mem_backend": {"backend_type": "Uffd", "backend_path": "uffd.sock"},
            "enable_diff_snapshots": false, "resume_vm": true,
            "network_overrides": [{"iface_id": "eth0", "host_dev_name": "tap7"}]})
    );
}

#[test]
fn observers_balloons_and_actions_are_written_so() {
    let logger = Logger {
        level: Some(LogLevel::Warning),
        path: Some("vmm.log".into()),
        show_level: Some(true),
        ..Default::default()
    };
    assert_eq!(
        wire(&logger),
        json!({"level": "Warning", "log_path": "vmm.log", "show_level": true})
    );
    let balloon = Balloon {
        amount_mib: 16,
        deflate_on_oom: true,
        statistics_interval_s: 1,
    };
    assert_eq!(
        wire(&balloon),
        json!({"amount_mib": 16, "deflate_on_oom": true, "stats_polling_interval_s": 1})
    );
    let action = ActionRequest {
        action_type: Action::SendCtrlAltDel,
    };
    assert_eq!(wire(&action), json!({"action_type": "SendCtrlAltDel"}));
    let state = VmUpdate {
        state: VmState::Resumed,
    };
    assert_eq!(wire(&state), json!({"state": "Resumed"}));
}

#[test]
fn ids_that_would_leave_a_path_are_refused() {
    for text in ["", "a/b", "..", "a b", "a?b", "é", &"x".repeat(65)] {
        assert!(text.parse::<DeviceId>().is_err(), "{text:?}");
    }
    assert_eq!(id("rootfs_1").to_string(), "rootfs_1");
}
