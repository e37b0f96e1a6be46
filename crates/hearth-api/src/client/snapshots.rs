//! Snapshots, and what is made of running machines.

use hyper::Method;
use hyper::body::Incoming;

use super::{BodyPieces, Client, ClientError, empty, json, pieces, uri};
use crate::endpoint::path;
use crate::v1;

impl Client {
    /// Takes a snapshot of a machine.
    pub async fn snapshot_create(
        &self,
        machine: &str,
        request: &v1::CreateSnapshot,
    ) -> Result<v1::CreatedSnapshot, ClientError> {
        let uri = uri(path::MACHINE_SNAPSHOT, &[machine], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Makes a machine again what it was.
    pub async fn rollback(
        &self,
        machine: &str,
        request: &v1::RollbackMachine,
    ) -> Result<v1::Machine, ClientError> {
        let uri = uri(path::MACHINE_ROLLBACK, &[machine], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Makes machines that go on where a running one is.
    pub async fn fork(&self, machine: &str, request: &v1::ForkMachine) -> Result<v1::Forked, ClientError> {
        let uri = uri(path::MACHINE_FORK, &[machine], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Lists snapshots.
    pub async fn snapshots(&self) -> Result<Vec<v1::Snapshot>, ClientError> {
        self.call(Method::GET, path::SNAPSHOTS, empty()).await
    }

    /// Tells everything about a snapshot.
    pub async fn snapshot(&self, snapshot: &str) -> Result<v1::Snapshot, ClientError> {
        self.call(Method::GET, &uri(path::SNAPSHOT, &[snapshot], &[]), empty())
            .await
    }

    /// Removes a snapshot.
    pub async fn snapshot_remove(&self, snapshot: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &uri(path::SNAPSHOT, &[snapshot], &[]), empty())
            .await
    }

    /// Returns a snapshot as an archive.
    pub async fn snapshot_export(&self, snapshot: &str) -> Result<Incoming, ClientError> {
        let uri = uri(path::SNAPSHOT_ARCHIVE, &[snapshot], &[]);
        let request = self.request(Method::GET, &uri, empty());
        Ok(self.send(request).await?.into_body())
    }

    /// Takes the snapshot of an archive, under this name or the one that it has.
    pub async fn snapshot_import(
        &self,
        name: Option<&str>,
        archive: BodyPieces,
    ) -> Result<v1::Snapshot, ClientError> {
        let query: Vec<_> = name.map(|name| ("name", name.to_owned())).into_iter().collect();
        let uri = uri(path::SNAPSHOTS_IMPORT, &[], &query);
        self.call(Method::POST, &uri, pieces(archive)).await
    }

    /// Makes a machine of a snapshot, and starts it.
    pub async fn restore(
        &self,
        snapshot: &str,
        request: &v1::RestoreSnapshot,
    ) -> Result<v1::Machine, ClientError> {
        let uri = uri(path::SNAPSHOT_RESTORE, &[snapshot], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Removes snapshots of no use.
    pub async fn snapshot_prune(
        &self,
        request: &v1::PruneSnapshots,
    ) -> Result<v1::PrunedSnapshots, ClientError> {
        self.call(Method::POST, path::SNAPSHOTS_PRUNE, json(request)?)
            .await
    }
}
