//! Environments put together: what processes beside the workload inherit of it.

use serde_bytes::ByteBuf;

/// Puts variables over those of the workload; of two with one name the later counts.
pub(crate) fn inherited(workload: &[ByteBuf], own: &[ByteBuf]) -> Vec<ByteBuf> {
    let name = |variable: &ByteBuf| variable.split(|&byte| byte == b'=').next().map(<[u8]>::to_vec);
    let kept = workload
        .iter()
        .filter(|variable| own.iter().all(|other| name(other) != name(variable)));
    kept.chain(own).cloned().collect()
}

/// Puts variables over those of the workload, and leaves out those of which the host gives the name alone.
pub(crate) fn renewed(workload: &[ByteBuf], changes: &[ByteBuf]) -> Vec<ByteBuf> {
    let is_value = |change: &ByteBuf| change.contains(&b'=');
    let mut environment = inherited(workload, changes);
    environment.retain(|variable| is_value(variable) || !changes.contains(variable));
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_inherits_the_workloads_environment_under_its_own() {
        let list = |texts: &[&str]| -> Vec<ByteBuf> {
            texts.iter().map(|text| ByteBuf::from(text.as_bytes())).collect()
        };
        assert_eq!(
            inherited(&list(&["A=1", "AB=2", "C"]), &list(&["A=3", "D=4"])),
            list(&["AB=2", "C", "A=3", "D=4"])
        );
        assert_eq!(
            renewed(&list(&["A=1", "AB=2", "C=3"]), &list(&["A", "C=4", "D=5", "E"])),
            list(&["AB=2", "C=4", "D=5"])
        );
    }
}
