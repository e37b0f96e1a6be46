//! Environment variables, environment files, and secrets, by docker's rules.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Host, ResolveError};

/// Returns `NAME=value` for each file's variables and then each argument's; what has no value here is left out, as in
/// docker.
pub(super) fn collect(
    files: &[PathBuf],
    arguments: &[String],
    host: &impl Host,
) -> Result<Vec<String>, ResolveError> {
    let mut all = Vec::new();
    for path in files {
        all.extend(parse_file(path, &text(path, host)?, host)?);
    }
    for argument in arguments {
        if argument.is_empty() || argument.starts_with('=') || argument.contains('\0') {
            return Err(ResolveError::Variable(argument.clone()));
        }
        all.extend(with_value(argument, host)?);
    }
    Ok(all)
}

fn text(path: &Path, host: &impl Host) -> Result<String, ResolveError> {
    let content = host.read(path).map_err(|source| ResolveError::File {
        path: path.to_owned(),
        source,
    })?;
    String::from_utf8(content).map_err(|_| ResolveError::FileNotText(path.to_owned()))
}

/// Completes `NAME` with its value here; `None` when it has none.
fn with_value(argument: &str, host: &impl Host) -> Result<Option<String>, ResolveError> {
    if argument.contains('=') {
        return Ok(Some(argument.to_owned()));
    }
    let Some(value) = host.variable(argument) else {
        return Ok(None);
    };
    let value = value
        .into_string()
        .map_err(|_| ResolveError::ValueNotText(argument.to_owned()))?;
    Ok(Some(format!("{argument}={value}")))
}

/// Parses docker's environment file: a variable a line; white space before it is skipped, `#` begins a comment line,
/// and the value is what follows the first `=`, quotes and all.
fn parse_file(path: &Path, content: &str, host: &impl Host) -> Result<Vec<String>, ResolveError> {
    let content = content.strip_prefix('\u{feff}').unwrap_or(content);
    let mut variables = Vec::new();
    for (index, line) in content.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split_once('=').map_or(line, |(name, _)| name);
        if name.is_empty() || name.contains(char::is_whitespace) || line.contains('\0') {
            return Err(ResolveError::FileLine {
                path: path.to_owned(),
                line: index + 1,
            });
        }
        variables.extend(with_value(line, host)?);
    }
    Ok(variables)
}

/// Returns secrets by name, with files read.
pub(crate) fn secrets(
    arguments: &[String],
    host: &impl Host,
) -> Result<BTreeMap<String, String>, ResolveError> {
    let mut secrets = BTreeMap::new();
    for argument in arguments {
        let (name, value) = argument
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or(ResolveError::Secret)?;
        let value = match value.strip_prefix('@') {
            Some("") => return Err(ResolveError::Secret),
            Some(path) => without_newline(text(Path::new(path), host)?),
            None => value.to_owned(),
        };
        if value.contains('\0') {
            return Err(ResolveError::SecretNul(name.to_owned()));
        }
        if secrets.insert(name.to_owned(), value).is_some() {
            return Err(ResolveError::SecretTwice(name.to_owned()));
        }
    }
    Ok(secrets)
}

/// Takes off the one newline that editors and `echo` put at a file's end.
fn without_newline(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeHost;
    use super::*;

    fn host() -> FakeHost {
        let mut host = FakeHost::default();
        host.variables.insert("HOME", "/root");
        host.variables.insert("EMPTY", "");
        host
    }

    #[test]
    fn a_name_alone_takes_its_value_from_here_or_is_left_out() {
        let arguments = ["A=1", "HOME", "EMPTY", "UNSET", "B=x=y", "C="].map(str::to_owned);
        let collected = collect(&[], &arguments, &host()).unwrap();
        assert_eq!(collected, ["A=1", "HOME=/root", "EMPTY=", "B=x=y", "C="]);
    }

    #[test]
    fn a_variable_without_a_name_is_refused() {
        for argument in ["", "=x", "A=\0"] {
            assert!(
                collect(&[], &[argument.to_owned()], &host()).is_err(),
                "{argument:?}"
            );
        }
    }

    #[test]
    fn files_come_before_arguments_and_quotes_stay() {
        let mut host = host();
        host.files.insert(
            "f",
            b"\xef\xbb\xbfA=\"quoted\"\r\n\n  # comment\n  B= spaced \nHOME\nUNSET\nC=a#b\nD=",
        );
        let collected = collect(&["f".into()], &["A=last".to_owned()], &host).unwrap();
        assert_eq!(
            collected,
            [
                "A=\"quoted\"",
                "B= spaced ",
                "HOME=/root",
                "C=a#b",
                "D=",
                "A=last"
            ]
        );
    }

    #[test]
    fn a_bad_line_is_named() {
        let mut host = host();
        host.files.insert("spaced", b"A=1\nB C=2\n");
        host.files.insert("nameless", b"=2\n");
        host.files.insert("binary", b"A=\xff\n");
        let message = |file: &str| collect(&[file.into()], &[], &host).unwrap_err().to_string();
        assert!(message("spaced").starts_with("spaced, line 2:"));
        assert!(message("nameless").starts_with("nameless, line 1:"));
        assert_eq!(message("binary"), "binary is not UTF-8");
        assert_eq!(message("absent"), "absent cannot be read");
    }

    #[test]
    fn a_secret_of_a_file_loses_one_newline() {
        let mut host = host();
        host.files.insert("key", b"line\n\n");
        let arguments = ["K=@key", "P=p@ss=w", "E="].map(str::to_owned);
        let secrets = secrets(&arguments, &host).unwrap();
        let expected = [("E", ""), ("K", "line\n"), ("P", "p@ss=w")];
        assert_eq!(
            secrets,
            expected.map(|(n, v)| (n.to_owned(), v.to_owned())).into()
        );
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_said_without_it() {
        for argument in ["hunter2", "=hunter2", "hunter2=@"] {
            let error = secrets(&[argument.to_owned()], &host()).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let twice = ["A=hunter2", "A=hunter2"].map(str::to_owned);
        let error = secrets(&twice, &host()).unwrap_err();
        assert_eq!(error.to_string(), "the secret A is given twice");
    }
}
