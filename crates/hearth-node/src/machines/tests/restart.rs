//! Restart policies in the actor; what they decide is tested in `hearth_machine::restart`.

use hearth_machine::MachineName;

use super::*;

async fn waiting(bench: &Bench, name: &str) -> Machine {
    let machine = bench
        .try_create(name, "exit", |spec| spec.restart = Some("always".to_owned()))
        .await
        .unwrap();
    machine.start(None).await.unwrap();
    let restarting = |view: &View| matches!(view.state, State::Restarting(_));
    machine.view.clone().wait_for(restarting).await.unwrap();
    machine
}

#[tokio::test]
async fn a_failure_is_restarted_so_many_times() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench
        .try_create("one", "exit", |spec| {
            spec.restart = Some("on-failure:2".to_owned())
        })
        .await
        .unwrap();
    machine.start(None).await.unwrap();
    machine.ended().await;
    assert_eq!(exited(&machine), 3);
    assert_eq!(machine.view().record.restart.restarts, 2);
    // By hand, it begins anew.
    machine.start(None).await.unwrap();
    machine.ended().await;
    assert_eq!(machine.view().record.restart.restarts, 2);
    bench.assert_released(&machine);
}

#[tokio::test]
async fn one_that_waits_for_its_restart_can_be_stopped_updated_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let stopped = waiting(&bench, "stopped").await;
    stopped.stop(GRACE).await.unwrap();
    assert_eq!(exited(&stopped), 3);
    let updated = waiting(&bench, "updated").await;
    let change = Change {
        restart: Some("no".to_owned()),
        ..Change::default()
    };
    updated.update(change).await.unwrap();
    updated.ended().await;
    assert_eq!(exited(&updated), 3);
    let removed = waiting(&bench, "removed").await;
    removed.remove(true).await.unwrap();
    assert!(!bench.directory(&removed).exists());
}

#[tokio::test]
async fn a_restart_keeps_what_rm_would_remove() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench
        .try_create("one", "run", |spec| spec.auto_remove = true)
        .await
        .unwrap();
    machine.start(None).await.unwrap();
    machine.restart(GRACE).await.unwrap();
    assert_eq!(machine.view().state, State::Running);
    machine.stop(GRACE).await.unwrap();
    machine.removed().await;
    let events: Vec<_> = bench
        .machines
        .parts()
        .events
        .reader(Some(jiff::Timestamp::UNIX_EPOCH))
        .batch(99);
    let actions = events.iter().map(|told| match told {
        Told::Event(event) => event.action.name(),
        Told::Lost(_) => "lost",
    });
    let expected = [
        "create", "start", "die", "stop", "restart", "start", "die", "stop", "destroy",
    ];
    let mut actions: Vec<_> = actions.collect();
    let mut sorted = expected.to_vec();
    // The restart is told when it begins, the start when its workload runs.
    actions.sort_unstable();
    sorted.sort_unstable();
    assert_eq!(actions, sorted);
}

#[tokio::test]
async fn a_name_that_is_given_up_is_free_at_once() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let (one, two) = (bench.create("one", "run").await, bench.create("two", "run").await);
    let name = |text: &str| text.parse::<MachineName>().unwrap();
    let taken = one.rename(name("two")).await.unwrap_err();
    assert!(matches!(taken, MachineError::NameTaken { .. }), "{taken}");
    one.rename(name("one")).await.unwrap();
    one.rename(name("three")).await.unwrap();
    two.rename(name("one")).await.unwrap();
    assert_eq!(bench.machines.find("one").unwrap().id(), two.id());
    assert_eq!(bench.machines.find("three").unwrap().id(), one.id());
    assert!(bench.machines.find("two").is_err());
}

#[test]
fn a_new_node_restarts_what_was_to_be_restarted() {
    let root = tempfile::tempdir().unwrap();
    killed_after(async {
        let bench = Bench::new(&root).await;
        waiting(&bench, "waiting").await;
        let stopped = waiting(&bench, "stopped").await;
        stopped.stop(GRACE).await.unwrap();
    });
    killed_after(async {
        let bench = Bench::node(root.path(), Pace::default(), 1).await;
        bench.machines.recover().await.unwrap();
        let machine = bench.machines.find("waiting").unwrap();
        let restarted = |view: &View| view.record.restart.restarts > 0;
        machine.view.clone().wait_for(restarted).await.unwrap();
        assert_eq!(exited(&bench.machines.find("stopped").unwrap()), 3);
    });
}

#[test]
fn after_a_reboot_of_the_host_policies_say_what_is_started() {
    let root = tempfile::tempdir().unwrap();
    let cases = [
        ("never", "no", true),
        ("failed", "on-failure", true),
        ("always-stopped", "always", false),
        ("unless-stopped", "unless-stopped", false),
        ("running", "unless-stopped", true),
    ];
    killed_after(async {
        let bench = Bench::new(&root).await;
        for (name, policy, runs) in cases {
            let machine = bench
                .try_create(name, "run", |spec| spec.restart = Some(policy.to_owned()))
                .await
                .unwrap();
            machine.start(None).await.unwrap();
            if !runs {
                machine.stop(GRACE).await.unwrap();
            }
        }
        bench.create("created", "run").await;
    });
    killed_after(async {
        let bench = Bench::node_in_boot(root.path(), Pace::default(), 4, "the next boot").await;
        bench.machines.recover().await.unwrap();
        for name in ["failed", "always-stopped", "running"] {
            let machine = bench.machines.find(name).unwrap();
            let runs = |view: &View| view.state == State::Running;
            machine.view.clone().wait_for(runs).await.unwrap();
        }
        let state = |name| bench.machines.find(name).unwrap().view().state;
        assert!(matches!(state("never"), State::Failed { .. }));
        assert_eq!(state("created"), State::Created);
        assert!(matches!(state("unless-stopped"), State::Exited(_)));
    });
    // The node of that boot is no reboot.
    killed_after(async {
        let bench = Bench::node_in_boot(root.path(), Pace::default(), 4, "the next boot").await;
        bench.machines.recover().await.unwrap();
        assert!(matches!(
            bench.machines.find("unless-stopped").unwrap().view().state,
            State::Exited(_)
        ));
    });
}
