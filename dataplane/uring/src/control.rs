//! Socket addresses and control messages as the kernel wants them, written and read as octets: no unsafe.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for a sockaddr_in6 (28), sockaddr_ll (20) or sockaddr_in (16).
pub(crate) const NAME_BYTES: usize = 32;
/// Room for packet information and auxiliary data when receiving.
pub(crate) const CONTROL_BYTES: usize = 64;
/// Room for packet information and a segment size when sending.
pub(crate) const SEND_CONTROL_BYTES: usize = 64;

const HEADER_BYTES: usize = size_of::<libc::cmsghdr>();
const ALIGN: usize = size_of::<usize>();

/// Octets aligned as a cmsghdr and a sockaddr have to be.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Aligned<const N: usize>(pub [u8; N]);

/// The address for a send through a socket of this family. An IPv6 socket takes IPv4 addresses mapped.
pub(crate) fn put_address(to: SocketAddr, ipv6: bool, name: &mut [u8; NAME_BYTES]) -> u32 {
    name.fill(0);
    match to {
        SocketAddr::V4(to) if !ipv6 => {
            name[0..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            name[2..4].copy_from_slice(&to.port().to_be_bytes());
            name[4..8].copy_from_slice(&to.ip().octets());
            16
        }
        to => {
            let (ip, scope) = match to {
                SocketAddr::V4(to) => (to.ip().to_ipv6_mapped(), 0),
                SocketAddr::V6(to) => (*to.ip(), to.scope_id()),
            };
            name[0..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            name[2..4].copy_from_slice(&to.port().to_be_bytes());
            name[8..24].copy_from_slice(&ip.octets());
            name[24..28].copy_from_slice(&scope.to_ne_bytes());
            28
        }
    }
}

/// A link-layer address for an IPv4 packet out of a device.
pub(crate) fn put_link_address(interface: u32, mac: [u8; 6], name: &mut [u8; NAME_BYTES]) -> u32 {
    name.fill(0);
    name[0..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    name[2..4].copy_from_slice(&(libc::ETH_P_IP as u16).to_be_bytes());
    name[4..8].copy_from_slice(&interface.to_ne_bytes());
    name[11] = 6; // sll_halen, behind sll_hatype and sll_pkttype
    name[12..18].copy_from_slice(&mac);
    20
}

/// The sender of a datagram; mapped addresses become IPv4.
pub(crate) fn get_address(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*name.first_chunk()?);
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    match i32::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = *name.get(4..)?.first_chunk()?;
            Some(SocketAddrV4::new(ip.into(), port).into())
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(*name.get(8..)?.first_chunk::<16>()?);
            let scope = u32::from_ne_bytes(*name.get(24..)?.first_chunk()?);
            match ip.to_ipv4_mapped() {
                Some(ip) => Some(SocketAddrV4::new(ip, port).into()),
                None => Some(SocketAddrV6::new(ip, port, 0, scope).into()),
            }
        }
        _ => None,
    }
}

/// The Ethernet address that a frame came from; None where the device has no Ethernet addresses.
pub(crate) fn get_link_address(name: &[u8]) -> Option<[u8; 6]> {
    let half = |at: usize| Some(u16::from_ne_bytes(*name.get(at..)?.first_chunk()?));
    let is_ethernet = half(0)? == libc::AF_PACKET as u16
        && half(8)? == libc::ARPHRD_ETHER // sll_hatype
        && *name.get(11)? == 6; // sll_halen
    is_ethernet.then(|| name.get(12..)?.first_chunk().copied())?
}

/// What a received datagram's control messages say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// Our address, and the device.
    pub local: Option<(IpAddr, u32)>,
    /// TP_STATUS_CSUMNOTREADY.
    pub checksum_missing: bool,
    /// An 802.1Q tag with a VLAN id other than 0.
    pub tagged: bool,
}

impl Received {
    pub fn parse(mut control: &[u8]) -> Self {
        let mut received = Self::default();
        while let Some((level, kind, data, rest)) = next(control) {
            control = rest;
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // in_pktinfo: ifindex, spec_dst, addr. `addr` is the header's, `spec_dst` ours (not the broadcast
                    // address); replies leave from ours.
                    if let (Some(index), Some(local), Some(target)) = (
                        data.get(0..4).and_then(|octets| octets.first_chunk()),
                        data.get(4..8).and_then(|octets| octets.first_chunk::<4>()),
                        data.get(8..12).and_then(|octets| octets.first_chunk::<4>()),
                    ) {
                        let target = Ipv4Addr::from(*target);
                        let local = if target.is_broadcast() {
                            target
                        } else {
                            (*local).into()
                        };
                        received.local = Some((local.into(), u32::from_ne_bytes(*index)));
                    }
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    // in6_pktinfo: addr, ifindex.
                    if let (Some(local), Some(index)) = (
                        data.first_chunk::<16>(),
                        data.get(16..20).and_then(|octets| octets.first_chunk()),
                    ) {
                        let local = Ipv6Addr::from(*local);
                        let local = IpAddr::V6(local).to_canonical();
                        received.local = Some((local, u32::from_ne_bytes(*index)));
                    }
                }
                (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                    // tpacket_auxdata: status, len, snaplen (u32), mac, net, vlan_tci, vlan_tpid (u16).
                    let word =
                        |at: usize| data.get(at..at + 4).and_then(|octets| octets.first_chunk());
                    if let Some(status) = word(0).map(|octets| u32::from_ne_bytes(*octets)) {
                        received.checksum_missing = status & libc::TP_STATUS_CSUMNOTREADY != 0;
                        let tci = data
                            .get(16..18)
                            .and_then(|octets| octets.first_chunk::<2>());
                        let vid = tci.map_or(0, |octets| u16::from_ne_bytes(*octets) & 0x0fff);
                        received.tagged = status & libc::TP_STATUS_VLAN_VALID != 0 && vid != 0;
                    }
                }
                _ => {}
            }
        }
        received
    }
}

/// The first control message: (level, type, data, the rest).
fn next(control: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let length = usize::from_ne_bytes(*control.first_chunk()?);
    let level = i32::from_ne_bytes(*control.get(ALIGN..)?.first_chunk()?);
    let kind = i32::from_ne_bytes(*control.get(ALIGN + 4..)?.first_chunk()?);
    let data = control.get(HEADER_BYTES..length)?;
    let rest = control.get(length.next_multiple_of(ALIGN)..).unwrap_or(&[]);
    Some((level, kind, data, rest))
}

/// Control messages being written.
pub(crate) struct ControlWriter<'a> {
    out: &'a mut [u8; SEND_CONTROL_BYTES],
    length: usize,
}

impl<'a> ControlWriter<'a> {
    pub fn new(out: &'a mut [u8; SEND_CONTROL_BYTES]) -> Self {
        out.fill(0);
        Self { out, length: 0 }
    }

    /// Leave from this address, through a socket of this family. Nothing for an unspecified one: the kernel chooses.
    pub fn source(&mut self, from: IpAddr, ipv6: bool, scope: u32) {
        if from.is_unspecified() {
            return;
        }
        match from {
            IpAddr::V4(from) if !ipv6 => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&from.octets());
                self.put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            from => {
                let from = match from {
                    IpAddr::V4(from) => from.to_ipv6_mapped(),
                    IpAddr::V6(from) => from,
                };
                let mut info = [0; 20];
                info[..16].copy_from_slice(&from.octets());
                info[16..].copy_from_slice(&scope.to_ne_bytes());
                self.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// Cut the payload into datagrams of this size (UDP_SEGMENT).
    pub fn segment(&mut self, bytes: u16) {
        self.put(libc::SOL_UDP, libc::UDP_SEGMENT, &bytes.to_ne_bytes());
    }

    fn put(&mut self, level: i32, kind: i32, data: &[u8]) {
        let start = self.length;
        let length = HEADER_BYTES + data.len();
        let end = start + length.next_multiple_of(ALIGN);
        assert!(
            end <= SEND_CONTROL_BYTES,
            "one source (40) and one segment size (24) fit"
        );
        self.out[start..start + ALIGN].copy_from_slice(&length.to_ne_bytes());
        self.out[start + ALIGN..start + ALIGN + 4].copy_from_slice(&level.to_ne_bytes());
        self.out[start + ALIGN + 4..start + HEADER_BYTES].copy_from_slice(&kind.to_ne_bytes());
        self.out[start + HEADER_BYTES..start + length].copy_from_slice(data);
        self.length = end;
    }

    pub fn finish(self) -> usize {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back() {
        let cases: [(SocketAddr, bool, u32); 4] = [
            ("10.0.0.9:2070".parse().unwrap(), false, 16),
            ("10.0.0.9:2070".parse().unwrap(), true, 28),
            ("[fd99::1]:69".parse().unwrap(), true, 28),
            (
                SocketAddrV6::new("fe80::1".parse().unwrap(), 69, 0, 7).into(),
                true,
                28,
            ),
        ];
        for (address, ipv6, length) in cases {
            let mut name = [0xff; NAME_BYTES];
            assert_eq!(put_address(address, ipv6, &mut name), length);
            assert_eq!(get_address(&name[..length as usize]), Some(address));
            for cut in 0..length as usize - 8 {
                assert!(get_address(&name[..cut]).is_none_or(|_| cut >= 8));
            }
        }
    }

    #[test]
    fn a_frames_sender_is_read_where_it_is_an_ethernet_address() {
        let mac = [0x52, 0x54, 0, 0, 1, 5];
        let mut name = [0; NAME_BYTES];
        let length = put_link_address(7, mac, &mut name) as usize;
        name[8..10].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        assert_eq!(get_link_address(&name[..length]), Some(mac));
        for cut in 0..18 {
            assert_eq!(get_link_address(&name[..cut]), None, "{cut}");
        }
        // InfiniBand has 20 octets, of which this is no Ethernet address.
        for (at, octet) in [(8, 32), (11, 20), (11, 0), (0, libc::AF_INET as u8)] {
            let mut other = name;
            other[at] = octet;
            assert_eq!(get_link_address(&other), None, "octet {at}");
        }
    }

    #[test]
    fn control_messages() {
        let mut out = [0; SEND_CONTROL_BYTES];
        let mut writer = ControlWriter::new(&mut out);
        writer.source([10, 0, 0, 1].into(), true, 0);
        writer.segment(1472);
        let length = writer.finish();
        assert_eq!(length, 64);
        let received = Received::parse(&out[..length]);
        assert_eq!(received.local, Some(([10, 0, 0, 1].into(), 0)));

        let mut info = [0u8; 12];
        info[..4].copy_from_slice(&3u32.to_ne_bytes());
        info[4..8].copy_from_slice(&[10, 0, 0, 1]);
        for (target, want) in [([10, 0, 0, 255], [10, 0, 0, 1]), ([255; 4], [255; 4])] {
            info[8..].copy_from_slice(&target);
            let mut out = [0; SEND_CONTROL_BYTES];
            let mut writer = ControlWriter::new(&mut out);
            writer.put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            let length = writer.finish();
            let received = Received::parse(&out[..length]);
            assert_eq!(received.local, Some((want.into(), 3)));
        }

        let mut auxiliary = [0u8; 20];
        let status = libc::TP_STATUS_CSUMNOTREADY | libc::TP_STATUS_VLAN_VALID;
        auxiliary[..4].copy_from_slice(&status.to_ne_bytes());
        for (tci, tagged) in [(0xe000u16, false), (0x2064, true)] {
            auxiliary[16..18].copy_from_slice(&tci.to_ne_bytes());
            let mut out = [0; SEND_CONTROL_BYTES];
            let mut writer = ControlWriter::new(&mut out);
            writer.put(libc::SOL_PACKET, libc::PACKET_AUXDATA, &auxiliary);
            let length = writer.finish();
            let want = Received {
                local: None,
                checksum_missing: true,
                tagged,
            };
            assert_eq!(Received::parse(&out[..length]), want);
        }
    }

    #[test]
    fn any_control_octets_end() {
        for length in 0..64 {
            for fill in [0, 1, 7, 16, 24, 0xff] {
                let _ = Received::parse(&vec![fill; length]);
            }
        }
    }
}
