//! `pool create` and times of leases: arguments to requests.

use hearth_api::v1;

use super::run::certificates;
use super::{Host, ResolveError, driver, duration, environment, image_reference, proxy};
use crate::arguments::{PoolAcquire, PoolCreate};

/// Resolves `pool create`.
///
/// # Errors
/// Returns [`ResolveError`] for the first argument that makes no sense.
pub(crate) fn pool_create(arguments: PoolCreate, host: &impl Host) -> Result<v1::CreatePool, ResolveError> {
    let shell = |line: String| vec!["sh".to_owned(), "-c".to_owned(), line];
    let networks = super::policy::networks(&arguments.network.network)?.of_many()?;
    let proxy = proxy::resolve(arguments.network.http_proxy.as_deref(), networks.mode, host)?;
    let mut variables = proxy.environment;
    variables.extend(environment::collect(&arguments.env_file, &arguments.env, host)?);
    let spec = v1::PoolSpec {
        image: image_reference(&arguments.image, host)?,
        min: arguments.min,
        max: arguments.max,
        ttl_seconds: arguments.ttl.as_deref().map(duration::seconds).transpose()?,
        warm_command: arguments.warm_cmd.map(shell).unwrap_or_default(),
        environment: variables,
        memory_bytes: arguments.memory.map(|memory| memory.bytes()),
        cpu_milli: arguments.cpus.map(|cpus| cpus.milli()),
        driver: driver(arguments.driver),
        network: networks.mode,
        networks: networks.names,
        policy: proxy::allowed(super::policy(&arguments.network.policy, host)?, proxy.allow),
        ca_certificates: certificates(&arguments.network.ca_cert, host)?,
    };
    Ok(v1::CreatePool {
        name: arguments.name,
        spec,
    })
}

/// Resolves `pool acquire`.
///
/// # Errors
/// Returns [`ResolveError::Duration`].
pub(crate) fn pool_acquire(arguments: &PoolAcquire) -> Result<v1::AcquireMachine, ResolveError> {
    Ok(v1::AcquireMachine {
        lease_seconds: Some(duration::seconds(&arguments.lease)?),
        wait_ms: arguments
            .wait
            .as_deref()
            .map(duration::milliseconds)
            .transpose()?,
    })
}

/// Resolves the time of `pool extend`.
///
/// # Errors
/// Returns [`ResolveError::Duration`].
pub(crate) fn pool_extend(lease: &str) -> Result<v1::ExtendLease, ResolveError> {
    Ok(v1::ExtendLease {
        lease_seconds: Some(duration::seconds(lease)?),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::fake::{FakeHost, certificate};
    use super::*;
    use crate::arguments::{Cli, Command, PoolCommand};

    #[test]
    fn every_flag_reaches_the_request() {
        let line = "hearth pool create p --image busybox --min 2 --max 3 --ttl 1m --warm-cmd true -e A=1 --cpus 500m -m 64m \
                    --driver qemu --network filtered --network backend --deny 10.0.0.0/8 --http-proxy=http://10.1.2.3:8080 --ca-cert ca.pem";
        let Command::Pool(pool) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("another verb");
        };
        let PoolCommand::Create(arguments) = pool.command else {
            panic!("another verb");
        };
        let expected = v1::PoolSpec {
            image: "busybox".into(),
            min: Some(2),
            max: Some(3),
            ttl_seconds: Some(60),
            warm_command: ["sh", "-c", "true"].map(str::to_owned).to_vec(),
            environment: [
                "HTTP_PROXY=http://10.1.2.3:8080",
                "http_proxy=http://10.1.2.3:8080",
                "HTTPS_PROXY=http://10.1.2.3:8080",
                "https_proxy=http://10.1.2.3:8080",
                "A=1",
            ]
            .map(str::to_owned)
            .to_vec(),
            memory_bytes: Some(64 << 20),
            cpu_milli: Some(500),
            driver: v1::DriverChoice::Qemu,
            network: Some(v1::NetworkMode::Filtered),
            networks: vec!["backend".into()],
            policy: Some(v1::NetworkPolicy {
                allow: vec!["10.1.2.3:8080".into()],
                deny: vec!["10.0.0.0/8".into()],
                ..v1::NetworkPolicy::default()
            }),
            ca_certificates: vec![certificate().into()],
        };
        let host = FakeHost {
            files: [("ca.pem", certificate().as_bytes())].into(),
            ..FakeHost::default()
        };
        let request = pool_create(*arguments, &host).unwrap();
        assert_eq!((request.name.as_str(), request.spec), ("p", expected));
    }
}
