//! Bytes both ways, and how they end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{DEADLINE, random_bytes, sha256};

use super::case::{Case, by, exec};
use super::subject::{Subject, seen};

/// What a test of much data moves.
const MUCH: usize = 8 << 20;

pub(super) const CASES: &[Case] = &[
    by("outputs stay apart", apart, "0 out\n|err\n"),
    by("every byte value out", every_byte_out, "as written"),
    by("every byte value in and out", every_byte_through, "as written"),
    by("8 MiB in and out", much_through, "as written"),
    by("8 MiB of standard error", much_error, "0 8388608"),
    exec(
        "a line of 200 000 characters",
        &[],
        &["sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x | wc -c"],
        "0 200000\n",
    ),
    exec(
        "output without a newline at its end",
        &[],
        &["sh", "-c", "printf end"],
        "0 end",
    ),
    exec("no output", &[], &["sh", "-c", "exec >&- 2>&-; exit 4"], "4 "),
    by(
        "input without -i is empty",
        |subject| fed(subject, &[], b"text", "wc -c"),
        "0 0\n",
    ),
    by(
        "empty input with -i",
        |subject| fed(subject, &["-i"], b"", "wc -c"),
        "0 0\n",
    ),
    by(
        "input with -i",
        |subject| fed(subject, &["-i"], b"text", "cat; echo .end"),
        "0 text.end\n",
    ),
    by(
        "input that is closed early",
        |subject| fed(subject, &["-i"], &[b'x'; MUCH], "head -c 10"),
        "0 xxxxxxxxxx",
    ),
    by(
        "input that is never read",
        |subject| fed(subject, &["-i"], &[b'x'; MUCH], "exit 3"),
        "3 ",
    ),
    by(
        "input that the command closes",
        |subject| fed(subject, &["-i"], &[b'x'; 100_000], "exec <&-; sleep 0.2; echo on"),
        "0 on\n",
    )
    .unlike("podman may lose what is printed once its own input breaks"),
    by(
        "the end of input comes while output goes on",
        input_ends_first,
        "0 in\nafter\n",
    ),
    by("input and output in turns", in_turns, "0 "),
    by("a reader that is slow", slow_reader, "0 1048576"),
    by("a reader that is gone", reader_gone, "141"),
    by(
        "a child that keeps the output open",
        |subject| quickly(subject, "sleep 30 & echo hi"),
        "0 hi\n",
    ),
    by(
        "a child of another session that keeps it open",
        |subject| quickly(subject, "setsid sleep 30 & echo hi"),
        "0 hi\n",
    ),
    by(
        "a child that keeps only the errors open",
        |subject| quickly(subject, "sleep 30 >/dev/null & echo hi"),
        "0 hi\n",
    ),
    exec(
        "SIGPIPE ends a writer inside",
        &[],
        &["sh", "-c", "yes | head -n 1"],
        "0 y\n",
    ),
    exec(
        "/dev/stdout and /dev/stderr can be opened",
        &["-u", "ada"],
        &["sh", "-c", "echo a > /dev/stdout; echo b > /dev/stderr"],
        "0 a\n",
    ),
    by("many at once", crowd, "each its own"),
];

fn apart(subject: &Subject<'_>) -> Result<String> {
    let outcome = subject.exec(&[], &["sh", "-c", "echo out; echo err >&2"]).run()?;
    Ok(format!("{}|{}", seen(&outcome), outcome.errors()))
}

fn every_byte_out(subject: &Subject<'_>) -> Result<String> {
    let all: String = (0..=255).map(|byte| format!("\\{byte:03o}")).collect();
    let outcome = subject
        .exec(&[], &["sh", "-c", &format!("printf '{all}'")])
        .run()?
        .success()?;
    Ok(compared(&outcome.stdout, &(0..=255).collect::<Vec<u8>>()))
}

fn every_byte_through(subject: &Subject<'_>) -> Result<String> {
    let all: Vec<u8> = (0..=255).collect();
    let outcome = subject
        .exec(&["-i"], &["cat"])
        .stdin(all.clone())
        .run()?
        .success()?;
    Ok(compared(&outcome.stdout, &all))
}

fn much_through(subject: &Subject<'_>) -> Result<String> {
    let bytes = random_bytes(MUCH)?;
    let outcome = subject
        .exec(&["-i"], &["cat"])
        .stdin(bytes.clone())
        .run()?
        .success()?;
    Ok(compared(&outcome.stdout, &bytes))
}

fn compared(there: &[u8], here: &[u8]) -> String {
    if there == here {
        return "as written".to_owned();
    }
    format!(
        "{} bytes ({}) instead of {}",
        there.len(),
        sha256(there),
        here.len()
    )
}

fn much_error(subject: &Subject<'_>) -> Result<String> {
    let outcome = subject
        .exec(&[], &["sh", "-c", "head -c 8388608 /dev/zero >&2"])
        .run()?;
    Ok(format!("{} {}", outcome.code, outcome.stderr.len()))
}

fn fed(subject: &Subject<'_>, flags: &[&str], input: &[u8], script: &str) -> Result<String> {
    Ok(seen(
        &subject.exec(flags, &["sh", "-c", script]).stdin(input).run()?,
    ))
}

fn input_ends_first(subject: &Subject<'_>) -> Result<String> {
    let mut running = subject
        .exec(&["-i"], &["sh", "-c", "cat; sleep 0.2; echo after"])
        .spawn()?;
    running.write(b"in\n")?;
    running.stdout.wait_for("in\n", DEADLINE)?;
    running.close_stdin();
    Ok(seen(&running.finish(DEADLINE)?))
}

fn in_turns(subject: &Subject<'_>) -> Result<String> {
    let mut running = subject.exec(&["-i"], &["cat"]).spawn()?;
    for turn in 0..5 {
        let line = format!("turn {turn}\n");
        running.write(line.as_bytes())?;
        running.stdout.wait_for(&line, DEADLINE)?;
    }
    running.close_stdin();
    Ok(format!("{} ", running.finish(DEADLINE)?.code))
}

/// The pipe between fills up long before the reader begins.
fn slow_reader(subject: &Subject<'_>) -> Result<String> {
    let writer = subject.exec(&[], &["head", "-c", "1048576", "/dev/zero"]);
    let outcome = writer.within("\"$@\" | (sleep 1; wc -c)").run()?;
    Ok(seen(&outcome).trim_end().to_owned())
}

/// podman's writer goes on without a reader: it must come to an end by itself.
fn reader_gone(subject: &Subject<'_>) -> Result<String> {
    let outcome = subject
        .exec(&[], &["head", "-c", "268435456", "/dev/zero"])
        .within("\"$@\" | head -c 1 > /dev/null; echo ${PIPESTATUS[0]}");
    outcome.ok()
}

/// The exit must not wait for those who are left.
fn quickly(subject: &Subject<'_>, script: &str) -> Result<String> {
    let begun = Instant::now();
    let outcome = subject.exec(&[], &["sh", "-c", script]).run()?;
    ensure!(
        begun.elapsed() < Duration::from_secs(20),
        "it waited for the child"
    );
    Ok(seen(&outcome))
}

fn crowd(subject: &Subject<'_>) -> Result<String> {
    let mut running = Vec::new();
    for number in 0..subject.crowd {
        let text = number.to_string();
        running.push(
            subject
                .exec(&["-i"], &["sh", "-c", &format!("echo {text}; cat; exit {text}")])
                .spawn()?,
        );
    }
    for (number, mut one) in running.into_iter().enumerate() {
        one.stdout.wait_for(&format!("{number}\n"), DEADLINE)?;
        one.close_stdin();
        let outcome = one.finish(DEADLINE)?;
        let code = usize::try_from(outcome.code).context("a negative code")?;
        ensure!(
            code == number && outcome.stdout == format!("{number}\n").as_bytes(),
            "{number}: {}",
            seen(&outcome)
        );
    }
    Ok("each its own".to_owned())
}
