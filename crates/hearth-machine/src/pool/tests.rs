//! A pool under any order of events, and some of its rules one by one.

use proptest::prelude::*;

use super::*;

const MIB: ByteSize = ByteSize::from_mib(1);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn bounds(min: u32, max: u32, ttl: Option<u64>) -> Bounds {
    Bounds {
        min,
        max,
        ttl: ttl.map(seconds),
        memory: MIB,
    }
}

fn outside(now: u64, waiting: u32) -> Outside {
    Outside {
        now: seconds(now),
        free: ByteSize::from_mib(1000),
        waiting,
        idle: true,
        quiet: true,
    }
}

fn with_ready(bounds: Bounds, since: &[u64]) -> Pool {
    let mut pool = Pool::new(bounds);
    for &since in since {
        pool.adopt(Phase::Ready {
            since: seconds(since),
        });
    }
    pool
}

#[test]
fn bounds_that_cannot_be_are_refused() {
    let room = ByteSize::from_mib(4);
    assert_eq!(bounds(1, 4, None).check(room), Ok(bounds(1, 4, None)));
    assert_eq!(bounds(0, 0, None).check(room), Err(BoundsError::Size(0)));
    assert_eq!(
        bounds(3, 2, None).check(room),
        Err(BoundsError::MinAboveMax { min: 3, max: 2 })
    );
    assert_eq!(bounds(1, 2, Some(0)).check(room), Err(BoundsError::Ttl));
    let error = bounds(1, 5, None).check(room).unwrap_err();
    assert_eq!(
        error.to_string(),
        "5 machines of 1 MiB are more than the 4 MiB that pools may take on this host"
    );
}

#[test]
fn a_pool_is_filled_one_at_a_time_and_gives_way_to_who_waits() {
    let mut pool = Pool::new(bounds(2, 4, None));
    assert!(pool.wants_start(outside(0, 0)));
    assert!(!pool.wants_start(Outside {
        idle: false,
        ..outside(0, 0)
    }));
    let first = pool.start();
    assert!(!pool.wants_start(outside(0, 0)) && !pool.wants_start(outside(0, 1)));
    assert!(pool.wants_start(outside(0, 2)), "who waits is waited for at once");
    pool.started(first, seconds(1));
    assert!(pool.wants_start(outside(1, 0)));
    let poor = Outside {
        free: ByteSize::from_bytes(1),
        ..outside(1, 0)
    };
    assert!(!pool.wants_start(poor));
}

#[test]
fn a_pool_waits_for_quiet_unless_half_of_it_is_gone() {
    let busy = Outside {
        quiet: false,
        ..outside(10, 0)
    };
    let bounds = bounds(4, 8, None);
    assert!(with_ready(bounds, &[1, 2, 3]).wants_start(outside(10, 0)));
    assert!(!with_ready(bounds, &[1, 2, 3]).wants_start(busy));
    assert!(!with_ready(bounds, &[1, 2]).wants_start(busy));
    assert!(
        with_ready(bounds, &[1]).wants_start(busy),
        "a stream of acquires would empty it"
    );
    assert!(!with_ready(bounds, &[1]).wants_start(Outside { idle: false, ..busy }));
}

#[test]
fn the_oldest_goes_first_and_none_that_is_too_old() {
    let mut pool = with_ready(bounds(0, 9, Some(100)), &[50, 30, 10]);
    let oldest = pool.hand_out(seconds(120), seconds(5));
    assert_eq!(oldest, Some(1));
    assert_eq!(pool.superfluous(seconds(120)), [2]);
    assert_eq!(pool.expired(seconds(124)), [0; 0]);
    assert_eq!(pool.expired(seconds(125)), [1]);
    assert!(pool.extend(1, seconds(200)) && !pool.extend(0, seconds(200)));
    assert_eq!(pool.expired(seconds(125)), [0; 0]);
}

#[test]
fn a_successor_starts_before_a_machine_is_too_old() {
    let pool = with_ready(bounds(1, 2, Some(100)), &[0]);
    assert!(!pool.wants_start(outside(89, 0)));
    assert!(pool.wants_start(outside(90, 0)) && pool.superfluous(seconds(90)).is_empty());
    assert_eq!(pool.next_moment(seconds(0)), Some(seconds(90)));
    assert_eq!(pool.next_moment(seconds(90)), Some(seconds(100)));
}

#[test]
fn starts_that_fail_are_tried_again_later_and_later() {
    let mut pool = Pool::new(bounds(1, 1, None));
    for (now, next) in [(0, 1), (1, 3), (3, 7)] {
        assert!(pool.wants_start(outside(now, 0)));
        let key = pool.start();
        pool.failed(key, seconds(now));
        pool.gone(key);
        assert!(!pool.wants_start(outside(now, 1)));
        assert_eq!(pool.next_moment(seconds(now)), Some(seconds(next)));
    }
    let key = pool.start();
    pool.started(key, seconds(7));
    pool.gone(key);
    assert!(pool.wants_start(outside(7, 0)));
}

#[test]
fn a_pool_that_shrinks_or_ends_lets_go_of_what_nobody_has() {
    let mut pool = with_ready(bounds(3, 3, None), &[1, 2, 3]);
    pool.hand_out(seconds(4), seconds(100));
    pool.resize(bounds(1, 2, None));
    assert_eq!(pool.superfluous(seconds(4)), [1]);
    pool.close();
    assert_eq!(pool.superfluous(seconds(4)), [1, 2]);
    assert_eq!(pool.hand_out(seconds(4), seconds(1)), None);
    assert!(!pool.wants_start(outside(4, 1)));
}

#[test]
fn a_queue_keeps_its_order_and_its_deadlines() {
    let mut queue = Queue::default();
    for (name, deadline) in [("a", 5), ("b", 2), ("c", 9), ("gone", 9)] {
        queue.push(name, seconds(deadline));
    }
    assert_eq!(queue.next_deadline(), Some(seconds(2)));
    assert_eq!(queue.take_over(seconds(2), |name| *name == "gone"), ["b", "gone"]);
    let (a, deadline) = queue.take().unwrap();
    queue.put_back(a, deadline);
    assert_eq!((queue.first(), queue.len()), (Some(&"a"), 2));
    assert_eq!(queue.take(), Some(("a", seconds(5))));
    assert_eq!(queue.take(), Some(("c", seconds(9))));
    assert!(queue.is_empty());
}

/// What can happen to a pool.
#[derive(Debug, Clone)]
enum Happens {
    Asked,
    Passes(u64),
    Starts,
    Fails,
    Released(usize),
    Dies(usize),
    Resized(u32, u32),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        Just(Happens::Asked),
        (1_u64..40).prop_map(Happens::Passes),
        Just(Happens::Starts),
        Just(Happens::Fails),
        any::<usize>().prop_map(Happens::Released),
        any::<usize>().prop_map(Happens::Dies),
        (0_u32..4, 0_u32..4).prop_map(|(min, more)| Happens::Resized(min, (min + more).max(1))),
    ]
}

/// A node that does at once what a pool wants.
struct Node {
    pool: Pool,
    now: u64,
    /// Machines that all others leave.
    room: u64,
    queue: Queue<u64>,
    tickets: u64,
    served: Vec<u64>,
}

impl Node {
    fn outside(&self) -> Outside {
        let free = (self.room << 20).saturating_sub(self.pool.memory().bytes());
        Outside {
            free: ByteSize::from_bytes(free),
            ..outside(self.now, self.queue.len())
        }
    }

    fn first(&self, is: impl Fn(&Phase) -> bool, at: usize) -> Option<Key> {
        let keys: Vec<_> = self.pool.members().filter(|(_, phase)| is(phase)).collect();
        (!keys.is_empty()).then(|| keys[at % keys.len()].0)
    }

    fn settle(&mut self) {
        let now = seconds(self.now);
        for key in [self.pool.expired(now), self.pool.superfluous(now)].concat() {
            self.pool.leave(key);
            self.pool.gone(key);
        }
        self.queue.take_over(now, |_| false);
        while !self.queue.is_empty() {
            let before = self.first(|phase| matches!(phase, Phase::Leased { .. }), 0);
            let Some(key) = self.pool.hand_out(now, seconds(30)) else {
                break;
            };
            assert_ne!(Some(key), before);
            self.served.extend(self.queue.take().map(|(ticket, _)| ticket));
        }
        let mut starts = 0;
        while self.pool.wants_start(self.outside()) {
            self.pool.start();
            starts += 1;
            assert!(self.pool.members().count() <= self.pool.bounds().max as usize);
            assert!(self.pool.memory().bytes() <= self.room << 20);
            assert!(starts <= MACHINES_MAX);
        }
    }

    fn happens(&mut self, what: &Happens) {
        let now = seconds(self.now);
        match *what {
            Happens::Asked => {
                self.queue.push(self.tickets, now + seconds(20));
                self.tickets += 1;
            }
            Happens::Passes(time) => self.now += time,
            Happens::Starts => {
                if let Some(key) = self.first(|phase| *phase == Phase::Starting, 0) {
                    self.pool.started(key, now);
                }
            }
            Happens::Fails => {
                if let Some(key) = self.first(|phase| *phase == Phase::Starting, 0) {
                    self.pool.failed(key, now);
                    self.pool.gone(key);
                }
            }
            Happens::Released(at) => {
                if let Some(key) = self.first(|phase| matches!(phase, Phase::Leased { .. }), at) {
                    self.pool.leave(key);
                    self.pool.gone(key);
                }
            }
            Happens::Dies(at) => {
                if let Some(key) = self.first(|_| true, at) {
                    self.pool.gone(key);
                }
            }
            Happens::Resized(min, max) => {
                self.pool
                    .resize(bounds(min, max, self.pool.bounds().ttl.map(|ttl| ttl.as_secs())))
            }
        }
        self.settle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_pool_keeps_its_bounds_and_its_order(
        events in prop::collection::vec(happens(), 1..80),
        room in 0_u64..8,
        ttl in prop::option::of(10_u64..100),
    ) {
        let mut node = Node {
            pool: Pool::new(bounds(2, 4, ttl)),
            now: 1000,
            room,
            queue: Queue::default(),
            tickets: 0,
            served: Vec::new(),
        };
        node.settle();
        for event in &events {
            node.happens(event);
            // Nobody is overtaken.
            prop_assert!(node.served.is_sorted());
            for (_, phase) in node.pool.members() {
                match phase {
                    Phase::Leased { until } => prop_assert!(until > seconds(node.now)),
                    Phase::Ready { since } => {
                        prop_assert!(ttl.is_none_or(|ttl| seconds(node.now) < since + seconds(ttl)));
                        // Who waits while one is ready has been forgotten.
                        prop_assert!(node.queue.is_empty());
                    }
                    Phase::Starting => {}
                    Phase::Leaving => prop_assert!(false, "what leaves is gone at once here"),
                }
            }
        }
        // Left alone, with good starts, it comes to be as it should be.
        node.now += 200;
        for _ in 0..40 {
            node.now += 1;
            node.settle();
            if let Some(key) = node.first(|phase| *phase == Phase::Starting, 0) {
                node.pool.started(key, seconds(node.now));
                node.settle();
            }
        }
        let bounds = node.pool.bounds();
        let ready = node.pool.count(|phase| matches!(phase, Phase::Ready { .. }));
        prop_assert!(u64::from(ready) >= u64::from(bounds.min).min(room).min(bounds.max.into()) || ttl.is_some_and(|ttl| ttl <= 40));
    }
}
