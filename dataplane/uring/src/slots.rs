//! Send slots: everything the kernel reads while a datagram is on its way, in one place that never moves.
//!
//! A slot is free, or in flight from its submission to its completion. Only free slots are written.

use std::net::IpAddr;

use shard::{Target, Train};

use crate::control::{
    Aligned, ControlWriter, NAME_BYTES, SEND_CONTROL_BYTES, put_address, put_link_address,
};

/// What SENDMSG points at. `header` points into the same slot and into its octets.
struct Slot {
    header: libc::msghdr,
    vector: libc::iovec,
    name: Aligned<NAME_BYTES>,
    control: Aligned<SEND_CONTROL_BYTES>,
    octets: Box<[u8]>,
    /// Octets of the message, and of each datagram of it.
    bytes: usize,
    segment_bytes: usize,
    /// Which transfer port it leaves from, if it is TFTP's.
    tid: u16,
    in_flight: bool,
}

/// Slots of one size.
pub(crate) struct Slots {
    /// Boxed, never resized: the addresses of the slots and of their octets are fixed.
    all: Box<[Slot]>,
    free: Vec<u32>,
    slot_bytes: usize,
}

impl Slots {
    pub fn new(count: u32, slot_bytes: usize) -> Self {
        let slot = || Slot {
            header: libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: std::ptr::null_mut(),
                msg_iovlen: 0,
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
            vector: libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            },
            name: Aligned([0; NAME_BYTES]),
            control: Aligned([0; SEND_CONTROL_BYTES]),
            octets: vec![0; slot_bytes].into(),
            bytes: 0,
            segment_bytes: 0,
            tid: 0,
            in_flight: false,
        };
        Self {
            all: (0..count).map(|_| slot()).collect(),
            free: (0..count).rev().collect(),
            slot_bytes,
        }
    }

    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    pub fn in_flight_count(&self) -> usize {
        self.all.len() - self.free.len()
    }

    /// Writes a message into a free slot and marks it in flight. `None`: no slot is free.
    ///
    /// `ipv6`: the family of the socket; `trains`: the kernel may be asked to cut it up.
    pub fn fill(
        &mut self,
        target: &Target,
        ipv6: bool,
        train: Train,
        trains: bool,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Option<u32> {
        if train.bytes > self.slot_bytes {
            return None;
        }
        let index = self.free.pop()?;
        let slot = &mut self.all[index as usize];
        assert!(!slot.in_flight, "free slots are not in flight");
        slot.in_flight = true;
        slot.bytes = train.bytes;
        slot.segment_bytes = train.segment_bytes.max(1);
        fill(&mut slot.octets[..train.bytes]);
        let mut control = ControlWriter::new(&mut slot.control.0);
        let name_bytes = match *target {
            Target::Frame { interface, mac } => put_link_address(interface, mac, &mut slot.name.0),
            Target::Dhcp { from, to } | Target::ProxyDhcp { from, to } => {
                control.source(IpAddr::V4(from), ipv6, 0);
                put_address(to.into(), ipv6, &mut slot.name.0)
            }
            Target::Tftp { from, to, tid } => {
                slot.tid = tid;
                let scope = match to {
                    std::net::SocketAddr::V6(to) => to.scope_id(),
                    std::net::SocketAddr::V4(_) => 0,
                };
                control.source(from, ipv6, scope);
                put_address(to, ipv6, &mut slot.name.0)
            }
        };
        if trains && train.bytes > train.segment_bytes {
            // Checked by `fill`'s caller: a segment fits 16 bits.
            control.segment(train.segment_bytes as u16);
        }
        let control_bytes = control.finish();
        slot.vector.iov_base = slot.octets.as_mut_ptr().cast();
        slot.vector.iov_len = train.bytes;
        slot.header.msg_name = slot.name.0.as_mut_ptr().cast();
        slot.header.msg_namelen = name_bytes;
        slot.header.msg_iov = &raw mut slot.vector;
        slot.header.msg_iovlen = 1;
        slot.header.msg_control = match control_bytes {
            0 => std::ptr::null_mut(),
            _ => slot.control.0.as_mut_ptr().cast(),
        };
        slot.header.msg_controllen = control_bytes;
        Some(index)
    }

    /// The message of a slot, for SENDMSG. Valid until the slot is freed and filled again.
    pub fn header(&self, index: u32) -> *const libc::msghdr {
        &raw const self.all[index as usize].header
    }

    /// Whether the slot holds more than one datagram.
    pub fn is_train(&self, index: u32) -> bool {
        let slot = &self.all[index as usize];
        slot.bytes > slot.segment_bytes
    }

    /// How many datagrams the slot holds.
    pub fn segments(&self, index: u32) -> usize {
        let slot = &self.all[index as usize];
        slot.bytes.div_ceil(slot.segment_bytes)
    }

    /// The transfer port that a train leaves from.
    pub fn tid(&self, index: u32) -> usize {
        usize::from(self.all[index as usize].tid)
    }

    /// The completion came, or the slot was never submitted.
    pub fn free(&mut self, index: u32) {
        let Some(slot) = self
            .all
            .get_mut(index as usize)
            .filter(|slot| slot.in_flight)
        else {
            return;
        };
        slot.in_flight = false;
        self.free.push(index);
    }

    /// Sends the slot's datagrams one by one, now, without waiting: for paths that do not take trains. The slot must
    /// not be with the kernel. Returns how many left.
    pub fn send_split(&mut self, index: u32, socket: std::os::fd::RawFd) -> usize {
        let slot = &mut self.all[index as usize];
        // Without the segment size, which is the last control message if there is one.
        let mut header = slot.header;
        let source_bytes = first_message_bytes(&slot.control.0, header.msg_controllen);
        header.msg_controllen = source_bytes;
        let mut sent = 0;
        for segment in slot.octets[..slot.bytes].chunks_mut(slot.segment_bytes) {
            let mut vector = libc::iovec {
                iov_base: segment.as_mut_ptr().cast(),
                iov_len: segment.len(),
            };
            header.msg_iov = &raw mut vector;
            // SAFETY: `header` points at the slot's name and control, which live as long as `slot` is borrowed, and at
            // `vector`, which outlives the call; sendmsg only reads them. A bad descriptor is an error, no harm.
            let result = unsafe {
                libc::sendmsg(
                    socket,
                    &raw const header,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            sent += usize::from(result >= 0);
        }
        sent
    }
}

/// Length of the first control message if that is a source address, else 0.
fn first_message_bytes(control: &[u8], used: usize) -> usize {
    let word = |at: usize| {
        control
            .get(at..at + 4)
            .and_then(|octets| octets.first_chunk::<4>())
    };
    let Some(level) = word(size_of::<usize>()).map(|octets| i32::from_ne_bytes(*octets)) else {
        return 0;
    };
    if used == 0 || level == libc::SOL_UDP {
        return 0;
    }
    let length = control
        .first_chunk()
        .map_or(0, |octets| usize::from_ne_bytes(*octets));
    length.next_multiple_of(size_of::<usize>()).min(used)
}
