//! `--tmpfs`, `--add-host`, `--ulimit`, as docker writes them. What the values mean the node checks.

use hearth_api::v1::{ExtraHost, TmpfsMount, Ulimit};

use super::ResolveError;

/// Reads `PATH[:OPTIONS]`.
pub(crate) fn tmpfs(text: &str) -> TmpfsMount {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    TmpfsMount {
        path: path.to_owned(),
        options: options.to_owned(),
    }
}

/// Reads `NAME:IP` or `NAME=IP`.
///
/// # Errors
/// Returns [`ResolveError::AddHost`].
pub(crate) fn extra_host(text: &str) -> Result<ExtraHost, ResolveError> {
    let parts = text.split_once(['=', ':']);
    let (name, address) = parts.ok_or_else(|| ResolveError::AddHost(text.to_owned()))?;
    let address = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(address);
    Ok(ExtraHost {
        name: name.to_owned(),
        address: address.to_owned(),
    })
}

/// Reads `NAME=SOFT[:HARD]`.
///
/// # Errors
/// Returns [`ResolveError::Ulimit`].
pub(crate) fn ulimit(text: &str) -> Result<Ulimit, ResolveError> {
    let read = || {
        let (name, limits) = text.split_once('=')?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let number = |text: &str| match text {
            "unlimited" => Some(-1),
            digits => digits.parse().ok().filter(|&number: &i64| number >= -1),
        };
        Some(Ulimit {
            name: name.to_owned(),
            soft: number(soft)?,
            hard: number(hard)?,
        })
    };
    read().ok_or_else(|| ResolveError::Ulimit(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_a_name_and_an_address_of_either_family() {
        let read = |text: &str| extra_host(text).map(|host| (host.name, host.address)).ok();
        let host = |name: &str, address: &str| Some((name.to_owned(), address.to_owned()));
        assert_eq!(read("db:10.0.0.1"), host("db", "10.0.0.1"));
        assert_eq!(read("db:::1"), host("db", "::1"));
        assert_eq!(read("db=[::1]"), host("db", "::1"));
        assert_eq!(read("db"), None);
    }

    #[test]
    fn limits_are_one_number_or_two() {
        let read = |text: &str| {
            ulimit(text)
                .map(|limit| (limit.name, limit.soft, limit.hard))
                .ok()
        };
        assert_eq!(read("nofile=64"), Some(("nofile".to_owned(), 64, 64)));
        assert_eq!(read("core=0:-1"), Some(("core".to_owned(), 0, -1)));
        assert_eq!(read("core=0:unlimited"), Some(("core".to_owned(), 0, -1)));
        for text in ["nofile", "nofile=", "nofile=a", "nofile=1:", "nofile=-2"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_tmpfs_has_options_behind_its_path() {
        assert_eq!(tmpfs("/run").options, "");
        let said = tmpfs("/run:size=1m,mode=700");
        assert_eq!(
            (said.path.as_str(), said.options.as_str()),
            ("/run", "size=1m,mode=700")
        );
    }
}
