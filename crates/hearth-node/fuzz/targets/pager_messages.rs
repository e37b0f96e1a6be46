//! What a page server is told and what it reads: a machine's memory lies within the image wherever it was accepted, and addresses and
//! offsets lead to each other; a working set that was accepted names pages of the image, each once.

#![no_main]
#![forbid(unsafe_code)]

use hearth_node::pager::handshake::Memory;
use hearth_node::pager::working_set::WorkingSet;
use libfuzzer_sys::fuzz_target;

const IMAGE: u64 = 64 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    if choice % 2 == 0 {
        if let Ok(Some(memory)) = Memory::parse(bytes, IMAGE) {
            check_memory(&memory);
        }
    } else if let Ok(set) = WorkingSet::decode(bytes, IMAGE) {
        assert!(
            set.pages
                .iter()
                .all(|page| u64::from(*page) * set.page_size < IMAGE)
        );
        let again = WorkingSet::decode(&set.encode(IMAGE), IMAGE).expect("what was written is read");
        assert_eq!(again, set);
    }
});

fn check_memory(memory: &Memory) {
    assert!(memory.size() <= IMAGE);
    let mut all = 0;
    for range in memory.offsets_of(0..u64::MAX) {
        assert!(range.end <= IMAGE);
        all += range.end - range.start;
        let (address, room) = memory.address_of(range.start).expect("it is memory");
        assert_eq!(room, range.end - range.start);
        assert_eq!(memory.offset_of(address), Some(range.start));
        let last = memory.offset_of(address + room - 1);
        assert_eq!(last, Some(range.end - memory.page_size()));
    }
    assert_eq!(all, memory.size());
}
