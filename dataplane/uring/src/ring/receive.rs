//! What comes in: datagrams out of their buffers, and connections.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use io_uring::types::RecvMsgOut;
use shard::{Buffer, Completion, Datagram, Ends, Service};

use super::{Ring, SET_DHCP, SET_TFTP};
use crate::buffers::Buffers;
use crate::control::{Received, get_address, get_link_address};
use crate::queue::Reaped;

impl Ring {
    pub(super) fn on_datagram(&mut self, reaped: Reaped, done: &mut Vec<Completion>) {
        let Some(socket) = self.sockets.get_mut(reaped.index as usize) else {
            return;
        };
        let (service, interface) = (socket.service, socket.interface);
        if reaped.result >= 0 {
            socket.retry.succeeded();
        } else if !matches!(-reaped.result, libc::ENOBUFS | libc::ECANCELED) {
            // ENETDOWN: the device went down. Whatever it is, it may be so again at once.
            self.counters.arms_failed += 1;
            socket.retry.failed(self.now);
        }
        if !reaped.goes_on() {
            socket.armed = false;
            if socket.leaving {
                self.sockets.remove(reaped.index as usize);
            } else {
                self.unarmed.push(reaped.index);
            }
        }
        let set_index = match service {
            Service::DhcpFrame | Service::Dhcp | Service::ProxyDhcp => SET_DHCP,
            Service::TftpRequest | Service::TftpTransfer(_) => SET_TFTP,
        };
        let memory = &mut *self.memory;
        let set = &mut memory.sets[set_index];
        let Some(index) = reaped.buffer() else {
            if reaped.result == -libc::ENOBUFS {
                self.counters.buffers_exhausted += 1;
            }
            return;
        };
        set.take(index);
        let datagram = read_datagram(
            set,
            index,
            reaped.result,
            &memory.template,
            service,
            interface,
        );
        match datagram {
            Ok(datagram) => {
                self.counters.datagrams_received += 1;
                done.push(Completion::Datagram(datagram));
            }
            Err(unusable) => {
                match unusable {
                    Unusable::Tagged => self.counters.frames_tagged += 1,
                    Unusable::Incomplete => self.counters.datagrams_unusable += 1,
                }
                set.give_back(index);
            }
        }
    }

    pub(super) fn on_accept(&mut self, reaped: Reaped, done: &mut Vec<Completion>) {
        if let Some(listener) = &mut self.listener
            && !reaped.goes_on()
        {
            listener.armed = false;
            if listener.leaving {
                self.listener = None;
            }
        }
        if let Some(listener) = &mut self.listener {
            if reaped.result >= 0 {
                listener.retry.succeeded();
            } else {
                // ECONNABORTED: that client is gone. EMFILE, ENFILE, ENOMEM: it will not be better at once.
                listener.retry.failed(self.now);
            }
        }
        if reaped.result < 0 {
            if reaped.result != -libc::ECANCELED {
                self.counters.accept_failed += 1;
            }
            return;
        }
        let fd = crate::streams::adopt(reaped.result);
        let frame = crate::sockets::opened_by(&fd);
        if let Some((stream, peer, local)) = self.memory.streams.insert(fd, &mut self.queue) {
            self.counters.accepted += 1;
            done.push(Completion::Accepted {
                stream,
                ends: Ends { peer, local, frame },
            });
        }
    }
}

enum Unusable {
    Tagged,
    Incomplete,
}

/// The datagram in a buffer just taken.
fn read_datagram(
    set: &Buffers,
    index: u16,
    result: i32,
    template: &libc::msghdr,
    service: Service,
    interface: u32,
) -> Result<Datagram, Unusable> {
    let filled = usize::try_from(result).map_err(|_| Unusable::Incomplete)?;
    let octets = set.bytes(index).get(..filled).ok_or(Unusable::Incomplete)?;
    let out = RecvMsgOut::parse(octets, template).map_err(|()| Unusable::Incomplete)?;
    if out.is_payload_truncated() || out.is_control_data_truncated() {
        return Err(Unusable::Incomplete);
    }
    let start = out.payload_data().as_ptr() as usize - octets.as_ptr() as usize;
    let buffer = |set: u16| Buffer {
        set,
        index,
        start: start as u32,
        length: out.payload_data().len() as u32,
    };
    let received = Received::parse(out.control_data());
    if service == Service::DhcpFrame {
        if received.tagged {
            return Err(Unusable::Tagged);
        }
        return Ok(Datagram {
            service,
            from: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            local: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            interface,
            ethernet: get_link_address(out.name_data()),
            checksum_missing: received.checksum_missing,
            buffer: buffer(set.group()),
        });
    }
    let from = get_address(out.name_data()).ok_or(Unusable::Incomplete)?;
    let (local, interface) = received.local.ok_or(Unusable::Incomplete)?;
    Ok(Datagram {
        service,
        from,
        local,
        interface,
        ethernet: None,
        checksum_missing: false,
        buffer: buffer(set.group()),
    })
}
