//! Manifests, indexes and configurations: any bytes are refused or read; a configuration that was read and written is
//! read as the same.

#![no_main]
#![forbid(unsafe_code)]

use hearth_image::{Limits, fuzzing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, json)) = data.split_first() else {
        return;
    };
    if choice % 2 == 0 {
        let _refused = fuzzing::manifest(json, &Limits::default());
    } else if let Ok(config) = fuzzing::config(json) {
        let written = fuzzing::write_config(&config);
        assert_eq!(
            fuzzing::config(&written).expect("what was written is read"),
            config
        );
    }
});
