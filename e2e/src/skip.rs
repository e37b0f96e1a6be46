//! What cannot run here says so, past the test runner's capture, in a form that `make test` counts.

use std::io::Write as _;
use std::path::Path;

/// Ends a test that cannot run here: `return skip!("no registry: {error}")`. Where everything has to run, the test fails.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::report_skipped(&format!($($reason)*))
    }};
}

/// Prints `SKIPPED test: reason`. The runner names its threads after their tests.
///
/// # Errors
/// Everything has to run ([`is_metal`]).
pub fn report_skipped(reason: &str) -> anyhow::Result<()> {
    anyhow::ensure!(!is_metal(), "it cannot run here: {reason}");
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    // Not `eprintln!`: the runner would keep it to itself. Nothing is to be done if nobody listens.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {name}: {reason}");
    Ok(())
}

/// Returns the first of some programs that is not installed.
pub fn missing_program<'a>(programs: &[&'a str]) -> Option<&'a str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<_> = std::env::split_paths(&path).collect();
    let installed = |program: &str| {
        directories
            .iter()
            .any(|dir| Path::new(dir).join(program).is_file())
    };
    programs.iter().find(|program| !installed(program)).copied()
}

/// Tells whether everything has to run, as on a host whose KVM is native.
pub fn is_metal() -> bool {
    std::env::var_os("HEARTH_E2E_METAL").is_some_and(|value| value == "1")
}

/// Tells whether the long tests are to take long.
pub fn is_soak() -> bool {
    std::env::var_os("HEARTH_E2E_SOAK").is_some_and(|value| value == "1")
}
