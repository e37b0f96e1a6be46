//! What of a snapshot's files is taken apart, which may be anybody's: changes that were accepted lie within the memory, each page once; the
//! part about memory that was found in a monitor's state is the beginning of it.

#![no_main]
#![forbid(unsafe_code)]

use hearth_node::host::memory_changes::Changes;
use hearth_node::vmm::qemu::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    if choice % 2 == 0 {
        if let Some(part) = fuzzing::memory_part(bytes) {
            assert!(bytes.starts_with(part) && part.len() < bytes.len());
        }
        return;
    }
    let path = std::env::temp_dir().join(format!("hearth-fuzz-{}", std::process::id()));
    std::fs::write(&path, bytes).expect("there is room for a file");
    let opened = Changes::open(&path);
    std::fs::remove_file(&path).expect("it is there");
    if let Ok(changes) = opened {
        let mut end = 0;
        for piece in changes.pieces() {
            assert!(piece.first >= end && piece.pages > 0);
            end = piece.first + piece.pages;
        }
        assert!(end * 4096 <= changes.memory());
    }
});
