//! TFTP packets (RFC 1350) and their options (RFC 2347, 2348, 2349, 7440): octets to typed messages and back.
//!
//! Lenient in what it reads: keywords in any case, unknown or impossible options are left out (RFC 2347: an option that
//! is not acknowledged is refused), octets after the last NUL are ignored. It knows nothing of transfers or files.

use std::fmt;

/// Octets before the payload of a DATA packet.
pub const DATA_HEADER_BYTES: usize = 4;
/// File octets per DATA packet when nothing was negotiated (RFC 1350 §2).
pub const BLOCK_BYTES_DEFAULT: u16 = 512;
/// Smallest and largest blksize (RFC 2348).
pub const BLOCK_BYTES_MIN: u16 = 8;
pub const BLOCK_BYTES_MAX: u16 = 65_464;
/// A request may not be longer than this (RFC 2347).
pub const REQUEST_BYTES_MAX: usize = 512;
/// Longest packet `emit` of this module writes, DATA aside.
pub const CONTROL_BYTES_MAX: usize = 512;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    Read(Request<'a>),
    Write(Request<'a>),
    Data { block: u16, payload: &'a [u8] },
    Ack { block: u16 },
    Error { code: ErrorCode, message: &'a [u8] },
    Oack(Options),
}

/// What a client asks for: RRQ or WRQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The file name as sent, without its NUL. May be anything but NUL.
    pub file: &'a [u8],
    pub mode: Mode,
    pub options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Octet,
    /// Lines end in CR LF, a lone CR is CR NUL (RFC 1350 §1, RFC 764).
    Netascii,
}

/// The options we know; `None` where one was absent or its value impossible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `blksize`, 8..=65464 octets (RFC 2348).
    pub block_bytes: Option<u16>,
    /// `timeout`, 1..=255 seconds (RFC 2349).
    pub timeout_secs: Option<u8>,
    /// `tsize`, octets; a read request sends 0 to ask (RFC 2349).
    pub transfer_bytes: Option<u64>,
    /// `windowsize`, 1..=65535 blocks (RFC 7440 §3).
    pub window_blocks: Option<u16>,
}

impl Options {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// RFC 1350 appendix, and 8 from RFC 2347.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    NotDefined,
    FileNotFound,
    AccessViolation,
    DiskFull,
    IllegalOperation,
    UnknownTransferId,
    FileExists,
    NoSuchUser,
    OptionsRefused,
    Other(u16),
}

impl ErrorCode {
    pub fn to_wire(self) -> u16 {
        match self {
            Self::NotDefined => 0,
            Self::FileNotFound => 1,
            Self::AccessViolation => 2,
            Self::DiskFull => 3,
            Self::IllegalOperation => 4,
            Self::UnknownTransferId => 5,
            Self::FileExists => 6,
            Self::NoSuchUser => 7,
            Self::OptionsRefused => 8,
            Self::Other(code) => code,
        }
    }

    pub fn from_wire(code: u16) -> Self {
        match code {
            0 => Self::NotDefined,
            1 => Self::FileNotFound,
            2 => Self::AccessViolation,
            3 => Self::DiskFull,
            4 => Self::IllegalOperation,
            5 => Self::UnknownTransferId,
            6 => Self::FileExists,
            7 => Self::NoSuchUser,
            8 => Self::OptionsRefused,
            other => Self::Other(other),
        }
    }
}

/// Why octets are no TFTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("shorter than its header")]
    Short,
    #[error("opcode {0} is not known")]
    Opcode(u16),
    #[error("a string has no end")]
    Unterminated,
    #[error("no file name")]
    NoFile,
    #[error("the transfer mode is neither octet nor netascii")]
    Mode,
}

impl<'a> Packet<'a> {
    /// Reads one datagram. Never allocates; the result borrows `octets`.
    pub fn parse(octets: &'a [u8]) -> Result<Self, Malformed> {
        let (opcode, rest) = split_u16(octets)?;
        match opcode {
            READ => Ok(Self::Read(Request::parse(rest)?)),
            WRITE => Ok(Self::Write(Request::parse(rest)?)),
            DATA => {
                let (block, payload) = split_u16(rest)?;
                Ok(Self::Data { block, payload })
            }
            ACK => Ok(Self::Ack {
                block: split_u16(rest)?.0,
            }),
            ERROR => {
                let (code, rest) = split_u16(rest)?;
                // Some clients leave the NUL out; the message is for people, so take what is there.
                let end = rest
                    .iter()
                    .position(|&octet| octet == 0)
                    .unwrap_or(rest.len());
                Ok(Self::Error {
                    code: ErrorCode::from_wire(code),
                    message: &rest[..end],
                })
            }
            OACK => Ok(Self::Oack(parse_options(rest)?)),
            other => Err(Malformed::Opcode(other)),
        }
    }
}

impl<'a> Request<'a> {
    fn parse(octets: &'a [u8]) -> Result<Self, Malformed> {
        let (file, rest) = split_string(octets)?;
        if file.is_empty() {
            return Err(Malformed::NoFile);
        }
        let (mode, rest) = split_string(rest)?;
        let mode = if mode.eq_ignore_ascii_case(b"octet") {
            Mode::Octet
        } else if mode.eq_ignore_ascii_case(b"netascii") {
            Mode::Netascii
        } else {
            return Err(Malformed::Mode);
        };
        Ok(Self {
            file,
            mode,
            options: parse_options(rest)?,
        })
    }
}

/// Pairs of NUL-terminated strings (RFC 2347). A repeated option counts once, the first time.
fn parse_options(mut octets: &[u8]) -> Result<Options, Malformed> {
    let mut options = Options::default();
    while !octets.is_empty() {
        let Ok((name, rest)) = split_string(octets) else {
            // Padding or a cut-off name after complete options: firmware does this.
            break;
        };
        if name.is_empty() {
            break;
        }
        let (value, rest) = split_string(rest)?;
        octets = rest;
        let Some(number) = parse_number(value) else {
            continue;
        };
        if name.eq_ignore_ascii_case(b"blksize") {
            let value = in_range(
                number,
                u64::from(BLOCK_BYTES_MIN),
                u64::from(BLOCK_BYTES_MAX),
            );
            options.block_bytes = options.block_bytes.or(value);
        } else if name.eq_ignore_ascii_case(b"timeout") {
            options.timeout_secs = options.timeout_secs.or(in_range(number, 1, 255));
        } else if name.eq_ignore_ascii_case(b"tsize") {
            options.transfer_bytes = options.transfer_bytes.or(Some(number));
        } else if name.eq_ignore_ascii_case(b"windowsize") {
            options.window_blocks = options.window_blocks.or(in_range(number, 1, 65_535));
        }
    }
    Ok(options)
}

fn in_range<T: TryFrom<u64>>(number: u64, low: u64, high: u64) -> Option<T> {
    if (low..=high).contains(&number) {
        T::try_from(number).ok()
    } else {
        None
    }
}

/// Decimal digits only; `None` on anything else and on overflow.
fn parse_number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, &octet| {
        let digit = octet.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

fn split_u16(octets: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let (head, rest) = octets.split_first_chunk::<2>().ok_or(Malformed::Short)?;
    Ok((u16::from_be_bytes(*head), rest))
}

fn split_string(octets: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = octets
        .iter()
        .position(|&octet| octet == 0)
        .ok_or(Malformed::Unterminated)?;
    Ok((&octets[..end], &octets[end + 1..]))
}

/// The caller's buffer cannot hold the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the buffer is too small for this packet")]
pub struct NoRoom;

/// Writes the head of a DATA packet; the caller puts the payload behind it.
pub fn emit_data_header(block: u16, out: &mut [u8; DATA_HEADER_BYTES]) {
    out[..2].copy_from_slice(&DATA.to_be_bytes());
    out[2..].copy_from_slice(&block.to_be_bytes());
}

/// Writes an ACK (a client's packet; ours only in tests and load generators).
pub fn emit_ack(block: u16, out: &mut [u8]) -> Result<usize, NoRoom> {
    let mut writer = Writer::new(out);
    writer.u16(ACK)?;
    writer.u16(block)?;
    Ok(writer.length)
}

pub fn emit_error(code: ErrorCode, message: &str, out: &mut [u8]) -> Result<usize, NoRoom> {
    let mut writer = Writer::new(out);
    writer.u16(ERROR)?;
    writer.u16(code.to_wire())?;
    writer.string(message.as_bytes())?;
    Ok(writer.length)
}

/// Writes an OACK with exactly the options that are `Some`.
pub fn emit_oack(options: &Options, out: &mut [u8]) -> Result<usize, NoRoom> {
    let mut writer = Writer::new(out);
    writer.u16(OACK)?;
    writer.options(options)?;
    Ok(writer.length)
}

/// Writes an RRQ (a client's packet).
pub fn emit_read(request: &Request<'_>, out: &mut [u8]) -> Result<usize, NoRoom> {
    let mut writer = Writer::new(out);
    writer.u16(READ)?;
    writer.string(request.file)?;
    writer.string(match request.mode {
        Mode::Octet => b"octet",
        Mode::Netascii => b"netascii",
    })?;
    writer.options(&request.options)?;
    Ok(writer.length)
}

struct Writer<'a> {
    out: &'a mut [u8],
    length: usize,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut [u8]) -> Self {
        Self { out, length: 0 }
    }

    fn bytes(&mut self, octets: &[u8]) -> Result<(), NoRoom> {
        let target = self
            .out
            .get_mut(self.length..self.length + octets.len())
            .ok_or(NoRoom)?;
        target.copy_from_slice(octets);
        self.length += octets.len();
        Ok(())
    }

    fn u16(&mut self, value: u16) -> Result<(), NoRoom> {
        self.bytes(&value.to_be_bytes())
    }

    fn string(&mut self, octets: &[u8]) -> Result<(), NoRoom> {
        self.bytes(octets)?;
        self.bytes(&[0])
    }

    fn options(&mut self, options: &Options) -> Result<(), NoRoom> {
        self.option(b"tsize", options.transfer_bytes)?;
        self.option(b"blksize", options.block_bytes.map(u64::from))?;
        self.option(b"timeout", options.timeout_secs.map(u64::from))?;
        self.option(b"windowsize", options.window_blocks.map(u64::from))
    }

    fn option(&mut self, name: &[u8], value: Option<u64>) -> Result<(), NoRoom> {
        let Some(value) = value else { return Ok(()) };
        self.string(name)?;
        fmt::Write::write_fmt(self, format_args!("{value}")).map_err(|_| NoRoom)?;
        self.bytes(&[0])
    }
}

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(
        block: Option<u16>,
        timeout: Option<u8>,
        tsize: Option<u64>,
        window: Option<u16>,
    ) -> Options {
        Options {
            block_bytes: block,
            timeout_secs: timeout,
            transfer_bytes: tsize,
            window_blocks: window,
        }
    }

    #[test]
    fn requests_as_firmware_sends_them() {
        let cases: [(&str, &[u8], &[u8], Options); 6] = [
            (
                "ipxe",
                b"\0\x01lpxelinux.0\0octet\0blksize\x001432\0tsize\x000\0",
                b"lpxelinux.0",
                options(Some(1432), None, Some(0), None),
            ),
            (
                "ovmf",
                b"\0\x01bootx64.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0",
                b"bootx64.efi",
                options(Some(1468), None, Some(0), Some(4)),
            ),
            (
                "any case",
                b"\0\x01a\0OCTET\0BlkSize\x008\0TimeOut\x00255\0",
                b"a",
                options(Some(8), Some(255), None, None),
            ),
            (
                "impossible values are left out",
                b"\0\x01a\0octet\0blksize\x007\0timeout\x000\0windowsize\x000\0tsize\0-1\0",
                b"a",
                Options::default(),
            ),
            (
                "too big or no number",
                b"\0\x01a\0octet\0blksize\x0065465\0windowsize\x0065536\0tsize\0999999999999999999999\0",
                b"a",
                Options::default(),
            ),
            (
                "unknown option and padding",
                b"\0\x01a\0octet\0multicast\0x\0tsize\x000\0\0\0\0",
                b"a",
                options(None, None, Some(0), None),
            ),
        ];
        for (case, octets, file, options) in cases {
            let want = Packet::Read(Request {
                file,
                mode: Mode::Octet,
                options,
            });
            assert_eq!(Packet::parse(octets), Ok(want), "{case}");
        }
    }

    #[test]
    fn other_packets() {
        let cases: [(&[u8], Result<Packet<'_>, Malformed>); 13] = [
            (b"\0\x04\x12\x34", Ok(Packet::Ack { block: 0x1234 })),
            (
                b"\0\x03\0\x01abc",
                Ok(Packet::Data {
                    block: 1,
                    payload: b"abc",
                }),
            ),
            (
                b"\0\x05\0\x08User aborted the transfer\0",
                Ok(Packet::Error {
                    code: ErrorCode::OptionsRefused,
                    message: b"User aborted the transfer",
                }),
            ),
            (
                b"\0\x05\x01\0cut",
                Ok(Packet::Error {
                    code: ErrorCode::Other(256),
                    message: b"cut",
                }),
            ),
            (
                b"\0\x06blksize\x00512\0",
                Ok(Packet::Oack(options(Some(512), None, None, None))),
            ),
            (b"", Err(Malformed::Short)),
            (b"\0", Err(Malformed::Short)),
            (b"\0\x04\0", Err(Malformed::Short)),
            (b"\0\x07", Err(Malformed::Opcode(7))),
            (b"\0\x01file", Err(Malformed::Unterminated)),
            (b"\0\x01\0octet\0", Err(Malformed::NoFile)),
            (b"\0\x01a\0mail\0", Err(Malformed::Mode)),
            (
                b"\0\x01a\0octet\0blksize\x00512",
                Err(Malformed::Unterminated),
            ),
        ];
        for (octets, want) in cases {
            assert_eq!(Packet::parse(octets), want, "{octets:?}");
        }
    }

    #[test]
    fn what_is_emitted_parses_again() {
        let asked = options(Some(1468), Some(3), Some(u64::MAX), Some(16));
        let mut out = [0; CONTROL_BYTES_MAX];
        let length = emit_oack(&asked, &mut out).unwrap();
        assert_eq!(Packet::parse(&out[..length]), Ok(Packet::Oack(asked)));

        let request = Request {
            file: b"grub/grub.cfg",
            mode: Mode::Netascii,
            options: asked,
        };
        let length = emit_read(&request, &mut out).unwrap();
        assert_eq!(Packet::parse(&out[..length]), Ok(Packet::Read(request)));

        let length = emit_error(ErrorCode::FileNotFound, "no such file", &mut out).unwrap();
        let want = Packet::Error {
            code: ErrorCode::FileNotFound,
            message: b"no such file",
        };
        assert_eq!(Packet::parse(&out[..length]), Ok(want));
        assert_eq!(
            emit_error(ErrorCode::FileNotFound, "long", &mut out[..5]),
            Err(NoRoom)
        );
    }

    proptest::proptest! {
        #[test]
        fn any_octets_end(octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
            let _ = Packet::parse(&octets);
        }

        #[test]
        fn any_options_end(tail in proptest::collection::vec(0u8..=127, 0..200)) {
            let mut octets = b"\0\x01a\0octet\0".to_vec();
            octets.extend(tail);
            let _ = Packet::parse(&octets);
        }
    }
}
