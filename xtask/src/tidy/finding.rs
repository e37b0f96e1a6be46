//! What a check found: where, what, and why it must not be.

use std::fmt;

/// One thing to mend; printed as `path:line: what, why`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    text: String,
}

impl Finding {
    /// Names a place (lines count from 1), what is there, and why that is wrong.
    pub(crate) fn new(path: &str, line: usize, what: impl fmt::Display, why: &str) -> Self {
        Self {
            path: path.to_owned(),
            line,
            text: format!("{what}, {why}"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_as_a_compilers() {
        let finding = Finding::new("a/b.rs", 7, "`x` is here", "it must not be");
        assert_eq!(finding.to_string(), "a/b.rs:7: `x` is here, it must not be");
    }
}
