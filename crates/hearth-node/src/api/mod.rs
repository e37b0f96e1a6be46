//! HTTP in, domain out: the only place in the node that knows HTTP and the wire's views.
//!
//! Paths come from `hearth_api::endpoint`; a test holds the router against that table.

mod archive;
mod convert;
mod error;
mod events;
mod execute;
mod files;
mod filter;
mod images;
mod logs;
mod machines;
mod networks;
mod node;
mod policies;
mod pools;
mod progress;
mod snapshots;
mod stats;
mod stream;
mod templates;

pub use error::start_error;

use std::future::IntoFuture;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use hearth_api::endpoint::path;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::machines::Machines;
use crate::pool::Pools;

/// Who a node is.
#[derive(Debug)]
pub struct Identity {
    /// Its socket.
    pub socket: PathBuf,
    /// RFC 3339.
    pub started_at: String,
}

/// What every handler needs.
#[derive(Debug, Clone)]
pub struct Service {
    /// The machines, and the parts of the node behind them.
    pub machines: Machines,
    /// Machines that are ready before somebody wants one.
    pub pools: Pools,
    /// Who this node is.
    pub identity: Arc<Identity>,
    /// Ends the node.
    pub shutdown: CancellationToken,
    /// What goes on beside requests: streams of attached clients, logs, long work. The server does not wait for them.
    pub tasks: TaskTracker,
}

impl Service {
    /// Waits until streams have told their clients the end, and no longer than `limit`: a download may take minutes, and
    /// whatever it leaves is swept at the next start. Machines are to be stopped before.
    pub async fn finish(&self, limit: Duration) {
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                tasks = self.tasks.len(),
                "streams or long work of clients are cut off"
            );
        }
    }
}

/// The longest request for a machine, in bytes: what a process takes as arguments and environment, each byte escaped in
/// JSON.
const CREATE_REQUEST_MAX: usize = 32 << 20;

/// Every route: method as OpenAPI writes it, path, handler.
fn routes() -> Vec<(&'static str, &'static str, MethodRouter<Service>)> {
    vec![
        ("get", path::OPENAPI, get(node::openapi)),
        ("get", path::NODE, get(node::status)),
        ("post", path::NODE_STOP, post(node::stop)),
        ("get", path::DOCTOR, get(node::doctor)),
        ("get", path::SETUP, get(node::setup_list)),
        ("post", path::SETUP, post(node::setup)),
        ("get", path::MACHINES, get(machines::list)),
        (
            "post",
            path::MACHINES,
            post(machines::create).layer(DefaultBodyLimit::max(CREATE_REQUEST_MAX)),
        ),
        ("post", path::MACHINES_PRUNE, post(machines::prune)),
        ("get", path::EVENTS, get(events::events)),
        ("get", path::POOLS, get(pools::list)),
        ("post", path::POOLS, post(pools::create)),
        ("get", path::POOL, get(pools::inspect)),
        ("patch", path::POOL, patch(pools::resize)),
        ("delete", path::POOL, delete(pools::remove)),
        ("post", path::POOL_ACQUIRE, post(pools::acquire)),
        ("post", path::LEASE_EXTEND, post(pools::extend)),
        ("post", path::LEASE_RELEASE, post(pools::release)),
        ("get", path::NETWORKS, get(networks::list)),
        ("post", path::NETWORKS, post(networks::create)),
        ("get", path::NETWORK, get(networks::inspect)),
        ("delete", path::NETWORK, delete(networks::remove)),
        ("post", path::NETWORK_CONNECT, post(networks::connect)),
        ("post", path::NETWORK_DISCONNECT, post(networks::disconnect)),
        (
            "post",
            path::EXECUTE,
            post(execute::run).layer(DefaultBodyLimit::max(execute::REQUEST_MAX)),
        ),
        ("get", path::MACHINE, get(machines::inspect)),
        ("patch", path::MACHINE, patch(machines::update)),
        ("delete", path::MACHINE, delete(machines::remove)),
        ("post", path::MACHINE_START, post(machines::start)),
        ("post", path::MACHINE_STOP, post(machines::stop)),
        ("get", path::MACHINE_TOP, get(machines::top)),
        ("post", path::MACHINE_RESTART, post(machines::restart)),
        ("post", path::MACHINE_RENAME, post(machines::rename)),
        ("post", path::MACHINE_PAUSE, post(machines::pause)),
        ("post", path::MACHINE_RESUME, post(machines::resume)),
        ("post", path::MACHINE_KILL, post(machines::kill)),
        ("post", path::MACHINE_WAIT, post(machines::wait)),
        ("post", path::MACHINE_ATTACH, post(stream::attach)),
        ("post", path::MACHINE_EXEC, post(stream::exec)),
        ("get", path::MACHINE_LOGS, get(logs::logs)),
        ("get", path::STATS, get(stats::stats)),
        ("get", path::MACHINE_CONSOLE, get(logs::console)),
        ("get", path::MACHINE_DENIALS, get(policies::denials)),
        ("get", path::MACHINE_CONTACTS, get(policies::contacts)),
        ("get", path::MACHINE_FILES, get(files::read)),
        ("put", path::MACHINE_FILES, put(files::write)),
        ("get", path::MACHINE_FILE_STAT, get(files::stat)),
        ("post", path::MACHINE_SNAPSHOT, post(snapshots::create)),
        ("post", path::MACHINE_ROLLBACK, post(snapshots::rollback)),
        ("post", path::MACHINE_FORK, post(snapshots::fork)),
        ("get", path::SNAPSHOTS, get(snapshots::list)),
        ("get", path::SNAPSHOT, get(snapshots::inspect)),
        ("delete", path::SNAPSHOT, delete(snapshots::remove)),
        ("post", path::SNAPSHOT_RESTORE, post(snapshots::restore)),
        ("get", path::SNAPSHOT_ARCHIVE, get(snapshots::export)),
        ("post", path::SNAPSHOTS_IMPORT, post(snapshots::import)),
        ("post", path::SNAPSHOTS_PRUNE, post(snapshots::prune)),
        ("get", path::TEMPLATES, get(templates::list)),
        ("delete", path::TEMPLATE, delete(templates::remove)),
        ("post", path::TEMPLATES_PRUNE, post(templates::prune)),
        ("get", path::IMAGES, get(images::list)),
        ("delete", path::IMAGES, delete(images::remove)),
        ("get", path::IMAGE, get(images::inspect)),
        ("post", path::IMAGES_PULL, post(images::pull)),
        ("post", path::IMAGES_BUILD, post(images::build)),
        ("post", path::IMAGES_TAG, post(images::tag)),
        ("post", path::IMAGES_PRUNE, post(images::prune)),
        ("post", path::IMAGES_SAVE, post(images::save)),
        ("post", path::IMAGES_LOAD, post(images::load)),
    ]
}

fn router(service: Service) -> Router {
    let routes = routes().into_iter();
    routes
        .fold(Router::new(), |router, (_, path, handler)| {
            router.route(path, handler)
        })
        .fallback(error::no_such_path)
        .with_state(service)
}

/// How long open connections may go on once the node ends.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Serves the API until `service.shutdown`; then no more connections come in, and open ones have [`LAST_WORDS`].
///
/// # Errors
/// Returns the listener's error.
pub async fn serve(listener: UnixListener, service: Service) -> std::io::Result<()> {
    let shutdown = service.shutdown.clone();
    let over = async {
        service.shutdown.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    let served = axum::serve(listener, router(service.clone()))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .into_future();
    tokio::select! {
        served = served => served,
        () = over => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hearth_api::endpoint::ALL;

    #[test]
    fn the_router_serves_exactly_the_documented_endpoints() {
        let served: BTreeSet<_> = super::routes()
            .iter()
            .map(|(method, path, _)| (*method, *path))
            .collect();
        let documented: BTreeSet<_> = ALL
            .iter()
            .map(|endpoint| (endpoint.method, endpoint.path))
            .collect();
        assert_eq!(served, documented);
    }
}
