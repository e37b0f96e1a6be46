//! From the node: output, and how it ended.

use hearth_api::ClientError;
use hearth_api::stream::{self, HEADER_LEN, Kind};
use hearth_api::v1::{ErrorBody, ExitStatus};
use tokio::io::{AsyncRead, BufReader};

use super::{Output, Target};
use crate::error::CliError;

/// How much is read at once, in bytes: several full frames.
const BUFFER: usize = 256 * 1024;

/// Prints frames until the one that says how the process ended.
///
/// # Errors
/// Returns the node's refusal, [`ClientError::Gone`] when the end is missing, or what broke.
pub(crate) async fn print_frames(reader: impl AsyncRead + Unpin) -> Result<ExitStatus, CliError> {
    match copy_frames(reader).await? {
        Some(status) => Ok(status),
        None => Err(ClientError::Gone.into()),
    }
}

/// Prints frames to the stream's end, or to the frame that says how the process ended.
///
/// # Errors
/// As [`print_frames`], but for the end.
pub(crate) async fn copy_frames(reader: impl AsyncRead + Unpin) -> Result<Option<ExitStatus>, CliError> {
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    let (mut output, mut payload) = (Output::new(), Vec::new());
    loop {
        if !holds_a_frame(reader.buffer()) {
            output.flush().await?;
        }
        let frame = stream::read(&mut reader, &mut payload).await;
        match frame {
            Ok(Some(Kind::Stdout)) => output.push(Target::Stdout, &payload).await?,
            Ok(Some(Kind::Stderr)) => output.push(Target::Stderr, &payload).await?,
            Ok(Some(Kind::Exit)) => {
                output.flush().await?;
                return Ok(Some(
                    serde_json::from_slice(&payload).map_err(ClientError::Malformed)?,
                ));
            }
            Ok(Some(Kind::Error)) => {
                output.flush().await?;
                let body: ErrorBody = serde_json::from_slice(&payload).map_err(ClientError::Malformed)?;
                return Err(ClientError::Refused(Box::new(body)).into());
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                output.flush().await?;
                return Ok(None);
            }
            Err(error) => {
                output.flush().await?;
                return Err(error.into());
            }
        }
    }
}

/// Whether the next frame can be read without waiting for the node.
fn holds_a_frame(buffered: &[u8]) -> bool {
    let Some(head) = buffered.first_chunk::<HEADER_LEN>() else {
        return false;
    };
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    (buffered.len() - HEADER_LEN) as u64 >= u64::from(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_there_when_its_last_byte_is() {
        let mut wire = stream::header(Kind::Stdout, 3).to_vec();
        assert!(!holds_a_frame(&wire[..5]));
        wire.extend(b"ab");
        assert!(!holds_a_frame(&wire));
        wire.push(b'c');
        assert!(holds_a_frame(&wire));
    }

    #[tokio::test]
    async fn a_stream_without_an_end_is_an_error() {
        let error = print_frames(&b""[..]).await.unwrap_err();
        assert!(matches!(error, CliError::Client(ClientError::Gone)));
    }

    #[tokio::test]
    async fn the_nodes_error_is_the_sessions() {
        let body = br#"{"code":"command_not_found","message":"no such command"}"#;
        let mut wire = stream::header(Kind::Error, body.len()).to_vec();
        wire.extend(body);
        let error = print_frames(wire.as_slice()).await.unwrap_err();
        assert_eq!(error.exit_code(crate::error::Voice::Workload), 127);
    }
}
