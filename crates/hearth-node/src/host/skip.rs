//! What a unit test cannot do on this host, in the form that `make test` counts; the end-to-end tests have their own.

/// Prints `SKIPPED test: reason`. The runner names its threads after their tests.
pub(crate) fn skipped(reason: &str) {
    let thread = std::thread::current();
    println!("SKIPPED {}: {reason}", thread.name().unwrap_or("a test"));
}
