//! Names of images: any text is refused, or is a name whose every spelling parses to itself.

#![no_main]
#![forbid(unsafe_code)]

use std::path::Path;

use hearth_image::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    assert_eq!(
        reference.to_string().parse().as_ref(),
        Ok(&reference),
        "as written in full"
    );
    assert_eq!(
        reference.familiar().parse().as_ref(),
        Ok(&reference),
        "as written for people"
    );
    let absolute = reference.absolute(Path::new("/base"));
    assert_eq!(
        absolute.clone().absolute(Path::new("/other")),
        absolute,
        "absolute is final"
    );
    if let Reference::Registry(name) = &absolute {
        assert!(
            !name.registry().contains('/') && !name.repository().contains(".."),
            "{name:?}"
        );
    }
});
