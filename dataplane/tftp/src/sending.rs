//! Octets of transfers into the host's send slots.

use wire::tftp::{
    CONTROL_BYTES_MAX, DATA_HEADER_BYTES, ErrorCode, emit_data_header, emit_error, emit_oack,
};

use crate::host::{Host, NoSlot, Peer, Train};
use crate::server::Transfer;

pub(crate) fn send_oack(transfer: &Transfer, host: &mut impl Host) -> Result<(), NoSlot> {
    let mut out = [0; CONTROL_BYTES_MAX];
    let length = emit_oack(&transfer.oack, &mut out).expect("four options with decimal values fit");
    send_one(&transfer.peer, transfer.tid, &out[..length], host)
}

/// Tells the client; if no slot is free it will find out by its own timeout.
pub(crate) fn send_error(
    peer: &Peer,
    tid: u16,
    code: ErrorCode,
    message: &str,
    host: &mut impl Host,
) {
    let mut out = [0; 64];
    let length = emit_error(code, message, &mut out).expect("our messages are short");
    let _ = send_one(peer, tid, &out[..length], host);
}

fn send_one(peer: &Peer, tid: u16, octets: &[u8], host: &mut impl Host) -> Result<(), NoSlot> {
    let train = Train {
        bytes: octets.len(),
        segment_bytes: octets.len(),
    };
    host.send(peer, tid, train, &mut |slot| slot.copy_from_slice(octets))
}

/// Sends DATA `first..=last` in trains; `Err` holds the first block that found no slot.
pub(crate) fn send_blocks(
    transfer: &mut Transfer,
    first: u64,
    last: u64,
    train_bytes_max: usize,
    host: &mut impl Host,
) -> Result<(), u64> {
    let block_bytes = usize::from(transfer.terms.block_bytes);
    let segment_bytes = DATA_HEADER_BYTES + block_bytes;
    let train_blocks = (train_bytes_max / segment_bytes).max(1) as u64;
    let mut block = first;
    while block <= last {
        let train_last = last.min(block + train_blocks - 1);
        let (start, _) = block_range(transfer, block);
        let (_, end) = block_range(transfer, train_last);
        let headers = (train_last - block + 1) as usize * DATA_HEADER_BYTES;
        let train = Train {
            bytes: headers + (end - start),
            segment_bytes,
        };
        let kept = transfer.session.acked() + 1;
        let mut reader = transfer
            .content
            .reader(kept, block, transfer.terms.block_bytes);
        let sent = host.send(&transfer.peer, transfer.tid, train, &mut |slot| {
            for (number, segment) in (block..=train_last).zip(slot.chunks_mut(segment_bytes)) {
                let (header, payload) = segment
                    .split_first_chunk_mut::<DATA_HEADER_BYTES>()
                    .expect("every segment of the train has a header");
                emit_data_header(number as u16, header); // the wire carries the low 16 bits
                reader.read(payload);
            }
        });
        if sent.is_err() {
            return Err(block);
        }
        block = train_last + 1;
    }
    Ok(())
}

/// Where block `number` (from 1) lies among the octets that are sent.
fn block_range(transfer: &Transfer, number: u64) -> (usize, usize) {
    let block_bytes = usize::from(transfer.terms.block_bytes);
    let start = (number - 1) as usize * block_bytes;
    let end = transfer.content.bytes() as usize; // of what lies in memory
    (start, end.min(start + block_bytes))
}
