//! What the client makes of answers, good and bad ones: against sockets that answer as they are told. What Firecracker
//! answers is tested in `tests/`.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;
use crate::model::InstanceState;

/// Asks a socket that gives this answer to one request; returns the request as it came.
async fn ask(answer: &[u8]) -> (Result<InstanceInfo, ClientError>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::new(path);
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer).await.unwrap();
        String::from_utf8(request).unwrap()
    };
    tokio::join!(client.instance(), server)
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test]
async fn a_good_answer_is_read() {
    let body = r#"{"app_name":"Firecracker","id":"a","state":"Not started","vmm_version":"1.12.1","new":1}"#;
    let (info, request) = ask(&answer("200 OK", body)).await;
    assert_eq!(info.unwrap().state, InstanceState::NotStarted);
    assert!(request.starts_with("GET / HTTP/1.1\r\n"), "{request}");
}

#[tokio::test]
async fn a_refusal_tells_what_firecracker_says() {
    let (info, _) = ask(&answer("400 Bad Request", r#"{"fault_message":"no such thing"}"#)).await;
    let error = info.unwrap_err();
    assert_eq!(error.fault_message(), Some("no such thing"));
    assert_eq!(
        error.to_string(),
        "Firecracker refused `GET /` (400): no such thing"
    );
    let (info, _) = ask(&answer("413 Payload Too Large", "too large\n")).await;
    assert_eq!(info.unwrap_err().fault_message(), Some("too large"));
}

#[tokio::test]
async fn an_answer_that_is_none_is_an_error_of_its_own() {
    let (info, _) = ask(&answer("200 OK", "[]")).await;
    assert!(matches!(info, Err(ClientError::Malformed { .. })), "{info:?}");
    for broken in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"[..],
        b"",
        b"+OK\r\n\r\n",
    ] {
        let (info, _) = ask(broken).await;
        assert!(matches!(info, Err(ClientError::Connection { .. })), "{info:?}");
    }
    let (info, _) = ask(&answer("200 OK", &" ".repeat(REPLY_MAX + 1))).await;
    assert!(matches!(info, Err(ClientError::TooLong { .. })), "{info:?}");
}

#[tokio::test]
async fn silence_costs_the_deadline_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let client = Client::new(&path).within(Duration::from_millis(20));
    let error = client.act(Action::InstanceStart).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "Firecracker did not answer `PUT /actions` within 20ms"
    );
}

#[tokio::test]
async fn a_socket_that_nobody_serves_is_named() {
    let client = Client::new("/nowhere/api.sock");
    let error = client.instance().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "Firecracker does not answer on /nowhere/api.sock"
    );
}
