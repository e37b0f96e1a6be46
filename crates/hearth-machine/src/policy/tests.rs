use proptest::prelude::*;

use super::*;

fn policy(preset: Preset, allow: &[&str], deny: &[&str]) -> Policy {
    let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let (allow, deny) = (read(allow), read(deny));
    Policy { preset, allow, deny }.check().unwrap()
}

fn refused(allow: &[&str], deny: &[&str]) -> PolicyError {
    let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let (allow, deny) = (read(allow), read(deny));
    let preset = Preset::Balanced;
    Policy { preset, allow, deny }.check().unwrap_err()
}

/// Asks about `NAME/ADDRESS`, `NAME/` or `/ADDRESS` at a port of TCP.
fn says(policy: &Policy, target: &str, port: u16) -> (bool, String) {
    let (name, address) = target.split_once('/').unwrap();
    let name: Option<DomainName> = (!name.is_empty()).then(|| name.parse().unwrap());
    let verdict = policy.judge(&Connection {
        name: name.as_ref(),
        address: (!address.is_empty()).then(|| address.parse().unwrap()),
        protocol: Protocol::Tcp,
        port: Some(port),
    });
    (verdict.allowed, verdict.to_string())
}

fn is_allowed(policy: &Policy, target: &str, port: u16) -> bool {
    says(policy, target, port).0
}

#[test]
fn presets_are_what_holds_without_rules() {
    let [locked, balanced, open] = Preset::ALL.map(|preset| policy(preset, &[], &[]));
    for (target, port, expected) in [
        ("/203.0.113.1", 443, [false, true, true]),
        ("/203.0.113.1", 25, [false, false, true]),
        ("/2001:db8::1", 22, [false, true, true]),
        ("/10.0.0.1", 443, [false, false, true]),
        ("/fd00::1", 443, [false, false, true]),
        ("/8.8.8.8", 443, [false, false, true]),
        ("dns.google/203.0.113.9", 443, [false, false, true]),
        ("/169.254.169.254", 80, [false, false, false]),
        ("/fd00:ec2::254", 80, [false, false, false]),
        ("example.com/", 443, [false, true, true]),
    ] {
        let seen = [&locked, &balanced, &open].map(|policy| is_allowed(policy, target, port));
        assert_eq!(seen, expected, "{target} {port}");
    }
    let udp = |port| Connection {
        name: None,
        address: Some("203.0.113.1".parse().unwrap()),
        protocol: Protocol::Udp,
        port: Some(port),
    };
    assert!(balanced.judge(&udp(443)).allowed && !balanced.judge(&udp(80)).allowed);
    let echo = Connection {
        protocol: Protocol::Other(1),
        port: None,
        ..udp(0)
    };
    assert!(!balanced.judge(&echo).allowed && open.judge(&echo).allowed);
    assert!(policy(Preset::Locked, &["203.0.113.1"], &[]).judge(&echo).allowed);
}

#[test]
fn what_is_denied_is_denied_whatever_allows_it() {
    let policy = policy(
        Preset::Open,
        &["203.0.113.0/24", "a.example.com"],
        &["203.0.113.7", "192.0.2.0/24:25", "*.example.com"],
    );
    assert_eq!(
        says(&policy, "/203.0.113.7", 443),
        (false, "--deny 203.0.113.7".to_owned())
    );
    assert_eq!(
        says(&policy, "/203.0.113.8", 1),
        (true, "--allow 203.0.113.0/24".to_owned())
    );
    assert!(!is_allowed(&policy, "/192.0.2.1", 25) && is_allowed(&policy, "/192.0.2.1", 26));
    assert!(!is_allowed(&policy, "a.example.com/203.0.113.8", 443));
    assert!(!policy.judge_name(&"a.example.com".parse().unwrap()).allowed);
    assert!(policy.judge_name(&"example.com".parse().unwrap()).allowed);
}

#[test]
fn names_open_their_addresses_and_no_private_ones() {
    let policy = policy(
        Preset::Locked,
        &["api.example.com:8443", "*.cdn.example", "10.1.0.0/16:5432"],
        &[],
    );
    assert!(is_allowed(&policy, "api.example.com/203.0.113.1", 8443));
    assert!(!is_allowed(&policy, "api.example.com/203.0.113.1", 443));
    assert!(is_allowed(&policy, "a.b.cdn.example/203.0.113.1", 25));
    assert!(!is_allowed(&policy, "cdn.example/203.0.113.1", 25));
    assert_eq!(
        says(&policy, "api.example.com/10.1.2.3", 8443),
        (false, "a private address, and no --allow names it".to_owned())
    );
    assert!(is_allowed(&policy, "api.example.com/10.1.2.3", 5432));
    let name = |text: &str| text.parse::<DomainName>().unwrap();
    assert_eq!(
        policy.ports_of(&name("api.example.com")),
        Some(Ports::Only(vec![8443]))
    );
    assert_eq!(policy.ports_of(&name("x.cdn.example")), Some(Ports::All));
    assert_eq!(policy.ports_of(&name("example.com")), None);
    assert!(policy.judge_name(&name("api.example.com")).allowed);
    assert!(!policy.judge_name(&name("example.com")).allowed);
    assert!(policy.may_be_answered("203.0.113.1".parse().unwrap()));
    assert!(policy.may_be_answered("10.1.2.3".parse().unwrap()));
    assert!(!policy.may_be_answered("10.2.2.3".parse().unwrap()));
}

#[test]
fn rules_that_cannot_be_are_refused() {
    let rule = |text: &str| text.parse::<Destination>().unwrap();
    assert_eq!(
        refused(&["a.com", "b.com:1"], &["b.com", "a.com"]),
        PolicyError::Contradiction(rule("a.com"))
    );
    for metadata in ["169.254.169.254", "169.254.0.0/16:80", "fd00:ec2::254", "fe80::1"] {
        assert_eq!(refused(&[metadata], &[]), PolicyError::Metadata(rule(metadata)));
    }
    assert_eq!(
        refused(&[], &["a.com:80"]),
        PolicyError::PortOfName(rule("a.com:80"))
    );
    let many: Vec<String> = (0..=RULES_MAX).map(|number| format!("a{number}.com")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(refused(&many, &[]), PolicyError::TooMany(RULES_MAX + 1));
    assert_eq!("wide".parse::<Preset>(), Err(InvalidPreset("wide".to_owned())));
}

#[test]
fn names_are_captured_where_they_count() {
    assert!(policy(Preset::Balanced, &[], &[]).captures_names());
    assert!(!policy(Preset::Open, &[], &["10.0.0.0/8"]).captures_names());
    assert!(policy(Preset::Open, &[], &["a.com"]).captures_names());
}

proptest! {
    #[test]
    fn metadata_and_what_is_denied_are_never_reached(preset in 0_usize..3, address in any::<u32>(), port in any::<u16>()) {
        let address = IpAddr::from(std::net::Ipv4Addr::from_bits(address));
        let denied = Destination { host: Host::Network(address.into()), port: None };
        let allow = vec!["0.0.0.0/0".parse().unwrap(), "169.0.0.0/8".parse().unwrap()];
        let connection = Connection { name: None, address: Some(address), protocol: Protocol::Tcp, port: Some(port) };
        let mut policy = Policy { preset: Preset::ALL[preset], allow, deny: vec![] };
        prop_assert_eq!(policy.judge(&connection).allowed, !METADATA.contain(address));
        policy.deny.push(denied);
        prop_assert!(!policy.judge(&connection).allowed);
    }
}
