//! Code that is to run once: which program runs it, and under which name it lies in the machine.

/// The directory that code runs in.
pub const WORKSPACE: &str = "/workspace";
/// The directory where it finds what was given along.
pub const INPUT: &str = "/workspace/input";
/// The directory whose content comes back.
pub const OUTPUT: &str = "/workspace/output";

/// The exit code of code that ran into its time limit; that of timeout(1).
pub const TIMED_OUT: u8 = 124;

/// Programs by the extension of the code's name.
const INTERPRETERS: [(&str, &str); 3] = [("py", "python3"), ("sh", "sh"), ("js", "node")];

/// How code is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// The name that its file has in [`WORKSPACE`].
    pub file: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Says that nobody can tell which program runs the code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no interpreter is known for {}", match .0 { Some(name) => format!("{name:?}"), None => "this code".to_owned() })]
pub struct UnknownInterpreter(pub Option<String>);

/// Decides how code is run: by the interpreter that was named, by its own first line (`#!`), or by the extension of its name. Of
/// the name nothing but a known extension is used.
///
/// # Errors
/// Returns [`UnknownInterpreter`] when none of them says.
pub fn runner(
    code: &str,
    name: Option<&str>,
    interpreter: Option<&[String]>,
) -> Result<Runner, UnknownInterpreter> {
    let extension = name
        .and_then(|name| name.rsplit_once('.'))
        .map(|(_, after)| after);
    let known = INTERPRETERS
        .into_iter()
        .find(|(known, _)| extension == Some(known));
    let file = known.map_or("main".to_owned(), |(known, _)| format!("main.{known}"));
    let path = format!("{WORKSPACE}/{file}");
    let command = match (interpreter, known) {
        (Some(interpreter), _) if !interpreter.is_empty() => [interpreter, &[path]].concat(),
        _ if code.starts_with("#!") => vec![path],
        (_, Some((_, program))) => vec![program.to_owned(), path],
        _ => return Err(UnknownInterpreter(name.map(str::to_owned))),
    };
    Ok(Runner { file, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(code: &str, name: Option<&str>, interpreter: &[&str]) -> Option<String> {
        let interpreter: Vec<_> = interpreter.iter().map(ToString::to_string).collect();
        let runner = runner(code, name, Some(&interpreter)).ok()?;
        Some(runner.command.join(" "))
    }

    #[test]
    fn the_interpreter_is_the_one_named_then_the_first_lines_then_the_extensions() {
        for (code, name, interpreter, expected) in [
            ("", Some("a.py"), &[][..], Some("python3 /workspace/main.py")),
            ("", Some("a.b.sh"), &[], Some("sh /workspace/main.sh")),
            ("", Some("x.js"), &[], Some("node /workspace/main.js")),
            ("#!/bin/ash\n", Some("a.py"), &[], Some("/workspace/main.py")),
            ("#!/bin/ash\n", None, &[], Some("/workspace/main")),
            (
                "#!/bin/ash\n",
                Some("a.py"),
                &["python3", "-u"],
                Some("python3 -u /workspace/main.py"),
            ),
            ("", Some("a.rb"), &["ruby"], Some("ruby /workspace/main")),
            ("", Some("a.rb"), &[], None),
            ("", Some("py"), &[], None),
            ("", None, &[], None),
        ] {
            assert_eq!(command(code, name, interpreter).as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn nothing_of_a_hostile_name_becomes_a_path() {
        let runner = runner("", Some("../../etc/x;rm -rf.py"), None).unwrap();
        assert_eq!(runner.command, ["python3", "/workspace/main.py"]);
    }
}
