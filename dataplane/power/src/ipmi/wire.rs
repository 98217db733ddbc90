//! RMCP packets and IPMI messages: octets <-> types. Pure; nothing here panics on remote data.
//!
//! ```text
//! RMCP 4 | auth type 06, payload type, session id 4, sequence 4, length 2 | payload | pad, pad length, 07, AuthCode
//!        '------------------------------- signed -------------------------------------------------'
//! ```
//! IPMI v2.0 §13.1 (RMCP), §13.2.4 and §13.7 (ASF presence ping), §13.6 (session formats), §13.8 (messages).

use super::crypto::SessionKeys;

/// RMCP version, reserved, sequence FFh (no RMCP ACK), class.
const RMCP_IPMI: [u8; 4] = [0x06, 0x00, 0xff, 0x07];
const RMCP_ASF: [u8; 4] = [0x06, 0x00, 0xff, 0x06];
const CLASS_MASK: u8 = 0x1f;
/// IANA enterprise number of ASF.
const ASF_ENTERPRISE: [u8; 4] = [0x00, 0x00, 0x11, 0xbe];

const AUTH_NONE: u8 = 0x00;
const AUTH_RMCP_PLUS: u8 = 0x06;
const ENCRYPTED: u8 = 0x80;
const AUTHENTICATED: u8 = 0x40;
const NEXT_HEADER: u8 = 0x07;

/// The BMC's slave address and ours as remote console software (§5.5).
const BMC: u8 = 0x20;
const CONSOLE: u8 = 0x81;

/// Longest packet we take; the largest answer we ask for is under 100 octets.
pub const PACKET_BYTES_MAX: usize = 1_024;

/// Why a packet is not one. Copy: indexes counters, allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("too short")]
    Truncated,
    #[error("not RMCP, or of an unknown class")]
    NotRmcp,
    #[error("unknown authentication or payload type")]
    UnknownType,
    #[error("length field and packet differ")]
    Length,
    #[error("checksum differs")]
    Checksum,
    #[error("bad padding")]
    Pad,
    #[error("integrity code differs")]
    Integrity,
    #[error("not protected as the session asks")]
    Unprotected,
}

/// RMCP+ payload types (table 13-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PayloadType {
    Ipmi = 0x00,
    OpenRequest = 0x10,
    OpenResponse = 0x11,
    Rakp1 = 0x12,
    Rakp2 = 0x13,
    Rakp3 = 0x14,
    Rakp4 = 0x15,
}

impl PayloadType {
    fn from_octet(octet: u8) -> Option<Self> {
        Some(match octet {
            0x00 => Self::Ipmi,
            0x10 => Self::OpenRequest,
            0x11 => Self::OpenResponse,
            0x12 => Self::Rakp1,
            0x13 => Self::Rakp2,
            0x14 => Self::Rakp3,
            0x15 => Self::Rakp4,
            _ => return None,
        })
    }
}

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// ASF presence ping, and its answer: whether IPMI is supported.
    Ping {
        tag: u8,
    },
    Pong {
        tag: u8,
        ipmi: bool,
    },
    /// IPMI v1.5 wrapper without authentication, as used before a session.
    Plain15 {
        session_id: u32,
        sequence: u32,
        payload: &'a [u8],
    },
    Plus(Plus<'a>),
}

/// An RMCP+ packet, still sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plus<'a> {
    pub kind: PayloadType,
    pub encrypted: bool,
    pub authenticated: bool,
    pub session_id: u32,
    pub sequence: u32,
    payload: &'a [u8],
    /// From the auth type to the end of the packet, and what of it follows the payload.
    body: &'a [u8],
    trailer: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn parse(octets: &'a [u8]) -> Result<Self, WireError> {
        let (header, body) = octets
            .split_first_chunk::<4>()
            .ok_or(WireError::Truncated)?;
        if octets.len() > PACKET_BYTES_MAX {
            return Err(WireError::Length);
        }
        if header[0] != RMCP_IPMI[0] || header[3] & 0x80 != 0 {
            return Err(WireError::NotRmcp);
        }
        match header[3] & CLASS_MASK {
            0x06 => Self::parse_asf(body),
            0x07 => match body.first() {
                Some(&AUTH_NONE) => Self::parse_plain15(body),
                Some(&AUTH_RMCP_PLUS) => Plus::parse(body).map(Self::Plus),
                Some(_) => Err(WireError::UnknownType),
                None => Err(WireError::Truncated),
            },
            _ => Err(WireError::NotRmcp),
        }
    }

    fn parse_asf(body: &[u8]) -> Result<Frame<'a>, WireError> {
        let (header, data) = body.split_first_chunk::<8>().ok_or(WireError::Truncated)?;
        if header[..4] != ASF_ENTERPRISE {
            return Err(WireError::UnknownType);
        }
        match header[4] {
            0x80 => Ok(Self::Ping { tag: header[5] }),
            // Enterprise 4, OEM 4, then supported entities: bit 7 is IPMI.
            0x40 => match data.get(8) {
                Some(entities) => Ok(Self::Pong {
                    tag: header[5],
                    ipmi: entities & 0x80 != 0,
                }),
                None => Err(WireError::Truncated),
            },
            _ => Err(WireError::UnknownType),
        }
    }

    fn parse_plain15(body: &'a [u8]) -> Result<Self, WireError> {
        let (header, rest) = body.split_first_chunk::<10>().ok_or(WireError::Truncated)?;
        let length = usize::from(header[9]);
        // A single octet of "legacy pad" may follow (§13.6).
        if rest.len() < length || rest.len() > length + 1 {
            return Err(WireError::Length);
        }
        Ok(Self::Plain15 {
            sequence: le32(&header[1..5]),
            session_id: le32(&header[5..9]),
            payload: &rest[..length],
        })
    }

    pub fn emit_ping(tag: u8) -> Vec<u8> {
        [&RMCP_ASF[..], &ASF_ENTERPRISE, &[0x80, tag, 0x00, 0x00]].concat()
    }

    pub fn emit_pong(tag: u8, ipmi: bool) -> Vec<u8> {
        let mut octets = [&RMCP_ASF[..], &ASF_ENTERPRISE, &[0x40, tag, 0x00, 0x10]].concat();
        octets.extend([0x00, 0x00, 0x11, 0xbe, 0, 0, 0, 0]);
        octets.extend([if ipmi { 0x81 } else { 0x01 }, 0, 0, 0, 0, 0, 0, 0]);
        octets
    }

    /// A sessionless v1.5 packet (session id and sequence 0).
    pub fn emit_plain15(payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("messages of ours are short");
        let mut octets = RMCP_IPMI.to_vec();
        octets.extend([AUTH_NONE, 0, 0, 0, 0, 0, 0, 0, 0, length]);
        octets.extend(payload);
        octets
    }
}

impl<'a> Plus<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, WireError> {
        let (header, rest) = body.split_first_chunk::<12>().ok_or(WireError::Truncated)?;
        let length = usize::from(u16::from_le_bytes([header[10], header[11]]));
        let (payload, trailer) = rest.split_at_checked(length).ok_or(WireError::Length)?;
        Ok(Self {
            kind: PayloadType::from_octet(header[1] & 0x3f).ok_or(WireError::UnknownType)?,
            encrypted: header[1] & ENCRYPTED != 0,
            authenticated: header[1] & AUTHENTICATED != 0,
            session_id: le32(&header[2..6]),
            sequence: le32(&header[6..10]),
            payload,
            body,
            trailer,
        })
    }

    /// The payload of a packet before or outside a session. A protected packet is refused.
    pub fn open_plain(&self) -> Result<&'a [u8], WireError> {
        if self.encrypted || self.authenticated || self.session_id != 0 {
            return Err(WireError::Unprotected);
        }
        Ok(self.payload)
    }

    /// Verifies, then decrypts. A packet that is not both authenticated and encrypted is refused: both
    /// suites ask for it, and a BMC that drops either was not the one that sent it.
    pub fn open_sealed(&self, keys: &SessionKeys) -> Result<Vec<u8>, WireError> {
        if !self.encrypted || !self.authenticated {
            return Err(WireError::Unprotected);
        }
        let code_bytes = keys.suite().code_bytes();
        let signed_bytes = self
            .body
            .len()
            .checked_sub(code_bytes)
            .ok_or(WireError::Truncated)?;
        let (signed, code) = self.body.split_at(signed_bytes);
        let pad = self
            .trailer
            .len()
            .checked_sub(code_bytes + 2)
            .ok_or(WireError::Truncated)?;
        if !keys.code(signed).matches(code, code_bytes) {
            return Err(WireError::Integrity);
        }
        if usize::from(self.trailer[pad]) != pad || self.trailer[pad + 1] != NEXT_HEADER {
            return Err(WireError::Pad);
        }
        keys.decrypt(self.payload)
    }

    /// A packet outside a session (session id and sequence 0).
    pub fn emit_plain(kind: PayloadType, payload: &[u8]) -> Vec<u8> {
        let mut octets = RMCP_IPMI.to_vec();
        Self::emit_header(&mut octets, kind as u8, 0, 0, payload.len());
        octets.extend(payload);
        octets
    }

    /// A packet of a session. `iv` must be fresh random octets for every packet, `sequence` never 0 and
    /// never one that was used before in this direction.
    pub fn emit_sealed(
        keys: &SessionKeys,
        kind: PayloadType,
        session_id: u32,
        sequence: u32,
        iv: [u8; 16],
        payload: &[u8],
    ) -> Vec<u8> {
        let payload = keys.encrypt(iv, payload);
        let mut octets = RMCP_IPMI.to_vec();
        let kind = kind as u8 | ENCRYPTED | AUTHENTICATED;
        Self::emit_header(&mut octets, kind, session_id, sequence, payload.len());
        octets.extend(payload);
        // The signed part, with pad length and next header, is a multiple of four (§13.6).
        let pad = (4 - (octets.len() - RMCP_IPMI.len() + 2) % 4) % 4;
        octets.extend([0xff; 3].iter().take(pad));
        octets.extend([pad as u8, NEXT_HEADER]); // pad is below 4
        let code = keys.code(&octets[RMCP_IPMI.len()..]);
        octets.extend(&code.octets()[..keys.suite().code_bytes()]);
        octets
    }

    fn emit_header(octets: &mut Vec<u8>, kind: u8, session_id: u32, sequence: u32, length: usize) {
        octets.extend([AUTH_RMCP_PLUS, kind]);
        octets.extend(session_id.to_le_bytes());
        octets.extend(sequence.to_le_bytes());
        let length = u16::try_from(length).expect("messages of ours are short");
        octets.extend(length.to_le_bytes());
    }
}

/// An IPMI request to the BMC (§13.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub netfn: u8,
    pub command: u8,
    /// 6 bits; the answer carries it, and a retry keeps it.
    pub sequence: u8,
    pub data: &'a [u8],
}

impl<'a> Request<'a> {
    pub fn emit(&self) -> Vec<u8> {
        let mut octets = vec![BMC, self.netfn << 2];
        octets.push(checksum(&octets));
        octets.extend([CONSOLE, (self.sequence & 0x3f) << 2, self.command]);
        octets.extend(self.data);
        octets.push(checksum(&octets[3..]));
        octets
    }

    pub fn parse(octets: &'a [u8]) -> Result<Self, WireError> {
        let (netfn, sequence, command, data) = parse_message(octets, true)?;
        Ok(Self {
            netfn,
            command,
            sequence,
            data,
        })
    }
}

/// Its answer. `netfn` is the request's with the lowest bit set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    pub netfn: u8,
    pub command: u8,
    pub sequence: u8,
    pub completion_code: u8,
    pub data: &'a [u8],
}

impl<'a> Response<'a> {
    pub fn emit(&self) -> Vec<u8> {
        let mut octets = vec![CONSOLE, self.netfn << 2];
        octets.push(checksum(&octets));
        octets.extend([
            BMC,
            (self.sequence & 0x3f) << 2,
            self.command,
            self.completion_code,
        ]);
        octets.extend(self.data);
        octets.push(checksum(&octets[3..]));
        octets
    }

    /// `checksums`: whether the two checksums must hold.
    pub fn parse(octets: &'a [u8], checksums: bool) -> Result<Self, WireError> {
        let (netfn, sequence, command, data) = parse_message(octets, checksums)?;
        let (&completion_code, data) = data.split_first().ok_or(WireError::Truncated)?;
        Ok(Self {
            netfn,
            command,
            sequence,
            completion_code,
            data,
        })
    }
}

/// Network function, sequence, command and data.
fn parse_message(octets: &[u8], checksums: bool) -> Result<(u8, u8, u8, &[u8]), WireError> {
    let (header, rest) = octets
        .split_first_chunk::<6>()
        .ok_or(WireError::Truncated)?;
    let (&last, data) = rest.split_last().ok_or(WireError::Truncated)?;
    let good =
        checksum(&header[..2]) == header[2] && checksum(&octets[3..octets.len() - 1]) == last;
    if checksums && !good {
        return Err(WireError::Checksum);
    }
    Ok((header[1] >> 2, header[4] >> 2, header[5], data))
}

/// Two's complement of the sum (§13.8).
fn checksum(octets: &[u8]) -> u8 {
    octets
        .iter()
        .fold(0u8, |sum, octet| sum.wrapping_add(*octet))
        .wrapping_neg()
}

/// Four octets, least significant first.
pub(super) fn le32(octets: &[u8]) -> u32 {
    octets
        .iter()
        .take(4)
        .rev()
        .fold(0, |word, octet| word << 8 | u32::from(*octet))
}

/// The sliding window for sequence numbers of authenticated packets (§6.12.13): 16 back and 15 ahead of
/// the highest seen, each number once.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Highest number taken; 0: none yet.
    highest: u32,
    /// Bit n: `highest - n` was taken.
    taken: u32,
}

impl Window {
    /// Whether a packet with this number may be taken; if so it is now taken.
    pub fn take(&mut self, sequence: u32) -> bool {
        if sequence == 0 {
            return false;
        }
        // The first authentic packet sets the window: BMCs do not agree whether 0 or 1 comes first.
        if self.highest == 0 {
            (self.highest, self.taken) = (sequence, 1);
            return true;
        }
        let ahead = sequence.wrapping_sub(self.highest);
        let behind = self.highest.wrapping_sub(sequence);
        match (ahead, behind) {
            (1..=15, _) => {
                self.highest = sequence;
                self.taken = self.taken << ahead | 1;
                true
            }
            (_, 0..=16) if self.taken & 1 << behind == 0 => {
                self.taken |= 1 << behind;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipmi::crypto::{Exchange, Suite};

    fn keys(suite: Suite) -> SessionKeys {
        let exchange = Exchange {
            suite,
            console_id: 0xa0a2_a3a4,
            system_id: 0x0200_0001,
            console_random: [0x11; 16],
            system_random: [0x22; 16],
            system_guid: [0x33; 16],
            role: 0x14,
            user: b"maas",
        };
        exchange.keys(b"secret")
    }

    #[test]
    fn known_packets() {
        // Get Channel Authentication Capabilities, channel Eh, Administrator, as ipmitool sends it.
        let request = Request {
            netfn: 0x06,
            command: 0x38,
            sequence: 0,
            data: &[0x8e, 0x04],
        };
        let octets = Frame::emit_plain15(&request.emit());
        assert_eq!(
            octets,
            [
                0x06, 0x00, 0xff, 0x07, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x09, 0x20, 0x18, 0xc8, 0x81,
                0x00, 0x38, 0x8e, 0x04, 0xb5
            ]
        );
        let Ok(Frame::Plain15 {
            session_id: 0,
            sequence: 0,
            payload,
        }) = Frame::parse(&octets)
        else {
            panic!("not v1.5");
        };
        assert_eq!(Request::parse(payload), Ok(request));
        // ASF presence ping and pong (§13.2.4).
        let ping = [0x06, 0, 0xff, 0x06, 0, 0, 0x11, 0xbe, 0x80, 0x07, 0, 0];
        assert_eq!(Frame::parse(&ping), Ok(Frame::Ping { tag: 7 }));
        assert_eq!(Frame::emit_ping(7), ping);
        assert_eq!(
            Frame::parse(&Frame::emit_pong(7, true)),
            Ok(Frame::Pong { tag: 7, ipmi: true })
        );
        assert_eq!(Frame::emit_pong(7, true).len(), 28);
    }

    #[test]
    fn sealed_packets_open_with_the_same_keys_only() {
        for suite in [Suite::Sha1, Suite::Sha256] {
            for length in 0..48u8 {
                let payload: Vec<u8> = (0..length).collect();
                let octets = Plus::emit_sealed(
                    &keys(suite),
                    PayloadType::Ipmi,
                    0x0102_0304,
                    9,
                    [length; 16],
                    &payload,
                );
                let Ok(Frame::Plus(plus)) = Frame::parse(&octets) else {
                    panic!("not RMCP+")
                };
                assert_eq!((plus.session_id, plus.sequence), (0x0102_0304, 9));
                assert_eq!(plus.open_sealed(&keys(suite)), Ok(payload));
                assert_eq!(plus.open_plain(), Err(WireError::Unprotected));
                // Any flipped bit behind the RMCP header is noticed.
                for at in [4, 6, 10, 14, octets.len() / 2, octets.len() - 1] {
                    let mut bad = octets.clone();
                    bad[at] ^= 0x10;
                    if let Ok(Frame::Plus(plus)) = Frame::parse(&bad) {
                        assert!(
                            plus.open_sealed(&keys(suite)).is_err(),
                            "{suite:?} octet {at}"
                        );
                    }
                }
            }
        }
        let octets = Plus::emit_sealed(
            &keys(Suite::Sha1),
            PayloadType::Ipmi,
            1,
            1,
            [0; 16],
            b"hello",
        );
        let Ok(Frame::Plus(plus)) = Frame::parse(&octets) else {
            panic!("not RMCP+")
        };
        assert!(plus.open_sealed(&keys(Suite::Sha256)).is_err());
    }

    /// Cut, stretched and random packets are errors, never panics.
    #[test]
    fn hostile_packets_are_refused() {
        let sealed = Plus::emit_sealed(
            &keys(Suite::Sha1),
            PayloadType::Ipmi,
            1,
            1,
            [0; 16],
            b"hello",
        );
        let plain = Plus::emit_plain(PayloadType::Rakp2, &[0; 60]);
        let v15 = Frame::emit_plain15(&[0x20, 0x18, 0xc8, 0x81, 0, 0x38, 0xb5]);
        for packet in [&sealed, &plain, &v15] {
            for cut in 0..packet.len() {
                if let Ok(Frame::Plus(plus)) = Frame::parse(&packet[..cut]) {
                    assert!(plus.open_sealed(&keys(Suite::Sha1)).is_err());
                }
            }
        }
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut octets = vec![0; 96];
        for round in 0..20_000 {
            for octet in &mut octets {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *octet = (state >> 56) as u8;
            }
            octets[..4].copy_from_slice(&RMCP_IPMI);
            octets[4] = [0, 6][round % 2];
            let slice = &octets[..round % 97];
            if let Ok(Frame::Plus(plus)) = Frame::parse(slice) {
                assert!(plus.open_sealed(&keys(Suite::Sha256)).is_err());
            }
            let _ = Request::parse(slice);
            let _ = Response::parse(slice, round % 2 == 0);
        }
        assert_eq!(Frame::parse(&[6; 2_000]), Err(WireError::Length));
    }

    #[test]
    fn messages_check_their_sums() {
        let response = Response {
            netfn: 1,
            command: 1,
            sequence: 5,
            completion_code: 0,
            data: &[0x21, 0x10],
        };
        let octets = response.emit();
        assert_eq!(Response::parse(&octets, true), Ok(response));
        for at in 0..octets.len() {
            let mut bad = octets.clone();
            bad[at] ^= 1;
            assert_eq!(
                Response::parse(&bad, true),
                Err(WireError::Checksum),
                "octet {at}"
            );
            assert!(Response::parse(&bad, false).is_ok());
        }
    }

    #[test]
    fn window_takes_each_number_once() {
        let cases: &[(&str, &[u32], &[bool])] = &[
            ("in order", &[1, 2, 3], &[true, true, true]),
            ("repeats", &[1, 1, 2, 1], &[true, false, true, false]),
            (
                "zero is for packets without a session",
                &[0, 1, 0],
                &[false, true, false],
            ),
            ("late but inside", &[1, 5, 3, 3], &[true, true, true, false]),
            ("too late", &[100, 83, 84, 84], &[true, false, true, false]),
            (
                "too far ahead",
                &[1, 17, 16, 17],
                &[true, false, true, true],
            ),
            (
                "around the end",
                &[u32::MAX, 1, u32::MAX, 2],
                &[true, true, false, true],
            ),
        ];
        for (case, numbers, want) in cases {
            let mut window = Window::default();
            let got: Vec<bool> = numbers.iter().map(|number| window.take(*number)).collect();
            assert_eq!(&got, want, "{case}");
        }
    }
}
