//! The door for the fuzz target in `fuzz/` to what guests, name servers and those who give addresses send. Compiled with `--cfg fuzzing` only.

use super::question::Question;
use super::{dhcp, packets};

/// Reads a question, answers it without an answer, and reads what a server might have answered.
///
/// # Panics
/// An answer of the node's own is none.
pub fn names(question: &[u8], answer: &[u8]) {
    let Some(question) = Question::read(question) else {
        return;
    };
    for own in [question.refused(), question.empty()] {
        let told = question.told(&own).expect("it answers the question");
        assert!(told.addresses.is_empty() && told.aliases.is_empty());
    }
    let _told = question.told(answer);
}

/// Reads where a packet goes.
pub fn packet(bytes: &[u8]) -> Option<std::net::IpAddr> {
    packets::destination(bytes).map(|(address, ..)| address)
}

/// Reads what somebody on a bridge has sent to a machine that asks for an address.
///
/// # Panics
/// It gives what no machine can have.
pub fn address(packet: &[u8]) {
    use dhcp::Answer::{Given, Offer};
    if let Some(Offer(lease) | Given(lease)) = dhcp::read(packet, 7, [2, 0, 0, 1, 2, 3]) {
        assert!(!lease.address.addr().is_unspecified() && lease.address.prefix_len() > 0);
        assert!(
            lease
                .term
                .is_none_or(|term| term.renew <= term.rebind && term.rebind <= term.end)
        );
    }
}
