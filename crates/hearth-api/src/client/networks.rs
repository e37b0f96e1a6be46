//! Networks of machines.

use hyper::Method;

use super::{Client, ClientError, empty, json, uri};
use crate::endpoint::path;
use crate::v1;

impl Client {
    /// Lists networks.
    pub async fn networks(&self) -> Result<Vec<v1::Network>, ClientError> {
        self.call(Method::GET, path::NETWORKS, empty()).await
    }

    /// Makes a network.
    pub async fn network_create(&self, request: &v1::CreateNetwork) -> Result<v1::Network, ClientError> {
        self.call(Method::POST, path::NETWORKS, json(request)?).await
    }

    /// Tells everything about a network.
    pub async fn network(&self, network: &str) -> Result<v1::Network, ClientError> {
        self.call(Method::GET, &uri(path::NETWORK, &[network], &[]), empty())
            .await
    }

    /// Removes a network that no machine is on.
    pub async fn network_remove(&self, network: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &uri(path::NETWORK, &[network], &[]), empty())
            .await
    }

    /// Puts a machine on a network.
    pub async fn network_connect(
        &self,
        network: &str,
        request: &v1::ConnectMachine,
    ) -> Result<v1::Machine, ClientError> {
        let uri = uri(path::NETWORK_CONNECT, &[network], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }

    /// Takes a machine off a network.
    pub async fn network_disconnect(
        &self,
        network: &str,
        request: &v1::ConnectMachine,
    ) -> Result<v1::Machine, ClientError> {
        let uri = uri(path::NETWORK_DISCONNECT, &[network], &[]);
        self.call(Method::POST, &uri, json(request)?).await
    }
}
