//! What goes into a workspace and comes out of it, as tar archives over the guest channel.

use std::io::{self, Read as _};

use hearth_guest_protocol::message::{FileRequest, Outcome};
use serde_bytes::ByteBuf;
use tar::{Builder, EntryType, Header};

use super::{ExecuteError, FILES_DEADLINE};
use crate::guest::SessionEvent;
use crate::machines::Machine;

/// Files of an output that are listed; an archive may hold more.
const LISTED_MAX: usize = 10_000;

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path below the archive's top.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
}

/// Packs a workspace: its directories, open to whatever user the image has, and the code.
pub(super) fn workspace(code: Option<(&str, &[u8])>) -> Result<Vec<u8>, ExecuteError> {
    let mut builder = Builder::new(Vec::new());
    let mut add = |path: &str, kind: EntryType, mode: u32, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content)
    };
    let packed = ["workspace", "workspace/input", "workspace/output"]
        .into_iter()
        .try_for_each(|directory| add(directory, EntryType::Directory, 0o777, &[]))
        .and_then(|()| match code {
            Some((file, content)) => add(&format!("workspace/{file}"), EntryType::Regular, 0o755, content),
            None => Ok(()),
        })
        .and_then(|()| builder.into_inner());
    packed.map_err(ExecuteError::Archive)
}

/// Unpacks an archive into a directory of a machine.
pub(super) async fn put(machine: &Machine, directory: &str, archive: Vec<u8>) -> Result<(), ExecuteError> {
    let request = FileRequest::Put {
        path: ByteBuf::from(directory.as_bytes()),
        keep_owners: false,
    };
    let unpacked = async {
        let mut session = machine.view().guest()?.file(&request).await?;
        match session.next().await {
            SessionEvent::Started { .. } => {}
            event => return Err(ExecuteError::unexpected(event)),
        }
        let input = session.input();
        let send = async {
            // False when the session is over; its last event says why.
            let _ = input.send(&archive).await;
            input.end().await;
            std::future::pending::<()>().await;
        };
        let finish = async {
            loop {
                match session.next().await {
                    SessionEvent::Output(..) | SessionEvent::OutputEnded(_) => {}
                    SessionEvent::Ended(Outcome::Exited(0)) => return Ok(()),
                    event => return Err(ExecuteError::unexpected(event)),
                }
            }
        };
        tokio::select! {
            () = send => Ok(()),
            finished = finish => finished,
        }
    };
    let done = tokio::time::timeout(FILES_DEADLINE, unpacked).await;
    done.map_err(|_| ExecuteError::Files(FILES_DEADLINE))?
}

/// Packs a directory of a machine, unless that takes more than `limit` bytes.
pub(super) async fn get(machine: &Machine, directory: &str, limit: usize) -> Result<Vec<u8>, ExecuteError> {
    let request = FileRequest::Get {
        path: ByteBuf::from(directory.as_bytes()),
    };
    let packed = async {
        let mut session = machine.view().guest()?.file(&request).await?;
        let mut archive = Vec::new();
        loop {
            match session.next().await {
                SessionEvent::Started { .. } | SessionEvent::OutputEnded(_) => {}
                SessionEvent::Output(_, bytes) if archive.len() + bytes.len() > limit => {
                    return Err(ExecuteError::OutputTooLarge);
                }
                SessionEvent::Output(_, bytes) => archive.extend_from_slice(&bytes),
                SessionEvent::Ended(Outcome::Exited(0)) => return Ok(archive),
                event => return Err(ExecuteError::unexpected(event)),
            }
        }
    };
    let done = tokio::time::timeout(FILES_DEADLINE, packed).await;
    done.map_err(|_| ExecuteError::Files(FILES_DEADLINE))?
}

/// Lists the regular files of an archive that a guest has packed. Its bytes are hostile: nothing is unpacked here, and names are text
/// for people.
pub(super) fn members(archive: &[u8]) -> Result<Vec<Member>, ExecuteError> {
    let list = || -> io::Result<Vec<Member>> {
        let mut members = Vec::new();
        for entry in tar::Archive::new(archive.take(u64::MAX)).entries()? {
            let entry = entry?;
            if entry.header().entry_type() != EntryType::Regular {
                continue;
            }
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let below = path.split_once('/').map_or(path.as_str(), |(_, below)| below);
            members.push(Member {
                path: below.to_owned(),
                size: entry.size(),
            });
            if members.len() == LISTED_MAX {
                break;
            }
        }
        Ok(members)
    };
    list().map_err(ExecuteError::Archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_is_open_to_every_user_and_holds_the_code() {
        let packed = workspace(Some(("main.py", b"print(1)"))).unwrap();
        let mut archive = tar::Archive::new(&packed[..]);
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap())
            })
            .collect();
        let expected = [
            ("workspace", 0o777),
            ("workspace/input", 0o777),
            ("workspace/output", 0o777),
            ("workspace/main.py", 0o755),
        ];
        assert_eq!(entries, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn members_are_named_below_the_top_and_garbage_is_refused() {
        let packed = workspace(Some(("main.sh", b"echo"))).unwrap();
        let expected = Member {
            path: "main.sh".to_owned(),
            size: 4,
        };
        assert_eq!(members(&packed).unwrap(), [expected]);
        assert!(members(&[b'x'; 1024]).is_err());
    }
}
