//! What comes over a machine's network to the node itself: questions for names by its guest, answers of name servers, the packets that
//! its firewall tells of, and what servers of addresses say (seeds/network_messages/given is one that gives). A refusal always answers its question; nothing else of them may do more than be refused.

#![no_main]
#![forbid(unsafe_code)]

use hearth_node::network::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    if *choice == u8::MAX {
        fuzzing::address(bytes);
    } else if choice % 4 == 0 {
        let _somewhere = fuzzing::packet(bytes);
    } else {
        let (question, answer) = bytes.split_at(bytes.len() * usize::from(choice % 4) / 4);
        fuzzing::names(question, answer);
        fuzzing::names(bytes, bytes);
    }
});
