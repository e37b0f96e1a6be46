//! Whose identity a process gets: `name|uid[:group|gid]` looked up in the image's own /etc/passwd and /etc/group, with
//! docker's meaning. The files are the image's, so hostile: what is not well-formed is skipped, and both are bounded.

use std::fs::File;
use std::io::Read;

/// The most of /etc/passwd or /etc/group that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// The most supplementary groups of one user; the kernel's own bound.
const GROUPS_MAX: usize = 65_536;

/// The highest id that docker takes.
const ID_MAX: u32 = i32::MAX as u32;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) uid: u32,
    /// Primary group id.
    pub(crate) gid: u32,
    /// Supplementary group ids.
    pub(crate) groups: Vec<u32>,
    /// Home directory, for the environment.
    pub(crate) home: Vec<u8>,
}

/// Says which name is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnknownUser {
    /// No such user.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    User(String),
    /// No such group.
    #[error("unable to find group {0}: no matching entries in group file")]
    Group(String),
    /// A number that is no id.
    #[error("user and group ids must be in the range 0 to {ID_MAX}: {0}")]
    Range(String),
}

/// Looks `user` up in the files of the current root, and the groups that it gets beside its own.
///
/// # Errors
/// Returns [`UnknownUser`] for a name that is not there, or a number out of range.
pub(crate) fn look_up(user: &str, more_groups: &[String]) -> Result<Identity, UnknownUser> {
    let (passwd, group) = (read_bounded("/etc/passwd"), read_bounded("/etc/group"));
    let mut identity = resolve(user, &passwd, &group)?;
    for name in more_groups {
        let gid = group_id(name, &group)?;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    Ok(identity)
}

/// A file that is missing or odd has no entries: numbers still work.
fn read_bounded(path: &str) -> Vec<u8> {
    let mut content = Vec::new();
    if let Ok(file) = File::open(path)
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        drop(file.take(FILE_MAX).read_to_end(&mut content));
    }
    content
}

/// Looks `user` up in the content of a passwd and a group file.
///
/// # Errors
/// Returns [`UnknownUser`] for a name that is not there, or a number out of range.
pub(crate) fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, UnknownUser> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, group),
        None => (user, ""),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = entries(passwd).find_map(|fields| passwd_entry(&fields, user));
    let mut identity = match (&entry, parse_id(user)) {
        (Some(entry), _) => entry.identity(),
        (None, Some(id)) => Identity {
            uid: id?,
            gid: 0,
            groups: Vec::new(),
            home: b"/".to_vec(),
        },
        (None, None) => return Err(UnknownUser::User(user.into())),
    };
    if wanted_group.is_empty() {
        if let Some(entry) = &entry {
            identity.groups = groups_of(entry.name, group);
        }
    } else {
        identity.gid = group_id(wanted_group, group)?;
    }
    Ok(identity)
}

/// Splits a file into lines and those at colons.
fn entries(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = file.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    lines.map(|line| line.split(|&byte| byte == b':').collect())
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl PasswdEntry<'_> {
    fn identity(&self) -> Identity {
        Identity {
            uid: self.uid,
            gid: self.gid,
            groups: Vec::new(),
            home: if self.home.is_empty() { b"/" } else { self.home }.to_vec(),
        }
    }
}

/// Takes a passwd line if it is `wanted`'s, by name or by number.
fn passwd_entry<'a>(fields: &[&'a [u8]], wanted: &str) -> Option<PasswdEntry<'a>> {
    let &[name, _, uid, gid, ref rest @ ..] = fields else {
        return None;
    };
    let entry = PasswdEntry {
        name,
        uid: number(uid)?,
        gid: number(gid)?,
        home: rest.get(1).copied().unwrap_or_default(),
    };
    let matches = name == wanted.as_bytes() || parse_id(wanted) == Some(Ok(entry.uid));
    (matches && !name.is_empty()).then_some(entry)
}

fn groups_of(user: &[u8], group: &[u8]) -> Vec<u32> {
    let member_of = |fields: Vec<&[u8]>| {
        let &[_, _, gid, members, ..] = &fields[..] else {
            return None;
        };
        let is_member = members.split(|&byte| byte == b',').any(|member| member == user);
        number(gid).filter(|_| is_member)
    };
    entries(group).filter_map(member_of).take(GROUPS_MAX).collect()
}

fn group_id(wanted: &str, group: &[u8]) -> Result<u32, UnknownUser> {
    let named = entries(group).find_map(|fields| match fields[..] {
        [name, _, gid, ..] if name == wanted.as_bytes() => number(gid),
        _ => None,
    });
    match (named, parse_id(wanted)) {
        (Some(gid), _) => Ok(gid),
        (None, Some(id)) => id,
        (None, None) => Err(UnknownUser::Group(wanted.into())),
    }
}

/// Reads an id of a file.
fn number(digits: &[u8]) -> Option<u32> {
    parse_id(std::str::from_utf8(digits).ok()?)?.ok()
}

/// Reads text as an id: `None` when it is none, an error when it is out of range.
fn parse_id(text: &str) -> Option<Result<u32, UnknownUser>> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let id = text.parse().ok().filter(|&id| id <= ID_MAX);
    Some(id.ok_or_else(|| UnknownUser::Range(text.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\n# no entry\nbroken:x:one:2\n\
        app:x:1000:1001:App:/home/app:/bin/sh\nbare:x:7:8\n12:x:55:56::/twelve:\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:other,app\nstaff:x:50:app\nodd:x\nx:x:y:app\n7:x:700:\n";

    fn resolve(user: &str) -> Result<(u32, u32, Vec<u32>, String), UnknownUser> {
        super::resolve(user, PASSWD, GROUP)
            .map(|who| (who.uid, who.gid, who.groups, String::from_utf8(who.home).unwrap()))
    }

    #[test]
    fn nobody_in_particular_is_root() {
        assert_eq!(resolve(""), Ok((0, 0, vec![], "/root".into())));
        assert_eq!(resolve(":50"), Ok((0, 50, vec![], "/root".into())));
    }

    #[test]
    fn a_name_and_its_number_mean_the_same_user_with_all_groups() {
        let app = (1000, 1001, vec![10, 50], String::from("/home/app"));
        assert_eq!(resolve("app"), Ok(app.clone()));
        assert_eq!(resolve("1000"), Ok(app));
        assert_eq!(resolve("bare"), Ok((7, 8, vec![], "/".into())));
    }

    #[test]
    fn a_group_given_replaces_the_users_groups() {
        assert_eq!(resolve("app:wheel"), Ok((1000, 10, vec![], "/home/app".into())));
        assert_eq!(resolve("app:4242"), Ok((1000, 4242, vec![], "/home/app".into())));
        assert_eq!(resolve("app:7").map(|who| who.1), Ok(700));
    }

    #[test]
    fn a_number_without_an_entry_is_taken_as_it_is() {
        assert_eq!(resolve("4000"), Ok((4000, 0, vec![], "/".into())));
    }

    #[test]
    fn a_name_made_of_digits_comes_before_the_number() {
        assert_eq!(resolve("12").map(|who| who.0), Ok(55));
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_refused() {
        assert_eq!(resolve("nobody"), Err(UnknownUser::User("nobody".into())));
        assert_eq!(resolve("broken"), Err(UnknownUser::User("broken".into())));
        assert_eq!(resolve("app:nogroup"), Err(UnknownUser::Group("nogroup".into())));
        assert_eq!(
            resolve("4294967295"),
            Err(UnknownUser::Range("4294967295".into()))
        );
        assert_eq!(resolve("-1"), Err(UnknownUser::User("-1".into())));
    }

    #[test]
    fn files_full_of_rubbish_have_no_entries() {
        let rubbish = [0xff, b':', b'\n', 0, b':', b':', b':', b':', b'\n'].repeat(1000);
        assert_eq!(
            super::resolve("app", &rubbish, &rubbish),
            Err(UnknownUser::User("app".into()))
        );
        assert_eq!(super::resolve("5", &rubbish, &rubbish).map(|who| who.uid), Ok(5));
    }
}
