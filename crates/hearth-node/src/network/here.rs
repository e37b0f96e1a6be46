//! What is this host: every address that a route of it leads to itself. Machines whose packets leave by sockets of the host's are kept
//! from those, as others are by the rules of its bridge.

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;

use super::NetworkError;
use super::links::failed;

/// Ranges, none of which overlaps another.
pub(super) type Here = Arc<[IpNet]>;

/// Finds them, and has them followed for as long as somebody listens.
pub(super) async fn follow() -> Result<watch::Receiver<Here>, NetworkError> {
    let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
    let opened = rtnetlink::new_multicast_connection(&groups);
    let (connection, handle, mut messages) =
        opened.map_err(super::namespace_error("talk to the kernel about routes"))?;
    tokio::spawn(connection);
    let (sender, receiver) = watch::channel(find(&handle).await?);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = sender.closed() => return,
            };
            let Some((message, _)) = message else {
                tracing::error!("the addresses of this host are not followed any more");
                return;
            };
            if !may_change(&message.payload) {
                continue;
            }
            match find(&handle).await {
                Ok(found) => {
                    sender.send_if_modified(|here| {
                        let differs = *here != found;
                        *here = found;
                        differs
                    });
                }
                Err(error) => tracing::error!(%error, "the addresses of this host are not known"),
            }
        }
    });
    Ok(receiver)
}

/// Tells whether what the kernel says is of this host's addresses, or that it could not say everything.
fn may_change(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => ends_here(route),
        _ => true,
    }
}

fn ends_here(route: &RouteMessage) -> bool {
    matches!(
        route.header.kind,
        RouteType::Local | RouteType::Anycast | RouteType::Broadcast
    )
}

async fn find(handle: &Handle) -> Result<Here, NetworkError> {
    let mut found = Vec::new();
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for family in [v4, v6] {
        let mut routes = handle.route().get(family).execute();
        while let Some(route) = routes.try_next().await.map_err(failed("read", "the routes"))? {
            found.extend(range(&route).filter(|_| ends_here(&route)));
        }
    }
    Ok(IpNet::aggregate(&found).into())
}

fn range(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_loopback_is_here() {
        let here = follow().await.unwrap();
        let here = here.borrow();
        let is_here = |text: &str| {
            let address: IpAddr = text.parse().unwrap();
            here.iter().any(|range| range.contains(&address))
        };
        assert!(is_here("127.0.0.1") && is_here("127.9.9.9"), "{here:?}");
        assert!(!is_here("192.0.3.1"), "{here:?}");
    }
}
