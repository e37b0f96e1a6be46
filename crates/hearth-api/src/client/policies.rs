//! What machines were refused, and whom they talked to.

use hyper::Method;

use super::{Client, ClientError, Lines, empty, uri};
use crate::endpoint::path;
use crate::v1;

impl Client {
    /// Tells what a machine was refused on its network; `follow` goes on with what is refused next.
    pub async fn denials(&self, machine: &str, follow: bool) -> Result<Lines<v1::Denial>, ClientError> {
        let query = [("follow", follow.to_string())];
        let uri = uri(path::MACHINE_DENIALS, &[machine], &query);
        Ok(Lines::new(self.bytes(&uri).await?))
    }

    /// Lists whom a machine talked to, or tried to.
    pub async fn contacts(&self, machine: &str) -> Result<v1::ContactList, ClientError> {
        self.call(
            Method::GET,
            &uri(path::MACHINE_CONTACTS, &[machine], &[]),
            empty(),
        )
        .await
    }
}
