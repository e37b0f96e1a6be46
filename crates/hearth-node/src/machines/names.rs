//! Names for machines that were given none.

use hearth_machine::MachineId;

const FIRST: [&str; 32] = [
    "amber", "ashen", "bright", "calm", "clear", "cosy", "deep", "dry", "early", "even", "fair", "gentle",
    "glad", "golden", "keen", "kind", "late", "light", "mild", "merry", "neat", "plain", "quick", "quiet",
    "ruddy", "sharp", "small", "steady", "still", "sure", "warm", "wise",
];
const SECOND: [&str; 32] = [
    "alder", "anvil", "apple", "ash", "bellows", "birch", "brick", "cedar", "chimney", "cinder", "coal",
    "ember", "fender", "flame", "flint", "glow", "grate", "hazel", "hob", "kettle", "kiln", "lantern", "log",
    "mantel", "oak", "oven", "peat", "poker", "spark", "stove", "tinder", "willow",
];

/// Returns two words that the id picks.
pub(super) fn made_up(id: MachineId) -> String {
    let [first, second, ..] = id.bytes();
    format!(
        "{}-{}",
        FIRST[usize::from(first) % FIRST.len()],
        SECOND[usize::from(second) % SECOND.len()]
    )
}

#[cfg(test)]
mod tests {
    use hearth_machine::MachineName;

    use super::*;

    #[test]
    fn every_made_up_name_is_a_machine_name() {
        for byte in 0..=255 {
            let name = made_up(MachineId::from_random([byte, byte, 0, 0, 0, 0]));
            assert!(name.parse::<MachineName>().is_ok(), "{name}");
        }
    }
}
