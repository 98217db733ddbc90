//! The spool: facts that no region has taken yet, as they lie on disk. Pure encoding; `rackd::spool` does the file IO.
//!
//! ```text
//! file    = header frame*
//! header  = "MUSTERSP" version:u16 0:u16 incarnation:u32 spool_id:16 checksum:16            (48 octets)
//! frame   = "FRM1" length:u32 checksum:16 record*       one frame per write-and-fsync
//! record  = 1 entry | 2 count:u32 seq:u64* (removed) | 3 incarnation:u32 (opened again)
//! ```
//! Numbers are big-endian. A checksum is the first 16 octets of SHA-256; a frame's also covers the spool id, so a frame of
//! another file is not taken for one of this. A frame is written only after the one before it was fsynced: a damaged
//! last frame was never answered for and is cut off; a damaged frame with a whole one behind it is corruption.
//!
//! The incarnation grows each time the file is opened, before anything is sent, and is the upper half of every seq:
//! so a seq is never used twice, and a file that was set back is behind what the region has seen.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::message::SpoolId;
use crate::types::{BlockId, Client, ClientKey, Epoch, Write, WriteKind};

pub const VERSION: u16 = 1;
pub const HEADER_BYTES: usize = 48;
const FRAME_HEAD_BYTES: usize = 24;
/// A frame longer than this is damage: [`FRAME_RECORDS_MAX`] removals of as many seqs stay below it.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// Records in one frame, and seqs in one removal, at most.
pub const FRAME_RECORDS_MAX: usize = 512;
/// A file above this is not read.
pub const FILE_BYTES_MAX: u64 = 256 << 20;
/// A host name is cut to this (option 12 has one length octet).
const HOSTNAME_BYTES_MAX: usize = 255;

const MAGIC: &[u8; 8] = b"MUSTERSP";
const FRAME_MAGIC: &[u8; 4] = b"FRM1";

/// A spooled fact: a grant or quarantine that holds although no region knows it yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub seq: u64,
    pub write: Write,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Entry(Entry),
    Removed(Vec<u64>),
    Opened { incarnation: u32 },
}

/// Why a spool can't be used. The file is kept aside, and a new spool id taken: the region then
/// quarantines what the lost facts may have been about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    #[error("the file is shorter than its header")]
    NoHeader,
    #[error("not a spool file")]
    Magic,
    #[error("spool version {0} is not known")]
    Version(u16),
    #[error("the header's checksum does not match")]
    HeaderDamaged,
    #[error("damaged at octet {offset}, with whole records behind")]
    Damaged { offset: usize },
    #[error("a record at octet {offset} can't be read")]
    Record { offset: usize },
    #[error("the incarnations are used up")]
    Incarnation,
    #[error("the file is larger than {FILE_BYTES_MAX} octets")]
    TooLarge,
}

/// What a file held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    pub spool_id: SpoolId,
    pub incarnation: u32,
    /// By seq, oldest first.
    pub entries: Vec<Entry>,
    /// The octets that count; what is behind was a torn write.
    pub valid_bytes: usize,
    pub torn: bool,
}

/// The seq before the first one of an incarnation.
pub fn first_seq(incarnation: u32) -> u64 {
    u64::from(incarnation) << 32
}

pub fn encode_header(spool_id: SpoolId, incarnation: u32) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_be_bytes());
    out[12..16].copy_from_slice(&incarnation.to_be_bytes());
    out[16..32].copy_from_slice(&spool_id.0);
    let sum = checksum(&[&out[..32]]);
    out[32..].copy_from_slice(&sum);
    out
}

/// Appends one frame to `out`. At most [`FRAME_RECORDS_MAX`] records, removals of at most as many seqs each.
pub fn encode_frame(spool_id: SpoolId, records: &[Record], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(FRAME_MAGIC);
    out.extend_from_slice(&[0; FRAME_HEAD_BYTES - 4]);
    for record in records {
        encode_record(record, out);
    }
    let body = start + FRAME_HEAD_BYTES;
    let length = u32::try_from(out.len() - body).expect("512 records of at most 512 seqs");
    let sum = checksum(&[&spool_id.0, &length.to_be_bytes(), &out[body..]]);
    out[start + 4..start + 8].copy_from_slice(&length.to_be_bytes());
    out[start + 8..body].copy_from_slice(&sum);
}

/// Reads a whole file. A torn last frame is left out; every other damage is an error.
pub fn replay(file: &[u8]) -> Result<Replay, SpoolError> {
    let (spool_id, mut incarnation) = decode_header(file)?;
    let mut entries = BTreeMap::new();
    let mut offset = HEADER_BYTES;
    while offset < file.len() {
        let Some(body) = whole_frame(spool_id, &file[offset..]) else {
            if frame_behind(spool_id, &file[offset + 1..]) {
                return Err(SpoolError::Damaged { offset });
            }
            break;
        };
        let mut reader = Reader { octets: body };
        while !reader.octets.is_empty() {
            match decode_record(&mut reader).ok_or(SpoolError::Record { offset })? {
                Record::Entry(entry) => drop(entries.insert(entry.seq, entry)),
                Record::Removed(seqs) => seqs.iter().for_each(|seq| drop(entries.remove(seq))),
                Record::Opened { incarnation: again } => incarnation = incarnation.max(again),
            }
        }
        offset += FRAME_HEAD_BYTES + body.len();
    }
    let torn = offset < file.len();
    Ok(Replay {
        spool_id,
        incarnation,
        entries: entries.into_values().collect(),
        valid_bytes: offset,
        torn,
    })
}

fn decode_header(file: &[u8]) -> Result<(SpoolId, u32), SpoolError> {
    let header = file.get(..HEADER_BYTES).ok_or(SpoolError::NoHeader)?;
    let mut reader = Reader { octets: header };
    let shape = SpoolError::NoHeader;
    if reader.array::<8>().ok_or(shape.clone())? != *MAGIC {
        return Err(SpoolError::Magic);
    }
    let version = reader.u16().ok_or(shape.clone())?;
    if version != VERSION {
        return Err(SpoolError::Version(version));
    }
    reader.u16().ok_or(shape.clone())?;
    let incarnation = reader.u32().ok_or(shape.clone())?;
    let spool_id = SpoolId(reader.array().ok_or(shape)?);
    if reader.octets != checksum(&[&header[..32]]) {
        return Err(SpoolError::HeaderDamaged);
    }
    Ok((spool_id, incarnation))
}

/// The records of the frame that `octets` begin with, if it is whole.
fn whole_frame(spool_id: SpoolId, octets: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader { octets };
    if reader.array::<4>()? != *FRAME_MAGIC {
        return None;
    }
    let length = reader.u32()?;
    let sum = reader.array::<16>()?;
    let length_bytes = usize::try_from(length)
        .ok()
        .filter(|length| *length <= FRAME_BYTES_MAX)?;
    let body = reader.take(length_bytes)?;
    (checksum(&[&spool_id.0, &length.to_be_bytes(), body]) == sum).then_some(body)
}

/// Whether a whole frame begins anywhere in `octets`.
fn frame_behind(spool_id: SpoolId, octets: &[u8]) -> bool {
    octets
        .windows(FRAME_MAGIC.len())
        .enumerate()
        .filter(|(_, window)| window == FRAME_MAGIC)
        .any(|(at, _)| whole_frame(spool_id, &octets[at..]).is_some())
}

fn checksum(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let sum: [u8; 32] = hash.finalize().into();
    let mut half = [0; 16];
    half.copy_from_slice(&sum[..16]);
    half
}

// ---------------------------------------------------------------- records

fn encode_record(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::Entry(entry) => {
            out.push(1);
            out.extend_from_slice(&entry.seq.to_be_bytes());
            encode_write(&entry.write, out);
        }
        Record::Removed(seqs) => {
            out.push(2);
            let count = u32::try_from(seqs.len()).expect("at most 512 seqs a removal");
            out.extend_from_slice(&count.to_be_bytes());
            seqs.iter()
                .for_each(|seq| out.extend_from_slice(&seq.to_be_bytes()));
        }
        Record::Opened { incarnation } => {
            out.push(3);
            out.extend_from_slice(&incarnation.to_be_bytes());
        }
    }
}

fn decode_record(reader: &mut Reader<'_>) -> Option<Record> {
    Some(match reader.u8()? {
        1 => Record::Entry(Entry {
            seq: reader.u64()?,
            write: decode_write(reader)?,
        }),
        2 => {
            let count = reader.u32()?;
            let octets = reader.take(usize::try_from(count).ok()?.checked_mul(8)?)?;
            let seqs = octets
                .chunks_exact(8)
                .map(|seq| seq.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)));
            Record::Removed(seqs.collect())
        }
        3 => Record::Opened {
            incarnation: reader.u32()?,
        },
        _ => return None,
    })
}

fn encode_write(write: &Write, out: &mut Vec<u8>) {
    out.extend_from_slice(&write.block.0.to_be_bytes());
    out.extend_from_slice(&write.epoch.0.to_be_bytes());
    let address = match write.address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    out.extend_from_slice(&address.octets());
    match &write.kind {
        WriteKind::Grant {
            client,
            lease,
            hostname,
        } => {
            out.push(0);
            encode_client(client, out);
            encode_length(*lease, out);
            encode_short(hostname.as_bytes(), out);
        }
        WriteKind::Extend { client, lease } => {
            out.push(1);
            encode_client(client, out);
            encode_length(*lease, out);
        }
        WriteKind::Reclaim { client, silent } => {
            out.push(if *silent { 6 } else { 2 });
            encode_client(client, out);
        }
        WriteKind::Quarantine { length } => {
            out.push(3);
            encode_length(*length, out);
        }
        WriteKind::Release { client } => {
            out.push(4);
            encode_client(client, out);
        }
        WriteKind::Yield => out.push(5),
    }
}

fn decode_write(reader: &mut Reader<'_>) -> Option<Write> {
    let block = BlockId(reader.u64()?);
    let epoch = Epoch(reader.u64()?);
    let address = IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)).to_canonical();
    let kind = match reader.u8()? {
        0 => {
            let client = decode_client(reader)?;
            let lease = reader.length()?;
            let hostname = String::from_utf8_lossy(reader.short()?).into();
            WriteKind::Grant {
                client,
                lease,
                hostname,
            }
        }
        1 => WriteKind::Extend {
            client: decode_client(reader)?,
            lease: reader.length()?,
        },
        kind @ (2 | 6) => WriteKind::Reclaim {
            client: decode_client(reader)?,
            silent: kind == 6,
        },
        3 => WriteKind::Quarantine {
            length: reader.length()?,
        },
        4 => WriteKind::Release {
            client: decode_client(reader)?,
        },
        5 => WriteKind::Yield,
        _ => return None,
    };
    Some(Write {
        block,
        epoch,
        address,
        kind,
    })
}

fn encode_client(client: &Client, out: &mut Vec<u8>) {
    out.extend_from_slice(&client.vlan.to_be_bytes());
    let (kind, octets): (u8, &[u8]) = match &client.key {
        ClientKey::Mac(mac) => (0, mac),
        ClientKey::ClientId(id) => (1, id),
        ClientKey::DuidIaid(id) => (2, id),
    };
    out.push(kind);
    encode_short(octets, out);
}

fn decode_client(reader: &mut Reader<'_>) -> Option<Client> {
    let vlan = reader.u32()?;
    let kind = reader.u8()?;
    let octets = reader.short()?;
    let key = match kind {
        0 => ClientKey::Mac(octets.try_into().ok()?),
        1 => ClientKey::ClientId(octets.into()),
        2 => ClientKey::DuidIaid(octets.into()),
        _ => return None,
    };
    Some(Client { vlan, key })
}

fn encode_length(length: Duration, out: &mut Vec<u8>) {
    let ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    out.extend_from_slice(&ms.to_be_bytes());
}

/// At most 255 octets; what is longer is cut (a client key never is: CLIENT_ID_BYTES_MAX).
fn encode_short(octets: &[u8], out: &mut Vec<u8>) {
    let octets = &octets[..octets.len().min(HOSTNAME_BYTES_MAX)];
    out.push(u8::try_from(octets.len()).expect("cut to 255"));
    out.extend_from_slice(octets);
}

struct Reader<'o> {
    octets: &'o [u8],
}

impl<'o> Reader<'o> {
    fn take(&mut self, count: usize) -> Option<&'o [u8]> {
        let (taken, rest) = self.octets.split_at_checked(count)?;
        self.octets = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[octet]| octet)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn length(&mut self) -> Option<Duration> {
        self.u64().map(Duration::from_millis)
    }

    fn short(&mut self) -> Option<&'o [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: SpoolId = SpoolId([9; 16]);

    fn entry(seq: u64) -> Entry {
        let client = Client {
            vlan: 5001,
            key: ClientKey::Mac([2, 0, 0, 0, 0, seq as u8]),
        };
        let lease = Duration::from_secs(600);
        Entry {
            seq,
            write: Write {
                block: BlockId(4),
                epoch: Epoch(7),
                address: "10.0.0.9".parse().unwrap(),
                kind: WriteKind::Grant {
                    client,
                    lease,
                    hostname: "node-1".into(),
                },
            },
        }
    }

    fn file(frames: &[&[Record]]) -> Vec<u8> {
        let mut out = encode_header(ID, 3).to_vec();
        frames
            .iter()
            .for_each(|records| encode_frame(ID, records, &mut out));
        out
    }

    #[test]
    fn what_was_written_is_read_and_what_was_removed_is_not() {
        let file = file(&[
            &[Record::Opened { incarnation: 4 }],
            &[Record::Entry(entry(1)), Record::Entry(entry(2))],
            &[Record::Removed(vec![1]), Record::Entry(entry(3))],
        ]);
        let replay = replay(&file).unwrap();
        assert_eq!(replay.entries, [entry(2), entry(3)]);
        assert_eq!((replay.spool_id, replay.incarnation), (ID, 4));
        assert_eq!((replay.torn, replay.valid_bytes), (false, file.len()));
    }

    #[test]
    fn every_kind_of_write_survives() {
        let client = Client {
            vlan: 7,
            key: ClientKey::ClientId([1, 2, 3].into()),
        };
        let lease = Duration::from_millis(1500);
        let kinds = [
            WriteKind::Extend {
                client: client.clone(),
                lease,
            },
            WriteKind::Reclaim {
                client: client.clone(),
                silent: false,
            },
            WriteKind::Reclaim {
                client: client.clone(),
                silent: true,
            },
            WriteKind::Quarantine { length: lease },
            WriteKind::Release {
                client: Client {
                    vlan: 7,
                    key: ClientKey::DuidIaid([5; 255].into()),
                },
            },
            WriteKind::Yield,
        ];
        for kind in kinds {
            let address = "2001:db8::7".parse().unwrap();
            let entry = Entry {
                seq: 5,
                write: Write {
                    block: BlockId(1),
                    epoch: Epoch(2),
                    address,
                    kind,
                },
            };
            let file = file(&[&[Record::Entry(entry.clone())]]);
            assert_eq!(replay(&file).unwrap().entries, [entry]);
        }
    }

    #[test]
    fn a_torn_tail_is_cut_wherever_it_tears() {
        let whole = file(&[&[Record::Entry(entry(1))]]);
        let longer = file(&[&[Record::Entry(entry(1))], &[Record::Entry(entry(2))]]);
        for length in whole.len()..longer.len() {
            let replay = replay(&longer[..length]).unwrap();
            assert_eq!(replay.entries, [entry(1)], "cut at {length}");
            assert_eq!(
                (replay.torn, replay.valid_bytes),
                (length > whole.len(), whole.len())
            );
        }
        // A file grown with zeros before its data came.
        let mut zeros = whole.clone();
        zeros.resize(whole.len() + 4096, 0);
        assert_eq!(replay(&zeros).unwrap().entries, [entry(1)]);
    }

    #[test]
    fn damage_before_whole_records_is_an_error() {
        let file = file(&[&[Record::Entry(entry(1))], &[Record::Entry(entry(2))]]);
        let first = HEADER_BYTES;
        for at in [first, first + 5, first + 10, first + 40] {
            let mut damaged = file.clone();
            damaged[at] ^= 0x40;
            assert_eq!(
                replay(&damaged),
                Err(SpoolError::Damaged { offset: first }),
                "octet {at}"
            );
        }
        let mut damaged = file.clone();
        damaged[20] ^= 1;
        assert_eq!(replay(&damaged), Err(SpoolError::HeaderDamaged));
        damaged[0] = b'X';
        assert_eq!(replay(&damaged), Err(SpoolError::Magic));
        assert_eq!(replay(&file[..47]), Err(SpoolError::NoHeader));
        let mut newer = file;
        newer[9] = 2;
        assert_eq!(replay(&newer), Err(SpoolError::Version(2)));
    }

    /// A block of another file that lies behind a torn tail (a recycled disk block) is not taken for ours.
    #[test]
    fn a_frame_of_another_spool_is_a_torn_tail() {
        let mut file = file(&[&[Record::Entry(entry(1))]]);
        encode_frame(SpoolId([8; 16]), &[Record::Entry(entry(2))], &mut file);
        let replay = replay(&file).unwrap();
        assert_eq!((replay.entries, replay.torn), (vec![entry(1)], true));
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..400), whole in any::<bool>()) {
            let mut file = file(&[&[Record::Entry(entry(1))]]);
            if whole { file.extend_from_slice(&tail) } else { file = tail }
            drop(replay(&file));
        }

        /// Records that pass the checksum but say nonsense are an error, not a panic.
        #[test]
        fn nonsense_with_a_good_checksum_is_refused(body in proptest::collection::vec(any::<u8>(), 1..200)) {
            let mut out = encode_header(ID, 1).to_vec();
            out.extend_from_slice(FRAME_MAGIC);
            let length = (body.len() as u32).to_be_bytes();
            out.extend_from_slice(&length);
            out.extend_from_slice(&checksum(&[&ID.0, &length, &body]));
            out.extend_from_slice(&body);
            drop(replay(&out));
        }
    }
}
