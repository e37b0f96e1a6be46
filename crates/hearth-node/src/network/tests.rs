//! Networks against the kernel's firewall.

use hearth_machine::policy::{Ports, Preset};

use super::*;

/// Makes the networks of a node and a namespace without rules; nothing, where the host has none.
async fn bench() -> Option<(tempfile::TempDir, Arc<Shared>, Arc<NetworkNamespace>)> {
    if let Err(error) = Networks::check(NetworkMode::Filtered) {
        crate::host::skip::skipped(&error.to_string());
        return None;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = Layout::new(home.path(), home.path(), home.path());
    let Networks { shared } = Networks::open(&layout, TaskTracker::new());
    Some((home, shared, isolated().await.unwrap().namespace))
}

#[tokio::test]
async fn the_firewall_takes_the_rules_and_sets_them_anew() {
    let Some((_home, shared, namespace)) = bench().await else {
        return;
    };
    let network = shared.key.networks().next().unwrap();
    for _ in 0..2 {
        for rules in [rules::machine(), rules::host(shared.key, network)] {
            shared.nft(Some(&namespace), &rules).await.unwrap();
        }
    }
    let refused = shared.nft(Some(&namespace), "table inet {").await.unwrap_err();
    assert!(matches!(refused, NetworkError::Rules(_)), "{refused}");
}

#[tokio::test]
async fn the_firewall_holds_what_a_policy_says_and_no_more_after_the_next_one() {
    let Some((_home, shared, namespace)) = bench().await else {
        return;
    };
    shared.nft(Some(&namespace), &rules::machine()).await.unwrap();
    let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let policy = Policy {
        preset: Preset::Open,
        // Ranges that overlap each other, which the kernel would refuse.
        allow: read(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.0.0/16:80",
            "10.1.2.3:80",
            "*:8080",
            "a.com:443",
        ]),
        deny: read(&["192.0.2.0/24", "192.0.2.7:25", "*:25", "2001:db8::/32", "b.com"]),
    };
    let mut firewall = namespace.enter(Firewall::open).unwrap();
    let address = "203.0.113.1".parse().unwrap();
    for _ in 0..2 {
        firewall.apply(&policy).unwrap();
        firewall
            .pin(address, &Ports::Only(vec![443, 444]), Duration::from_secs(60))
            .unwrap();
        firewall
            .pin(address, &Ports::All, Duration::from_secs(5))
            .unwrap();
    }
    let listed = list(&namespace).await;
    for expected in [
        "192.0.2.0/24 . 0-255",
        "0.0.0.0/0 . 25",
        "2001:db8::/32 . 0-255",
        "10.1.0.0/16 . 80",
        "tcp . 8080",
        "203.0.113.1 . 443 timeout 1m",
        "203.0.113.1 timeout 5s",
        "elements = { 53 }",
    ] {
        assert!(listed.contains(expected), "{expected} is not in {listed}");
    }
    firewall.apply(&Policy::default()).unwrap();
    firewall.unpin().unwrap();
    let listed = list(&namespace).await;
    assert!(
        !listed.contains("192.0.2.0/24 .") && !listed.contains("203.0.113.1"),
        "{listed}"
    );
    assert!(
        listed.contains("tcp . 9418") && listed.contains("udp . 443"),
        "{listed}"
    );
    firewall.cut(|_, _, _| false).unwrap();
}

async fn list(namespace: &NetworkNamespace) -> String {
    let listed = nft(Some(namespace)).unwrap().args(["list", "ruleset"]);
    String::from_utf8(listed.run().await.unwrap()).unwrap()
}
