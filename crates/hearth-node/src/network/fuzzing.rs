//! The door for the fuzz target in `fuzz/` to what guests and name servers send. Compiled with `--cfg fuzzing` only.

use super::packets;
use super::question::Question;

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
