//! Sizes that nobody can read: long functions, long files, long parameter lists.

use super::finding::Finding;
use super::functions::Function;
use super::source::Source;

const FUNCTION_LINES: usize = 100;
const FILE_LINES: usize = 800;
const PARAMETERS: usize = 6;

/// Something that may be too large, and why. A reason is a property of the thing ("a flat table"), not of its author.
struct Exception {
    path: &'static str,
    /// `None` for the whole file.
    function: Option<&'static str>,
    reason: &'static str,
}

const EXCEPTIONS: [Exception; 0] = [];

/// Finds what is too large, and exceptions that nothing needs.
pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    check_against(sources, &EXCEPTIONS)
}

fn check_against(sources: &[Source], exceptions: &[Exception]) -> Vec<Finding> {
    let mut used = vec![false; exceptions.len()];
    let mut findings = Vec::new();
    for (source, function, finding) in sources.iter().flat_map(too_large) {
        let excepted = |exception: &Exception| exception.path == source && exception.function == function;
        match exceptions.iter().position(excepted) {
            Some(index) => used[index] = true,
            None => findings.push(finding),
        }
    }
    let unused = exceptions.iter().zip(used).filter(|(_, used)| !used);
    findings.extend(unused.map(|(exception, _)| stale(exception)));
    findings
}

fn stale(exception: &Exception) -> Finding {
    let what = format!("the exception in xtask/src/tidy/sizes.rs ({})", exception.reason);
    Finding::new(exception.path, 1, what, "nothing needs it: remove it")
}

/// A file, the function if it is one, and what is said of it.
type TooLarge<'s> = (&'s str, Option<&'s str>, Finding);

fn too_large(source: &Source) -> Vec<TooLarge<'_>> {
    let functions = source.functions.iter();
    let mut found: Vec<_> = functions
        .flat_map(|function| too_large_function(source, function))
        .collect();
    if source.lines > FILE_LINES {
        let what = format!("the file has {} lines", source.lines);
        let why = format!("more than {FILE_LINES} are several files");
        found.push((&source.path, None, Finding::new(&source.path, 1, what, &why)));
    }
    found
}

fn too_large_function<'s>(source: &'s Source, function: &'s Function) -> Vec<TooLarge<'s>> {
    let name = function.name();
    let finding = |what: String, why: &str| {
        let finding = Finding::new(&source.path, function.line, what, why);
        (source.path.as_str(), Some(name), finding)
    };
    let mut found = Vec::new();
    if function.lines > FUNCTION_LINES {
        let why = format!("more than {FUNCTION_LINES} are several functions");
        found.push(finding(format!("`{name}` has {} lines", function.lines), &why));
    }
    if function.parameters > PARAMETERS {
        let why = format!("more than {PARAMETERS} are a type that wants a name");
        found.push(finding(
            format!("`{name}` has {} parameters", function.parameters),
            &why,
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::source::sample::source;
    use super::*;

    fn function_of(lines: usize) -> Source {
        let body = "    g();\n".repeat(lines - 2);
        source("crates/a/src/lib.rs", &format!("fn f() {{\n{body}}}\n"))
    }

    fn exception() -> Exception {
        Exception {
            path: "crates/a/src/lib.rs",
            function: Some("f"),
            reason: "a flat table",
        }
    }

    #[test]
    fn a_function_of_the_bound_is_accepted_and_one_line_more_refused() {
        assert_eq!(check_against(&[function_of(100)], &[]), []);
        assert_eq!(check_against(&[function_of(101)], &[]).len(), 1);
    }

    #[test]
    fn a_file_of_the_bound_is_accepted_and_one_line_more_refused() {
        let file = |lines: usize| source("crates/a/src/lib.rs", &"\n".repeat(lines));
        assert_eq!(check_against(&[file(800)], &[]), []);
        assert_eq!(check_against(&[file(801)], &[]).len(), 1);
    }

    #[test]
    fn six_parameters_are_accepted_and_seven_refused() {
        let function = |parameters: usize| {
            source(
                "crates/a/src/lib.rs",
                &format!("fn f({}) {{}}", "_: u8,".repeat(parameters)),
            )
        };
        assert_eq!(check_against(&[function(6)], &[]), []);
        assert_eq!(check_against(&[function(7)], &[]).len(), 1);
    }

    #[test]
    fn an_exception_counts_as_long_as_it_is_needed() {
        assert_eq!(check_against(&[function_of(101)], &[exception()]), []);
        assert_eq!(check_against(&[function_of(100)], &[exception()]).len(), 1);
    }
}
