//! The spool's reader: whatever lies on disk, it never panics and never tells of a fact that nobody wrote.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use arbitrary::Unstructured;
use lease::spool::{
    Entry, FRAME_RECORDS_MAX, HEADER_BYTES, Record, SpoolError, encode_frame, encode_header,
    first_seq, replay,
};
use lease::{BlockId, Client, ClientKey, Epoch, SpoolId, Write, WriteKind};
use sha2::{Digest as _, Sha256};

use crate::{octets, one_of, pick};

const SPOOL: SpoolId = SpoolId(*b"a spool of facts");
const FRAMES_MAX: u32 = 12;

/// The first octet chooses: the octets as a file, as a frame's body with a right checksum, or as the story of a file
/// that is written, then torn or damaged.
pub fn lease_spool(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    match choice % 4 {
        0 => {
            let _ = replay(rest);
        }
        1 => body(rest),
        _ => story(&mut Unstructured::new(rest)),
    }
}

/// A frame that nobody of ours wrote, but whole: it is read or refused, and what was read can be written again.
fn body(octets: &[u8]) {
    let mut file = encode_header(SPOOL, 1).to_vec();
    file.extend(frame(octets));
    let Ok(first) = replay(&file) else {
        return;
    };
    assert!(!first.torn && first.valid_bytes == file.len());
    let mut again = encode_header(SPOOL, first.incarnation).to_vec();
    let records: Vec<Record> = first.entries.iter().cloned().map(Record::Entry).collect();
    for records in records.chunks(FRAME_RECORDS_MAX) {
        encode_frame(SPOOL, records, &mut again);
    }
    let second = replay(&again).expect("we wrote it");
    let plain = |entries: &[Entry]| entries.iter().map(without_hostname).collect::<Vec<_>>();
    assert_eq!(plain(&first.entries), plain(&second.entries));
}

/// A frame around any octets, as the reader's module describes it.
fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a fuzzer's input is short");
    let mut hash = Sha256::new();
    hash.update(SPOOL.0);
    hash.update(length.to_be_bytes());
    hash.update(body);
    let sum = hash.finalize();
    [&b"FRM1"[..], &length.to_be_bytes(), &sum[..16], body].concat()
}

/// A host name that is no UTF-8, or too long, is mended as it is read.
fn without_hostname(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    if let WriteKind::Grant { hostname, .. } = &mut entry.write.kind {
        *hostname = "".into();
    }
    entry
}

// -------------------------------------------------------------------- a file that was written

/// The file after so many frames, and what it says then.
struct Written {
    bytes: usize,
    incarnation: u32,
    entries: BTreeMap<u64, Entry>,
}

fn story(input: &mut Unstructured<'_>) {
    let mut file = encode_header(SPOOL, 1).to_vec();
    let mut steps = vec![Written {
        bytes: file.len(),
        incarnation: 1,
        entries: BTreeMap::new(),
    }];
    let mut seq = first_seq(1);
    for _ in 0..pick(input, FRAMES_MAX) {
        let last = steps.last().expect("the header's");
        let (mut incarnation, mut entries) = (last.incarnation, last.entries.clone());
        let records: Vec<Record> = (0..1 + pick(input, 4))
            .map(|_| record(input, &mut seq, &mut incarnation, &mut entries))
            .collect();
        encode_frame(SPOOL, &records, &mut file);
        steps.push(Written {
            bytes: file.len(),
            incarnation,
            entries,
        });
    }
    let whole = replay(&file).expect("we wrote it");
    let last = steps.last().expect("the header's");
    assert!(!whole.torn && whole.incarnation == last.incarnation);
    assert!(whole.entries.iter().eq(last.entries.values()));
    assert_eq!((whole.spool_id, whole.valid_bytes), (SPOOL, file.len()));

    torn(input, &file, &steps);
    damaged(input, file, &steps);
}

/// The last write did not reach the disk whole: the frames before it say what they said.
fn torn(input: &mut Unstructured<'_>, file: &[u8], steps: &[Written]) {
    let length = pick(input, file.len() as u32 + 1) as usize;
    // What the file system left there instead.
    let junk = pick(input, 64) as usize;
    let junk = octets(input, junk);
    if junk.starts_with(b"FRM1") {
        return; // the story of a frame that somebody else wrote is `body`
    }
    let cut = [&file[..length], junk].concat();
    if length < HEADER_BYTES {
        assert!(replay(&cut).is_err() || cut.starts_with(&file[..HEADER_BYTES]));
        return;
    }
    let mut whole = steps.iter().filter(|step| step.bytes <= length);
    let step = whole.next_back().expect("the header is whole");
    let found = replay(&cut).expect("a torn end is cut off");
    // The junk may be what stood there anyway.
    let step = steps
        .iter()
        .rfind(|step| cut.starts_with(&file[..step.bytes]))
        .unwrap_or(step);
    assert_eq!(found.valid_bytes, step.bytes);
    assert_eq!(found.torn, cut.len() > step.bytes);
    assert_eq!(found.incarnation, step.incarnation);
    assert!(found.entries.iter().eq(step.entries.values()));
}

/// Octets in the middle are not what was written: it is said so, or what is told was true at some time.
fn damaged(input: &mut Unstructured<'_>, mut file: Vec<u8>, steps: &[Written]) {
    let before = file.clone();
    for _ in 0..1 + pick(input, 3) {
        let at = pick(input, file.len() as u32) as usize;
        file[at] ^= 1 << pick(input, 8);
    }
    if file == before {
        return;
    }
    let first = before
        .iter()
        .zip(&file)
        .position(|(before, after)| before != after)
        .expect("they differ");
    match replay(&file) {
        Ok(found) => {
            let step = steps
                .iter()
                .find(|step| step.bytes == found.valid_bytes)
                .expect("it ends with a frame");
            assert!(found.torn && found.valid_bytes <= first, "damage was read");
            assert!(found.entries.iter().eq(step.entries.values()));
        }
        Err(SpoolError::Damaged { offset }) => {
            let last = steps.last().expect("the header's").bytes;
            assert!(
                steps
                    .iter()
                    .any(|step| step.bytes == offset && offset < last)
            );
        }
        Err(error) => assert!(first < HEADER_BYTES, "{error}, but the header is whole"),
    }
}

fn record(
    input: &mut Unstructured<'_>,
    seq: &mut u64,
    incarnation: &mut u32,
    entries: &mut BTreeMap<u64, Entry>,
) -> Record {
    match pick(input, 8) {
        0 => {
            *incarnation += 1;
            *seq = first_seq(*incarnation);
            Record::Opened {
                incarnation: *incarnation,
            }
        }
        1 | 2 => {
            let some = pick(input, 4) as usize;
            let mut seqs: Vec<u64> = entries.keys().copied().take(some).collect();
            seqs.extend((pick(input, 4) == 0).then(|| input.arbitrary().unwrap_or(0)));
            for seq in &seqs {
                entries.remove(seq);
            }
            Record::Removed(seqs)
        }
        _ => {
            *seq += 1;
            let entry = Entry {
                seq: *seq,
                write: write(input),
            };
            entries.insert(*seq, entry.clone());
            Record::Entry(entry)
        }
    }
}

fn write(input: &mut Unstructured<'_>) -> Write {
    let address = input.arbitrary::<u128>().unwrap_or_default();
    let address = match pick(input, 3) {
        0 => IpAddr::V6(Ipv6Addr::from(address)).to_canonical(),
        _ => IpAddr::V4(Ipv4Addr::from(address as u32)), // the low octets
    };
    let length = Duration::from_millis(input.arbitrary().unwrap_or_default());
    let kind = match pick(input, 6) {
        0 => WriteKind::Extend {
            client: client(input),
            lease: length,
        },
        1 => WriteKind::Reclaim {
            client: client(input),
            silent: input.arbitrary().unwrap_or_default(),
        },
        2 => WriteKind::Quarantine { length },
        3 => WriteKind::Release {
            client: client(input),
        },
        4 => WriteKind::Yield,
        _ => WriteKind::Grant {
            client: client(input),
            lease: length,
            hostname: one_of(input, &["", "node-1", "näme"]).into(),
        },
    };
    Write {
        block: BlockId(input.arbitrary().unwrap_or_default()),
        epoch: Epoch(input.arbitrary().unwrap_or_default()),
        address,
        kind,
    }
}

fn client(input: &mut Unstructured<'_>) -> Client {
    let length = 1 + pick(input, 255) as usize;
    let key = match pick(input, 3) {
        0 => ClientKey::ClientId(octets(input, length).into()),
        1 => ClientKey::DuidIaid(octets(input, length).into()),
        _ => ClientKey::Mac(input.arbitrary().unwrap_or_default()),
    };
    Client {
        vlan: input.arbitrary().unwrap_or_default(),
        key,
    }
}
