//! A guest is played by the test, over a duplex pipe, frame by frame.

use std::time::Duration;

use hearth_guest_protocol::message::{
    self, CreditGrant, Execute, Failure, FailureCode, Hello, Launch, Outcome, Renew, Role, Status,
};
use hearth_guest_protocol::{CONTROL, Decoder, Flags, Header, Kind, MAX_PAYLOAD};
use serde_bytes::ByteBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::task::TaskTracker;

use super::{ConnectError, Guest, RequestError, SessionEvent, Stream};

const DEADLINE: Duration = Duration::from_secs(10);

struct Peer {
    stream: DuplexStream,
    decoder: Decoder,
}

impl Peer {
    async fn receive(&mut self) -> (Header, Vec<u8>) {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return (frame.header, frame.payload.to_vec());
            }
            let count = self.stream.read(self.decoder.space()).await.unwrap();
            assert!(count > 0, "the host hung up");
            self.decoder.filled(count);
        }
    }

    async fn send(&mut self, kind: Kind, session: u32, message: &impl serde::Serialize) {
        let mut frame = Vec::new();
        message::encode(kind, session, message, &mut frame).unwrap();
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn output(&mut self, session: u32, flags: Flags, payload: &[u8]) {
        let mut frame = Vec::new();
        Header::marked(Kind::Output, session, flags).write(payload, &mut frame);
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn greet(&mut self, newest: u16) {
        let (header, payload) = self.receive().await;
        assert_eq!((header.kind, header.session), (Kind::Hello, CONTROL));
        let mut hello: Hello = message::decode(&payload).unwrap();
        (hello.oldest, hello.newest, hello.uptime_ns) = (newest, newest, 5_000_000);
        self.send(Kind::Hello, CONTROL, &hello).await;
    }
}

fn pipe() -> (DuplexStream, Peer) {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    (
        host,
        Peer {
            stream: guest,
            decoder: Decoder::new(),
        },
    )
}

async fn connected() -> (Guest, Peer, TaskTracker) {
    connected_in(1).await
}

async fn connected_in(generation: u16) -> (Guest, Peer, TaskTracker) {
    let (host, mut peer) = pipe();
    let tasks = TaskTracker::new();
    let (reader, writer) = tokio::io::split(host);
    let (guest, ()) = tokio::join!(Guest::connect(reader, writer, &tasks), peer.greet(generation));
    (guest.unwrap(), peer, tasks)
}

fn workload() -> Execute {
    Execute {
        role: Role::Main,
        ..execute()
    }
}

fn execute() -> Execute {
    Execute {
        role: Role::Exec,
        arguments: vec![ByteBuf::from(*b"cat")],
        environment: vec![],
        working_directory: ByteBuf::new(),
        user: String::new(),
        terminal: None,
        stdin: true,
    }
}

#[tokio::test]
async fn what_an_earlier_connection_left_behind_is_skipped() {
    let (host, mut peer) = pipe();
    let mut torn = Vec::new();
    Header::new(Kind::Output, 9).write(&[1; 500], &mut torn);
    peer.stream.write_all(&torn[100..]).await.unwrap();
    peer.output(7, Flags::NONE, b"stale").await;
    let tasks = TaskTracker::new();
    let (reader, writer) = tokio::io::split(host);
    let (guest, ()) = tokio::join!(Guest::connect(reader, writer, &tasks), peer.greet(1));
    assert_eq!(guest.unwrap().info().boot, Duration::from_millis(5));
}

#[tokio::test]
async fn a_guest_of_another_generation_is_refused() {
    let (host, mut peer) = pipe();
    let (reader, writer) = tokio::io::split(host);
    let tasks = TaskTracker::new();
    let (guest, ()) = tokio::join!(Guest::connect(reader, writer, &tasks), peer.greet(99));
    assert!(matches!(guest, Err(ConnectError::Generation(_))));
}

#[tokio::test]
async fn what_a_guest_says_of_itself_unasked_answers_no_request() {
    let (guest, mut peer, _tasks) = connected_in(hearth_guest_protocol::GENERATION_NEW).await;
    // As of a clone that was configured before.
    peer.send(Kind::Status, CONTROL, &Status::Ready).await;
    let renew = Renew {
        hostname: "it".to_owned(),
        hosts: ByteBuf::new(),
        resolv_conf: ByteBuf::new(),
        machine_id: None,
        environment: vec![],
        clock_unix_ns: 1,
        entropy: [0; 32],
    };
    let renewed = guest.renew(&renew, DEADLINE);
    let refused = async {
        assert_eq!(peer.receive().await.0.kind, Kind::Renew);
        let failure = Failure {
            code: FailureCode::System,
            message: "no clock".to_owned(),
        };
        peer.send(Kind::Error, CONTROL, &failure).await;
    };
    let (renewed, ()) = tokio::join!(renewed, refused);
    assert!(matches!(renewed, Err(RequestError::Refused(_))), "{renewed:?}");
}

#[tokio::test]
async fn a_process_starts_prints_and_ends() {
    let (guest, mut peer, _tasks) = connected().await;
    let mut session = guest.launch(&execute().into()).await.unwrap();
    let (header, _) = peer.receive().await;
    peer.send(Kind::Status, header.session, &Status::Started { pid: 7 })
        .await;
    peer.output(header.session, Flags::NONE, b"out").await;
    peer.output(header.session, Flags::STDERR, b"err").await;
    peer.send(Kind::Result, header.session, &Outcome::Exited(3)).await;
    assert!(matches!(session.next().await, SessionEvent::Started { pid: 7 }));
    assert!(matches!(session.next().await, SessionEvent::Output(Stream::Stdout, b) if &b[..] == b"out"));
    assert!(matches!(session.next().await, SessionEvent::Output(Stream::Stderr, b) if &b[..] == b"err"));
    assert!(matches!(
        session.next().await,
        SessionEvent::Ended(Outcome::Exited(3))
    ));
}

#[tokio::test]
async fn a_reader_that_does_not_read_stalls_nobody_else() {
    let (guest, mut peer, _tasks) = connected().await;
    let mut slow = guest.launch(&execute().into()).await.unwrap();
    let (slow_header, _) = peer.receive().await;
    let window = hearth_guest_protocol::credit::WINDOW as usize;
    for _ in 0..window / MAX_PAYLOAD {
        peer.output(slow_header.session, Flags::NONE, &[1; MAX_PAYLOAD])
            .await;
    }
    let mut quick = guest.launch(&execute().into()).await.unwrap();
    let (quick_header, _) = peer.receive().await;
    peer.send(Kind::Result, quick_header.session, &Outcome::Exited(0))
        .await;
    assert!(matches!(
        quick.next().await,
        SessionEvent::Ended(Outcome::Exited(0))
    ));
    let mut read = 0;
    while read < window {
        match slow.next().await {
            SessionEvent::Output(_, bytes) => read += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    // The bytes are put away once more is asked for.
    tokio::select! {
        biased;
        event = slow.next() => panic!("{event:?}"),
        () = std::future::ready(()) => {}
    }
    let (header, payload) = peer.receive().await;
    let grant: CreditGrant = message::decode(&payload).unwrap();
    assert_eq!((header.kind, header.session), (Kind::Credit, slow_header.session));
    assert_eq!(grant.bytes as usize, window);
}

#[tokio::test]
async fn a_guest_that_overruns_its_window_loses_the_connection() {
    let (guest, mut peer, _tasks) = connected().await;
    let mut session = guest.launch(&execute().into()).await.unwrap();
    let (header, _) = peer.receive().await;
    let window = hearth_guest_protocol::credit::WINDOW as usize;
    for _ in 0..=window / MAX_PAYLOAD {
        peer.output(header.session, Flags::NONE, &[1; MAX_PAYLOAD]).await;
    }
    guest.lost().await;
    loop {
        match session.next().await {
            SessionEvent::Output(..) => {}
            SessionEvent::ChannelLost => break,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn input_waits_for_credit_and_ends_with_the_session() {
    let (guest, mut peer, _tasks) = connected().await;
    let session = guest.launch(&execute().into()).await.unwrap();
    let (header, _) = peer.receive().await;
    let input = session.input();
    let window = hearth_guest_protocol::credit::WINDOW as usize;
    let sending = tokio::spawn(async move { input.send(&vec![5; window + 1]).await });
    let mut seen = 0;
    while seen < window {
        seen += peer.receive().await.1.len();
    }
    assert_eq!(seen, window);
    peer.send(Kind::Result, header.session, &Outcome::Signaled(9))
        .await;
    assert!(!sending.await.unwrap());
}

#[tokio::test]
async fn dropping_a_session_tells_the_guest() {
    let (guest, mut peer, _tasks) = connected().await;
    let session = guest.launch(&execute().into()).await.unwrap();
    let (opened, _) = peer.receive().await;
    drop(session);
    let (closed, _) = peer.receive().await;
    assert_eq!((closed.kind, closed.session), (Kind::Close, opened.session));
    assert!(!closed.flags.has(Flags::END));
    let session = guest.dial(80).await.unwrap();
    peer.receive().await;
    session.finish();
    let (closed, _) = peer.receive().await;
    assert_eq!((closed.kind, closed.flags), (Kind::Close, Flags::END));
}

#[tokio::test]
async fn a_datagram_goes_whole_and_an_older_agent_is_not_asked() {
    let generation = hearth_guest_protocol::GENERATION_DATAGRAMS;
    let (guest, mut peer, _tasks) = connected_in(generation).await;
    let session = guest.datagrams(53).await.unwrap();
    let (opened, _) = peer.receive().await;
    assert_eq!(opened.kind, Kind::Datagrams);
    let input = session.input();
    assert!(!input.send_datagram(&[0; 65_508]).await);
    assert!(input.send_datagram(b"question").await);
    let (header, payload) = peer.receive().await;
    assert_eq!((header.kind, &payload[..]), (Kind::Stdin, &b"\x08\0question"[..]));
    // The window is enough for eight of the longest: the next one waits, and does not go in parts.
    let mut sent = 0;
    let sending = tokio::spawn(async move { while input.send_datagram(&[7; 65_507]).await {} });
    while sent < 8 {
        let (_, payload) = peer.receive().await;
        assert_eq!(payload.len(), 65_509);
        sent += 1;
    }
    let more = tokio::time::timeout(Duration::from_millis(50), peer.receive()).await;
    assert!(more.is_err());
    drop(session);
    sending.abort();
    let (guest, _peer, _tasks) = connected_in(generation - 1).await;
    assert!(matches!(guest.datagrams(53).await, Err(RequestError::OlderAgent)));
}

#[tokio::test]
async fn a_long_launch_comes_in_parts_and_is_let_go_without_a_kill() {
    let (guest, mut peer, _tasks) = connected_in(2).await;
    let mut launch = Launch::from(execute());
    launch.execute.environment = vec![ByteBuf::from(vec![b'x'; MAX_PAYLOAD])];
    launch.groups = vec!["wheel".to_owned()];
    let session = guest.launch(&launch).await.unwrap();
    let (first, mut payload) = peer.receive().await;
    let (last, rest) = peer.receive().await;
    payload.extend(rest);
    assert_eq!((first.kind, last.kind), (Kind::Part, Kind::Launch));
    assert_eq!(message::decode::<Launch>(&payload), Ok(launch));
    session.let_go().unwrap();
    let (detached, _) = peer.receive().await;
    assert_eq!((detached.kind, detached.session), (Kind::Detach, first.session));
    guest.ping(Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(peer.receive().await.0.kind, Kind::Ping, "nothing kills it");
}

#[tokio::test]
async fn an_older_agent_is_not_asked_for_what_it_does_not_know() {
    let (guest, mut peer, _tasks) = connected().await;
    let mut launch = Launch::from(execute());
    let session = guest.launch(&launch).await.unwrap();
    assert_eq!(peer.receive().await.0.kind, Kind::Execute);
    assert!(matches!(session.let_go(), Err(RequestError::OlderAgent)));
    launch.world.init = true;
    assert!(matches!(
        guest.launch(&launch).await,
        Err(RequestError::OlderAgent)
    ));
}

#[tokio::test]
async fn a_refusal_carries_the_guests_words() {
    let (guest, mut peer, _tasks) = connected().await;
    let stop = message::Stop {
        signal: 15,
        grace_ms: 1,
    };
    let refusal = Failure {
        code: FailureCode::System,
        message: "no".into(),
    };
    let (answer, ()) = tokio::join!(guest.stop(stop, DEADLINE), async {
        peer.receive().await;
        peer.send(Kind::Error, CONTROL, &refusal).await;
    });
    assert!(matches!(answer, Err(RequestError::Refused(failure)) if failure == refusal));
}

#[tokio::test]
async fn a_lost_connection_ends_every_wait() {
    let (guest, peer, tasks) = connected().await;
    let mut session = guest.launch(&execute().into()).await.unwrap();
    drop(peer);
    assert!(matches!(session.next().await, SessionEvent::ChannelLost));
    assert!(matches!(
        guest.ping(DEADLINE).await,
        Err(RequestError::ChannelLost | RequestError::Timeout(_))
    ));
    drop((session, guest));
    tasks.close();
    tokio::time::timeout(DEADLINE, tasks.wait()).await.unwrap();
}

#[tokio::test]
async fn a_host_that_follows_another_says_how_much_it_has() {
    let (host, mut peer) = pipe();
    let (reader, writer) = tokio::io::split(host);
    let tasks = TaskTracker::new();
    let guest = async {
        peer.greet(hearth_guest_protocol::GENERATION_RESUME).await;
        let (header, payload) = peer.receive().await;
        let resume: message::Resume = message::decode(&payload).unwrap();
        assert_eq!((header.kind, resume.received), (Kind::Resume, 77));
        peer.send(Kind::Status, header.session, &Status::Started { pid: 7 })
            .await;
        let (ping, _) = peer.receive().await;
        peer.send(Kind::Pong, ping.session, &()).await;
        peer.output(header.session, Flags::NONE, b"again").await;
    };
    let (found, ()) = tokio::join!(Guest::reconnect(reader, writer, &tasks, 77, DEADLINE), guest);
    let mut session = found.unwrap().1.unwrap();
    assert!(matches!(session.next().await, SessionEvent::Started { pid: 7 }));
    assert!(matches!(session.next().await, SessionEvent::Output(Stream::Stdout, b) if &b[..] == b"again"));
}

#[tokio::test]
async fn a_guest_that_is_called_again_goes_on_with_its_workload_and_cuts_the_rest() {
    let generation = hearth_guest_protocol::GENERATION_RESUME;
    let (guest, mut peer, tasks) = connected_in(generation).await;
    let mut workload = guest.launch(&workload().into()).await.unwrap();
    let (header, _) = peer.receive().await;
    peer.output(header.session, Flags::NONE, b"seen").await;
    assert!(matches!(workload.next().await, SessionEvent::Output(..)));
    let mut beside = guest.launch(&execute().into()).await.unwrap();
    peer.receive().await;

    let mut hung_up = guest.hang_up().await;
    assert!(matches!(beside.next().await, SessionEvent::Failed(why) if why.message.contains("snapshot")));
    // The old connection brings nothing any more, and breaks nothing.
    let _ = peer.stream.write_all(b"late").await;
    drop(peer);
    let (host, mut peer) = pipe();
    let (reader, writer) = tokio::io::split(host);
    let asking = guest.clone();
    let waiting = tokio::spawn(async move { asking.ping(DEADLINE).await });
    let other_end = async {
        peer.greet(generation).await;
        let (resume, payload) = peer.receive().await;
        let told: message::Resume = message::decode(&payload).unwrap();
        assert_eq!((resume.kind, told.received), (Kind::Resume, 4));
        let (ping, _) = peer.receive().await;
        assert_eq!(ping.kind, Kind::Ping);
        peer.send(Kind::Status, header.session, &Status::Started { pid: 7 })
            .await;
        peer.output(header.session, Flags::NONE, b"more").await;
        peer.send(Kind::Pong, ping.session, &()).await;
    };
    let (called, ()) = tokio::join!(hung_up.call(reader, writer, &tasks, DEADLINE), other_end);
    called.unwrap();
    drop(hung_up);
    assert!(matches!(workload.next().await, SessionEvent::Started { pid: 7 }));
    assert!(matches!(workload.next().await, SessionEvent::Output(_, bytes) if &bytes[..] == b"more"));
    // What was asked meanwhile is asked now.
    let (ping, _) = peer.receive().await;
    assert_eq!(ping.kind, Kind::Ping);
    peer.send(Kind::Pong, ping.session, &()).await;
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_guest_that_is_not_called_again_is_lost() {
    let (guest, mut peer, _tasks) = connected().await;
    let mut workload = guest.launch(&workload().into()).await.unwrap();
    peer.receive().await;
    drop(guest.hang_up().await);
    assert!(matches!(workload.next().await, SessionEvent::ChannelLost));
    assert!(matches!(
        guest.ping(DEADLINE).await,
        Err(RequestError::ChannelLost)
    ));
}
