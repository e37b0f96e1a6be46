//! Paths, with `{machine}` and the like as axum and OpenAPI write them.

/// This document.
pub const OPENAPI: &str = "/v1/openapi.json";
/// The node.
pub const NODE: &str = "/v1/node";
/// Ends the node.
pub const NODE_STOP: &str = "/v1/node/stop";
/// Prerequisites.
pub const DOCTOR: &str = "/v1/doctor";
/// Artefacts.
pub const SETUP: &str = "/v1/setup";
/// All machines.
pub const MACHINES: &str = "/v1/machines";
/// One machine.
pub const MACHINE: &str = "/v1/machines/{machine}";
/// Starts it.
pub const MACHINE_START: &str = "/v1/machines/{machine}/start";
/// Stops it.
pub const MACHINE_STOP: &str = "/v1/machines/{machine}/stop";
/// Its processes.
pub const MACHINE_TOP: &str = "/v1/machines/{machine}/top";
/// Stops it and starts it again.
pub const MACHINE_RESTART: &str = "/v1/machines/{machine}/restart";
/// Gives it another name.
pub const MACHINE_RENAME: &str = "/v1/machines/{machine}/rename";
/// Removes those that have ended.
pub const MACHINES_PRUNE: &str = "/v1/machines/prune";
/// What happens to machines.
pub const EVENTS: &str = "/v1/events";
/// All pools.
pub const POOLS: &str = "/v1/pools";
/// One pool.
pub const POOL: &str = "/v1/pools/{pool}";
/// Hands out a machine.
pub const POOL_ACQUIRE: &str = "/v1/pools/{pool}/acquire";
/// Lets a lease last longer.
pub const LEASE_EXTEND: &str = "/v1/leases/{lease}/extend";
/// Gives a machine back.
pub const LEASE_RELEASE: &str = "/v1/leases/{lease}/release";
/// All networks of machines.
pub const NETWORKS: &str = "/v1/networks";
/// One of them.
pub const NETWORK: &str = "/v1/networks/{network}";
/// Puts a machine on it.
pub const NETWORK_CONNECT: &str = "/v1/networks/{network}/connect";
/// Takes a machine off it.
pub const NETWORK_DISCONNECT: &str = "/v1/networks/{network}/disconnect";
/// Runs code once.
pub const EXECUTE: &str = "/v1/execute";
/// Stops its virtual processors.
pub const MACHINE_PAUSE: &str = "/v1/machines/{machine}/pause";
/// Lets its virtual processors go on.
pub const MACHINE_RESUME: &str = "/v1/machines/{machine}/resume";
/// Sends it a signal.
pub const MACHINE_KILL: &str = "/v1/machines/{machine}/kill";
/// Waits for its end.
pub const MACHINE_WAIT: &str = "/v1/machines/{machine}/wait";
/// Connects to its workload.
pub const MACHINE_ATTACH: &str = "/v1/machines/{machine}/attach";
/// Runs a process in it.
pub const MACHINE_EXEC: &str = "/v1/machines/{machine}/exec";
/// What its workload printed.
pub const MACHINE_LOGS: &str = "/v1/machines/{machine}/logs";
/// What machines use.
pub const STATS: &str = "/v1/stats";
/// What it was refused on its network.
pub const MACHINE_DENIALS: &str = "/v1/machines/{machine}/denials";
/// Whom it talked to.
pub const MACHINE_CONTACTS: &str = "/v1/machines/{machine}/contacts";
/// Its serial console.
pub const MACHINE_CONSOLE: &str = "/v1/machines/{machine}/console";
/// Files in it.
pub const MACHINE_FILES: &str = "/v1/machines/{machine}/files";
/// What a path in it is.
pub const MACHINE_FILE_STAT: &str = "/v1/machines/{machine}/files/stat";
/// Takes a snapshot of it.
pub const MACHINE_SNAPSHOT: &str = "/v1/machines/{machine}/snapshot";
/// Makes it again what it was.
pub const MACHINE_ROLLBACK: &str = "/v1/machines/{machine}/rollback";
/// Makes machines that go on where it is.
pub const MACHINE_FORK: &str = "/v1/machines/{machine}/fork";
/// All snapshots.
pub const SNAPSHOTS: &str = "/v1/snapshots";
/// One snapshot.
pub const SNAPSHOT: &str = "/v1/snapshots/{snapshot}";
/// One as an archive.
pub const SNAPSHOT_ARCHIVE: &str = "/v1/snapshots/{snapshot}/archive";
/// That of an archive.
pub const SNAPSHOTS_IMPORT: &str = "/v1/snapshots/import";
/// Makes a machine of one.
pub const SNAPSHOT_RESTORE: &str = "/v1/snapshots/{snapshot}/restore";
/// Deletes those of no use.
pub const SNAPSHOTS_PRUNE: &str = "/v1/snapshots/prune";
/// All templates.
pub const TEMPLATES: &str = "/v1/templates";
/// One template.
pub const TEMPLATE: &str = "/v1/templates/{template}";
/// Deletes those of no use.
pub const TEMPLATES_PRUNE: &str = "/v1/templates/prune";
/// All images.
pub const IMAGES: &str = "/v1/images";
/// One image.
pub const IMAGE: &str = "/v1/images/inspect";
/// Fetches one.
pub const IMAGES_PULL: &str = "/v1/images/pull";
/// Makes one.
pub const IMAGES_BUILD: &str = "/v1/images/build";
/// Names one.
pub const IMAGES_TAG: &str = "/v1/images/tag";
/// Deletes what nothing needs.
pub const IMAGES_PRUNE: &str = "/v1/images/prune";
/// Some as an archive.
pub const IMAGES_SAVE: &str = "/v1/images/save";
/// Those of an archive.
pub const IMAGES_LOAD: &str = "/v1/images/load";
