//! The four exchanges that open an RMCP+ session: octets <-> types. Pure.
//!
//! IPMI v2.0 §13.17 to §13.24: Open Session, RAKP 1 and 2, RAKP 3 and 4, status codes of table 13-15. Both
//! directions are here, so that a model BMC speaks with the same codec.

use super::crypto::Suite;
use super::wire::{WireError, le32};

/// RMCP+ and RAKP status codes we act on (table 13-15).
pub mod status {
    pub const OK: u8 = 0x00;
    pub const NO_RESOURCES: u8 = 0x01;
    pub const INVALID_SESSION: u8 = 0x02;
    pub const INVALID_AUTHENTICATION: u8 = 0x04;
    pub const INVALID_INTEGRITY: u8 = 0x05;
    pub const NO_AUTHENTICATION: u8 = 0x06;
    pub const NO_INTEGRITY: u8 = 0x07;
    pub const INACTIVE_SESSION: u8 = 0x08;
    pub const INVALID_ROLE: u8 = 0x09;
    pub const UNAUTHORIZED_ROLE: u8 = 0x0a;
    pub const NO_RESOURCES_FOR_ROLE: u8 = 0x0b;
    pub const INVALID_NAME_LENGTH: u8 = 0x0c;
    pub const UNAUTHORIZED_NAME: u8 = 0x0d;
    pub const INVALID_CHECK_VALUE: u8 = 0x0f;
    pub const INVALID_CONFIDENTIALITY: u8 = 0x10;
    pub const NO_SUITE: u8 = 0x11;
    pub const ILLEGAL_PARAMETER: u8 = 0x12;
}

/// The standard's words for a status code.
pub fn status_name(code: u8) -> &'static str {
    match code {
        0x00 => "no error",
        0x01 => "insufficient resources to create a session",
        0x02 => "invalid session id",
        0x03 => "invalid payload type",
        0x04 => "invalid authentication algorithm",
        0x05 => "invalid integrity algorithm",
        0x06 => "no matching authentication payload",
        0x07 => "no matching integrity payload",
        0x08 => "inactive session id",
        0x09 => "invalid role",
        0x0a => "unauthorized role or privilege level",
        0x0b => "insufficient resources for a session at this role",
        0x0c => "invalid name length",
        0x0d => "unauthorized name",
        0x0e => "unauthorized GUID",
        0x0f => "invalid integrity check value",
        0x10 => "invalid confidentiality algorithm",
        0x11 => "no cipher suite match",
        0x12 => "illegal or unrecognized parameter",
        _ => "unknown status",
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    pub tag: u8,
    /// Highest privilege asked for; 0 means the highest the algorithms allow.
    pub privilege: u8,
    pub console_id: u32,
    /// Authentication, integrity, confidentiality.
    pub algorithms: [u8; 3],
}

impl OpenRequest {
    pub fn emit(&self) -> Vec<u8> {
        let mut octets = vec![self.tag, self.privilege, 0, 0];
        octets.extend(self.console_id.to_le_bytes());
        emit_algorithms(&mut octets, self.algorithms);
        octets
    }

    pub fn parse(octets: &[u8]) -> Result<Self, WireError> {
        let (header, rest) = octets
            .split_first_chunk::<8>()
            .ok_or(WireError::Truncated)?;
        Ok(Self {
            tag: header[0],
            privilege: header[1] & 0x0f,
            console_id: le32(&header[4..]),
            algorithms: parse_algorithms(rest)?,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenResponse {
    pub tag: u8,
    pub console_id: u32,
    /// The session, or the status code that refuses it.
    pub outcome: Result<OpenedSession, u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedSession {
    pub privilege: u8,
    pub system_id: u32,
    pub algorithms: [u8; 3],
}

impl OpenResponse {
    pub fn emit(&self) -> Vec<u8> {
        match &self.outcome {
            Ok(session) => {
                let mut octets = vec![self.tag, status::OK, session.privilege, 0];
                octets.extend(self.console_id.to_le_bytes());
                octets.extend(session.system_id.to_le_bytes());
                emit_algorithms(&mut octets, session.algorithms);
                octets
            }
            Err(code) => {
                let mut octets = vec![self.tag, *code, 0, 0];
                octets.extend(self.console_id.to_le_bytes());
                octets
            }
        }
    }

    pub fn parse(octets: &[u8]) -> Result<Self, WireError> {
        if let Some((tag, status)) = refusal(octets) {
            return Ok(Self {
                tag,
                console_id: le32(octets.get(4..8).unwrap_or_default()),
                outcome: Err(status),
            });
        }
        let (header, rest) = octets
            .split_first_chunk::<8>()
            .ok_or(WireError::Truncated)?;
        let (tag, console_id) = (header[0], le32(&header[4..]));
        let (system_id, rest) = rest.split_first_chunk::<4>().ok_or(WireError::Truncated)?;
        let session = OpenedSession {
            privilege: header[2] & 0x0f,
            system_id: u32::from_le_bytes(*system_id),
            algorithms: parse_algorithms(rest)?,
        };
        Ok(Self {
            tag,
            console_id,
            outcome: Ok(session),
        })
    }
}

fn emit_algorithms(octets: &mut Vec<u8>, algorithms: [u8; 3]) {
    for (kind, algorithm) in (0u8..).zip(algorithms) {
        octets.extend([kind, 0, 0, 8, algorithm, 0, 0, 0]);
    }
}

/// Three payloads of eight octets: authentication, integrity, confidentiality.
fn parse_algorithms(octets: &[u8]) -> Result<[u8; 3], WireError> {
    let mut algorithms = [0; 3];
    for (kind, algorithm) in (0u8..).zip(&mut algorithms) {
        let at = 8 * usize::from(kind);
        let payload = octets.get(at..at + 8).ok_or(WireError::Truncated)?;
        if payload[0] != kind {
            return Err(WireError::UnknownType);
        }
        *algorithm = payload[4] & 0x3f;
    }
    Ok(algorithms)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rakp1<'a> {
    pub tag: u8,
    pub system_id: u32,
    pub console_random: [u8; 16],
    pub role: u8,
    pub user: &'a [u8],
}

/// Bit of [`Rakp1::role`]: look the user up by name alone (§13.20).
pub const NAME_ONLY: u8 = 0x10;

impl<'a> Rakp1<'a> {
    pub fn emit(&self) -> Vec<u8> {
        let mut octets = vec![self.tag, 0, 0, 0];
        octets.extend(self.system_id.to_le_bytes());
        octets.extend(self.console_random);
        // Names are at most 16 octets, checked where they are parsed.
        octets.extend([self.role, 0, 0, self.user.len() as u8]);
        octets.extend(self.user);
        octets
    }

    pub fn parse(octets: &'a [u8]) -> Result<Self, WireError> {
        let (header, user) = octets
            .split_first_chunk::<28>()
            .ok_or(WireError::Truncated)?;
        let length = usize::from(header[27]);
        if length > 16 {
            return Err(WireError::Length);
        }
        Ok(Self {
            tag: header[0],
            system_id: le32(&header[4..]),
            console_random: sixteen(&header[8..]),
            role: header[24],
            user: user.get(..length).ok_or(WireError::Truncated)?,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rakp2<'a> {
    pub tag: u8,
    pub console_id: u32,
    pub outcome: Result<Rakp2Proof<'a>, u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rakp2Proof<'a> {
    pub system_random: [u8; 16],
    pub system_guid: [u8; 16],
    pub code: &'a [u8],
}

impl<'a> Rakp2<'a> {
    pub fn emit(&self) -> Vec<u8> {
        let mut octets = vec![
            self.tag,
            self.outcome.as_ref().err().copied().unwrap_or(0),
            0,
            0,
        ];
        octets.extend(self.console_id.to_le_bytes());
        if let Ok(proof) = &self.outcome {
            octets.extend(proof.system_random);
            octets.extend(proof.system_guid);
            octets.extend(proof.code);
        }
        octets
    }

    pub fn parse(octets: &'a [u8]) -> Result<Self, WireError> {
        if let Some((tag, status)) = refusal(octets) {
            return Ok(Self {
                tag,
                console_id: le32(octets.get(4..8).unwrap_or_default()),
                outcome: Err(status),
            });
        }
        let (header, rest) = octets
            .split_first_chunk::<8>()
            .ok_or(WireError::Truncated)?;
        let (tag, console_id) = (header[0], le32(&header[4..]));
        let (values, code) = rest.split_first_chunk::<32>().ok_or(WireError::Truncated)?;
        let proof = Rakp2Proof {
            system_random: sixteen(values),
            system_guid: sixteen(&values[16..]),
            code,
        };
        Ok(Self {
            tag,
            console_id,
            outcome: Ok(proof),
        })
    }
}

/// RAKP 3 (`session_id` is the BMC's) and RAKP 4 (`session_id` is ours) have one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rakp34<'a> {
    pub tag: u8,
    pub session_id: u32,
    /// The code, or the status that ends the exchange.
    pub outcome: Result<&'a [u8], u8>,
}

impl<'a> Rakp34<'a> {
    pub fn emit(&self) -> Vec<u8> {
        let mut octets = vec![self.tag, self.outcome.err().unwrap_or(0), 0, 0];
        octets.extend(self.session_id.to_le_bytes());
        octets.extend(self.outcome.unwrap_or_default());
        octets
    }

    pub fn parse(octets: &'a [u8]) -> Result<Self, WireError> {
        if let Some((tag, status)) = refusal(octets) {
            return Ok(Self {
                tag,
                session_id: le32(octets.get(4..8).unwrap_or_default()),
                outcome: Err(status),
            });
        }
        let (header, code) = octets
            .split_first_chunk::<8>()
            .ok_or(WireError::Truncated)?;
        Ok(Self {
            tag: header[0],
            session_id: le32(&header[4..]),
            outcome: Ok(code),
        })
    }
}

/// Tag and status of a message that refuses. Some BMCs send no more than these two octets then.
fn refusal(octets: &[u8]) -> Option<(u8, u8)> {
    match octets {
        [tag, status, ..] if *status != status::OK => Some((*tag, *status)),
        _ => None,
    }
}

fn sixteen(octets: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    for (to, from) in out.iter_mut().zip(octets) {
        *to = *from;
    }
    out
}

/// Suites we can speak among the records of Get Channel Cipher Suites (§22.15.1), best first.
pub fn suites_offered(records: &[u8]) -> Vec<Suite> {
    let mut offered = Vec::new();
    let mut rest = records;
    while let [start, tail @ ..] = rest {
        // C0h: a standard suite's id follows; C1h: an OEM's, with its enterprise number. What follows
        // these are algorithm numbers, whose upper bits are never both set.
        rest = match *start {
            0xc0 => {
                if let Some(suite) = tail.first().copied().and_then(Suite::from_id) {
                    offered.push(suite);
                }
                tail.get(1..).unwrap_or_default()
            }
            0xc1 => tail.get(4..).unwrap_or_default(),
            _ => tail,
        };
    }
    offered.sort_by_key(|suite| std::cmp::Reverse(suite.id()));
    offered.dedup();
    offered
}

/// The suites to open a session with, in order, given what the BMC offers (`None`: it does not say).
///
/// The list comes without authentication: whoever forges it may choose between ours, and that is all. Every
/// suite of ours authenticates, checks and encrypts; what else is offered is never used. A list with none of
/// ours may be an old or a wrong one, so ours are tried all the same.
pub fn suites_to_try(offered: Option<Vec<Suite>>) -> Vec<Suite> {
    offered
        .filter(|offered| !offered.is_empty())
        .unwrap_or_else(|| vec![Suite::Sha256, Suite::Sha1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_they_said() {
        let open = OpenRequest {
            tag: 9,
            privilege: 3,
            console_id: 0xa0a2_a3a4,
            algorithms: Suite::Sha256.algorithms(),
        };
        assert_eq!(
            open.emit(),
            [
                9, 3, 0, 0, 0xa4, 0xa3, 0xa2, 0xa0, 0, 0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 8, 4, 0, 0, 0,
                2, 0, 0, 8, 1, 0, 0, 0
            ]
        );
        assert_eq!(OpenRequest::parse(&open.emit()), Ok(open));
        let session = OpenedSession {
            privilege: 4,
            system_id: 7,
            algorithms: [1, 1, 1],
        };
        for outcome in [Ok(session), Err(status::NO_SUITE)] {
            let response = OpenResponse {
                tag: 1,
                console_id: 2,
                outcome,
            };
            assert_eq!(OpenResponse::parse(&response.emit()), Ok(response));
        }
        let rakp1 = Rakp1 {
            tag: 1,
            system_id: 5,
            console_random: [6; 16],
            role: NAME_ONLY | 4,
            user: b"maas",
        };
        assert_eq!(Rakp1::parse(&rakp1.emit()), Ok(rakp1));
        let proof = Rakp2Proof {
            system_random: [1; 16],
            system_guid: [2; 16],
            code: &[3; 20],
        };
        for outcome in [Ok(proof), Err(status::UNAUTHORIZED_NAME)] {
            let rakp2 = Rakp2 {
                tag: 1,
                console_id: 2,
                outcome,
            };
            assert_eq!(Rakp2::parse(&rakp2.emit()), Ok(rakp2));
        }
        for outcome in [Ok(&[7u8; 16][..]), Err(status::INVALID_CHECK_VALUE)] {
            let rakp4 = Rakp34 {
                tag: 1,
                session_id: 2,
                outcome,
            };
            assert_eq!(Rakp34::parse(&rakp4.emit()), Ok(rakp4));
        }
    }

    #[test]
    fn short_messages_are_refused() {
        let zeros = [0; 64];
        for length in 0..64 {
            let octets = &zeros[..length];
            assert!(OpenResponse::parse(octets).is_err(), "{length}");
            assert!(OpenRequest::parse(octets).is_err());
            assert_eq!(Rakp1::parse(octets).is_ok(), length >= 28);
            assert_eq!(Rakp2::parse(octets).is_ok(), length >= 40);
            assert_eq!(Rakp34::parse(octets).is_ok(), length >= 8);
        }
        // A refusal may be no more than its tag and its status.
        let refused = [7, status::UNAUTHORIZED_NAME];
        let why = Err(status::UNAUTHORIZED_NAME);
        assert_eq!(OpenResponse::parse(&refused).unwrap().outcome, why);
        assert_eq!(Rakp2::parse(&refused).unwrap().tag, 7);
        assert!(Rakp34::parse(&refused).unwrap().outcome.is_err());
        assert!(Rakp2::parse(&refused[..1]).is_err());
    }

    #[test]
    fn the_best_suite_that_is_offered_is_tried_first_and_a_weak_one_never() {
        use Suite::{Sha1, Sha256};
        // Ids of the table: 0 nothing, 1 and 2 no encryption, 6 to 14 MD5, 15 and 16 no encryption.
        let list = |ids: &[u8]| -> Vec<u8> {
            let record = |id: &u8| [0xc0, *id, 1, 0x41, 0x81];
            ids.iter().flat_map(record).collect()
        };
        for (offered, want) in [
            (None, vec![Sha256, Sha1]),
            (Some(vec![0]), vec![Sha256, Sha1]),
            (Some(vec![0, 1, 2, 8, 12, 15]), vec![Sha256, Sha1]),
            (Some(vec![0, 1, 2, 3]), vec![Sha1]),
            (Some(vec![3, 17]), vec![Sha256, Sha1]),
            (Some(vec![17, 0]), vec![Sha256]),
        ] {
            let suites = suites_to_try(
                offered
                    .as_ref()
                    .map(|ids: &Vec<u8>| suites_offered(&list(ids))),
            );
            assert_eq!(suites, want, "{offered:?}");
        }
    }

    #[test]
    fn suites_are_read_from_records() {
        let cases: &[(&[u8], &[Suite])] = &[
            (&[], &[]),
            (&[0xc0], &[]),
            (&[0xc0, 3, 1, 0x41, 0x81], &[Suite::Sha1]),
            (
                &[0xc0, 3, 1, 0x41, 0x81, 0xc0, 17, 3, 0x44, 0x81],
                &[Suite::Sha256, Suite::Sha1],
            ),
            (
                &[0xc1, 0x80, 0x11, 0x11, 0x11, 1, 0xc0, 17, 3, 0x44, 0x81],
                &[Suite::Sha256],
            ),
            (&[0xc1, 3], &[]),
            (&[0xc0, 0, 0, 0xc0, 8, 2, 0x42, 0x81], &[]),
        ];
        for (records, want) in cases {
            assert_eq!(&suites_offered(records), want, "{records:02x?}");
        }
    }
}
