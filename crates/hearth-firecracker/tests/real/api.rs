//! What Firecracker accepts, tells back and refuses, without a guest.

use std::fs;

use anyhow::{Result, ensure};
use hearth_firecracker::jailer::Firecracker;
use hearth_firecracker::model::{
    Access, Action, BootSource, CpuConfiguration, CpuidModifier, CpuidRegister, CpuidRegisterModifier, Drive,
    DriveBackend, HugePages, InstanceState, LogLevel, Logger, MachineConfiguration,
    MachineConfigurationUpdate, RateLimiter, TokenBucket, VmState, Vsock,
};
use hearth_firecracker::{ClientError, Version};

use crate::host::{DRIVE, VSOCK, skip_without_firecracker};

#[tokio::test]
async fn firecracker_tells_its_version_and_it_is_a_supported_one() -> Result<()> {
    let host = skip_without_firecracker!();
    let output = tokio::process::Command::new(&host.firecracker)
        .arg("--version")
        .output()
        .await?;
    let printed = Version::from_output(&String::from_utf8(output.stdout)?)?;
    let vmm = host.start().await?;
    assert_eq!(vmm.client.version().await?, printed);
    assert_eq!(printed.check()?, printed);
    let info = vmm.client.instance().await?;
    assert_eq!(
        (&*info.app_name, &*info.id, info.state),
        ("Firecracker", "test", InstanceState::NotStarted)
    );
    assert_eq!(info.vmm_version, printed.to_string());
    vmm.end().await
}

#[tokio::test]
async fn what_is_configured_is_told_back() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.start().await?;
    vmm.configure(&host.guest).await?;
    fs::write(vmm.path("log"), "")?;
    let client = &vmm.client;
    let logger = Logger {
        level: Some(LogLevel::Warning),
        path: Some("log".into()),
        show_level: Some(true),
        show_log_origin: Some(true),
        module: None,
    };
    client.set_logger(&logger).await?;
    let mut drive = Drive::of_file("data_2".parse()?, DRIVE, Access::ReadOnly);
    if let DriveBackend::File { rate_limiter, .. } = &mut drive.backend {
        *rate_limiter = Some(RateLimiter {
            bandwidth: Some(TokenBucket {
                size: 1000,
                one_time_burst: Some(500),
                refill_ms: 10,
            }),
            ops: Some(TokenBucket::per_second(100)),
        });
    }
    client.set_drive(&drive).await?;
    client
        .update_machine_configuration(&MachineConfigurationUpdate {
            vcpu_count: Some(2),
            smt: Some(true),
            ..Default::default()
        })
        .await?;

    let machine = MachineConfiguration {
        smt: true,
        track_dirty_pages: true,
        ..MachineConfiguration::new(2, crate::host::MEMORY_MIB)
    };
    assert_eq!(client.machine_configuration().await?, machine);
    let told = client.vm_configuration().await?;
    assert_eq!(told.machine_config, Some(machine));
    assert_eq!(told.drives.len(), 2);
    ensure!(told.drives.contains(&drive), "{:?}", told.drives);
    assert_eq!(
        told.vsock,
        Some(Vsock {
            guest_cid: 3,
            socket: VSOCK.into()
        })
    );
    assert_eq!(
        told.boot_source.map(|boot| (boot.kernel, boot.arguments)),
        Some((host.guest, Some("quiet".into())))
    );
    assert_eq!(told.balloon.map(|balloon| balloon.statistics_interval_s), Some(1));
    ensure!(
        told.entropy.is_some() && told.network_interfaces.is_empty(),
        "{:?}",
        told.entropy
    );
    vmm.end().await
}

#[tokio::test]
async fn metadata_is_kept_and_merged() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.start().await?;
    let data = serde_json::json!({"a": {"b": "c"}, "d": "e"});
    vmm.client.set_metadata(&data).await?;
    vmm.client
        .update_metadata(&serde_json::json!({"a": {"f": "g"}, "d": null}))
        .await?;
    let told: serde_json::Value = vmm.client.metadata().await?;
    assert_eq!(told, serde_json::json!({"a": {"b": "c", "f": "g"}}));
    let large = serde_json::json!({ "x": "y".repeat(100_000) });
    let error = vmm.client.set_metadata(&large).await.unwrap_err();
    ensure!(matches!(error, ClientError::Refused { .. }), "{error}");
    vmm.end().await
}

#[tokio::test]
async fn flags_of_the_processor_are_accepted() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.start().await?;
    let modifier = CpuidRegisterModifier {
        register: CpuidRegister::Ecx,
        bitmap: "0bxxxx0xxxxxxxxxxxxxxxxxxxxxxxxxxx".parse()?,
    };
    let configuration = CpuConfiguration {
        cpuid_modifiers: vec![CpuidModifier {
            leaf: 1,
            subleaf: 0,
            flags: 0,
            modifiers: vec![modifier],
        }],
        ..Default::default()
    };
    vmm.client.set_cpu_configuration(&configuration).await?;
    let told = vmm.client.vm_configuration().await?;
    ensure!(
        told.cpu_config.is_none() || told.cpu_config == Some(configuration),
        "{:?}",
        told.cpu_config
    );
    vmm.end().await
}

#[tokio::test]
async fn refusals_say_why() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.start().await?;
    let client = &vmm.client;
    let refused = |result: Result<(), ClientError>, part: &str| {
        let error = result.unwrap_err();
        let message = error.fault_message().unwrap_or_default().to_lowercase();
        assert!(message.contains(part), "{error}, without {part:?}");
    };
    refused(client.act(Action::InstanceStart).await, "kernel");
    refused(
        client
            .set_machine_configuration(&MachineConfiguration::new(0, 128))
            .await,
        "vcpu",
    );
    refused(
        client
            .set_machine_configuration(&MachineConfiguration::new(1, 0))
            .await,
        "memory",
    );
    let mut huge = MachineConfiguration::new(1, 127);
    huge.huge_pages = HugePages::TwoMib;
    refused(client.set_machine_configuration(&huge).await, "memory");
    let missing = Drive::of_file("d".parse()?, "nowhere.img", Access::ReadOnly);
    refused(client.set_drive(&missing).await, "no such file");
    refused(client.set_vm_state(VmState::Paused).await, "not supported");
    let boot = |kernel: &str| BootSource {
        kernel: kernel.into(),
        initramfs: None,
        arguments: None,
    };
    refused(client.set_boot_source(&boot("nowhere")).await, "no such file");
    fs::write(vmm.path("text"), "not a kernel")?;
    client.set_boot_source(&boot("text")).await?;
    refused(client.act(Action::InstanceStart).await, "kernel");
    vmm.end().await
}

#[tokio::test]
async fn a_second_firecracker_does_not_take_over_a_socket() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.start().await?;
    let second = tokio::process::Command::new(&host.firecracker)
        .args(Firecracker::new("api.sock").arguments(&"second".parse()?))
        .current_dir(&vmm.directory)
        .output()
        .await?;
    ensure!(!second.status.success(), "{second:?}");
    assert_eq!(vmm.client.instance().await?.id, "test");
    vmm.end().await
}
