use super::*;

#[tokio::test]
async fn this_host_is_examined_whole() {
    let data = tempfile::tempdir().unwrap();
    let layout = Layout::new(
        data.path(),
        data.path().join("run"),
        "/dev/shm/hearth-doctor-test",
    );
    let report = examine(&layout).await;
    for check in &report.checks {
        println!("{:8} {:22} {}", check.state, check.name, check.detail);
    }
    println!("took {:?}", report.took);
    let names: Vec<&str> = report.checks.iter().map(|check| check.name).collect();
    for name in [
        "kvm",
        "qemu",
        "guest-kernel",
        "guest-memory",
        "reflink",
        "cgroups",
        "landlock",
        "tun",
        "networks",
        "forwarding",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    // Nothing is set up in a fresh directory, and that alone stops machines.
    assert!(!report.can_run);
    let kernel = report
        .checks
        .iter()
        .find(|check| check.name == "guest-kernel")
        .unwrap();
    assert_eq!(kernel.state, State::Missing);
    assert_eq!(kernel.remedy.as_deref(), Some("hearth setup"));
}

#[tokio::test]
async fn whatever_is_not_ok_says_why() {
    let data = tempfile::tempdir().unwrap();
    let layout = Layout::new(data.path(), data.path().join("run"), "/proc/not-a-tmpfs");
    let report = examine(&layout).await;
    for check in report.checks.iter().filter(|check| check.state != State::Ok) {
        assert!(check.cause.is_some(), "{check:?}");
    }
    assert_eq!(
        std::fs::read_dir(data.path()).unwrap().count(),
        0,
        "it left something behind"
    );
}

#[test]
fn only_what_is_missing_stops_machines() {
    let absent = Check::absent("firecracker", "not installed");
    let warning = Check::warning("kvm", "emulated");
    assert!(can_run(&[absent.clone(), warning]));
    assert!(!can_run(&[absent, Check::missing("qemu", "not installed")]));
}
