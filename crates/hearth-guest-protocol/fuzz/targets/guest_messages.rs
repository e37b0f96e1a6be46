//! Every message: any payload is refused, or is a message that encodes and decodes to itself, and in no more bytes than
//! came: what a peer can make us hold is bounded by what it sent.

#![no_main]
#![forbid(unsafe_code)]

use std::fmt::Debug;

use hearth_guest_protocol::{CONTROL, HEADER_LEN, Kind, MAX_PAYLOAD, message};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|data: &[u8]| {
    let Some((choice, payload)) = data.split_first() else {
        return;
    };
    let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
    match choice % 22 {
        0 => check::<message::Hello>(Kind::Hello, payload),
        1 => check::<message::Configure>(Kind::Configure, payload),
        2 => check::<message::Execute>(Kind::Execute, payload),
        3 => check::<message::TerminalSize>(Kind::Resize, payload),
        4 => check::<message::Signal>(Kind::Signal, payload),
        5 => check::<message::Outcome>(Kind::Result, payload),
        6 => check::<message::Status>(Kind::Status, payload),
        7 => check::<message::Failure>(Kind::Error, payload),
        8 => check::<message::Stop>(Kind::Stop, payload),
        9 => check::<message::FileRequest>(Kind::File, payload),
        10 => check::<message::FileStat>(Kind::File, payload),
        11 => check::<message::Dial>(Kind::Dial, payload),
        12 => check::<message::Stats>(Kind::Stats, payload),
        13 => check::<message::CreditGrant>(Kind::Credit, payload),
        14 => check::<message::Launch>(Kind::Launch, payload),
        15 => check::<message::Resume>(Kind::Resume, payload),
        16 => check::<message::Clock>(Kind::Clock, payload),
        17 => check::<message::Processes>(Kind::Processes, payload),
        18 => check::<message::Freeze>(Kind::Freeze, payload),
        19 => check::<message::Renew>(Kind::Renew, payload),
        20 => check::<message::TimeLimit>(Kind::TimeLimit, payload),
        21 => check::<message::HardwareAddress>(Kind::HardwareAddress, payload),
        _ => check::<message::Role>(Kind::Execute, payload),
    }
});

fn check<M: Serialize + DeserializeOwned + PartialEq + Debug>(kind: Kind, payload: &[u8]) {
    let Ok(message) = message::decode::<M>(payload) else {
        return;
    };
    let mut frame = Vec::new();
    message::encode(kind, CONTROL, &message, &mut frame).expect("what came in a frame fits a frame");
    let again = &frame[HEADER_LEN..];
    assert!(
        again.len() <= payload.len(),
        "{message:?} grew from {} to {} bytes",
        payload.len(),
        again.len()
    );
    assert_eq!(message::decode::<M>(again), Ok(message));
}
