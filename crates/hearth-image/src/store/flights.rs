//! One pull for all who want the same image at the same time, with the same credentials.
//!
//! The work goes on for as long as anybody waits for it, and is dropped with the last one: a pull that nobody wants any more
//! ends where it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::audience::{Audience, Seat};
use super::{Image, PullError, StoreError};
use crate::{Credentials, ProgressSink};

/// How a pull ends, for each who waited.
pub(super) type Landing = Result<Image, Arc<PullError>>;
type Work = BoxFuture<'static, Landing>;

/// What makes two pulls the same: the image's name, and who asks. A wrong password must not become an answer for others.
pub(super) type Route = (String, Credentials);

/// A pull that goes on for as long as somebody else holds it, and who hears of it.
type UnderWay = (WeakShared<Work>, Weak<Audience>);

/// The pulls that are under way.
#[derive(Default)]
pub(super) struct Flights {
    /// Guards the table only, never across an await; an owner task would need the same table behind a channel.
    table: Mutex<HashMap<Route, UnderWay>>,
}

/// A place on a flight. With the last one, the flight and its route, which has a password in it, are forgotten.
pub(super) struct Passenger<'a> {
    flights: &'a Flights,
    work: Option<Shared<Work>>,
    _seat: Seat,
}

impl Passenger<'_> {
    /// Waits for the end of the work.
    pub(super) async fn landing(&mut self) -> Landing {
        match &mut self.work {
            Some(work) => work.await,
            None => Err(Arc::new(StoreError::Cancelled.into())),
        }
    }
}

impl Drop for Passenger<'_> {
    fn drop(&mut self) {
        self.work = None;
        sweep(&mut self.flights.table());
    }
}

fn sweep(table: &mut HashMap<Route, UnderWay>) {
    table.retain(|_, (work, _)| work.upgrade().is_some_and(|work| work.peek().is_none()));
}

impl Flights {
    /// Joins the pull that is under way, or begins one.
    pub(super) fn join(
        &self,
        route: Route,
        progress: ProgressSink,
        begin: impl FnOnce(ProgressSink) -> Work,
    ) -> Passenger<'_> {
        let mut table = self.table();
        sweep(&mut table);
        let under_way = table
            .get(&route)
            .and_then(|(work, audience)| Some((work.upgrade()?, audience.upgrade()?)));
        let (landing, audience) = under_way.unwrap_or_else(|| {
            let audience = Arc::<Audience>::default();
            let landing = begin(audience.sink()).shared();
            if let Some(weak) = landing.downgrade() {
                table.insert(route, (weak, Arc::downgrade(&audience)));
            }
            (landing, audience)
        });
        drop(table);
        Passenger {
            flights: self,
            work: Some(landing),
            _seat: audience.join(progress),
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Route, UnderWay>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::no_progress;

    fn failing(begun: &Arc<AtomicU32>) -> Work {
        let begun = begun.clone();
        async move {
            begun.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Err(Arc::new(PullError::Store(StoreError::Cancelled)))
        }
        .boxed()
    }

    fn route(password: &str) -> Route {
        let credentials = Credentials::Password {
            user: "ada".into(),
            password: password.into(),
        };
        ("image".into(), credentials)
    }

    #[tokio::test]
    async fn who_comes_while_a_pull_is_under_way_shares_its_end() {
        let (flights, begun) = (Flights::default(), Arc::new(AtomicU32::new(0)));
        let join = |password| flights.join(route(password), no_progress(), |_| failing(&begun));
        let (one, mut two, mut other) = (join("a"), join("a"), join("b"));
        drop(one);
        assert!(two.landing().await.is_err());
        assert!(other.landing().await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), 2);
        // Who comes later begins anew.
        assert!(join("a").landing().await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        drop((two, other));
        assert!(flights.table().is_empty(), "a password is kept");
    }

    #[tokio::test]
    async fn a_pull_that_nobody_waits_for_is_dropped() {
        let flights = Flights::default();
        let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
        let work = async move {
            let _alive = alive;
            std::future::pending::<Landing>().await
        };
        let waiting = flights.join(route("a"), no_progress(), |_| work.boxed());
        drop(waiting);
        assert!(dropped.await.is_err());
    }
}
