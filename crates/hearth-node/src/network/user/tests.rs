use std::path::Path;

use super::*;

const FIRST: MachineId = MachineId::from_random([1; 6]);
const SECOND: MachineId = MachineId::from_random([2; 6]);

fn open(directory: &Path) -> UserNetworks {
    UserNetworks::open(NodeKey::of(Path::new("/x")), directory.to_owned())
}

fn named(name: &str) -> NewNetwork {
    NewNetwork {
        name: name.parse().unwrap(),
        subnets: Vec::new(),
        mtu: None,
        labels: BTreeMap::new(),
    }
}

fn within(name: &str, subnets: &[&str]) -> NewNetwork {
    NewNetwork {
        subnets: subnets.iter().map(|&text| text.to_owned()).collect(),
        ..named(name)
    }
}

fn names(texts: &[&str]) -> Vec<NetworkName> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn place(networks: &UserNetworks, network: &str, id: MachineId) -> Option<u32> {
    let found = networks.find(network).unwrap();
    found
        .record
        .members
        .get(&id.to_string())
        .map(|member| member.place)
}

#[test]
fn places_are_ones_own_and_outlive_the_node() {
    let home = tempfile::tempdir().unwrap();
    let networks = open(home.path());
    networks.create(named("a"), &[]).unwrap();
    networks.create(within("b", &["10.9.9.0/29"]), &[]).unwrap();
    networks.join(FIRST, "one", &names(&["a", "b"])).unwrap();
    networks.join(SECOND, "two", &names(&["a"])).unwrap();
    // Again changes nothing.
    networks.join(FIRST, "one", &names(&["a"])).unwrap();
    assert_eq!(place(&networks, "a", FIRST), Some(0));
    assert_eq!(place(&networks, "a", SECOND), Some(1));
    let ranges = networks.ranges();
    assert_eq!(ranges.len(), 2);
    let networks = open(home.path());
    assert_eq!(networks.ranges(), ranges);
    assert_eq!(place(&networks, "a", SECOND), Some(1));
    networks.forget(FIRST);
    assert_eq!(place(&networks, "b", FIRST), None);
    // The place is free again, and nobody has moved.
    networks.join(FIRST, "one", &names(&["a"])).unwrap();
    assert_eq!(
        (place(&networks, "a", FIRST), place(&networks, "a", SECOND)),
        (Some(0), Some(1))
    );
    assert_eq!(
        networks.find("b").unwrap().addresses(4)[0].to_string(),
        "10.9.9.6"
    );
}

#[test]
fn a_machine_joins_all_or_none() {
    let home = tempfile::tempdir().unwrap();
    let networks = open(home.path());
    networks.create(within("tiny", &["10.9.9.0/29"]), &[]).unwrap();
    networks.create(named("a"), &[]).unwrap();
    for number in 0..5 {
        let id = MachineId::from_random([number; 6]);
        networks
            .join(id, &format!("m{number}"), &names(&["tiny"]))
            .unwrap();
    }
    let refused = networks.join(MachineId::from_random([9; 6]), "m9", &names(&["a", "tiny"]));
    assert!(
        matches!(refused, Err(UserNetworkError::NoPlace { count: 5, .. })),
        "{refused:?}"
    );
    let refused = networks.join(MachineId::from_random([9; 6]), "m9", &names(&["a", "other"]));
    assert!(
        matches!(refused, Err(UserNetworkError::NotFound(_))),
        "{refused:?}"
    );
    assert!(networks.find("a").unwrap().record.members.is_empty());
}

#[test]
fn ranges_overlap_nobody_s() {
    let home = tempfile::tempdir().unwrap();
    let networks = open(home.path());
    let route = ["192.168.0.0/16".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
    networks
        .create(within("a", &["10.9.0.0/16", "fd12::/64"]), &route)
        .unwrap();
    for subnets in [
        &["10.9.4.0/24"][..],
        &["192.168.7.0/24"],
        &["10.7.0.0/24", "fd12::/80"],
    ] {
        let refused = networks.create(within("b", subnets), &route);
        assert!(
            matches!(refused, Err(UserNetworkError::Overlap { .. })),
            "{refused:?}"
        );
    }
    let refused = networks.create(named("a"), &route);
    assert!(matches!(refused, Err(UserNetworkError::Taken(_))), "{refused:?}");
    let mtu = Some(100);
    let refused = networks.create(NewNetwork { mtu, ..named("c") }, &route);
    assert!(matches!(refused, Err(UserNetworkError::Mtu(100))), "{refused:?}");
    let all = ["10.64.0.0/10".parse().unwrap()];
    let refused = networks.create(named("c"), &all);
    assert!(matches!(refused, Err(UserNetworkError::NoRange)), "{refused:?}");
    assert_eq!(networks.list().len(), 1);
}

#[test]
fn one_that_machines_are_on_stays() {
    let home = tempfile::tempdir().unwrap();
    let networks = open(home.path());
    networks.create(named("a"), &[]).unwrap();
    networks.join(FIRST, "one", &names(&["a"])).unwrap();
    let refused = networks.remove("a").unwrap_err();
    assert_eq!(refused.to_string(), "the network a is in use by one");
    networks.leave(FIRST, "a").unwrap();
    let refused = networks.leave(FIRST, "a");
    assert!(
        matches!(refused, Err(UserNetworkError::NotOnIt(_))),
        "{refused:?}"
    );
    networks.remove("a").unwrap();
    assert!(matches!(networks.remove("a"), Err(UserNetworkError::NotFound(_))));
    assert!(open(home.path()).list().is_empty());
}

#[test]
fn names_are_known_on_the_networks_that_one_is_on_while_the_machine_is_there() {
    let home = tempfile::tempdir().unwrap();
    let networks = open(home.path());
    for name in ["a", "b"] {
        networks.create(named(name), &[]).unwrap();
    }
    networks.join(FIRST, "Web_1", &names(&["a", "b"])).unwrap();
    networks.join(SECOND, "db", &names(&["a"])).unwrap();
    let resolve = |asking, name: &str| networks.resolve(asking, &name.parse().unwrap());
    let address = |network: &str, place| Found::Others(networks.find(network).unwrap().addresses(place));
    assert_eq!(resolve(FIRST, "db"), None, "it is not there yet");
    networks.set_present(SECOND, true);
    assert_eq!(resolve(FIRST, "db"), Some(address("a", 1)));
    assert_eq!(resolve(FIRST, "DB.a."), Some(address("a", 1)));
    assert_eq!(resolve(FIRST, "db.b"), None);
    assert_eq!(resolve(SECOND, "db"), Some(Found::Oneself));
    networks.set_present(FIRST, true);
    assert_eq!(resolve(SECOND, "web_1"), Some(address("a", 0)));
    assert_eq!(resolve(SECOND, "web_1.b"), None, "that network is not one's own");
    let stranger = MachineId::from_random([7; 6]);
    assert_eq!(resolve(stranger, "db"), None);
    networks.rename(SECOND, "store").unwrap();
    assert_eq!(resolve(FIRST, "db"), None);
    assert_eq!(resolve(FIRST, "store"), Some(address("a", 1)));
    networks.leave(SECOND, "a").unwrap();
    assert_eq!(resolve(FIRST, "store"), None);
}

#[test]
fn what_an_earlier_node_left_half_done_is_set_right() {
    let home = tempfile::tempdir().unwrap();
    let networks = open(home.path());
    for name in ["a", "b"] {
        networks.create(named(name), &[]).unwrap();
    }
    let gone = MachineId::from_random([3; 6]);
    networks.join(FIRST, "old", &names(&["a"])).unwrap();
    networks.join(SECOND, "two", &names(&["a"])).unwrap();
    networks.join(gone, "gone", &names(&["a"])).unwrap();
    networks.settle(&[(FIRST, "new".to_owned(), names(&["b"]))], |id| id != gone);
    let members = |network: &str| -> Vec<String> {
        let members = networks.find(network).unwrap().record.members;
        members.into_values().map(|member| member.name).collect()
    };
    // Of the second one nothing is known but that it exists.
    assert_eq!(members("a"), ["two"]);
    assert_eq!(members("b"), ["new"]);
}
