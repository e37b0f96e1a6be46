//! Every endpoint of the node, once. The node's router, the client and the OpenAPI document use these constants.

use schemars::{Schema, SchemaGenerator};

use crate::v1;

/// The prefix of every path.
pub const PREFIX: &str = "/v1";

pub mod path;

/// What an endpoint answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// One JSON document.
    Json,
    /// JSON, a line each: the response's type, most often [`v1::ProgressLine`].
    Lines,
    /// Frames of [`crate::stream`] on the upgraded connection.
    Upgrade,
    /// Frames of [`crate::stream`] as the body.
    Frames,
    /// Raw bytes.
    Bytes,
    /// Nothing.
    Empty,
}

const FILTER_MACHINES: &str = "a JSON array of KEY=VALUE: id, name, label, status, exited, ancestor";
const FILTER_EVENTS: &str = "a JSON array of KEY=VALUE: event, machine, label, image";

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// HTTP method, in lower case as OpenAPI writes it.
    pub method: &'static str,
    /// Path with parameters in braces.
    pub path: &'static str,
    /// Name for generated clients.
    pub operation: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// Query parameters: name and what it means.
    pub query: &'static [(&'static str, &'static str)],
    /// The request's body.
    pub request: Option<SchemaOf>,
    /// What it answers with.
    pub answer: Answer,
    /// The answer's document or line.
    pub response: Option<SchemaOf>,
}

fn schema<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const fn endpoint(
    method: &'static str,
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
    answer: Answer,
) -> Endpoint {
    Endpoint {
        method,
        path,
        operation,
        summary,
        query: &[],
        request: None,
        answer,
        response: None,
    }
}

impl Endpoint {
    const fn query(self, query: &'static [(&'static str, &'static str)]) -> Self {
        Self { query, ..self }
    }

    const fn takes(self, request: SchemaOf) -> Self {
        Self {
            request: Some(request),
            ..self
        }
    }

    const fn gives(self, response: SchemaOf) -> Self {
        Self {
            response: Some(response),
            ..self
        }
    }
}

/// All endpoints, in the order of the document.
pub const ALL: &[Endpoint] = &[
    endpoint(
        "get",
        path::OPENAPI,
        "openapi",
        "Returns this document.",
        Answer::Json,
    ),
    endpoint(
        "get",
        path::NODE,
        "node_status",
        "Tells which node answers.",
        Answer::Json,
    )
    .gives(schema::<v1::NodeStatus>),
    endpoint(
        "post",
        path::NODE_STOP,
        "node_stop",
        "Ends the node.",
        Answer::Empty,
    )
    .takes(schema::<v1::StopNode>),
    endpoint(
        "get",
        path::DOCTOR,
        "doctor",
        "Examines every prerequisite of this host.",
        Answer::Json,
    )
    .gives(schema::<v1::DoctorReport>),
    endpoint(
        "get",
        path::SETUP,
        "setup_list",
        "Lists kernels, agents and initramfs images.",
        Answer::Json,
    )
    .gives(schema::<v1::SetupReport>),
    endpoint(
        "post",
        path::SETUP,
        "setup",
        "Prepares a kernel, an agent and an initramfs.",
        Answer::Lines,
    )
    .takes(schema::<v1::SetupRequest>)
    .gives(schema::<v1::ProgressLine<v1::SetupReport>>),
    endpoint(
        "get",
        path::MACHINES,
        "machine_list",
        "Lists machines.",
        Answer::Json,
    )
    .query(&[
        ("all", "true: those that do not run, too"),
        ("filter", FILTER_MACHINES),
    ])
    .gives(schema::<Vec<v1::Machine>>),
    endpoint(
        "post",
        path::MACHINES,
        "machine_create",
        "Creates a machine.",
        Answer::Json,
    )
    .takes(schema::<v1::CreateMachine>)
    .gives(schema::<v1::Machine>),
    endpoint(
        "get",
        path::MACHINE,
        "machine_inspect",
        "Tells everything about a machine.",
        Answer::Json,
    )
    .gives(schema::<v1::Machine>),
    endpoint(
        "delete",
        path::MACHINE,
        "machine_remove",
        "Removes a machine and its disk.",
        Answer::Empty,
    )
    .query(&[("force", "true: kills it first if it runs")]),
    endpoint(
        "post",
        path::MACHINE_START,
        "machine_start",
        "Starts a machine.",
        Answer::Json,
    )
    .gives(schema::<v1::Machine>),
    endpoint(
        "post",
        path::MACHINE_STOP,
        "machine_stop",
        "Stops a machine.",
        Answer::Json,
    )
    .takes(schema::<v1::StopMachine>)
    .gives(schema::<v1::Machine>),
    endpoint(
        "get",
        path::MACHINE_TOP,
        "machine_top",
        "Lists the processes of a machine's workload, and those beside it.",
        Answer::Json,
    )
    .gives(schema::<v1::ProcessList>),
    endpoint(
        "post",
        path::MACHINE_RESTART,
        "machine_restart",
        "Stops a machine and starts it again.",
        Answer::Json,
    )
    .takes(schema::<v1::StopMachine>)
    .gives(schema::<v1::Machine>),
    endpoint(
        "post",
        path::MACHINE_RENAME,
        "machine_rename",
        "Gives a machine another name.",
        Answer::Json,
    )
    .takes(schema::<v1::RenameMachine>)
    .gives(schema::<v1::Machine>),
    endpoint(
        "patch",
        path::MACHINE,
        "machine_update",
        "Changes labels, restart policy, time limits and network policy of a machine, at once where it runs.",
        Answer::Json,
    )
    .takes(schema::<v1::UpdateMachine>)
    .gives(schema::<v1::Machine>),
    endpoint(
        "get",
        path::MACHINE_DENIALS,
        "machine_denials",
        "Tells what a machine was refused on its network. What is kept goes with the node.",
        Answer::Lines,
    )
    .query(&[("follow", "true: goes on with what is refused next")])
    .gives(schema::<v1::Denial>),
    endpoint(
        "get",
        path::MACHINE_CONTACTS,
        "machine_contacts",
        "Lists whom a machine talked to over its network, or tried to.",
        Answer::Json,
    )
    .gives(schema::<v1::ContactList>),
    endpoint(
        "post",
        path::MACHINES_PRUNE,
        "machine_prune",
        "Removes machines that have ended, or were never started.",
        Answer::Json,
    )
    .takes(schema::<v1::PruneMachines>)
    .gives(schema::<v1::Pruned>),
    endpoint(
        "get",
        path::EVENTS,
        "events",
        "Tells what happens to machines.",
        Answer::Lines,
    )
    .query(&[
        (
            "since",
            "RFC 3339: begins with what has happened since; otherwise with what happens next",
        ),
        ("until", "RFC 3339: ends there"),
        ("filter", FILTER_EVENTS),
    ])
    .gives(schema::<v1::EventLine>),
    endpoint("get", path::POOLS, "pool_list", "Lists pools.", Answer::Json).gives(schema::<Vec<v1::Pool>>),
    endpoint(
        "post",
        path::POOLS,
        "pool_create",
        "Creates a pool; its machines come up in the background.",
        Answer::Json,
    )
    .takes(schema::<v1::CreatePool>)
    .gives(schema::<v1::Pool>),
    endpoint(
        "get",
        path::POOL,
        "pool_inspect",
        "Tells everything about a pool.",
        Answer::Json,
    )
    .gives(schema::<v1::Pool>),
    endpoint(
        "patch",
        path::POOL,
        "pool_resize",
        "Changes how many machines a pool keeps ready, and has in all.",
        Answer::Json,
    )
    .takes(schema::<v1::ResizePool>)
    .gives(schema::<v1::Pool>),
    endpoint(
        "delete",
        path::POOL,
        "pool_remove",
        "Removes a pool and its machines.",
        Answer::Empty,
    )
    .query(&[("force", "true: even while somebody has machines of it")]),
    endpoint(
        "post",
        path::POOL_ACQUIRE,
        "pool_acquire",
        "Hands out a machine of a pool for a time; it answers at once.",
        Answer::Json,
    )
    .takes(schema::<v1::AcquireMachine>)
    .gives(schema::<v1::Lease>),
    endpoint(
        "post",
        path::LEASE_EXTEND,
        "lease_extend",
        "Lets a lease last longer; its machine's name stands for it, too.",
        Answer::Json,
    )
    .takes(schema::<v1::ExtendLease>)
    .gives(schema::<v1::Lease>),
    endpoint(
        "post",
        path::LEASE_RELEASE,
        "lease_release",
        "Gives a machine back; its name stands for the lease, too.",
        Answer::Empty,
    )
    .takes(schema::<v1::ReleaseMachine>),
    endpoint(
        "get",
        path::NETWORKS,
        "network_list",
        "Lists the networks of machines.",
        Answer::Json,
    )
    .gives(schema::<Vec<v1::Network>>),
    endpoint(
        "post",
        path::NETWORKS,
        "network_create",
        "Makes a network, on which machines reach each other by name.",
        Answer::Json,
    )
    .takes(schema::<v1::CreateNetwork>)
    .gives(schema::<v1::Network>),
    endpoint(
        "get",
        path::NETWORK,
        "network_inspect",
        "Tells everything about a network.",
        Answer::Json,
    )
    .gives(schema::<v1::Network>),
    endpoint(
        "delete",
        path::NETWORK,
        "network_remove",
        "Removes a network that no machine is on.",
        Answer::Empty,
    ),
    endpoint(
        "post",
        path::NETWORK_CONNECT,
        "network_connect",
        "Puts a machine on a network, at once where it runs.",
        Answer::Json,
    )
    .takes(schema::<v1::ConnectMachine>)
    .gives(schema::<v1::Machine>),
    endpoint(
        "post",
        path::NETWORK_DISCONNECT,
        "network_disconnect",
        "Takes a machine off a network, at once where it runs: its connections there end.",
        Answer::Json,
    )
    .takes(schema::<v1::ConnectMachine>)
    .gives(schema::<v1::Machine>),
    endpoint(
        "post",
        path::EXECUTE,
        "execute",
        "Runs code once, in a machine of its own: one line with the result, or lines as it goes on.",
        Answer::Lines,
    )
    .takes(schema::<v1::ExecuteRequest>)
    .gives(schema::<v1::ExecuteLine>),
    endpoint(
        "post",
        path::MACHINE_PAUSE,
        "machine_pause",
        "Stops a machine's virtual processors.",
        Answer::Json,
    )
    .gives(schema::<v1::Machine>),
    endpoint(
        "post",
        path::MACHINE_RESUME,
        "machine_resume",
        "Lets a paused machine go on.",
        Answer::Json,
    )
    .gives(schema::<v1::Machine>),
    endpoint(
        "post",
        path::MACHINE_KILL,
        "machine_kill",
        "Sends the workload a signal.",
        Answer::Empty,
    )
    .query(&[("signal", "name or number; KILL when absent")]),
    endpoint(
        "post",
        path::MACHINE_WAIT,
        "machine_wait",
        "Waits for a machine's end.",
        Answer::Json,
    )
    .gives(schema::<v1::ExitStatus>),
    endpoint(
        "post",
        path::MACHINE_ATTACH,
        "machine_attach",
        "Connects to the workload.",
        Answer::Upgrade,
    )
    .query(&[
        (
            "start",
            "true: starts the machine, so that nothing it prints is missed",
        ),
        ("stdin", "true: this client's input is the workload's"),
        ("rows", "lines of the client's terminal"),
        ("columns", "characters in a line of the client's terminal"),
    ]),
    endpoint(
        "post",
        path::MACHINE_EXEC,
        "machine_exec",
        "Runs a process beside the workload.",
        Answer::Upgrade,
    )
    .takes(schema::<v1::ExecRequest>),
    endpoint(
        "get",
        path::MACHINE_LOGS,
        "machine_logs",
        "Returns what the workload printed.",
        Answer::Frames,
    )
    .query(&[
        ("follow", "true: goes on until the machine ends"),
        ("tail", "only so many of the last lines"),
        ("timestamps", "true: RFC 3339 before each line"),
        ("since", "only what was printed at this time (RFC 3339) or later"),
        ("until", "only what was printed at this time (RFC 3339) or before"),
    ]),
    endpoint(
        "get",
        path::STATS,
        "machine_stats",
        "Tells what machines use, a line of JSON for each look.",
        Answer::Lines,
    )
    .query(&[
        (
            "machines",
            "names or ids, with commas between; all that run when absent",
        ),
        ("stream", "true: a line each interval, until the client goes away"),
        (
            "interval_ms",
            "time between two looks in milliseconds; 1000 when absent",
        ),
    ])
    .gives(schema::<v1::StatsSample>),
    endpoint(
        "get",
        path::MACHINE_CONSOLE,
        "machine_console",
        "Returns the serial console.",
        Answer::Bytes,
    )
    .query(&[("follow", "true: goes on until the machine ends")]),
    endpoint(
        "get",
        path::MACHINE_FILES,
        "file_get",
        "Returns a file or tree as a tar archive.",
        Answer::Bytes,
    )
    .query(&[("path", "absolute path in the machine")]),
    endpoint(
        "put",
        path::MACHINE_FILES,
        "file_put",
        "Unpacks a tar archive into a directory.",
        Answer::Empty,
    )
    .query(&[
        ("path", "absolute path of the directory"),
        ("keep_owners", "true: owners as in the archive"),
    ]),
    endpoint(
        "get",
        path::MACHINE_FILE_STAT,
        "file_stat",
        "Tells what a path in the machine is.",
        Answer::Json,
    )
    .query(&[("path", "absolute path in the machine")])
    .gives(schema::<v1::FileStat>),
    endpoint(
        "post",
        path::MACHINE_SNAPSHOT,
        "machine_snapshot",
        "Takes a snapshot of a machine, which goes on.",
        Answer::Json,
    )
    .takes(schema::<v1::CreateSnapshot>)
    .gives(schema::<v1::CreatedSnapshot>),
    endpoint(
        "post",
        path::MACHINE_ROLLBACK,
        "machine_rollback",
        "Makes a machine again what it was when a snapshot of it was taken.",
        Answer::Json,
    )
    .takes(schema::<v1::RollbackMachine>)
    .gives(schema::<v1::Machine>),
    endpoint(
        "post",
        path::MACHINE_FORK,
        "machine_fork",
        "Makes machines that go on where a running one is: all of them, or none.",
        Answer::Json,
    )
    .takes(schema::<v1::ForkMachine>)
    .gives(schema::<v1::Forked>),
    endpoint(
        "get",
        path::SNAPSHOTS,
        "snapshot_list",
        "Lists snapshots, oldest first.",
        Answer::Json,
    )
    .gives(schema::<Vec<v1::Snapshot>>),
    endpoint(
        "get",
        path::SNAPSHOT,
        "snapshot_inspect",
        "Tells everything about a snapshot.",
        Answer::Json,
    )
    .gives(schema::<v1::Snapshot>),
    endpoint(
        "delete",
        path::SNAPSHOT,
        "snapshot_remove",
        "Removes a snapshot. Machines that were made of it go on.",
        Answer::Empty,
    ),
    endpoint(
        "post",
        path::SNAPSHOT_RESTORE,
        "snapshot_restore",
        "Makes a machine of a snapshot, and starts it.",
        Answer::Json,
    )
    .takes(schema::<v1::RestoreSnapshot>)
    .gives(schema::<v1::Machine>),
    endpoint(
        "get",
        path::SNAPSHOT_ARCHIVE,
        "snapshot_export",
        "Returns a snapshot as an archive, for another host of this kind: tar, compressed with zstd.",
        Answer::Bytes,
    ),
    endpoint(
        "post",
        path::SNAPSHOTS_IMPORT,
        "snapshot_import",
        "Takes the snapshot of an archive, which is the request's body.",
        Answer::Json,
    )
    .query(&[("name", "its name here; the one that it has when absent")])
    .gives(schema::<v1::Snapshot>),
    endpoint(
        "post",
        path::SNAPSHOTS_PRUNE,
        "snapshot_prune",
        "Removes snapshots that no machine could be made of any more.",
        Answer::Json,
    )
    .takes(schema::<v1::PruneSnapshots>)
    .gives(schema::<v1::PrunedSnapshots>),
    endpoint(
        "get",
        path::TEMPLATES,
        "template_list",
        "Lists templates, the one used last first.",
        Answer::Json,
    )
    .gives(schema::<Vec<v1::Template>>),
    endpoint(
        "delete",
        path::TEMPLATE,
        "template_remove",
        "Removes a template. Machines that were made of it go on.",
        Answer::Empty,
    ),
    endpoint(
        "post",
        path::TEMPLATES_PRUNE,
        "template_prune",
        "Removes templates that no machine could be made of any more.",
        Answer::Json,
    )
    .takes(schema::<v1::PruneTemplates>)
    .gives(schema::<v1::PrunedTemplates>),
    endpoint("get", path::IMAGES, "image_list", "Lists images.", Answer::Json)
        .gives(schema::<Vec<v1::Image>>),
    endpoint(
        "delete",
        path::IMAGES,
        "image_remove",
        "Removes an image's name, and the image with its last one.",
        Answer::Empty,
    )
    .query(&[
        ("reference", "the image"),
        (
            "force",
            "true: even while machines are made of it; they keep what they need",
        ),
    ]),
    endpoint(
        "get",
        path::IMAGE,
        "image_inspect",
        "Tells everything about an image.",
        Answer::Json,
    )
    .query(&[("reference", "the image")])
    .gives(schema::<v1::Image>),
    endpoint(
        "post",
        path::IMAGES_PULL,
        "image_pull",
        "Fetches an image and prepares it.",
        Answer::Lines,
    )
    .takes(schema::<v1::PullImage>)
    .gives(schema::<v1::ProgressLine<v1::Image>>),
    endpoint(
        "post",
        path::IMAGES_BUILD,
        "image_build",
        "Makes an image of packages.",
        Answer::Lines,
    )
    .takes(schema::<v1::BuildImage>)
    .gives(schema::<v1::ProgressLine<v1::Image>>),
    endpoint(
        "post",
        path::IMAGES_TAG,
        "image_tag",
        "Gives an image one more name.",
        Answer::Json,
    )
    .takes(schema::<v1::TagImage>)
    .gives(schema::<v1::Image>),
    endpoint(
        "post",
        path::IMAGES_PRUNE,
        "image_prune",
        "Deletes what no image needs, and images that no machine is made of.",
        Answer::Json,
    )
    .takes(schema::<v1::PruneImages>)
    .gives(schema::<v1::PrunedImages>),
    endpoint(
        "post",
        path::IMAGES_SAVE,
        "image_save",
        "Returns images as a tar archive: an OCI layout that is docker's form, too.",
        Answer::Bytes,
    )
    .takes(schema::<v1::SaveImages>),
    endpoint(
        "post",
        path::IMAGES_LOAD,
        "image_load",
        "Takes the images of a tar archive, which is the request's body.",
        Answer::Json,
    )
    .query(&[("reference", "the name of the archive's one image")])
    .gives(schema::<Vec<v1::Image>>),
];
