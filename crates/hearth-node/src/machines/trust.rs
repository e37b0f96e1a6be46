//! Certificates that a machine's programs trust beside those of its image. They go onto the machine's own disk before its workload starts,
//! so no template has them.

use hearth_guest_protocol::GENERATION_DATAGRAMS;
use hearth_guest_protocol::message::{FileRequest, Outcome};
use hearth_machine::{Process, process};

use super::error::StartError;
use super::life::GUEST_DEADLINE;
use crate::guest::{Guest, RequestError, SessionEvent};

/// The variables by which programs find the file that has all of them: OpenSSL's, curl's, and that of Python's `requests`.
const BUNDLE: [&str; 3] = ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"];

/// That by which Node.js finds what it is to trust beside its own.
const ADDED: &str = "NODE_EXTRA_CA_CERTS";

/// The most bytes of the guest's answer: two paths.
const ANSWER_MAX: usize = 8 << 10;

/// Has the guest trust certificates; returns the variables by which programs find them.
pub(super) async fn install(guest: &Guest, certificates: &[String]) -> Result<Vec<String>, StartError> {
    if certificates.is_empty() {
        return Ok(Vec::new());
    }
    if guest.info().generation < GENERATION_DATAGRAMS {
        return Err(RequestError::OlderAgent.into());
    }
    let installed = tokio::time::timeout(GUEST_DEADLINE, hand_over(guest, certificates)).await;
    let answer = installed.map_err(|_| RequestError::Timeout(GUEST_DEADLINE))??;
    let [bundle, added] =
        paths(&answer).ok_or_else(|| StartError::Certificates("the guest's answer makes no sense".into()))?;
    let all = BUNDLE.map(|name| format!("{name}={bundle}"));
    Ok(all.into_iter().chain([format!("{ADDED}={added}")]).collect())
}

async fn hand_over(guest: &Guest, certificates: &[String]) -> Result<String, StartError> {
    let mut session = guest.file(&FileRequest::Trust).await?;
    let input = session.input();
    let text = certificates.concat();
    let send = async {
        // False when the session is over; its last event says why.
        let _ = input.send(text.as_bytes()).await;
        input.end().await;
        std::future::pending::<()>().await;
    };
    let receive = async {
        let mut answer = Vec::new();
        loop {
            match session.next().await {
                SessionEvent::Started { .. } | SessionEvent::OutputEnded(_) => {}
                SessionEvent::Output(_, bytes) if answer.len() + bytes.len() <= ANSWER_MAX => {
                    answer.extend_from_slice(&bytes);
                }
                SessionEvent::Ended(Outcome::Exited(0)) => {
                    return Ok(String::from_utf8_lossy(&answer).into_owned());
                }
                SessionEvent::Failed(failure) => return Err(StartError::Certificates(failure.message)),
                SessionEvent::ChannelLost => return Err(RequestError::ChannelLost.into()),
                SessionEvent::Output(..) | SessionEvent::Ended(_) => {
                    return Err(StartError::Certificates("the guest's agent failed".into()));
                }
            }
        }
    };
    tokio::select! {
        () = send => Err(RequestError::ChannelLost.into()),
        answer = receive => answer,
    }
}

/// Reads two lines of absolute paths. The guest is not to say what else stands in the environment.
fn paths(answer: &str) -> Option<[&str; 2]> {
    let (bundle, added) = answer.strip_suffix('\n')?.split_once('\n')?;
    let is_path = |text: &str| text.starts_with('/') && !text.contains(['\n', '\0']);
    (is_path(bundle) && is_path(added)).then_some([bundle, added])
}

/// Puts variables under those that a process has: what image or request say of one stays.
pub(super) fn beneath(process: &Process, variables: &[String]) -> Process {
    Process {
        environment: process::merge_environment(variables, &process.environment),
        ..process.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_paths_are_an_answer_and_nothing_else_is() {
        assert_eq!(paths("/a/b\n/c\n"), Some(["/a/b", "/c"]));
        for wrong in ["", "/a\n", "/a\n/b", "a\n/b\n", "/a\n/b\n/c\n", "/a\n/b\0\n"] {
            assert_eq!(paths(wrong), None, "{wrong:?}");
        }
    }
}
