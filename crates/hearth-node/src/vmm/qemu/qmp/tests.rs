//! The client against the test's end of a socket.

use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

use super::message::{QueryStatus, Stop};
use super::*;

const LIMIT: Duration = Duration::from_secs(10);
const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

struct Server {
    stream: BufReader<UnixStream>,
}

impl Server {
    async fn read(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }
}

async fn pair() -> (Client, broadcast::Receiver<Event>, Server) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut server = Server {
            stream: BufReader::new(stream),
        };
        server.write(GREETING).await;
        let request = server.read().await;
        assert_eq!(request["execute"], "qmp_capabilities");
        server
            .write(&format!("{{\"return\": {{}}, \"id\": {}}}\r\n", request["id"]))
            .await;
        server
    };
    let (client, server) = tokio::join!(Client::connect(&path, LIMIT), serve);
    let (client, events) = client.unwrap();
    (client, events, server)
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order() {
    let (client, _events, mut server) = pair().await;
    let serve = async {
        let (first, second) = (server.read().await, server.read().await);
        let status = "{\"running\": true, \"status\": \"running\"}";
        let by_name = |name: &str| {
            if first["execute"] == name {
                &first["id"]
            } else {
                &second["id"]
            }
        };
        let lines = format!(
            "{{\"id\": {}, \"return\": {status}}}\r\n{{\"id\": {}, \"return\": {{}}}}\r\n",
            by_name("query-status"),
            by_name("stop")
        );
        server.write(&lines).await;
    };
    let (stopped, status, ()) = tokio::join!(
        client.execute(&Stop {}, LIMIT),
        client.execute(&QueryStatus {}, LIMIT),
        serve
    );
    stopped.unwrap();
    assert!(status.unwrap().running);
}

#[tokio::test]
async fn a_refusal_carries_class_and_words() {
    let (client, _events, mut server) = pair().await;
    let serve = async {
        let id = server.read().await["id"].clone();
        let error = "{\"class\": \"GenericError\", \"desc\": \"no\"}";
        server
            .write(&format!("{{\"id\": {id}, \"error\": {error}}}\n"))
            .await;
    };
    let (refused, ()) = tokio::join!(client.execute(&Stop {}, LIMIT), serve);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "QEMU refused `stop`: no (GenericError)"
    );
}

#[tokio::test]
async fn a_late_answer_disturbs_nobody() {
    let (client, _events, mut server) = pair().await;
    let late = client
        .execute(&Stop {}, Duration::from_millis(1))
        .await
        .unwrap_err();
    assert!(matches!(late, QmpError::Deadline { command: "stop", .. }));
    let serve = async {
        let (late, asked) = (
            server.read().await["id"].clone(),
            server.read().await["id"].clone(),
        );
        server
            .write(&format!("{{\"id\": {late}, \"return\": {{}}}}\n"))
            .await;
        server
            .write(&format!(
                "{{\"id\": {asked}, \"return\": {{\"running\": false, \"status\": \"paused\"}}}}\n"
            ))
            .await;
    };
    let (status, ()) = tokio::join!(client.execute(&QueryStatus {}, LIMIT), serve);
    assert_eq!(status.unwrap().status, "paused");
}

#[tokio::test]
async fn the_end_of_qemu_ends_what_waits() {
    let (client, mut events, mut server) = pair().await;
    let serve = async {
        server.read().await;
        server.write("{\"event\": \"STOP\", \"timestamp\": {}}\n").await;
        drop(server);
    };
    let (ended, ()) = tokio::join!(client.execute(&Stop {}, LIMIT), serve);
    assert!(matches!(ended, Err(QmpError::Closed { command: "stop" })));
    assert_eq!(events.recv().await, Ok(Event::Stop));
    assert_eq!(events.recv().await, Err(broadcast::error::RecvError::Closed));
    assert!(matches!(
        client.execute(&Stop {}, LIMIT).await,
        Err(QmpError::Closed { .. })
    ));
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    let (client, _events, mut server) = pair().await;
    let serve = async {
        server.read().await;
        let chunk = vec![b' '; 64 << 10];
        for _ in 0..8 {
            if server.stream.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let mut rest = Vec::new();
        let _ = server.stream.read_to_end(&mut rest).await;
    };
    let (ended, ()) = tokio::join!(client.execute(&Stop {}, LIMIT), serve);
    assert!(matches!(ended, Err(QmpError::Closed { .. })));
}
