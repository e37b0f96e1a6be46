//! Questions for names and answers to them, as far as a policy looks at them (RFC 1035, with the codes of RFC 8914).

use std::net::IpAddr;
use std::time::Duration;

use hearth_machine::policy::DomainName;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// The option that says more about an error (RFC 8914, 5.2).
const EXTENDED_ERROR: u16 = 15;
/// Its code for what a policy does not let through (4.16, "Blocked").
const BLOCKED: u16 = 15;
/// How much of an answer this server takes over UDP, as it says in its own.
const PAYLOAD_MAX: u16 = 1232;

/// How long an answer counts that names a machine, in seconds: another one may have its name then.
const MACHINE_TTL: u32 = 5;

/// Whom a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asking {
    /// A name.
    Name(DomainName),
    /// The root of all names.
    Root,
    /// A name that is none of a host's.
    Odd,
}

/// A question that somebody asked.
#[derive(Debug)]
pub(super) struct Question {
    message: Message,
    /// Whom it is about.
    pub(super) about: Asking,
}

/// What an answer tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The names that the name stands for.
    pub(super) aliases: Vec<DomainName>,
    /// The addresses, and how long each counts.
    pub(super) addresses: Vec<(IpAddr, Duration)>,
}

fn domain_name(name: &Name) -> Option<DomainName> {
    name.to_ascii().parse().ok()
}

impl Question {
    /// Reads one; there is none in what this returns nothing for.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let message = Message::from_vec(bytes).ok()?;
        let is_question = message.metadata.message_type == MessageType::Query
            && message.metadata.op_code == OpCode::Query
            && message.queries.len() == 1;
        if !is_question {
            return None;
        }
        let name = message.queries[0].name();
        let about = match domain_name(name) {
            Some(name) => Asking::Name(name),
            None if name.is_root() => Asking::Root,
            None => Asking::Odd,
        };
        Some(Self { message, about })
    }

    /// Tells whether it asks how a service is reached: answers give addresses as hints, which nobody asked for (RFC 9460).
    pub(super) fn asks_for_hints(&self) -> bool {
        matches!(
            self.message.queries[0].query_type(),
            RecordType::HTTPS | RecordType::SVCB
        )
    }

    /// Answers that there is no such name.
    pub(super) fn refused(&self) -> Vec<u8> {
        self.without_answer(ResponseCode::NXDomain)
    }

    /// Answers that the name has nothing of the kind.
    pub(super) fn empty(&self) -> Vec<u8> {
        self.without_answer(ResponseCode::NoError)
    }

    /// Answers with those of the addresses that it asks for.
    pub(super) fn answered(&self, addresses: &[IpAddr]) -> Vec<u8> {
        let mut answer = self.response(ResponseCode::NoError);
        answer.metadata.authoritative = true;
        let query = &self.message.queries[0];
        let records = addresses.iter().filter_map(|address| {
            let data = match (address, query.query_type()) {
                (IpAddr::V4(address), RecordType::A | RecordType::ANY) => RData::A((*address).into()),
                (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => RData::AAAA((*address).into()),
                _ => return None,
            };
            Some(Record::from_rdata(query.name().clone(), MACHINE_TTL, data))
        });
        answer.answers.extend(records);
        answer.to_vec().unwrap_or_default()
    }

    fn without_answer(&self, code: ResponseCode) -> Vec<u8> {
        // What was read can be written.
        self.response(code).to_vec().unwrap_or_default()
    }

    fn response(&self, code: ResponseCode) -> Message {
        let asked = &self.message;
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.metadata.response_code = code;
        answer.metadata.recursion_desired = asked.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_queries(asked.queries.iter().cloned());
        if asked.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_MAX);
            if code != ResponseCode::NoError {
                let why = EdnsOption::Unknown(EXTENDED_ERROR, BLOCKED.to_be_bytes().to_vec());
                edns.options_mut().insert(why);
            }
            answer.set_edns(edns);
        }
        answer
    }

    /// Reads what an answer to it tells; nothing when it is none.
    pub(super) fn told(&self, answer: &[u8]) -> Option<Told> {
        let answer = Message::from_vec(answer).ok()?;
        let is_answer = answer.metadata.message_type == MessageType::Response
            && answer.metadata.id == self.message.metadata.id
            && (answer.queries.is_empty() || answer.queries == self.message.queries);
        if !is_answer {
            return None;
        }
        let mut told = Told::default();
        for record in &answer.answers {
            match &record.data {
                RData::CNAME(name) => told.aliases.extend(domain_name(&name.0)),
                data => {
                    let time = Duration::from_secs(record.ttl.into());
                    told.addresses
                        .extend(data.ip_addr().map(|address| (address, time)));
                }
            }
        }
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    fn asked(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    #[test]
    fn a_refusal_answers_the_question_and_says_why() {
        let mut message = asked("Evil.example.", RecordType::A);
        message.set_edns(Edns::new());
        let question = Question::read(&message.to_vec().unwrap()).unwrap();
        assert_eq!(question.about, Asking::Name("evil.example".parse().unwrap()));
        let answer = Message::from_vec(&question.refused()).unwrap();
        assert_eq!(answer.metadata.id, message.metadata.id);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.queries, message.queries);
        let edns = answer.edns.unwrap();
        assert!(
            matches!(edns.option(EXTENDED_ERROR.into()), Some(EdnsOption::Unknown(_, code)) if code[..] == [0, 15])
        );
        let answer = Message::from_vec(&question.empty()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    }

    #[test]
    fn answers_tell_addresses_and_aliases() {
        let message = asked("a.example.", RecordType::A);
        let question = Question::read(&message.to_vec().unwrap()).unwrap();
        let mut answer = message.clone().into_response();
        let name = Name::from_ascii("a.example.").unwrap();
        let alias = Name::from_ascii("b.cdn.").unwrap();
        answer.add_answer(Record::from_rdata(name, 5, RData::CNAME(CNAME(alias.clone()))));
        answer.add_answer(Record::from_rdata(alias, 60, RData::A(A::new(203, 0, 113, 1))));
        let told = question.told(&answer.to_vec().unwrap()).unwrap();
        let expected = Told {
            aliases: vec!["b.cdn".parse().unwrap()],
            addresses: vec![("203.0.113.1".parse().unwrap(), Duration::from_secs(60))],
        };
        assert_eq!(told, expected);
        answer.metadata.id ^= 1;
        assert_eq!(question.told(&answer.to_vec().unwrap()), None);
    }

    #[test]
    fn what_asks_nothing_is_no_question() {
        let message = asked("a.example.", RecordType::HTTPS);
        let bytes = message.to_vec().unwrap();
        assert!(Question::read(&bytes).is_some_and(|question| question.asks_for_hints()));
        assert!(Question::read(&bytes[..11]).is_none() && Question::read(&[]).is_none());
        assert!(Question::read(&message.clone().into_response().to_vec().unwrap()).is_none());
        let odd = Name::from_labels([&b"a!b"[..], b"example"]).unwrap();
        for (name, about) in [(Name::root(), Asking::Root), (odd, Asking::Odd)] {
            let mut question = Message::query();
            question.add_query(Query::query(name, RecordType::A));
            let question = Question::read(&question.to_vec().unwrap());
            assert_eq!(question.map(|question| question.about), Some(about));
        }
        let mut two = message;
        two.add_query(Query::query(
            Name::from_ascii("b.example.").unwrap(),
            RecordType::A,
        ));
        assert!(Question::read(&two.to_vec().unwrap()).is_none());
    }
}
