use std::fs;

use tempfile::TempDir;

use super::*;

pub(crate) const RELEASE: &str = "6.12.0-test";

/// Makes a relocatable ELF file with nothing but `.modinfo`, as `objcopy` would see a module.
fn module(depends: &str, release: &str) -> Vec<u8> {
    let information = format!("license=GPL\0depends={depends}\0name=x\0vermagic={release} SMP mod_unload \0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let sections = 64 + information.len() + names.len();
    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // Type REL, machine x86-64, version, entry, program headers, section headers.
    elf.extend_from_slice(&[1, 0, 62, 0, 1, 0, 0, 0]);
    for field in [0, 0, sections as u64] {
        elf.extend_from_slice(&u64::to_le_bytes(field));
    }
    elf.extend_from_slice(&0_u32.to_le_bytes());
    for field in [64_u16, 0, 0, 64, 3, 2] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    elf.extend_from_slice(information.as_bytes());
    elf.extend_from_slice(names);
    elf.extend_from_slice(&[0; 64]);
    for (name, kind, at, size) in [
        (1_u32, 1_u32, 64, information.len()),
        (10, 3, 64 + information.len(), names.len()),
    ] {
        elf.extend_from_slice(&name.to_le_bytes());
        elf.extend_from_slice(&kind.to_le_bytes());
        for field in [0, 0, at as u64, size as u64, 0, 1, 0] {
            elf.extend_from_slice(&u64::to_le_bytes(field));
        }
    }
    elf
}

/// Makes a module tree in which all that guests need is built in, except the given modules.
pub(crate) fn tree(modules: &[(&str, &str)]) -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    let kernel = tree.path().join("kernel/drivers");
    fs::create_dir_all(&kernel).unwrap();
    for (file, depends) in modules {
        fs::write(kernel.join(file), module(depends, RELEASE)).unwrap();
    }
    let is_module = |name: &str| {
        modules
            .iter()
            .any(|(file, _)| module_name(Path::new(file)).as_deref() == Some(name))
    };
    let builtin: String = NEEDED
        .iter()
        .filter(|name| !is_module(name))
        .map(|name| format!("kernel/{name}.ko\n"))
        .collect();
    fs::write(tree.path().join("modules.builtin"), builtin).unwrap();
    tree
}

fn names(modules: &[Module]) -> Vec<(&str, When)> {
    modules
        .iter()
        .map(|module| (module.name.as_str(), module.when))
        .collect()
}

#[test]
fn what_is_depended_on_is_loaded_first() {
    let tree = tree(&[
        ("erofs.ko", "libcrc32c,netfs"),
        ("netfs.ko", "fscache"),
        ("fscache.ko", ""),
        ("libcrc32c.ko", ""),
        ("virtio-rng.ko", ""),
        ("virtio_net.ko", "net_failover"),
        ("net_failover.ko", ""),
        ("unrelated.ko", ""),
    ]);
    let modules = collect(tree.path(), RELEASE, Signatures::Keep).unwrap();
    let expected = [
        ("libcrc32c", When::Boot),
        ("fscache", When::Boot),
        ("netfs", When::Boot),
        ("erofs", When::Boot),
        ("virtio_rng", When::Boot),
        ("net_failover", When::Demand),
        ("virtio_net", When::Demand),
    ];
    assert_eq!(names(&modules), expected);
}

#[test]
fn a_kernel_with_everything_built_in_needs_no_modules() {
    assert_eq!(collect(tree(&[]).path(), RELEASE, Signatures::Keep).unwrap(), []);
}

#[test]
fn packed_modules_are_unpacked() {
    let tree = tree(&[("virtio_blk.ko", "")]);
    let plain = tree.path().join("kernel/drivers/virtio_blk.ko");
    let bytes = fs::read(&plain).unwrap();
    fs::write(
        plain.with_extension("ko.zst"),
        zstd::encode_all(&bytes[..], 1).unwrap(),
    )
    .unwrap();
    fs::remove_file(plain).unwrap();
    let modules = collect(tree.path(), RELEASE, Signatures::Keep).unwrap();
    assert_eq!(modules[0].bytes, bytes);
}

#[test]
fn what_guests_need_must_be_there() {
    let tree = tree(&[]);
    fs::write(
        tree.path().join("modules.builtin"),
        "kernel/drivers/block/virtio_blk.ko\n",
    )
    .unwrap();
    let error = collect(tree.path(), RELEASE, Signatures::Keep).unwrap_err();
    assert!(
        matches!(&error, ModulesError::Missing { name, .. } if name == "virtio_pci"),
        "{error}"
    );
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let tree = tree(&[("overlay.ko", "")]);
    let error = collect(tree.path(), "6.1.0-other", Signatures::Keep).unwrap_err();
    assert!(matches!(error, ModulesError::OtherKernel { .. }), "{error}");
}

#[test]
fn modules_that_depend_on_each_other_are_refused() {
    let tree = tree(&[("overlay.ko", "other"), ("other.ko", "overlay")]);
    let error = collect(tree.path(), RELEASE, Signatures::Keep).unwrap_err();
    assert!(matches!(error, ModulesError::Cycle { .. }), "{error}");
}

#[test]
fn a_file_that_is_no_module_is_refused() {
    let tree = tree(&[("overlay.ko", "")]);
    fs::write(tree.path().join("kernel/drivers/overlay.ko"), "#!/bin/sh").unwrap();
    let error = collect(tree.path(), RELEASE, Signatures::Keep).unwrap_err();
    assert!(matches!(error, ModulesError::NotAModule { .. }), "{error}");
}

#[test]
fn a_signature_is_cut_off_whole() {
    let plain = module("", RELEASE);
    let mut signed = plain.clone();
    signed.extend_from_slice(&[7; 300]);
    signed.extend_from_slice(&[0; 8]);
    signed.extend_from_slice(&300_u32.to_be_bytes());
    signed.extend_from_slice(SIGNATURE_MAGIC);
    assert_eq!(without_signature(signed), plain);
    assert_eq!(without_signature(plain.clone()), plain);
    let mut lying = vec![0; 8];
    lying.extend_from_slice(&u32::MAX.to_be_bytes());
    lying.extend_from_slice(SIGNATURE_MAGIC);
    assert_eq!(without_signature(lying.clone()), lying);
}
