//! Which DHCP packets are whose: classic BPF for the packet sockets, the UDP 67 sockets and both groups.
//!
//! Without relay (giaddr 0), a broadcast and whatever comes from a client without address (ciaddr 0) are the packet
//! socket's, which sees the Ethernet source; relays' messages and renewals by unicast are UDP's. Both sides ask the same
//! question, so that no packet is served twice and none is missed. An IPv4 header with options is UDP's whatever it
//! carries; what comes so and should have come in a frame is not believed (`dhcp::Sender`). Among the shards the hash of
//! chaddr decides: the formula is `dhcp::shard_of_mac`, and an index is an order of joining.
//!
//! | where                        | data begins at | program returns               |
//! |------------------------------|----------------|-------------------------------|
//! | AF_PACKET, SO_ATTACH_FILTER  | IPv4 header    | whole packet, or 0: not ours  |
//! | AF_PACKET, fanout            | (network offset) | index of the socket         |
//! | UDP, SO_ATTACH_FILTER        | UDP header     | whole packet, or 0: not ours  |
//! | UDP, reuseport               | UDP payload    | index of the socket           |
//!
//! A broadcast reaches *every* socket of a reuseport group, so there the filter must know its own index; a unicast is
//! given to one by the group's program, and that one's filter must agree. Measured: exactly one each.

use libc::sock_filter;

const UDP_HEADER: u32 = 8;
const IPV4_HEADER: u32 = 20;
/// Offsets in a DHCP message (RFC 2131 figure 1).
const CIADDR: u32 = 12;
const GIADDR: u32 = 24;
/// The last four octets of an Ethernet chaddr.
const CHADDR_TAIL: u32 = 30;

/// `SKF_NET_OFF`, `SKF_AD_OFF`, `SKF_AD_PKTTYPE` of linux/filter.h.
const NETWORK: u32 = 0xfff0_0000;
const PACKET_TYPE: u32 = 0xffff_f000 + 4;
const PACKET_HOST: u32 = 0;
const PACKET_BROADCAST: u32 = 1;
const VERSION_4_NO_OPTIONS: u32 = 0x45;

const WHOLE_PACKET: u32 = 0xffff;

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_OCTET: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const MULTIPLY: u16 = (libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K) as u16;
const SHIFT_RIGHT: u16 = (libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K) as u16;
const MODULO: u16 = (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const RETURN_RESULT: u16 = (libc::BPF_RET | libc::BPF_A) as u16;

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// `yes` and `no`: steps to skip.
fn test(code: u16, k: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter {
        code,
        jt: yes,
        jf: no,
        k,
    }
}

/// The shard of a message whose chaddr tail is at this offset.
fn hash(offset: u32, shards: u32) -> [sock_filter; 4] {
    [
        step(LOAD_WORD, offset),
        step(MULTIPLY, 2_654_435_761),
        step(SHIFT_RIGHT, 24),
        step(MODULO, shards.max(1)),
    ]
}

/// For a packet socket: DHCP without relay, by broadcast or from a client without address, in one piece.
pub(crate) fn link_filter() -> Vec<sock_filter> {
    vec![
        step(LOAD_OCTET, 0),
        test(IF_EQUAL, VERSION_4_NO_OPTIONS, 0, 14),
        step(LOAD_OCTET, 9),
        test(IF_EQUAL, libc::IPPROTO_UDP as u32, 0, 12),
        step(LOAD_HALF, 6),
        test(IF_ANY_BIT, 0x3fff, 10, 0), // more fragments, or an offset
        step(LOAD_HALF, IPV4_HEADER + 2),
        test(IF_EQUAL, 67, 0, 8),
        step(LOAD_WORD, IPV4_HEADER + UDP_HEADER + GIADDR),
        test(IF_EQUAL, 0, 0, 6),
        step(LOAD_WORD, PACKET_TYPE),
        test(IF_EQUAL, PACKET_BROADCAST, 3, 0),
        test(IF_EQUAL, PACKET_HOST, 0, 3),
        step(LOAD_WORD, IPV4_HEADER + UDP_HEADER + CIADDR),
        test(IF_EQUAL, 0, 0, 1),
        step(RETURN, WHOLE_PACKET),
        step(RETURN, 0),
    ]
}

/// For the fanout group of packet sockets.
pub(crate) fn link_fanout(shards: u32) -> Vec<sock_filter> {
    let mut program = hash(NETWORK + IPV4_HEADER + UDP_HEADER + CHADDR_TAIL, shards).to_vec();
    program.push(step(RETURN_RESULT, 0));
    program
}

/// For the UDP socket of one shard: its own messages, without those that the packet sockets take.
pub(crate) fn udp_filter(shard: u32, shards: u32) -> Vec<sock_filter> {
    let mut program = vec![
        step(LOAD_WORD, UDP_HEADER + GIADDR),
        test(IF_EQUAL, 0, 0, 6),
        step(LOAD_WORD, PACKET_TYPE),
        test(IF_EQUAL, PACKET_BROADCAST, 2, 0),
        step(LOAD_WORD, UDP_HEADER + CIADDR),
        test(IF_EQUAL, 0, 0, 2),
        step(LOAD_OCTET, NETWORK),
        test(IF_EQUAL, VERSION_4_NO_OPTIONS, 6, 0),
    ];
    program.extend(hash(UDP_HEADER + CHADDR_TAIL, shards));
    program.extend([
        test(IF_EQUAL, shard, 0, 1),
        step(RETURN, WHOLE_PACKET),
        step(RETURN, 0),
    ]);
    program
}

/// For the reuseport group of UDP sockets.
pub(crate) fn udp_group(shards: u32) -> Vec<sock_filter> {
    let mut program = hash(CHADDR_TAIL, shards).to_vec();
    program.push(step(RETURN_RESULT, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, over data from `start` on. `network` is where the IPv4 header begins.
    fn run(program: &[sock_filter], packet: &[u8], start: usize, network: usize, kind: u32) -> u32 {
        let (mut at, mut a) = (0, 0u32);
        loop {
            let instruction = program[at];
            at += 1;
            let k = instruction.k;
            let load = |width: usize| -> Option<u32> {
                if k == PACKET_TYPE {
                    return Some(kind);
                }
                let from = if k >= NETWORK {
                    network + (k - NETWORK) as usize
                } else {
                    start + k as usize
                };
                let octets = packet.get(from..from + width)?;
                Some(
                    octets
                        .iter()
                        .fold(0, |number, octet| number << 8 | u32::from(*octet)),
                )
            };
            let loaded = match instruction.code {
                LOAD_WORD => Some(load(4)),
                LOAD_HALF => Some(load(2)),
                LOAD_OCTET => Some(load(1)),
                _ => None,
            };
            match (loaded, instruction.code) {
                (Some(Some(value)), _) => a = value,
                (Some(None), _) => return 0, // beyond the packet
                (None, IF_EQUAL) => {
                    at += usize::from(if a == k {
                        instruction.jt
                    } else {
                        instruction.jf
                    });
                }
                (None, IF_ANY_BIT) => {
                    at += usize::from(if a & k != 0 {
                        instruction.jt
                    } else {
                        instruction.jf
                    });
                }
                (None, MULTIPLY) => a = a.wrapping_mul(k),
                (None, SHIFT_RIGHT) => a >>= k,
                (None, MODULO) => a %= k,
                (None, RETURN) => return k,
                (None, RETURN_RESULT) => return a,
                (None, other) => panic!("opcode {other:#x}"),
            }
        }
    }

    /// IPv4 + UDP + DHCP.
    fn packet(giaddr: [u8; 4], mac: [u8; 6], port: u16) -> Vec<u8> {
        let mut octets = vec![0; 28 + 240];
        octets[0] = 0x45;
        octets[9] = 17;
        octets[22..24].copy_from_slice(&port.to_be_bytes());
        octets[28 + 24..28 + 28].copy_from_slice(&giaddr);
        // As if it renewed.
        octets[28 + 12..28 + 16].copy_from_slice(&[10, 0, 0, 9]);
        octets[28 + 28..28 + 34].copy_from_slice(&mac);
        octets
    }

    fn link_takes(packet: &[u8], kind: u32) -> bool {
        run(&link_filter(), packet, 0, 0, kind) > 0
    }

    fn udp_takes(packet: &[u8], kind: u32) -> bool {
        run(&udp_filter(0, 1), packet, 20, 0, kind) > 0
    }

    #[test]
    fn every_message_is_taken_by_one_side() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let mut with_options = packet([0; 4], mac, 67);
        with_options[0] = 0x46;
        with_options.splice(20..20, [1, 1, 1, 0]);
        assert!(!link_takes(&with_options, 1));
        assert!(run(&udp_filter(0, 1), &with_options, 24, 0, 1) > 0);

        let new = |relay: [u8; 4]| {
            let mut octets = packet(relay, mac, 67);
            octets[28 + 12..28 + 16].fill(0);
            octets
        };
        let relayed = [10, 0, 0, 1];
        let cases = [
            // case                 packet                     pkttype link   udp
            ("broadcast", packet([0; 4], mac, 67), 1, true, false),
            ("renewal", packet([0; 4], mac, 67), 0, false, true),
            ("new, by broadcast", new([0; 4]), 1, true, false),
            ("new, by unicast", new([0; 4]), 0, true, false),
            ("new, through a relay", new(relayed), 0, false, true),
            ("relay", packet(relayed, mac, 67), 0, false, true),
            (
                "relay by broadcast",
                packet(relayed, mac, 67),
                1,
                false,
                true,
            ),
        ];
        for (case, octets, kind, link, udp) in cases {
            assert_eq!(
                (link_takes(&octets, kind), udp_takes(&octets, kind)),
                (link, udp),
                "{case}"
            );
        }
    }

    #[test]
    fn packet_sockets_leave_the_rest_alone() {
        let good = packet([0; 4], [2, 0, 0, 0, 0, 1], 67);
        assert!(link_takes(&good, 1));
        let spoiled = |at: usize, octet: u8| {
            let mut octets = good.clone();
            octets[at] = octet;
            octets
        };
        assert!(!link_takes(&good, 3), "for another host");
        for (case, octets) in [
            ("ipv6", spoiled(0, 0x60)),
            ("tcp", spoiled(9, 6)),
            ("first fragment", spoiled(6, 0x20)),
            ("later fragment", spoiled(7, 1)),
            ("port 68", packet([0; 4], [2, 0, 0, 0, 0, 1], 68)),
            ("short", good[..50].to_vec()),
            ("empty", Vec::new()),
        ] {
            assert!(!link_takes(&octets, 1), "{case}");
        }
        // Do-not-fragment is no fragment.
        assert!(link_takes(&spoiled(6, 0x40), 1));
    }

    #[test]
    fn all_four_programs_name_the_same_shard() {
        for shards in [1, 2, 3, 4, 7, 64] {
            let mut seen = vec![0; shards as usize];
            for number in 0..500u32 {
                let [a, b, c, d] = number.wrapping_mul(2_246_822_519).to_be_bytes();
                let mac = [0x52, 0x54, a, b, c, d];
                let octets = packet([10, 0, 0, 1], mac, 67);
                let want = dhcp::shard_of_mac(wire::ethernet::Mac(mac), shards);
                seen[want as usize] += 1;
                // SKF_NET_OFF counts from the network header whatever the data begins at.
                assert_eq!(run(&link_fanout(shards), &octets, 0, 0, 1), want);
                assert_eq!(run(&udp_group(shards), &octets, 28, 0, 0), want);
                for shard in 0..shards {
                    let takes = run(&udp_filter(shard, shards), &octets, 20, 0, 1) > 0;
                    assert_eq!(takes, shard == want, "{shard} of {shards}");
                }
            }
            assert!(
                seen.iter().all(|count| *count > 0 || shards > 32),
                "{seen:?}"
            );
        }
    }
}
