//! `execute`: arguments to a request.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use hearth_api::v1;

use super::run::certificates;
use super::{Host, ResolveError, driver, duration, environment, image_reference, proxy};
use crate::arguments::{Execute, Pull};

/// How long to wait for memory or a machine, unless it is said, in milliseconds.
const WAIT_DEFAULT: u64 = 60_000;
/// The most code, in bytes; what is larger is input.
const CODE_MAX: u64 = 16 << 20;

/// Everything that `execute` asks for.
#[derive(Debug)]
pub(crate) struct ExecuteOrder {
    /// What the node is asked, without the input.
    pub(crate) request: v1::ExecuteRequest,
    /// When the image is fetched.
    pub(crate) pull: Pull,
    /// Where input comes from and output goes to.
    pub(crate) workspace: Option<PathBuf>,
}

/// Resolves `execute`.
///
/// # Errors
/// Returns [`ResolveError`] for the first argument that makes no sense.
pub(crate) fn execute(arguments: Execute, host: &impl Host) -> Result<ExecuteOrder, ResolveError> {
    let code = arguments
        .file
        .as_deref()
        .map(|path| code(path, host))
        .transpose()?;
    let name = arguments.file.as_deref().filter(|path| *path != Path::new("-"));
    let name = name
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned());
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
    let networks = super::policy::networks(&arguments.network.network)?.of_many()?;
    let proxy = proxy::resolve(arguments.network.http_proxy.as_deref(), networks.mode, host)?;
    let mut variables = proxy.environment;
    variables.extend(environment::collect(&arguments.env_file, &arguments.env, host)?);
    let request = v1::ExecuteRequest {
        image: arguments
            .image
            .as_deref()
            .map(|image| image_reference(image, host))
            .transpose()?,
        pool: arguments.pool,
        code,
        code_name: name,
        interpreter: arguments.interpreter.map(words).unwrap_or_default(),
        command: arguments.cmd,
        environment: variables,
        timeout_ms: arguments
            .timeout
            .as_deref()
            .map(duration::milliseconds)
            .transpose()?,
        memory_bytes: arguments.memory.map(|memory| memory.bytes()),
        cpu_milli: arguments.cpus.map(|cpus| cpus.milli()),
        driver: driver(arguments.driver),
        network: networks.mode,
        networks: networks.names,
        policy: proxy::allowed(super::policy(&arguments.network.policy, host)?, proxy.allow),
        ca_certificates: certificates(&arguments.network.ca_cert, host)?,
        input_archive: None,
        output: arguments.workspace.is_some(),
        output_max_bytes: None,
        wait_ms: Some(
            arguments
                .wait
                .as_deref()
                .map_or(Ok(WAIT_DEFAULT), duration::milliseconds)?,
        ),
        stream: !arguments.json,
    };
    Ok(ExecuteOrder {
        request,
        pull: arguments.pull,
        workspace: arguments.workspace,
    })
}

fn code(path: &Path, host: &impl Host) -> Result<String, ResolveError> {
    let failed = |source| ResolveError::File {
        path: path.to_owned(),
        source,
    };
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().take(CODE_MAX + 1).read_to_end(&mut bytes);
        read.map(|_| bytes).map_err(failed)?
    } else {
        host.read(path).map_err(failed)?
    };
    if bytes.len() as u64 > CODE_MAX {
        return Err(ResolveError::CodeTooLong(path.to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| ResolveError::CodeNotText(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::fake::{FakeHost, certificate};
    use super::*;
    use crate::arguments::{Cli, Command};

    fn resolved(arguments: &str) -> Result<ExecuteOrder, ResolveError> {
        let mut host = FakeHost::default();
        host.files.insert("a.py", b"print(1)");
        host.files.insert("b", &[0xff]);
        host.files.insert("ca.pem", certificate().as_bytes());
        let all = ["hearth", "execute"].into_iter().chain(arguments.split(' '));
        match Cli::try_parse_from(all).unwrap().command {
            Command::Execute(arguments) => execute(*arguments, &host),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flag_reaches_the_request() {
        let order = resolved(
            "--image busybox --network backend --policy locked --http-proxy=http://10.1.2.3:8080 --ca-cert ca.pem --workspace w --timeout 1500ms --wait 2s -e A=1 --cpus 2 -m 64m --interpreter python3{}-u --json a.py"
                .replace("{}", "\u{a0}")
                .as_str(),
        )
        .unwrap();
        let expected = v1::ExecuteRequest {
            image: Some("busybox".into()),
            code: Some("print(1)".into()),
            code_name: Some("a.py".into()),
            interpreter: vec!["python3".into(), "-u".into()],
            environment: [
                "HTTP_PROXY=http://10.1.2.3:8080",
                "http_proxy=http://10.1.2.3:8080",
                "HTTPS_PROXY=http://10.1.2.3:8080",
                "https_proxy=http://10.1.2.3:8080",
                "A=1",
            ]
            .map(str::to_owned)
            .to_vec(),
            timeout_ms: Some(1500),
            memory_bytes: Some(64 << 20),
            cpu_milli: Some(2000),
            networks: vec!["backend".into()],
            policy: Some(v1::NetworkPolicy {
                preset: Some(v1::PolicyPreset::Locked),
                allow: vec!["10.1.2.3:8080".into()],
                ..v1::NetworkPolicy::default()
            }),
            ca_certificates: vec![certificate().into()],
            output: true,
            wait_ms: Some(2000),
            ..v1::ExecuteRequest::default()
        };
        assert_eq!(order.request, expected);
        assert_eq!(order.workspace, Some(PathBuf::from("w")));
    }

    #[test]
    fn a_command_takes_all_that_follows() {
        let order = resolved("--pool p --cmd sh -c --json").unwrap();
        assert_eq!(order.request.command, ["sh", "-c", "--json"]);
        assert_eq!((order.request.stream, order.request.output), (true, false));
    }

    #[test]
    fn code_that_is_no_text_is_refused() {
        assert!(matches!(
            resolved("--image i b"),
            Err(ResolveError::CodeNotText(_))
        ));
        assert!(matches!(
            resolved("--image i nothing"),
            Err(ResolveError::File { .. })
        ));
    }
}
